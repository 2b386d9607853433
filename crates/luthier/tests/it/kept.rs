//! What belongs to the user stays, and what a model consists of arrives.

use std::fs;
use std::os::unix::process::CommandExt;

use serde_json::Value;

use crate::{files, json, luthier, refusal};

/// A training recipe over texts that come with the program, for `out`.
fn recipe(out: &str) -> String {
    format!(
        "model: builtin\nout: {out}\ndata: {{train: [builtin/northanger_abbey_1_24.txt]}}\nobjective: next-token\n\
         sequence_length: 16\nbatch_size: 1\nsteps: 1\noptimizer: {{name: adamw, lr_peak: 1.0e-4, betas: [0.9, 0.95], weight_decay: 0.1}}\n\
         schedule: {{name: constant}}\nseed: 1\n"
    )
}

#[test]
fn a_t5gemma_comes_back_from_gguf_with_both_embeddings() {
    let at = tempfile::tempdir().unwrap();
    json(at.path(), &["adapt", "builtin", "adapted"]);
    json(at.path(), &["convert", "adapted", "adapted.gguf"]);
    json(at.path(), &["convert", "adapted.gguf", "back"]);
    let weights = |name: &str| fs::read(at.path().join(name).join("model.safetensors")).unwrap();
    assert!(weights("adapted") == weights("back"), "the same bytes");
    json(at.path(), &["quantize", "adapted.gguf", "small.gguf", "--to", "Q8_0"]);
    json(at.path(), &["convert", "small.gguf", "widened"]);
    let info = json(at.path(), &["info", "widened"]);
    let has = |name: &str| info["tensors"].as_array().unwrap().iter().any(|tensor| tensor["name"] == name);
    assert!(has("model.encoder.embed_tokens.weight") && has("model.decoder.embed_tokens.weight"));
}

#[test]
fn a_tied_weight_that_differs_is_not_lost() {
    let at = tempfile::tempdir().unwrap();
    json(at.path(), &["adapt", "builtin", "adapted", "--dtype", "f32"]);
    // The encoder's embedding gets another first value than the decoder's that it is tied to.
    let path = at.path().join("adapted/model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let header_len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + header_len]).unwrap();
    let start = header["model.encoder.embed_tokens.weight"]["data_offsets"][0].as_u64().unwrap() as usize;
    bytes[8 + header_len + start..][..4].copy_from_slice(&1.5f32.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    for arguments in [
        &["convert", "adapted", "out.gguf"][..],
        &["convert", "adapted", "out"],
        &["quantize", "adapted", "out.gguf", "--to", "Q8_0"],
    ] {
        let said = refusal(at.path(), arguments);
        assert!(said.contains("model.encoder.embed_tokens.weight") && said.contains("differs"), "{said}");
        assert!(!at.path().join(arguments[2]).exists());
    }
}

#[test]
fn force_does_not_train_over_other_files() {
    let at = tempfile::tempdir().unwrap();
    let place = |name: &str| at.path().join(name);
    fs::write(place("notes.txt"), "notes").unwrap();
    fs::create_dir(place("work")).unwrap();
    fs::write(place("work/thesis.txt"), "thesis").unwrap();
    fs::create_dir(place("own")).unwrap();
    fs::write(place("own/r.yaml"), recipe("own")).unwrap();
    for (name, out) in [("a.yaml", "notes.txt"), ("b.yaml", "work")] {
        fs::write(place(name), recipe(out)).unwrap();
    }
    let before = files(at.path());
    for name in ["a.yaml", "b.yaml", "own/r.yaml"] {
        refusal(at.path(), &["pretrain", name]);
        refusal(at.path(), &["pretrain", name, "--force"]);
        assert!(files(at.path()) == before, "{name}");
    }
    // A run and a model are replaced.
    fs::write(place("c.yaml"), recipe("run")).unwrap();
    json(at.path(), &["pretrain", "c.yaml"]);
    json(at.path(), &["pretrain", "c.yaml", "--force"]);
    json(at.path(), &["convert", "builtin", "model"]);
    fs::write(place("d.yaml"), recipe("model")).unwrap();
    assert!(refusal(at.path(), &["pretrain", "d.yaml"]).contains("--force"));
    json(at.path(), &["pretrain", "d.yaml", "--force"]);
}

#[test]
fn pages_alone_are_replaced_by_a_page() {
    let at = tempfile::tempdir().unwrap();
    fs::write(at.path().join("t.txt"), "It is a truth universally acknowledged, that a man must be in want.")
        .unwrap();
    json(at.path(), &["perplexity", "builtin", "--text", "t.txt", "--record", "numbers"]);
    fs::write(at.path().join("config.json"), "{}").unwrap();
    let said = refusal(at.path(), &["frontier", "numbers", "--out", "config.json", "--force"]);
    assert!(said.contains("is no page"), "{said}");
    json(at.path(), &["frontier", "numbers", "--out", "page.html"]);
    json(at.path(), &["frontier", "numbers", "--out", "page.html", "--force"]);
}

#[test]
fn a_limit_on_file_sizes_is_an_error_like_any_other() {
    let at = tempfile::tempdir().unwrap();
    let mut limited = std::process::Command::new("sh");
    let program = env!("CARGO_BIN_EXE_luthier");
    limited
        .current_dir(at.path())
        .arg0("sh")
        .args(["-c", &format!("ulimit -f 64; exec {program} convert builtin out")]);
    let output = limited.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).to_string();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("ulimit -f"), "{said}");
    assert_eq!(fs::read_dir(at.path()).unwrap().count(), 0, "nothing is left");
}

