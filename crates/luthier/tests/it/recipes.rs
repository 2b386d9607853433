//! Recipes: those of the repository are readable, misspelt keys are refused, chains skip what is done.

use std::path::Path;

use luthier_train::Recipe;
use tempfile::tempdir;

use crate::{json, refusal};

#[test]
fn every_training_recipe_of_the_repository_is_valid() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes");
    for name in ["builtin.yaml", "adapt-smollm2-train.yaml"] {
        let recipe: Recipe = luthier::recipe::from_file(&folder.join(name)).unwrap();
        recipe.resolved().unwrap();
    }
}

#[test]
fn a_misspelt_key_is_refused_with_the_nearest_known_one() {
    let at = tempdir().unwrap();
    let recipe =
        "model: builtin\nout: run\ndata: {train: [a.txt]}\nobjective: next-token\nsequence_lenght: 8\n";
    std::fs::write(at.path().join("recipe.yaml"), recipe).unwrap();
    let said = refusal(at.path(), &["pretrain", "recipe.yaml"]);
    assert!(said.contains("did you mean sequence_length?"), "{said}");
    assert!(!at.path().join("run").exists());
}

#[test]
fn a_chain_skips_what_is_done_and_redoes_what_changed() {
    let at = tempdir().unwrap();
    let chain = "out: chain\nsteps:\n  - convert: {model: builtin, out: chain/model}\n  - adapt: {model: chain/model, out: chain/adapted}\n";
    std::fs::write(at.path().join("chain.yaml"), chain).unwrap();
    let first = json(at.path(), &["run", "chain.yaml"]);
    let weights = at.path().join("chain/adapted/model.safetensors");
    let made = std::fs::metadata(&weights).unwrap().modified().unwrap();
    assert_eq!(first, json(at.path(), &["run", "chain.yaml"]));
    assert_eq!(made, std::fs::metadata(&weights).unwrap().modified().unwrap(), "it was made again");
    std::fs::remove_dir_all(at.path().join("chain/adapted")).unwrap();
    json(at.path(), &["run", "chain.yaml"]);
    assert!(weights.exists());
}
