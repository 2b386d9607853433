//! `score`, then `prune` and `inherit`: their records hold the verb's own keys, and make the same model again.

use serde_json::{Value, json};
use tempfile::tempdir;

use crate::{json as run, luthier};

/// Keys of a record of `prune`: its options, those that only steer the writing aside.
const KEYS: [&str; 18] = [
    "model",
    "layers",
    "hidden",
    "ffn",
    "heads",
    "kv_groups",
    "experts",
    "params",
    "memory",
    "hidden_divisor",
    "ffn_divisor",
    "layers_divisor",
    "sparsity",
    "pattern",
    "by",
    "scores",
    "uneven",
    "random",
];

#[test]
fn pruned_models_are_made_again_from_their_records() {
    let at = tempdir().unwrap();
    run(at.path(), &["convert", "builtin", "a"]);
    std::fs::write(at.path().join("text"), "One text to read, and to read again. ".repeat(8)).unwrap();
    let scored = run(at.path(), &["score", "a", "--text", "text", "--out", "scores", "--perplexity"]);
    assert!(scored["loss_nats_per_token"].as_f64().unwrap() > 0.0);
    let parameters =
        run(at.path(), &["prune", "a", "half", "--scores", "scores", "--ffn", "0.5"])["parameters"][0]
            .as_u64()
            .unwrap();
    let (params, memory) = ((parameters * 9 / 10).to_string(), (parameters * 3).to_string());
    for (out, options) in [
        ("by-params", &["--scores", "scores", "--params", &params][..]),
        ("by-memory", &["--scores", "scores", "--memory", &memory, "--ffn-divisor", "8", "--dtype", "f32"]),
        ("measured", &["--scores", "scores", "--ffn", "0.5", "--text", "text"]),
        ("sparse", &["--scores", "scores", "--sparsity", "0.5"]),
        ("pattern.gguf", &["--pattern", "2:4", "--by", "magnitude"]),
        ("random", &["--random", "3", "--layers", "1", "--dtype", "bf16"]),
    ] {
        run(at.path(), &[&["prune", "a", out][..], options].concat());
        assert_eq!(run(at.path(), &["replay", out])["same"], true, "{out}");
    }
    run(at.path(), &["inherit", "a", "heir", "--ffn", "0.5"]);
    assert_eq!(run(at.path(), &["replay", "heir"])["same"], true);
    let lineage: Value =
        serde_json::from_slice(&std::fs::read(at.path().join("sparse/lineage.json")).unwrap()).unwrap();
    let mut came: Vec<&str> = lineage["recipe"].as_object().unwrap().keys().map(String::as_str).collect();
    let mut wanted = [&KEYS[..], &["text", "dtype"]].concat();
    came.sort_unstable();
    wanted.sort_unstable();
    assert_eq!(came, wanted);
    assert_eq!((&lineage["recipe"]["by"], &lineage["recipe"]["pattern"]), (&json!("wanda"), &Value::Null));
}

/// Prices that were measured on the model go before those of another one.
#[test]
fn a_search_says_whose_prices_it_goes_by() {
    let at = tempdir().unwrap();
    std::fs::write(at.path().join("text"), "One text to read, and to read again. ".repeat(8)).unwrap();
    for (scores, options, guessed) in [("plain", &[][..], true), ("tried", &["--perplexity"], false)] {
        run(at.path(), &[&["score", "builtin", "--text", "text", "--out", scores][..], options].concat());
        let pruned =
            luthier(at.path(), &["prune", "builtin", "out", "--scores", scores, "--params", "1G", "--plan"]);
        let said = String::from_utf8_lossy(&[pruned.stdout, pruned.stderr].concat()).into_owned();
        assert_eq!(said.contains("guessed from another model"), guessed, "{said}");
    }
}
