//! Tiny models in folders, with odd sizes and weights that are all different.

use std::path::{Path, PathBuf};

use luthier_checkpoint::safetensors::SafetensorsWriter;
use luthier_checkpoint::{Dtype, TensorInfo, TensorSink, values};
use luthier_surgery::Input;
use serde_json::{Map, Value, json};

/// A config of an architecture with awkward sizes.
pub(crate) fn config(model_type: &str, width: usize, vocab_size: usize) -> Map<String, Value> {
    let value = json!({
        "architectures": ["X"], "model_type": model_type, "hidden_size": width, "intermediate_size": 22,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6,
        "vocab_size": vocab_size, "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "tie_word_embeddings": model_type == "gemma2", "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
        "query_pre_attn_scalar": 6, "sliding_window": 5, "torch_dtype": "float32"
    });
    let mut config = value.as_object().unwrap().clone();
    if model_type != "gemma2" {
        config.shift_remove("query_pre_attn_scalar");
        config.shift_remove("sliding_window");
    }
    if model_type == "mistral" {
        config.insert("sliding_window".to_string(), json!(5));
    }
    config
}

/// Writes a model folder of that config whose weights have that type.
pub(crate) fn write(folder: &Path, config: &Map<String, Value>, dtype: Dtype, seed: u64) -> PathBuf {
    std::fs::create_dir_all(folder).unwrap();
    let layout = luthier_arch::layout(config).unwrap();
    let infos: Vec<TensorInfo> = layout
        .tensors
        .iter()
        .map(|spec| TensorInfo { name: spec.name.clone(), dtype, shape: spec.shape.clone() })
        .collect();
    let metadata = SafetensorsWriter::pt_metadata();
    let mut writer = SafetensorsWriter::create(folder, &infos, &metadata, None).unwrap();
    let mut state = seed;
    for info in &infos {
        let len: usize = info.shape.iter().product();
        let bytes: Vec<u8> = (0..len).flat_map(|_| next(&mut state).to_le_bytes()).collect();
        writer.write(&info.name, &values::cast(&info.name, Dtype::F32, &bytes, dtype).unwrap()).unwrap();
    }
    writer.finish().unwrap();
    std::fs::write(folder.join("config.json"), luthier_checkpoint::json::to_text(config)).unwrap();
    std::fs::write(folder.join("generation_config.json"), "{\"temperature\": 0.5}\n").unwrap();
    std::fs::write(folder.join("README.md"), "a card\n").unwrap();
    folder.to_path_buf()
}

/// Between -0.2 and 0.2.
fn next(state: &mut u64) -> f32 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    ((*state >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 0.4
}

/// Opens a place as a verb's input.
pub(crate) fn open(place: &Path) -> Input {
    Input::new("parent", luthier_arch::open(place).unwrap())
}

/// A tokenizer.json of that many tokens.
pub(crate) fn tokenizer(n_tokens: usize) -> String {
    let vocab: Map<String, Value> = (0..n_tokens).map(|id| (format!("t{id}"), json!(id))).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "t0"}
    })
    .to_string()
}

/// Names in a folder, sorted.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// The folder of a tiny model of that name among the golden files.
pub(crate) fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden").join(name)
}

/// One tiny model of every kind among the golden files: tied and untied heads, biases, grouped keys, norms of heads, windows,
/// biases by distance, encoder-decoders of one and of two embeddings.
pub(crate) const GOLDEN: [&str; 14] = [
    "encoder-decoder",
    "gemma2",
    "llama",
    "llama-tied",
    "mistral",
    "mixtral",
    "mt5",
    "qwen2",
    "qwen2_moe",
    "qwen3",
    "qwen3_moe",
    "t5",
    "t5-v1_1",
    "t5gemma",
];
