//! BERT through the program: what it is, its embeddings, what it refuses.

use std::path::{Path, PathBuf};

use luthier_checkpoint::{Checkpoint, TensorSource, safetensors::SafetensorsFile};
use tempfile::tempdir;

use crate::{has_keys, json, refusal};

/// golden/<name> as a folder with a vocabulary.
fn model(at: &Path, name: &str) -> PathBuf {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden").join(name);
    let folder = at.join(name);
    std::fs::create_dir(&folder).unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(golden.join(file), folder.join(file)).unwrap();
    }
    let mut vocabulary = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n".to_string();
    vocabulary.extend((5..61).map(|id| format!("t{id}\n")));
    std::fs::write(folder.join("vocab.txt"), vocabulary).unwrap();
    folder
}

fn embeddings(path: &Path) -> Vec<f32> {
    let file = SafetensorsFile::open(path).unwrap();
    assert_eq!(file.infos()[0].name, "embeddings");
    file.read("embeddings")
        .unwrap()
        .chunks_exact(4)
        .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect()
}

#[test]
fn texts_become_vectors_as_the_model_says_or_as_asked() {
    let at = tempdir().unwrap();
    let folder = model(at.path(), "bert-plain");
    std::fs::write(at.path().join("texts"), "t5 t6 t7\n\nt9 t5\r\nt5 t6 t7").unwrap();
    let embed = |more: &[&str]| {
        let said =
            json(at.path(), &[&["embed", "bert-plain", "--text", "texts", "--out", "out"], more].concat());
        has_keys(&said, &["texts", "tokens", "width", "seconds", "pooling", "normalized"]);
        assert_eq!((said["texts"].as_u64(), said["width"].as_u64()), (Some(4), Some(32)));
        (said, embeddings(&at.path().join("out")))
    };
    let (said, plain) = embed(&[]);
    assert_eq!((said["tokens"].as_u64(), said["pooling"].as_str()), (Some(16), Some("mean")));
    assert_eq!(plain[..32], plain[96..], "the same text again");
    assert_ne!(plain[..32], plain[64..96]);
    let length = |row: &[f32]| row.iter().map(|x| x * x).sum::<f32>().sqrt();
    let (_, unit) = embed(&["--normalize"]);
    let factor = length(&plain[..32]);
    assert!((length(&unit[..32]) - 1.0).abs() < 1e-5);
    unit.iter().zip(&plain).take(32).for_each(|(unit, plain)| assert!((unit * factor - plain).abs() < 1e-5));
    // What stands beside the model is followed, and overridden.
    std::fs::create_dir(folder.join("1_Pooling")).unwrap();
    std::fs::write(folder.join("1_Pooling/config.json"), r#"{"pooling_mode": "cls"}"#).unwrap();
    let modules =
        r#"[{"type": "x.Transformer"}, {"type": "x.Pooling", "path": "1_Pooling"}, {"type": "x.Normalize"}]"#;
    std::fs::write(folder.join("modules.json"), modules).unwrap();
    std::fs::write(folder.join("sentence_bert_config.json"), r#"{"max_seq_length": 4}"#).unwrap();
    let (said, _) = embed(&[]);
    assert_eq!((said["pooling"].as_str(), said["normalized"].as_bool()), (Some("cls"), Some(true)));
    assert_eq!((said["tokens"].as_u64(), said["truncated"].as_u64()), (Some(4 + 2 + 4 + 4), Some(2)));
    let (said, again) = embed(&["--pooling", "mean", "--no-normalize", "--max-tokens", "23"]);
    assert_eq!((again, said["truncated"].as_u64()), (plain, Some(0)));
    // And it travels into a GGUF file.
    json(at.path(), &["convert", "bert-plain", "there.gguf"]);
    let there = json(at.path(), &["embed", "there.gguf", "--text", "texts", "--out", "out"]);
    assert_eq!(there["pooling"].as_str(), Some("cls"));
}

/// `slice --dims` writes a linear step behind the pooling; it travels with the model, into a GGUF file too.
#[test]
fn a_linear_step_behind_the_pooling_is_taken() {
    let at = tempdir().unwrap();
    std::fs::write(at.path().join("texts"), "One text.\nAnother one.\n").unwrap();
    let embed = |model: &str| {
        let said = json(at.path(), &["embed", model, "--text", "texts", "--out", "out"]);
        (said["width"].as_u64().unwrap() as usize, embeddings(&at.path().join("out")))
    };
    let (width, whole) = embed("builtin");
    let first: Vec<f32> = whole.chunks(width).flat_map(|row| row[..10].to_vec()).collect();
    json(at.path(), &["slice", "builtin", "sliced", "--dims", "10"]);
    json(at.path(), &["convert", "sliced", "there.gguf"]);
    json(at.path(), &["convert", "there.gguf", "back"]);
    for model in ["sliced", "there.gguf", "back"] {
        assert_eq!(embed(model), (10, first.clone()), "{model}");
    }
    let config = at.path().join("back/2_Dense/config.json");
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("Identity", "Softmax")).unwrap();
    let error = refusal(at.path(), &["embed", "back", "--text", "texts", "--out", "bad"]);
    assert!(error.contains("2_Dense/config.json") && error.contains("wanted Identity or Tanh"), "{error}");
}

#[test]
fn decoders_embed_too_and_mistakes_are_named() {
    let at = tempdir().unwrap();
    std::fs::write(at.path().join("texts"), "One text.\nAnother one.\n").unwrap();
    let said = json(at.path(), &["embed", "builtin", "--text", "texts", "--out", "out"]);
    assert_eq!(said["texts"].as_u64(), Some(2));
    std::fs::write(at.path().join("none"), "").unwrap();
    let error = refusal(at.path(), &["embed", "builtin", "--text", "none", "--out", "bad"]);
    assert!(error.contains("none: is empty; wanted one text a line"), "{error}");
    let error = refusal(at.path(), &["embed", "builtin", "--text", "missing", "--out", "bad"]);
    assert!(error.contains("--text missing"), "{error}");
    std::fs::write(at.path().join("bytes"), [0xff, 0xfe]).unwrap();
    let error = refusal(at.path(), &["embed", "builtin", "--text", "bytes", "--out", "bad"]);
    assert!(error.contains("wanted UTF-8"), "{error}");
    model(at.path(), "bert");
    let error =
        refusal(at.path(), &["embed", "bert", "--text", "texts", "--out", "bad", "--max-tokens", "24"]);
    assert!(
        error.contains("max_tokens: wanted at most the model's context of 23 tokens, came 24"),
        "{error}"
    );
    let error =
        refusal(at.path(), &["embed", "bert", "--text", "texts", "--out", "bad", "--max-tokens", "1"]);
    assert!(error.contains("1 tokens do not hold the 2 around a text"), "{error}");
    assert!(!at.path().join("bad").exists());
}

/// A config.json of 2019 names no model_type; outputs do.
#[test]
fn a_bert_of_2019_is_recognised_by_its_tensors() {
    let at = tempdir().unwrap();
    model(at.path(), "bert-old");
    let info = json(at.path(), &["info", "bert-old"]);
    assert_eq!((info["model_type"].as_str(), info["vocab_size"].as_u64()), (Some("bert"), Some(61)));
    assert!(info["notes"][0].as_str().unwrap().contains("names no model_type"), "{}", info["notes"]);
    let logits = json(at.path(), &["logits", "bert-old", "--tokens", "2,7,4,3", "--out", "logits"]);
    assert_eq!((logits["tokens"].as_u64(), logits["vocabulary"].as_u64()), (Some(4), Some(61)));
    json(at.path(), &["convert", "bert-old", "out"]);
    let out = Checkpoint::open_folder(&at.path().join("out")).unwrap();
    assert_eq!(out.config["model_type"], "bert");
    assert!(out.tensors.infos().iter().any(|info| info.name == "bert.embeddings.LayerNorm.gamma"));
    assert!(json(at.path(), &["diff", "bert-old", "out"])["identical"].as_bool().unwrap());
    for arguments in [
        &["generate", "bert-old", "--tokens", "2,7"][..],
        &["perplexity", "bert-old", "--text", "bert-old/vocab.txt"],
        &["bench", "bert-old", "--prompt-tokens", "4", "--new-tokens", "2"],
    ] {
        let error = refusal(at.path(), arguments);
        assert!(error.contains("needs a model that predicts next tokens, but bert is an encoder"), "{error}");
    }
    let error = refusal(at.path(), &["convert", "bert-old", "out.gguf"]);
    assert!(error.contains("hidden_act") && error.contains("GGUF files assume gelu"), "{error}");
}
