//! Quantised files, whose products are in whole numbers where text is generated or scored, beside their values as floats.

use std::fmt::Write;
use std::path::Path;

use luthier_checkpoint::{TensorSource, safetensors::SafetensorsFile};
use serde_json::Value;
use tempfile::tempdir;

use crate::{command, json, refusal};

fn ids(list: &Value) -> Vec<u64> {
    list.as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect()
}

fn joined(ids: &[u64]) -> String {
    ids.iter().map(u64::to_string).collect::<Vec<_>>().join(",")
}

/// `[tokens][vocabulary]`, of weights widened to f32.
fn logits(at: &Path, model: &str, ids: &[u64]) -> Vec<Vec<f32>> {
    json(at, &["logits", model, "--tokens", &joined(ids), "--out", "logits.safetensors"]);
    let file = SafetensorsFile::open(&at.join("logits.safetensors")).unwrap();
    let width = file.infos()[0].shape[1];
    let bytes = file.read("logits").unwrap();
    let values: Vec<f32> =
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    values.chunks(width).map(<[f32]>::to_vec).collect()
}

/// The largest value's place, and how far the next one is behind.
fn best(logits: &[f32]) -> (u64, f32) {
    let (mut first, mut second) = ((0, f32::NEG_INFINITY), f32::NEG_INFINITY);
    for (id, logit) in logits.iter().enumerate() {
        if *logit > first.1 {
            (second, first) = (first.1, (id as u64, *logit));
        } else if *logit > second {
            second = *logit;
        }
    }
    (first.0, first.1 - second)
}

#[test]
fn generated_tokens_are_those_of_the_widened_weights_where_one_is_clearly_best() {
    let at = tempdir().unwrap();
    // More rows than keep 16 bits, so that the prompt is read with 8.
    let prompt: Vec<u64> = (0..90).map(|at| (at * 37 + 11) % 4000).collect();
    for kind in ["Q4_0", "Q5_1", "Q8_0", "Q3_K_M"] {
        let file = format!("{kind}.gguf");
        json(at.path(), &["quantize", "builtin", &file, "--to", kind]);
        let generate =
            ["generate", &file, "--tokens", &joined(&prompt), "--max-new-tokens", "24", "--ignore-eos"];
        let new = ids(&json(at.path(), &generate)["token_ids"]);
        let all = [prompt.as_slice(), &new].concat();
        let scored = logits(at.path(), &file, &all);
        let mut clear = 0;
        for (place, id) in new.iter().enumerate() {
            let (wanted, margin) = best(&scored[prompt.len() + place - 1]);
            if margin >= 0.15 {
                assert_eq!(*id, wanted, "{kind}: new token {place}, ahead by {margin}");
                clear += 1;
            }
        }
        assert!(clear >= 8, "{kind}: {clear} clear tokens");
        // Drafts change nothing.
        for drafts in [&["--lookup", "3"][..], &["--draft", "builtin"]] {
            let drafted = json(at.path(), &[&generate[..], drafts].concat());
            assert_eq!(ids(&drafted["token_ids"]), new, "{kind} {drafts:?}");
            assert!(drafted["drafted_tokens"].as_u64() >= drafted["accepted_tokens"].as_u64());
        }
        // The same number of threads gives the same tokens each time.
        assert_eq!(json(at.path(), &generate)["token_ids"], json(at.path(), &generate)["token_ids"]);
    }
}

#[test]
fn a_quantised_file_is_scored_as_its_values_are() {
    let at = tempdir().unwrap();
    let mut text = String::new();
    for line in 0..60 {
        writeln!(text, "The {line} carriages went up the hill, and Mr. Knightley spoke of nothing else.")
            .unwrap();
    }
    std::fs::write(at.path().join("text.txt"), text).unwrap();
    for kind in ["Q4_0", "Q8_0"] {
        let file = format!("{kind}.gguf");
        json(at.path(), &["quantize", "builtin", &file, "--to", kind]);
        // As a folder its weights are the same values as floats.
        json(at.path(), &["convert", &file, kind, "--dtype", "f32"]);
        let loss = |model: &str, cpu: Option<&str>| {
            let mut command = command(at.path(), &["perplexity", model, "--text", "text.txt", "--json"]);
            cpu.map(|cpu| command.env("LUTHIER_CPU", cpu));
            let output = command.output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let said: Value = serde_json::from_slice(&output.stdout).unwrap();
            said["nll_nats_per_token"].as_f64().unwrap()
        };
        let wanted = loss(kind, None);
        for cpu in [None, Some("avx2"), Some("plain")] {
            let came = loss(&file, cpu);
            assert!((came - wanted).abs() < 2e-4, "{kind} on {cpu:?}: {came}, wanted {wanted}");
        }
    }
}

#[test]
fn drafts_that_make_no_sense_are_refused() {
    let at = tempdir().unwrap();
    json(at.path(), &["quantize", "builtin", "small.gguf", "--to", "Q8_0"]);
    json(
        at.path(),
        &["trim-vocab", "builtin", "trimmed", "--corpus", "corpus", "--keep", "600"].map(|word| {
            std::fs::write(at.path().join("corpus"), "It is a truth universally acknowledged. ".repeat(40))
                .unwrap();
            word
        }),
    );
    let said = refusal(at.path(), &["generate", "small.gguf", "--prompt", "It is", "--draft", "trimmed"]);
    assert!(said.contains("draft") && said.contains("vocabulary"), "{said}");
    let output =
        crate::luthier(at.path(), &["generate", "small.gguf", "--prompt", "It", "--draft-tokens", "3"]);
    assert_eq!(output.status.code(), Some(2));
}
