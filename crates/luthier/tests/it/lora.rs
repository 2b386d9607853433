//! Adapters that are trained: beside a model and beside its quantised form, fused, and timed.

use std::path::Path;

use serde_json::Value;

use crate::{json, refusal};

/// Trains for so many steps on a text that comes with the program.
fn train(at: &Path, model: &str, out: &str, steps: usize, more: &str) -> Value {
    let recipe = format!(
        "model: {model}\nout: {out}\ndata: {{train: [builtin/northanger_abbey_1_24.txt], validation_fraction: 0.05}}\n\
         objective: next-token\nsequence_length: 32\nbatch_size: 2\nsteps: {steps}\nvalidation_tokens: 2048\n\
         optimizer: {{name: adamw, lr_peak: 3.0e-3, betas: [0.9, 0.95], weight_decay: 0}}\n\
         schedule: {{name: constant}}\nseed: 2\n{more}"
    );
    std::fs::write(at.join("recipe.yaml"), recipe).unwrap();
    json(at, &["pretrain", "recipe.yaml"])
}

#[test]
fn what_an_adapter_learnt_is_in_the_fused_model() {
    let at = tempfile::tempdir().unwrap();
    let at = at.path();
    json(at, &["quantize", "builtin", "small.gguf", "--to", "Q8_0"]);
    for (base, out) in [("builtin", "lora"), ("small.gguf", "qlora")] {
        let trained = train(at, base, out, 6, "adapter: {rank: 4, alpha: 8}\n");
        let loss = |outcome: &Value, key: &str| outcome[key].as_f64().unwrap();
        let (before, after) =
            (loss(&trained, "initial_validation_loss_nats"), loss(&trained, "validation_loss_nats"));
        assert!(after < before - 1e-3, "{before} to {after}");
        let fused = format!("{out}-fused");
        json(at, &["fuse-adapter", base, out, &fused, "--dtype", "f32"]);
        let again = train(at, &fused, &format!("{out}-again"), 1, "");
        let begun = loss(&again, "initial_validation_loss_nats");
        assert!((begun - after).abs() < 1e-4, "{base}: {after} trained, {begun} fused");
        assert_eq!(json(at, &["info", out])["rank"], 4);
    }
    assert!(refusal(at, &["generate", "lora", "--prompt", "x"]).contains("adapter"));
}

#[test]
fn an_adapters_steps_are_timed() {
    let at = tempfile::tempdir().unwrap();
    let flags =
        ["bench", "builtin", "--train", "--lora-rank", "4", "--batch", "1", "--seq", "16", "--steps", "4"];
    let report = json(at.path(), &flags);
    let losses: Vec<f64> =
        report["losses"].as_array().unwrap().iter().map(|loss| loss.as_f64().unwrap()).collect();
    assert!(losses.len() == 4 && losses.windows(2).all(|pair| pair[1] < pair[0]), "{losses:?}");
}
