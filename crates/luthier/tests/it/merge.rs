//! Merging and transferring copies of the built-in model.

use std::path::Path;

use serde_json::Value;
use tempfile::tempdir;

use crate::{json, luthier, refusal};

fn same(at: &Path, a: &str, b: &str) {
    let difference = json(at, &["diff", a, b]);
    assert_eq!(difference["changed"], Value::Array(vec![]), "{a} and {b}");
    assert_eq!(difference["dtypes"], Value::Array(vec![]), "{a} and {b}");
}

#[test]
fn a_recipe_in_yaml_is_merged() {
    let at = tempdir().unwrap();
    json(at.path(), &["convert", "builtin", "copy"]);
    let recipe = "models:\n  - model: copy\n    parameters: {weight: 1e-1, density: [0.5, 1]}\nbase_model: builtin\n\
                  merge_method: ties\nparameters:\n  int8_mask: true\n";
    std::fs::write(at.path().join("ties.yaml"), recipe).unwrap();
    let plan = json(at.path(), &["merge", "ties.yaml", "merged", "--plan"]);
    let report = json(at.path(), &["merge", "ties.yaml", "merged"]);
    assert_eq!(
        report["ledger"]["output_tensors"].as_u64().unwrap() as usize,
        plan["tensors"].as_array().unwrap().len()
    );
    same(at.path(), "builtin", "merged");
    let card = std::fs::read_to_string(at.path().join("merged/README.md")).unwrap();
    assert!(card.contains("merge_method: ties"));
    assert!(refusal(at.path(), &["merge", "ties.yaml", "merged"]).contains("--force"));
    std::fs::write(at.path().join("wrong.yaml"), recipe.replace("merge_method", "merge_metod")).unwrap();
    assert!(refusal(at.path(), &["merge", "wrong.yaml", "x"]).contains("did you mean merge_method?"));
    std::fs::write(at.path().join("lost.yaml"), recipe.replace("copy", "no/such/place")).unwrap();
    assert!(refusal(at.path(), &["merge", "lost.yaml", "x"]).contains("no/such/place"));
}

#[test]
fn a_transfer_of_nothing_is_the_new_base_and_the_line_is_level() {
    let at = tempdir().unwrap();
    json(at.path(), &["convert", "builtin", "base"]);
    json(at.path(), &["convert", "builtin", "tuned"]);
    std::fs::write(at.path().join("text.txt"), "It was a bright cold day in April. ".repeat(20)).unwrap();
    let models = ["transfer", "--from", "base", "--tuned", "tuned", "--onto", "builtin"];
    let report = json(at.path(), &[&models[..], &["out", "--text", "text.txt", "--points", "3"]].concat());
    same(at.path(), "builtin", "out");
    assert_eq!(report["line"]["losses_nats_per_token"].as_array().unwrap().len(), 3);
    assert_eq!(report["line"]["linearly_connected"], true);
    let lineage = json(at.path(), &["lineage", "out"]);
    assert_eq!(lineage["verb"], "transfer");
    assert!(lineage["measurements"]["barrier_nats_per_token"].as_f64().unwrap() < 1e-6);
    let wrong = luthier(at.path(), &[&models[..], &["x", "--points", "3"]].concat());
    assert_eq!(wrong.status.code(), Some(2));
}
