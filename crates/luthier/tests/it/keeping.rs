//! Records, versions and cards.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use tempfile::tempdir;

use crate::{files, json as run, luthier};

/// What it printed with exit code 1.
fn judged_bad(at: &Path, arguments: &[&str]) -> Value {
    let output = luthier(at, &[arguments, &["--json"]].concat());
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn every_output_is_made_again_from_its_record() {
    let at = tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(at.path().join(name), text).unwrap();
    write(
        "m.yaml",
        "models: [{model: f16}, {model: builtin}]\nmerge_method: slerp\nbase_model: builtin\nparameters: {t: 0.4} # kept\n",
    );
    write(
        "t.yaml",
        "model: merged\nout: trained\ndata: {train: [builtin/northanger_abbey_1_24.txt]}\nobjective: next-token\n\
         sequence_length: 16\nbatch_size: 2\nsteps: 2\noptimizer: {name: adamw, lr_peak: 1.0e-3, betas: [0.9, 0.95], weight_decay: 0.1}\n\
         schedule: {name: constant}\nseed: 3\n",
    );
    write("text", &"One text to read, and to read again. ".repeat(20));
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/qwen3");
    fs::create_dir(at.path().join("dense")).unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(golden.join(name), at.path().join("dense").join(name)).unwrap();
    }
    write("corpus.txt", "It was a truth, however little known, that she had a good fortune.\n");
    write("further.txt", "He was in want of a wife; Catherine did not know of it.\n");
    for arguments in [
        &["convert", "builtin", "f16", "--dtype", "f16"][..],
        &["merge", "m.yaml", "merged"],
        &["transfer", "--from", "builtin", "--tuned", "merged", "--onto", "f16", "moved"],
        &["pretrain", "t.yaml"],
        &["adapt", "trained", "adapted", "--dtype", "bf16"],
        &["convert", "adapted", "adapted.gguf"],
        &["quantize", "adapted", "small.gguf", "--to", "Q4_0"],
        &["quantize", "trained", "four", "--to", "nf4", "--double"],
        &["trim-vocab", "trained", "trimmed", "--corpus", "text", "--keep", "1500"],
        &["score", "trained", "--text", "text", "--out", "scores"],
        &["prune", "trained", "pruned", "--scores", "scores", "--ffn", "0.5", "--layers", "3"],
        &["grow", "trained", "grown", "--op", "random", "--depth", "2", "--seed", "5"],
        &["inherit", "trained", "inherited", "--layers", "3", "--ffn", "96"],
        &["slice", "trained", "sliced.gguf", "--ffn", "96"],
        &["slice", "trained", "skipped", "--ffn", "[96] * 2 + [64]", "--skip", "1", "--dims", "32"],
        &["upcycle", "dense", "sparse", "--experts", "4", "--top-k", "2", "--shuffle", "--noise", "0.01"],
        &["trim-vocab", "f16", "words", "--corpus", "corpus.txt", "--also", "en:further.txt:9"],
        &[
            "trim-vocab",
            "f16",
            "words.gguf",
            "--corpus",
            "corpus.txt",
            "--coverage",
            "0.9",
            "--held",
            "further.txt",
        ],
    ] {
        run(at.path(), arguments);
    }
    let made = [
        "f16",
        "merged",
        "moved",
        "trained",
        "adapted",
        "adapted.gguf",
        "small.gguf",
        "four",
        "trimmed",
        "pruned",
        "grown",
        "inherited",
        "sliced.gguf",
        "skipped",
        "sparse",
        "words",
        "words.gguf",
    ];
    for model in made {
        let replayed = run(at.path(), &["replay", model]);
        assert_eq!(replayed["same"], true, "{model}: {replayed}");
        assert_eq!(replayed["inputs_made_again"], json!([]));
    }
    // Everything between the built-in model and the last output may be gone.
    for gone in ["f16", "merged", "trained", "adapted"] {
        fs::remove_dir_all(at.path().join(gone)).unwrap();
    }
    fs::remove_file(at.path().join("m.yaml")).unwrap();
    let replayed = run(at.path(), &["replay", "small.gguf", "--out", "again.gguf"]);
    assert_eq!(replayed["same"], true, "{replayed}");
    assert_eq!(replayed["inputs_made_again"], json!(["f16", "merged", "trained", "adapted"]));
    let bytes = |name: &str| fs::read(at.path().join(name)).unwrap();
    assert!(bytes("small.gguf") == bytes("again.gguf"));
    let names: Vec<String> = files(at.path()).into_iter().map(|(name, _)| name).collect();
    assert!(!names.iter().any(|name| name.contains("luthier-replay")), "{names:?}");
}

#[test]
fn a_model_that_was_changed_since_is_told() {
    let at = tempdir().unwrap();
    run(at.path(), &["convert", "builtin", "model", "--dtype", "f32"]);
    run(at.path(), &["convert", "model", "half", "--dtype", "f16"]);
    let path = at.path().join("half/config.json");
    fs::write(&path, fs::read_to_string(&path).unwrap().replace("0.06", "0.07")).unwrap();
    let replayed = judged_bad(at.path(), &["replay", "half"]);
    let differing: Vec<&Value> =
        replayed["files"].as_array().unwrap().iter().filter(|file| file["same"] == false).collect();
    assert_eq!(differing.len(), 1);
    assert_eq!(differing[0]["name"], "config.json");
    // An input that moved is found where the user says.
    fs::rename(at.path().join("model"), at.path().join("moved")).unwrap();
    run(at.path(), &["convert", "moved", "model2", "--dtype", "bf16"]);
    fs::rename(at.path().join("moved"), at.path().join("elsewhere")).unwrap();
    let replayed = run(at.path(), &["replay", "model2", "--at", "moved=elsewhere"]);
    assert_eq!((&replayed["same"], &replayed["inputs_made_again"]), (&json!(true), &json!([])));
}