#[test]
fn pipes_and_devices_are_no_part_of_a_model() {
    let at = tempfile::tempdir().unwrap();
    json(at.path(), &["convert", "builtin", "model"]);
    for name in ["config.json", "model.safetensors", "tokenizer.json", "lineage.json"] {
        let path = at.path().join("model").join(name);
        let kept = fs::read(&path).unwrap();
        for device in ["/dev/zero", "/nowhere"] {
            fs::remove_file(&path).unwrap();
            std::os::unix::fs::symlink(device, &path).unwrap();
            let verb = if name == "lineage.json" { "lineage" } else { "info" };
            let said = refusal(at.path(), &[verb, "model"]);
            assert!(said.contains("model"), "{said}");
        }
        fs::remove_file(&path).unwrap();
        fs::write(&path, kept).unwrap();
    }
    refusal(at.path(), &["perplexity", "builtin", "--text", "/dev/zero"]);
    refusal(at.path(), &["pretrain", "/dev/zero"]);
}

#[test]
fn a_chain_finds_what_stands_in_its_way_before_it_starts() {
    let at = tempfile::tempdir().unwrap();
    json(at.path(), &["convert", "builtin", "there"]);
    fs::write(at.path().join("empty.txt"), "").unwrap();
    for second in [
        "convert: {model: made, out: there}",
        "convert: {model: there, out: there}",
        "convert: {model: empty.txt, out: other}",
        "convert: {model: made, out: chain}",
    ] {
        let text = format!("out: chain\nsteps:\n- adapt: {{model: builtin, out: made}}\n- {second}\n");
        fs::write(at.path().join("chain.yaml"), text).unwrap();
        let said = refusal(at.path(), &["run", "chain.yaml"]);
        assert!(said.contains("step 2"), "{said}");
        assert!(!at.path().join("made").exists(), "{second}");
    }
}

#[test]
fn numbers_below_zero_are_refused_by_their_own_flag() {
    let at = tempfile::tempdir().unwrap();
    for arguments in [
        &["info", "builtin", "--threads", "-1"][..],
        &["generate", "builtin", "--prompt", "a", "--seed", "-1"],
        &["demo", "--seed", "-1"],
    ] {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_luthier"))
            .current_dir(at.path())
            .args(arguments)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).to_string();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("invalid value '-1'") && !said.contains("tip:"), "{said}");
    }
}

#[test]
fn steps_that_no_machine_holds_are_refused() {
    let at = tempfile::tempdir().unwrap();
    let said = refusal(at.path(), &["bench", "builtin", "--train", "--batch", "100000000", "--seq", "512"]);
    assert!(said.contains("memory"), "{said}");
    let many = recipe("run").replace("batch_size: 1", "batch_size: 100000000");
    fs::write(at.path().join("many.yaml"), many).unwrap();
    assert!(refusal(at.path(), &["pretrain", "many.yaml"]).contains("memory"));
    let threads = recipe("run") + "threads: 100000\n";
    fs::write(at.path().join("threads.yaml"), threads).unwrap();
    assert!(refusal(at.path(), &["pretrain", "threads.yaml"]).contains("threads"));
    assert!(!at.path().join("run").exists());
}

#[test]
fn files_that_no_output_will_have_are_named() {
    let at = tempfile::tempdir().unwrap();
    json(at.path(), &["convert", "builtin", "model"]);
    fs::write(at.path().join("model/modeling_own.py"), "").unwrap();
    let output = luthier(at.path(), &["convert", "model", "other"]);
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("modeling_own.py"));
}
