//! Each command on the built-in model.

use tempfile::tempdir;

use crate::{files, has_keys, json, luthier};

#[test]
fn info_describes_the_builtin_model() {
    let at = tempdir().unwrap();
    let info = json(at.path(), &["info", "builtin"]);
    has_keys(&info, &["model_type", "parameters", "file_bytes", "vocab_size", "tensors"]);
    assert_eq!(info["model_type"], "gemma2");
    let parameters = info["parameters"].as_u64().unwrap();
    assert!((3_000_000..=4_500_000).contains(&parameters), "{parameters}");
    assert!(info["file_bytes"].as_u64().unwrap() < 10_000_000);
    has_keys(&info["tensors"][0], &["name", "dtype", "shape"]);
}

#[test]
fn info_ends_with_the_summary_and_counts_tied_weights_once() {
    let at = tempdir().unwrap();
    json(at.path(), &["adapt", "builtin", "adapted"]);
    let info = json(at.path(), &["info", "adapted"]);
    assert_eq!(info["tied"][0]["target"], "model.decoder.embed_tokens.weight");
    let output = luthier(at.path(), &["info", "adapted"]);
    let said = String::from_utf8(output.stdout).unwrap();
    let last_lines: Vec<&str> = said.lines().rev().take(15).collect();
    let stored: u64 =
        info["types"].as_object().unwrap().values().map(|share| share["parameters"].as_u64().unwrap()).sum();
    let parameters = info["parameters"].as_u64().unwrap();
    for wanted in
        [format!("parameters      {parameters}"), format!("stored twice    {} values", stored - parameters)]
    {
        assert!(last_lines.iter().any(|line| line.starts_with(&wanted)), "{wanted}: {last_lines:?}");
    }
}