#[test]
fn versions_follow_what_changed() {
    let at = tempdir().unwrap();
    let level = |a: &str, b: &str| run(at.path(), &["version", "diff", a, b])["level"].clone();
    let edit = |folder: &str, file: &str, from: &str, to: &str| {
        let path = at.path().join(folder).join(file);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{file} holds {from}");
        fs::write(path, text.replace(from, to)).unwrap();
    };
    for name in ["m-v1.0.0", "card", "licence", "eos", "theta", "token"] {
        run(at.path(), &["convert", "builtin", name]);
    }
    run(at.path(), &["convert", "builtin", "wide", "--dtype", "f32"]);
    run(at.path(), &["convert", "builtin", "file.gguf"]);
    run(at.path(), &["quantize", "builtin", "small.gguf", "--to", "Q4_0"]);
    fs::write(at.path().join("m.yaml"), "models: [{model: builtin, parameters: {weight: 1.01}}]\nmerge_method: linear\nparameters: {normalize: false}\n").unwrap();
    run(at.path(), &["merge", "m.yaml", "trained"]);
    edit("card", "README.md", "It was trained", "It has been trained");
    edit("licence", "README.md", "cc0-1.0", "mit");
    edit("eos", "generation_config.json", "\"eos_token_id\": 1", "\"eos_token_id\": [1, 3]");
    edit("theta", "config.json", "10000.0", "20000.0");
    edit("token", "tokenizer.json", "\"add_prefix_space\": false", "\"add_prefix_space\": true");
    for (other, wanted) in [
        ("m-v1.0.0", "none"),
        ("card", "patch"),
        ("wide", "patch"),
        ("small.gguf", "minor"),
        ("trained", "minor"),
        ("licence", "major"),
        ("eos", "major"),
        ("theta", "major"),
        ("token", "major"),
    ] {
        assert_eq!(level("m-v1.0.0", other), wanted, "{other}");
    }
    let bump = run(at.path(), &["version", "bump", "m-v1.0.0", "trained"]);
    assert_eq!(bump["suggested"], "v1.1.0");
    let bad = judged_bad(at.path(), &["version", "check", "m-v1.0.0", "trained", "--to", "v1.0.1"]);
    assert!(bad["problem"].as_str().unwrap().contains("v1.1.0"), "{bad}");
    let same = judged_bad(at.path(), &["version", "check", "m-v1.0.0", "theta", "--to", "1.0.0"]);
    assert!(same["problem"].as_str().unwrap().contains("not overwritten"), "{same}");
    assert_eq!(run(at.path(), &["version", "check", "m-v1.0.0", "trained", "--to", "1.1"])["ok"], true);
}

#[test]
fn a_card_says_what_the_files_prove_and_lint_finds_the_rest() {
    let at = tempdir().unwrap();
    run(at.path(), &["adapt", "builtin", "model"]);
    let options = ["--license", "mit", "--language", "no", "--dataset", "org/books", "--force"];
    let card =
        run(at.path(), &[&["card", "init", "model", "--out", "model/README.md"][..], &options].concat());
    let card = card["card"].as_str().unwrap().to_string();
    assert!(
        card.contains("license: mit\nlanguage: \"no\"\n")
            && card.contains("pipeline_tag: text2text-generation")
    );
    let whole = card + "## Limits\n\nNone are known.\n";
    fs::write(at.path().join("model/README.md"), &whole).unwrap();
    let problems = |text: &str| -> Vec<String> {
        fs::write(at.path().join("model/README.md"), text).unwrap();
        let output = luthier(at.path(), &["card", "lint", "model", "--json"]);
        let found: Value = serde_json::from_slice(&output.stdout).unwrap();
        let found = found["problems"].as_array().unwrap();
        assert_eq!(output.status.success(), found.is_empty());
        found.iter().map(|problem| problem["field"].as_str().unwrap().to_string()).collect()
    };
    // The built-in model is no model of the hub that a card could name.
    assert_eq!(problems(&whole), ["base_model"]);
    let named = whole.replace("tags:", "base_model: org/base\nbase_model_relation: finetune\ntags:");
    assert_eq!(problems(&named), [""; 0]);
    for field in ["license", "language", "library_name", "pipeline_tag", "datasets", "base_model_relation"] {
        let lines = named.lines().filter(|line| !line.starts_with(&format!("{field}:")));
        let without: Vec<&str> = lines.collect();
        assert_eq!(problems(&without.join("\n")), [field]);
    }
    for section in ["## How it was made", "## Use", "## Limits", "## Measurements"] {
        let found = problems(&named.replace(section, "## Nothing"));
        assert!(found.len() == 1 && found[0].starts_with("section"), "{section}: {found:?}");
    }
    assert_eq!(problems(&named.replace("text2text-generation", "text-generation")), ["pipeline_tag"]);
}
