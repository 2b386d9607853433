//! Wrong use and bad input: one clear message, the right exit code, nothing half-written.

use tempfile::tempdir;

use crate::{json, luthier, refusal};

#[test]
fn wrong_use_ends_with_exit_code_2() {
    let at = tempdir().unwrap();
    for wrong in [
        &["generate", "builtin"][..],
        &["generate", "builtin", "--tokens", "1,,2"],
        &["nonsense"],
        &["info"],
        &["perplexity", "builtin", "--text", "a", "--method", "guess"],
        &["quantize", "builtin", "out.gguf"],
        &["quantize", "builtin", "out.gguf", "--to", "Q8_0", "--target-size", "1M"],
        &["quantize", "builtin", "out.gguf", "--target-size", "1M", "--double"],
        &["quantize", "builtin", "out.gguf", "--target-size", "1X"],
    ] {
        assert_eq!(luthier(at.path(), wrong).status.code(), Some(2), "{wrong:?}");
    }
}

#[test]
fn option_values_out_of_bounds_are_wrong_use_and_say_the_bound() {
    let at = tempdir().unwrap();
    let generate = &["generate", "builtin", "--prompt", "a"][..];
    let perplexity = &["perplexity", "builtin", "--text", "a"][..];
    let bench = &["bench", "builtin", "--train"][..];
    for (verb, wrong, wanted) in [
        (generate, &["--top-p", "1.5"][..], "from 0 to 1"),
        (generate, &["--min-p", "2"], "from 0 to 1"),
        (generate, &["--temperature", "nan"], "0 or more"),
        (generate, &["--temperature", "-1"], "0 or more"),
        (generate, &["--repetition-penalty", "0"], "above 0"),
        (generate, &["--max-new-tokens", "-3"], "0 or more"),
        (generate, &["--stop", ""], "stop"),
        (perplexity, &["--window", "0"], "--window"),
        (perplexity, &["--window", "1"], "2 or more"),
        (perplexity, &["--stride", "0"], "1 or more"),
        (perplexity, &["--window", "64", "--stride", "65"], "window's 64"),
        (perplexity, &["--method", "llama.cpp", "--window", "3"], "4 tokens"),
        (perplexity, &["--method", "llama.cpp", "--stride", "3"], "strided"),
        (bench, &["--steps", "2"], "3 or more"),
        (bench, &["--batch", "0"], "1 or more"),
        (bench, &["--seq", "1"], "2 or more"),
    ] {
        let output = luthier(at.path(), &[verb, wrong].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{wrong:?}: {said}");
        assert!(said.contains(wanted), "{wrong:?}: {said}");
    }
    let said = luthier(at.path(), &["generate", "builtin"]).stderr;
    let said = String::from_utf8_lossy(&said);
    assert!(said.contains("--prompt") && said.contains("--tokens"), "{said}");
}

#[test]
fn a_demonstration_replaces_nothing_but_demonstrations() {
    let at = tempdir().unwrap();
    std::fs::create_dir_all(at.path().join("work/adapted")).unwrap();
    std::fs::write(at.path().join("work/letters.txt"), "precious").unwrap();
    let refused = || refusal(at.path(), &["demo", "--out", "work", "--force"]);
    assert!(refused().contains("letters.txt"), "{}", refused());
    assert!(at.path().join("work/adapted").exists());
    std::fs::remove_file(at.path().join("work/letters.txt")).unwrap();
    // A folder that only happens to be called like an output.
    std::fs::write(at.path().join("work/adapted/novel.txt"), "precious").unwrap();
    assert!(refused().contains("adapted"), "{}", refused());
    assert!(at.path().join("work/adapted/novel.txt").exists());
}

#[test]
fn a_plan_refuses_the_outputs_that_the_work_would_refuse() {
    let at = tempdir().unwrap();
    json(at.path(), &["convert", "builtin", "model"]);
    for verb in ["convert", "adapt"] {
        assert!(refusal(at.path(), &[verb, "builtin", "model", "--plan"]).contains("--force"), "{verb}");
        assert!(
            refusal(at.path(), &[verb, "model", "model", "--plan", "--force"]).contains("input"),
            "{verb}"
        );
        let plan = json(at.path(), &[verb, "builtin", "model", "--plan", "--force"]);
        assert!(plan["tensors"].is_array(), "{verb}");
        json(at.path(), &[verb, "builtin", "elsewhere", "--plan"]);
        assert!(!at.path().join("elsewhere").exists());
    }
}

#[test]
fn a_model_that_is_none_is_named() {
    let at = tempdir().unwrap();
    assert!(refusal(at.path(), &["info", "missing"]).contains("missing"));
    std::fs::write(at.path().join("text.gguf"), "this is no model").unwrap();
    assert!(refusal(at.path(), &["info", "text.gguf"]).contains("text.gguf"));
    std::fs::create_dir(at.path().join("empty")).unwrap();
    assert!(refusal(at.path(), &["info", "empty"]).contains("config.json"));
}

#[test]
fn an_existing_output_is_kept_without_force() {
    let at = tempdir().unwrap();
    std::fs::write(at.path().join("out"), "precious").unwrap();
    assert!(refusal(at.path(), &["convert", "builtin", "out"]).contains("out"));
    assert_eq!(std::fs::read(at.path().join("out")).unwrap(), b"precious");
    std::fs::create_dir(at.path().join("letters")).unwrap();
    std::fs::write(at.path().join("letters/one.txt"), "precious").unwrap();
    assert!(refusal(at.path(), &["convert", "builtin", "letters", "--force"]).contains("no model"));
    assert!(refusal(at.path(), &["convert", "builtin", "out", "--force"]).contains("is a file"));
    std::fs::create_dir(at.path().join("demo")).unwrap();
    assert!(refusal(at.path(), &["demo", "--out", "demo"]).contains("--force"));
}

#[test]
fn truncated_weights_are_refused_by_every_command_that_opens_them() {
    let at = tempdir().unwrap();
    json(at.path(), &["convert", "builtin", "model"]);
    let weights = at.path().join("model/model.safetensors");
    let bytes = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &bytes[..bytes.len() - 100]).unwrap();
    for command in [
        &["info", "model"][..],
        &["generate", "model", "--tokens", "1"],
        &["adapt", "model", "out"],
        &["convert", "model", "out.gguf"],
        &["bench", "model"],
    ] {
        assert!(refusal(at.path(), command).contains("model.safetensors"), "{command:?}");
    }
    assert!(!at.path().join("out").exists() && !at.path().join("out.gguf").exists());
}