#[test]
fn a_full_context_is_said() {
    let at = tempdir().unwrap();
    let tokens = vec!["10"; 509].join(",");
    let arguments = ["generate", "builtin", "--tokens", &tokens, "--ignore-eos", "--max-new-tokens"];
    let said = |n: &str| {
        let output = luthier(at.path(), &[arguments.as_slice(), &[n]].concat());
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(
        said("9").contains("after 3 of 9 new tokens: the model's context of 512 tokens is full"),
        "{}",
        said("9")
    );
    assert_eq!(said("3"), "");
}

#[test]
fn greedy_generation_is_what_bench_decodes() {
    let at = tempdir().unwrap();
    let bench = json(at.path(), &["bench", "builtin", "--prompt-tokens", "8", "--new-tokens", "6"]);
    let keys = [
        "token_ids",
        "prefill_tokens_per_s",
        "decode_tokens_per_s",
        "load_ms",
        "time_to_first_token_ms",
        "peak_rss_bytes",
        "threads",
    ];
    has_keys(&bench, &keys);
    let prompt: Vec<String> =
        bench["prompt_token_ids"].as_array().unwrap().iter().map(ToString::to_string).collect();
    let arguments =
        ["generate", "builtin", "--tokens", &prompt.join(","), "--max-new-tokens", "6", "--ignore-eos"];
    let generated = json(at.path(), &arguments);
    let keys = [
        "text",
        "prompt_token_ids",
        "token_ids",
        "finish_reason",
        "decode_tokens_per_s",
        "time_to_first_token_ms",
    ];
    has_keys(&generated, &keys);
    assert_eq!(generated["token_ids"], bench["token_ids"]);
    assert_eq!(generated["finish_reason"], "length");
}

#[test]
fn an_empty_prompt_is_the_start_token_alone() {
    let at = tempdir().unwrap();
    let arguments = ["generate", "builtin", "--prompt", "", "--max-new-tokens", "2", "--json"];
    let output = crate::luthier(at.path(), &arguments);
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(said["prompt_token_ids"], serde_json::json!([2]));
    let notes = String::from_utf8_lossy(&output.stderr);
    assert!(notes.contains("the prompt is empty"), "{notes}");
}

#[test]
fn an_adapted_model_starts_from_its_decoder_start_token() {
    let at = tempdir().unwrap();
    let adapted = json(at.path(), &["adapt", "builtin", "adapted"]);
    assert!(adapted["silenced_max_abs_difference"].as_f64().unwrap() <= 1e-5);
    let arguments = ["generate", "adapted", "--prompt", "It was", "--max-new-tokens", "4", "--ignore-eos"];
    let standard = json(at.path(), &arguments);
    let said = json(at.path(), &[arguments.as_slice(), &["--decoder-tokens", "2"]].concat());
    assert_eq!(standard["token_ids"], said["token_ids"]);
    assert_eq!(standard["token_ids"].as_array().unwrap().len(), 4);
    let lineage = json(at.path(), &["lineage", "adapted"]);
    assert_eq!(lineage["verb"], "adapt");
}

#[test]
fn a_model_goes_to_gguf_and_back_unchanged() {
    let at = tempdir().unwrap();
    json(at.path(), &["convert", "builtin", "folder"]);
    json(at.path(), &["convert", "folder", "model.gguf"]);
    json(at.path(), &["convert", "model.gguf", "back"]);
    let without_lineage = |name: &str| {
        let mut found = files(&at.path().join(name));
        found.retain(|(name, _)| name != "lineage.json");
        found
    };
    assert!(without_lineage("folder") == without_lineage("back"), "the files differ");
    let difference = json(at.path(), &["diff", "folder", "model.gguf"]);
    // Norms are f32 in GGUF and bf16 in the folder; their values are the same.
    for key in ["only_in_a", "only_in_b", "shapes", "changed", "config"] {
        assert_eq!(difference[key], serde_json::json!([]), "{key}");
    }
}

#[test]
fn an_adapted_model_as_gguf_computes_what_the_folder_does() {
    let home = tempdir().unwrap();
    let at = home.path();
    for out in ["folder", "file.gguf"] {
        let planned = json(at, &["adapt", "builtin", out, "--plan"]);
        json(at, &["adapt", "builtin", out]);
        let tensors = json(at, &["info", out])["tensors"].as_array().unwrap().len();
        // A folder carries the shared embedding twice, as transformers wants it.
        assert!(planned["tensors"].as_array().unwrap().len() >= tensors, "{out}");
        let logits = format!("{out}.logits");
        json(at, &["logits", out, "--tokens", "5,6,7", "--decoder-tokens", "2,9", "--out", &logits]);
    }
    assert!(at.join("file.gguf").is_file());
    let bytes = |name: &str| std::fs::read(at.join(name)).unwrap();
    assert!(bytes("folder.logits") == bytes("file.gguf.logits"), "logits differ");
    let measured = json(at, &["lineage", "file.gguf"]);
    assert_eq!(measured["measurements"]["silenced_max_abs_difference"], 0.0, "{measured}");
}

#[test]
fn logits_are_a_tensor_of_tokens_by_vocabulary() {
    let at = tempdir().unwrap();
    for _ in 0..2 {
        json(at.path(), &["logits", "builtin", "--tokens", "2,10,11", "--out", "logits.any"]);
    }
    let bytes = std::fs::read(at.path().join("logits.any")).unwrap();
    let header_len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header_len]).unwrap();
    assert_eq!(header["logits"]["dtype"], "F32");
    assert_eq!(header["logits"]["shape"], serde_json::json!([3, 4096]));
}

#[test]
fn perplexity_counts_every_token_but_the_first_of_each_window() {
    let at = tempdir().unwrap();
    let text = "She was not at all surprised that he should have come so early in the day. ".repeat(20);
    std::fs::write(at.path().join("text.txt"), text).unwrap();
    let result = json(at.path(), &["perplexity", "builtin", "--text", "text.txt", "--window", "64"]);
    let keys =
        ["perplexity", "nll_nats_per_token", "bits_per_byte", "tokens_scored", "tokens", "method", "seconds"];
    has_keys(&result, &keys);
    let (tokens, scored) = (result["tokens"].as_u64().unwrap(), result["tokens_scored"].as_u64().unwrap());
    assert_eq!(scored, tokens - tokens.div_ceil(64));
}

#[test]
fn training_steps_are_timed_and_their_losses_fall() {
    let at = tempdir().unwrap();
    let arguments = ["bench", "builtin", "--train", "--batch", "2", "--seq", "32", "--steps", "5"];
    let result = json(at.path(), &arguments);
    has_keys(&result, &["train_tokens_per_s", "step_ms", "peak_rss_bytes", "losses"]);
    let losses: Vec<f64> =
        result["losses"].as_array().unwrap().iter().map(|loss| loss.as_f64().unwrap()).collect();
    assert_eq!(losses.len(), 5);
    assert!(losses[4] < losses[0], "{losses:?}");
}

#[test]
fn help_is_there_for_every_command() {
    let at = tempdir().unwrap();
    for verb in luthier::verbs::VERBS {
        let output = luthier(at.path(), &[verb.name, "--help"]);
        assert!(output.status.success(), "{}", verb.name);
    }
}
