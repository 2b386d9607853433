//! `luthier doctor`: seeded faults are named by their cause, healthy models raise nothing.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};
use tempfile::tempdir;

use crate::{json as run, luthier};

/// A model with a fault; what doctor has to name.
type Fault = (&'static str, fn(&Path), &'static str);

fn edit(folder: &Path, file: &str, change: impl FnOnce(&mut Map<String, Value>)) {
    let path = folder.join(file);
    let mut keys: Map<String, Value> = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut keys);
    fs::write(path, serde_json::to_vec(&keys).unwrap()).unwrap();
}

fn set(folder: &Path, key: &str, value: Value) {
    edit(folder, "config.json", |keys| _ = keys.insert(key.to_string(), value));
}

/// Where a tensor's bytes begin in model.safetensors, and the header.
fn tensor_start(folder: &Path, name: &str) -> (usize, Map<String, Value>) {
    let bytes = fs::read(folder.join("model.safetensors")).unwrap();
    let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Map<String, Value> = serde_json::from_slice(&bytes[8..8 + len]).unwrap();
    (8 + len + header[name]["data_offsets"][0].as_u64().unwrap() as usize, header)
}

fn truncate(folder: &Path) {
    let file = fs::File::options().write(true).open(folder.join("model.safetensors")).unwrap();
    file.set_len(file.metadata().unwrap().len() - 1000).unwrap();
}

fn lose_shard(folder: &Path) {
    let (_, header) = tensor_start(folder, "model.norm.weight");
    let names = header.keys().filter(|name| *name != "__metadata__");
    let map: Map<String, Value> =
        names.map(|name| (name.clone(), json!("model-00002-of-00002.safetensors"))).collect();
    let index = json!({"metadata": {"total_size": 1}, "weight_map": map});
    fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
    fs::remove_file(folder.join("model.safetensors")).unwrap();
}

fn lose_padding(folder: &Path) {
    for file in ["config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json"]
    {
        edit(folder, file, |keys| keys.retain(|key, _| !key.starts_with("pad_token")));
    }
}

fn end_in_the_middle(folder: &Path) {
    for file in ["config.json", "generation_config.json"] {
        edit(folder, file, |keys| _ = keys.insert("eos_token_id".to_string(), json!(300)));
    }
}

fn foreign_template(folder: &Path) {
    let template = "{% for m in messages %}<|start|>{{ m.role }}<|sep|>{{ m.content }}<|end|>{% endfor %}";
    fs::write(folder.join("chat_template.jinja"), template).unwrap();
}

fn put_nan(folder: &Path) {
    let (start, _) = tensor_start(folder, "model.layers.1.mlp.up_proj.weight");
    let path = folder.join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    bytes[start..start + 2].copy_from_slice(&[0xc0, 0x7f]);
    fs::write(path, bytes).unwrap();
}

fn halve_heads(folder: &Path) {
    for (key, value) in [("num_attention_heads", 8), ("num_key_value_heads", 4), ("head_dim", 32)] {
        set(folder, key, json!(value));
    }
}

const FAULTS: &[Fault] = &[
    ("rows of the vocabulary", |at| set(at, "vocab_size", json!(4090)), "vocab_size"),
    (
        "a head that is not there",
        |at| set(at, "tie_word_embeddings", json!(false)),
        "tie_word_embeddings to true",
    ),
    ("a missing shard", lose_shard, "model-00002-of-00002.safetensors"),
    ("a file cut off", truncate, "cut off"),
    ("another rotary base", |at| set(at, "rope_theta", json!(1e6)), "rope_theta"),
    ("heads that shapes do not show", halve_heads, "num_attention_heads 4"),
    ("heads that shapes show", |at| set(at, "num_key_value_heads", json!(1)), "num_key_value_heads"),
    ("no padding token", lose_padding, "padding token"),
    ("a wrong end token", end_in_the_middle, "eos_token_id"),
    ("a foreign chat template", foreign_template, "<|start|>"),
    ("a NaN", put_nan, "model.layers.1.mlp.up_proj.weight"),
    (
        "an unknown quantisation",
        |at| set(at, "quantization_config", json!({"quant_method": "x"})),
        "quantization_config",
    ),
    ("an unknown architecture", |at| set(at, "model_type", json!("gemma9")), "gemma9"),
    ("too many layers", |at| set(at, "num_hidden_layers", json!(6)), "num_hidden_layers"),
    ("another feed-forward width", |at| set(at, "intermediate_size", json!(680)), "intermediate_size"),
];

#[test]
fn every_seeded_fault_is_named() {
    let at = tempdir().unwrap();
    run(at.path(), &["convert", "builtin", "healthy"]);
    for (name, seed, wanted) in FAULTS {
        let folder = at.path().join("ill");
        fs::create_dir(&folder).unwrap();
        for entry in fs::read_dir(at.path().join("healthy")).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
        }
        seed(&folder);
        let output = luthier(at.path(), &["doctor", "ill", "--json"]);
        assert_eq!(output.status.code(), Some(1), "{name}");
        let found: Value = serde_json::from_slice(&output.stdout).unwrap();
        let findings = found["findings"].as_array().unwrap();
        let worst: Vec<&Value> = findings.iter().filter(|finding| finding["severity"] != "note").collect();
        assert!(worst.iter().any(|finding| finding.to_string().contains(wanted)), "{name}: {worst:?}");
        fs::remove_dir_all(folder).unwrap();
    }
}

#[test]
fn healthy_models_raise_nothing() {
    let at = tempdir().unwrap();
    run(at.path(), &["convert", "builtin", "folder"]);
    run(at.path(), &["convert", "builtin", "file.gguf"]);
    run(at.path(), &["quantize", "builtin", "small.gguf", "--to", "Q8_0"]);
    run(at.path(), &["adapt", "builtin", "adapted"]);
    for model in ["builtin", "folder", "file.gguf", "small.gguf", "adapted"] {
        let found = run(at.path(), &["doctor", model]);
        assert_eq!(found["healthy"], true, "{model}: {found}");
    }
}

/// A tokenizer.json of WordPiece with 61 tokens: special ones, letters at starts and inside of words, marks.
fn letters() -> Value {
    let special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"].map(str::to_string);
    let starts = ('a'..='z').map(String::from).chain([".", ",", "'", "-"].map(str::to_string));
    let tokens = special.into_iter().chain(starts).chain(('a'..='z').map(|letter| format!("##{letter}")));
    let vocabulary: Map<String, Value> =
        tokens.enumerate().map(|(id, token)| (token, Value::from(id))).collect();
    let model = json!({
        "type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
        "vocab": vocabulary
    });
    json!({
        "version": "1.0", "added_tokens": [], "normalizer": {"type": "BertNormalizer", "clean_text": true,
        "handle_chinese_chars": true, "strip_accents": null, "lowercase": true},
        "pre_tokenizer": {"type": "BertPreTokenizer"}, "post_processor": null,
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true}, "model": model
    })
}

#[test]
fn an_encoder_needs_neither_a_head_nor_an_end_token() {
    let at = tempdir().unwrap();
    for name in ["bert-plain", "bert"] {
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden").join(name);
        let folder = at.path().join(name);
        fs::create_dir(&folder).unwrap();
        for file in ["config.json", "model.safetensors"] {
            fs::copy(golden.join(file), folder.join(file)).unwrap();
        }
        fs::write(folder.join("tokenizer.json"), letters().to_string()).unwrap();
        let found = run(at.path(), &["doctor", name]);
        assert_eq!((&found["healthy"], &found["trial"]), (&json!(true), &Value::Null), "{name}: {found}");
    }
}