#[test]
fn a_config_that_contradicts_the_weights_names_the_tensor() {
    let at = tempdir().unwrap();
    json(at.path(), &["convert", "builtin", "model"]);
    let path = at.path().join("model/config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let wrong = config["intermediate_size"].as_u64().unwrap() + 1;
    config["intermediate_size"] = wrong.into();
    std::fs::write(&path, config.to_string()).unwrap();
    let said = refusal(at.path(), &["info", "model"]);
    assert!(said.contains("mlp.") && said.contains(&wrong.to_string()), "{said}");
}

#[test]
fn a_token_outside_of_the_vocabulary_is_refused() {
    let at = tempdir().unwrap();
    assert!(refusal(at.path(), &["generate", "builtin", "--tokens", "4096"]).contains("4096"));
}

#[test]
fn a_text_that_is_not_utf_8_is_named_with_its_offset() {
    let at = tempdir().unwrap();
    std::fs::write(at.path().join("bad.txt"), b"good until here \xff and on").unwrap();
    let said = refusal(at.path(), &["perplexity", "builtin", "--text", "bad.txt"]);
    assert!(said.contains("bad.txt") && said.contains("16"), "{said}");
}

#[test]
fn what_is_nearly_a_model_is_told_from_one() {
    let at = tempdir().unwrap();
    json(at.path(), &["convert", "builtin", "model"]);
    for folder in ["empty", "unfinished/checkpoint-5", "unfinished/checkpoint-20"] {
        std::fs::create_dir_all(at.path().join(folder)).unwrap();
    }
    std::fs::write(at.path().join("unfinished/metrics.jsonl"), "").unwrap();
    for (place, wanted) in [
        ("empty", "config.json and model.safetensors"),
        ("unfinished", "unfinished/checkpoint-20"),
        ("model/model.safetensors", "did you mean model?"),
    ] {
        let said = refusal(at.path(), &["info", place]);
        assert!(said.contains(place) && said.contains(wanted), "{said}");
    }
    std::fs::write(at.path().join("model/tokenizer.json"), "{").unwrap();
    let said = refusal(at.path(), &["generate", "model", "--prompt", "a"]);
    assert!(said.contains("model/tokenizer.json") || said.contains("model: tokenizer.json"), "{said}");
}

#[test]
fn other_files_beside_a_model_are_not_replaced_with_it() {
    let at = tempdir().unwrap();
    json(at.path(), &["convert", "builtin", "model"]);
    json(at.path(), &["convert", "builtin", "model", "--force"]);
    std::fs::write(at.path().join("model/thesis.txt"), "precious").unwrap();
    let said = refusal(at.path(), &["convert", "builtin", "model", "--force"]);
    assert!(said.contains("model/thesis.txt"), "{said}");
    assert_eq!(std::fs::read(at.path().join("model/thesis.txt")).unwrap(), b"precious");
}

#[test]
fn a_pipe_is_no_model() {
    let at = tempdir().unwrap();
    assert!(refusal(at.path(), &["info", "/dev/null"]).contains("pipe or a device"));
}

#[test]
fn output_that_nobody_received_is_a_failure() {
    let at = tempdir().unwrap();
    for arguments in
        [&["info", "builtin"][..], &["generate", "builtin", "--tokens", "5", "--max-new-tokens", "2"]]
    {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = crate::command(at.path(), arguments).stdout(full).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).to_string();
        assert!(output.status.code() == Some(1) && said.contains("standard output"), "{arguments:?}: {said}");
    }
}

#[test]
fn recorded_numbers_are_drawn_and_kept() {
    let at = tempdir().unwrap();
    std::fs::write(at.path().join("text.txt"), "It was a truth that nobody doubted. ".repeat(20)).unwrap();
    let missing = refusal(at.path(), &["frontier", "kept", "--out", "page.html"]);
    assert!(missing.contains("kept/measurements.json") && missing.contains("--record"), "{missing}");
    let measured = json(at.path(), &["perplexity", "builtin", "--text", "text.txt", "--record", "kept"]);
    let speed = ["bench", "builtin", "--prompt-tokens", "8", "--new-tokens", "4", "--record", "kept"];
    let bench = json(at.path(), &speed);
    let drawn = json(at.path(), &["frontier", "kept", "--out", "page.html"]);
    let kept = &drawn["measurements"][0];
    assert_eq!(kept["name"], "builtin");
    assert_eq!(kept["perplexity"], measured["perplexity"]);
    assert_eq!(kept["decode_tokens_per_s"], bench["decode_tokens_per_s"]);
    let before = std::fs::read(at.path().join("kept/measurements.json")).unwrap();
    let onto_itself = ["frontier", "kept", "--out", "kept/measurements.json", "--force"];
    assert!(refusal(at.path(), &onto_itself).contains("input"));
    assert_eq!(before, std::fs::read(at.path().join("kept/measurements.json")).unwrap());
}
