//! What distinguishes two models.

use luthier_checkpoint::Dtype;
use luthier_surgery::{convert, diff};

use crate::models::{config, open, write};

#[test]
fn a_model_is_itself_in_every_format() {
    let home = tempfile::tempdir().unwrap();
    let folder = write(&home.path().join("folder"), &config("llama", 20, 31), Dtype::F32, 1);
    let itself = diff::run(&open(&folder).checkpoint, &open(&folder).checkpoint).unwrap();
    assert!(itself.identical, "{itself:?}");
    let gguf = home.path().join("model.gguf");
    convert::run(&open(&folder), &gguf, &convert::Options { dtype: None, force: false }).unwrap();
    let other = diff::run(&open(&folder).checkpoint, &open(&gguf).checkpoint).unwrap();
    assert!(other.identical, "{other:?}");
}

/// BERT with and without its prefix, and with older names of norms.
#[test]
fn tensors_of_one_place_are_compared_under_any_name() {
    let home = tempfile::tempdir().unwrap();
    let mut masked = config("bert", 20, 31);
    masked.insert("architectures".to_string(), serde_json::json!(["BertForMaskedLM"]));
    let a = write(&home.path().join("a"), &masked, Dtype::F32, 1);
    let bytes = std::fs::read(a.join("model.safetensors")).unwrap();
    let renamed =
        String::from_utf8_lossy(&bytes[8..8 + bytes[0] as usize + 256 * bytes[1] as usize]).into_owned();
    let renamed = renamed
        .replace("\"bert.", "\"")
        .replace("LayerNorm.weight", "LayerNorm.gamma")
        .replace("LayerNorm.bias", "LayerNorm.beta");
    let b = home.path().join("b");
    std::fs::create_dir(&b).unwrap();
    for name in ["config.json", "README.md", "generation_config.json"] {
        std::fs::copy(a.join(name), b.join(name)).unwrap();
    }
    let mut file = (renamed.len() as u64).to_le_bytes().to_vec();
    file.extend(renamed.as_bytes());
    file.extend(&bytes[8 + bytes[0] as usize + 256 * bytes[1] as usize..]);
    std::fs::write(b.join("model.safetensors"), file).unwrap();
    let difference = diff::run(&open(&a).checkpoint, &open(&b).checkpoint).unwrap();
    assert!(difference.identical, "{difference:?}");
}

#[test]
fn every_kind_of_difference_is_found() {
    let home = tempfile::tempdir().unwrap();
    let mut small = config("llama", 20, 31);
    let a = write(&home.path().join("a"), &small, Dtype::F32, 1);
    small.insert("num_hidden_layers".to_string(), 2.into());
    small.insert("intermediate_size".to_string(), 26.into());
    small.insert("tie_word_embeddings".to_string(), true.into());
    let b = write(&home.path().join("b"), &small, Dtype::BF16, 1);
    std::fs::write(b.join("generation_config.json"), "{\"temperature\": 0.7}\n").unwrap();
    let difference = diff::run(&open(&a).checkpoint, &open(&b).checkpoint).unwrap();
    assert!(!difference.identical);
    assert_eq!(difference.only_in_a.len(), 9, "{:?}", difference.only_in_a);
    assert!(difference.only_in_b.is_empty());
    assert_eq!(difference.shapes.len(), 2 * 3);
    let embedding = difference.changed.iter().find(|changed| changed.name.contains("embed_tokens")).unwrap();
    assert!(
        embedding.relative_l2.unwrap() < 1.0 / 256.0 && embedding.max_abs.unwrap() > 0.0,
        "{embedding:?}"
    );
    assert!(difference.config.iter().any(|key| key.key == "num_hidden_layers"));
    assert_eq!(difference.side_files[0].keys[0].key, "temperature");
    assert!(serde_json::to_string(&difference).unwrap().contains("only_in_a"));
}
