//! `prune`: what it refuses, and that nothing is left behind then.

use luthier_checkpoint::Dtype;
use luthier_checkpoint::scores::Scores;
use luthier_surgery::Input;
use luthier_surgery::prune::{Criterion, Options, Sparsity, Targets, model, plan, run};
use serde_json::json;
use tempfile::tempdir;

use crate::models::{config, names, open, write};
use crate::prune::{golden, made_scores, scores};

#[test]
fn what_does_not_fit_is_refused_and_nothing_is_left() {
    let at = tempdir().unwrap();
    let input = open(&write(&at.path().join("a"), &config("gemma2", 24, 50), Dtype::F32, 3));
    let own = made_scores(&input, &at.path().join("own"));
    let other = open(&write(&at.path().join("b"), &config("gemma2", 24, 50), Dtype::F32, 4));
    let of_other = made_scores(&other, &at.path().join("other"));
    let target = |text: &str| Some(text.parse().unwrap());
    let none = Targets::default;
    for (targets, scores, wanted) in [
        (Targets { ffn: target("10"), ..none() }, Some(&of_other), "score this model"),
        (Targets { ffn: target("10"), ..none() }, None, "luthier score wrote"),
        (Targets { ffn: target("23"), ..none() }, Some(&own), "--ffn 23: wanted at most the 22"),
        (Targets { hidden: target("25"), ..none() }, Some(&own), "--hidden 25: wanted at most the 24"),
        (Targets { hidden: target("22"), ..none() }, Some(&own), "20 or 24 would do"),
        (Targets { layers: target("4"), ..none() }, Some(&own), "--layers 4: wanted at most the 3"),
        (Targets { heads: target("3"), ..none() }, Some(&own), "--heads 3: 2 key/value groups do not divide"),
        (Targets { kv_groups: target("3"), ..none() }, Some(&own), "--kv-groups 3: wanted at most the 2"),
        (Targets { experts: target("3"), ..none() }, Some(&own), "no experts"),
        (Targets { layers: target("2,2"), ..none() }, Some(&own), "this model has one stack"),
    ] {
        let options = Options { targets, scores: scores.cloned(), ..Options::default() };
        let error = run(&input, &at.path().join("out"), &options).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }
    assert_eq!(names(at.path()), ["a", "b", "other", "own"]);
}

#[test]
fn stacks_that_share_sizes_keep_sharing_them() {
    let at = tempdir().unwrap();
    let input = Input::new("t5", luthier_arch::open(&golden().join("t5")).unwrap());
    let path = made_scores(&input, &at.path().join("scores"));
    // One layer works with few neurons, so that uneven layers differ.
    let mut known = Scores::read(&path).unwrap().tensors;
    let first = known.iter_mut().find(|(name, _)| name.starts_with("neurons.encoder.block.0.")).unwrap();
    first.1.iter_mut().for_each(|score| *score = score.powi(6));
    let path = scores(&input, known, &path);
    let target = |text: &str| Some(text.parse().unwrap());
    for (targets, uneven, wanted) in [
        (Targets { hidden: target("24,30"), ..Targets::default() }, false, "read one embedding"),
        (Targets { ffn: target("24,30"), ..Targets::default() }, false, "config key d_ff"),
        (Targets { heads: target("3,4"), ..Targets::default() }, false, "config key num_heads"),
        (Targets { ffn: target("24"), ..Targets::default() }, true, "config key d_ff"),
    ] {
        let options = Options { targets, uneven, scores: Some(path.clone()), ..Options::default() };
        let error = model(&input, &options).err().unwrap().to_string();
        assert!(error.contains(wanted), "{error}");
    }
}

#[test]
fn damaged_weights_and_unknown_architectures_are_refused() {
    let at = tempdir().unwrap();
    let folder = write(&at.path().join("a"), &config("llama", 24, 50), Dtype::F32, 3);
    let file = folder.join("model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&file, bytes).unwrap();
    let input = open(&folder);
    let path = made_scores(&input, &at.path().join("scores"));
    let targets = Targets { ffn: Some("10".parse().unwrap()), ..Targets::default() };
    let options = Options { targets, scores: Some(path), ..Options::default() };
    let error = run(&input, &at.path().join("out"), &options).unwrap_err().to_string();
    assert!(error.contains("NaN or infinite") && error.contains("tensor "), "{error}");
    let mut config = input.checkpoint.config.clone();
    config.insert("model_type".to_string(), json!("nobody"));
    std::fs::write(folder.join("config.json"), luthier_checkpoint::json::to_text(&config)).unwrap();
    let error = plan(&open(&folder), &at.path().join("out"), &options).unwrap_err().to_string();
    assert!(error.contains("no architecture is called \"nobody\""), "{error}");
    assert_eq!(names(at.path()), ["a", "scores"]);
}

#[test]
fn patterns_that_do_not_divide_a_row_are_refused() {
    let at = tempdir().unwrap();
    let input = open(&write(&at.path().join("a"), &config("llama", 24, 50), Dtype::F32, 3));
    let sparsity = Some(Sparsity { amount: "2:4".parse().unwrap(), by: Criterion::Magnitude });
    let error = model(&input, &Options { sparsity, ..Options::default() }).err().unwrap().to_string();
    assert!(error.contains("rows of 22, which 4 does not divide"), "{error}");
}
