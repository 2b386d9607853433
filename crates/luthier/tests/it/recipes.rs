//! Recipes: those of the repository are readable, misspelt keys are refused, chains skip what is done.

use std::path::Path;

use luthier::recipe::Kind;
use luthier_train::Recipe;
use tempfile::tempdir;

use crate::{json, luthier, refusal};

#[test]
fn every_training_recipe_of_the_repository_is_valid() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes");
    for name in ["builtin.yaml", "adapt-smollm2-train.yaml"] {
        let recipe: Recipe = luthier::recipe::from_file(&folder.join(name), Kind::Training).unwrap();
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

#[test]
fn what_is_wrong_in_a_recipe_is_said_in_its_own_words() {
    let at = tempdir().unwrap();
    let training = |data: &str, more: &str| {
        format!(
            "model: builtin\nout: run\ndata: {data}\nobjective: next-token\nsequence_length: 16\nbatch_size: 1\n\
             steps: 1\nschedule: {{name: constant}}\nseed: 3\n{more}\n"
        )
    };
    let rate = |lr_peak: &str| {
        format!("optimizer: {{name: adamw, lr_peak: {lr_peak}, betas: [0.9, 0.95], weight_decay: 0.1}}")
    };
    let files = "{train: [a.txt]}";
    let chain = |step: &str| format!("out: c\nsteps: [{step}]\n");
    for (verb, recipe, wanted) in [
        ("pretrain", training("{train: 3}", &rate("1.0e-3")), &["data.train", "a list", "came 3"][..]),
        ("pretrain", training(files, &rate("-1")), &["lr_peak", "above 0", "came -1"]),
        ("pretrain", training(files, &rate("fast")), &["optimizer.lr_peak", "a number"]),
        ("pretrain", training(files, "model: other"), &["key model", "twice"]),
        ("pretrain", training(files, ""), &["key optimizer", "missing"]),
        ("pretrain", chain("{info: {model: builtin}}"), &["a chain of verbs", "luthier run recipe.yaml"]),
        ("run", training(files, &rate("1.0e-3")), &["a training recipe", "luthier pretrain recipe.yaml"]),
        (
            "run",
            "merge_method: linear\nmodels: [{model: builtin}]\n".to_string(),
            &["luthier merge recipe.yaml"],
        ),
        ("run", chain("{convert: {in: builtin, out: a}}"), &["unknown key in; known: model, out"]),
        ("run", chain("{adpt: {model: builtin, out: a}}"), &["adpt", "did you mean adapt?"]),
        (
            "run",
            chain("{convert: {model: builtin, out: a}}, {generate: {model: builtin, prompt: a, top_p: 1.5}}"),
            &["step 2 (generate)", "key top_p", "from 0 to 1", "1.5"],
        ),
    ] {
        std::fs::write(at.path().join("recipe.yaml"), &recipe).unwrap();
        let said = refusal(at.path(), &[verb, "recipe.yaml"]);
        for word in wanted {
            assert!(said.contains(word), "{word}: {said}{recipe}");
        }
        // Every step is checked before the first one is done.
        assert!(!at.path().join("a").exists() && !at.path().join("run").exists());
    }
}

#[test]
fn what_later_steps_need_is_looked_for_before_the_first() {
    let at = tempdir().unwrap();
    let convert = "{convert: {model: builtin, out: a}}";
    let training = "model: a\nout: run\ndata: {train: [gone.txt]}\nobjective: next-token\nsequence_length: 16\n\
        batch_size: 1\nsteps: 1\noptimizer: {name: adamw, lr_peak: 1.0e-3, betas: [0.9, 0.95], weight_decay: 0.1}\n\
        schedule: {name: constant}\nseed: 3\n";
    std::fs::write(at.path().join("train.yaml"), training).unwrap();
    std::fs::write(at.path().join("typo.yaml"), training.replace("seed", "sede")).unwrap();
    let refused = |out: &str, steps: &str, wanted: &[&str]| {
        std::fs::write(at.path().join("chain.yaml"), format!("out: {out}\nsteps: [{steps}]\n")).unwrap();
        let said = refusal(at.path(), &["run", "chain.yaml"]);
        assert!(wanted.iter().all(|word| said.contains(word)), "{said}");
        assert!(!at.path().join("a").exists() && !at.path().join("c").exists());
    };
    refused("c", "", &["chain.yaml", "steps", "empty"]);
    let with = |step: &str| format!("{convert}, {step}");
    refused("c", &with("{info: {model: b}}"), &["step 2 (info)", "key model", "b: no such"]);
    refused("c", &with("{perplexity: {model: a, text: gone.txt}}"), &["step 2", "gone.txt"]);
    refused("c", &with("{pretrain: {recipe: train.yaml}}"), &["step 2 (pretrain)", "data.train", "gone.txt"]);
    refused("c", &with("{pretrain: {recipe: typo.yaml}}"), &["step 2 (pretrain)", "sede"]);
    json(at.path(), &["convert", "builtin", "model"]);
    refused("model", convert, &["model", "is a model"]);
    // What an earlier step makes, and text that is no file, need not be there.
    let steps = with("{logits: {model: a, text: not a file, out: c/l.safetensors}}, {info: {model: a}}");
    std::fs::write(at.path().join("chain.yaml"), format!("out: c\nsteps: [{steps}]\n")).unwrap();
    json(at.path(), &["run", "chain.yaml"]);
}
