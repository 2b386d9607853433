//! Recipes: those of the repository are readable, misspelt keys are refused, chains skip what is done.

use std::path::Path;

use luthier_train::Recipe;
use tempfile::tempdir;

use crate::{json, luthier, refusal};

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
fn a_finished_training_step_is_unchanged_the_second_time() {
    let at = tempdir().unwrap();
    std::fs::write(at.path().join("text.txt"), "It was a truth that nobody doubted. ".repeat(20)).unwrap();
    let recipe = "model: builtin\nout: run\ndata: {train: [text.txt]}\nobjective: next-token\n\
        sequence_length: 16\nbatch_size: 1\nsteps: 1\n\
        optimizer: {name: adamw, lr_peak: 1.0e-3, betas: [0.9, 0.95], weight_decay: 0.1}\n\
        schedule: {name: constant}\nseed: 3\n";
    std::fs::write(at.path().join("recipe.yaml"), recipe).unwrap();
    std::fs::write(at.path().join("chain.yaml"), "out: c\nsteps: [{pretrain: {recipe: recipe.yaml}}]")
        .unwrap();
    let said = |arguments: &[&str]| String::from_utf8(luthier(at.path(), arguments).stdout).unwrap();
    assert_eq!(said(&["run", "chain.yaml"]), "1. pretrain: done\n");
    assert_eq!(said(&["run", "chain.yaml"]), "1. pretrain: unchanged\n");
    let again = said(&["pretrain", "recipe.yaml"]);
    assert!(again.contains("finished already") && again.contains("no validation text"), "{again}");
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
