//! What a model is, from its headers.

use luthier_checkpoint::Dtype;
use luthier_surgery::info;

use crate::models::{config, open, tokenizer, write};

#[test]
fn a_model_is_described_and_a_tied_weight_counted_once() {
    let home = tempfile::tempdir().unwrap();
    let folder = write(&home.path().join("model"), &config("gemma2", 20, 31), Dtype::BF16, 1);
    std::fs::write(folder.join("tokenizer.json"), tokenizer(30)).unwrap();
    let info = info::run(&open(&folder).checkpoint).unwrap();
    // Per layer: q 24x20, k and v 12x20, o 20x24, three 22x20, four norms of 20.
    let layer = 2 * 24 * 20 + 2 * 12 * 20 + 3 * 22 * 20 + 4 * 20;
    assert_eq!(info.parameters, 31 * 20 + 3 * layer + 20);
    assert_eq!((info.vocab_size, info.tokenizer_tokens, info.layers), (Some(31), Some(30), Some(3)));
    assert_eq!(info.context_length, Some(64));
    assert_eq!(info.file_bytes, std::fs::metadata(folder.join("model.safetensors")).unwrap().len());
    assert_eq!(info.types["BF16"].size_bytes, 2 * info.parameters);
    assert_eq!((info.tensors.len(), info.tensors[0].dtype.as_str()), (1 + 3 * 11 + 1, "BF16"));
}

#[test]
fn a_config_that_the_weights_contradict_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let mut model =
        open(&write(&home.path().join("model"), &config("llama", 20, 31), Dtype::F32, 1)).checkpoint;
    model.config.insert("vocab_size".to_string(), 32.into());
    let refused = info::run(&model).unwrap_err().to_string();
    assert!(refused.contains("embed_tokens") && refused.contains("32"), "{refused}");
    model.config.insert("model_type".to_string(), "sphinx".into());
    let info = info::run(&model).unwrap();
    assert!(!info.known_architecture && info.parameters > 0);
}
