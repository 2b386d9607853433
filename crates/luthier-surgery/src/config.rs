//! What verbs write into config.json and generation_config.json beside the architecture's own keys.

use luthier_checkpoint::{Dtype, SideFile, TensorInfo, json};
use serde_json::{Map, Value};

/// The config with the type in which most weights are stored, under the key that it has (`torch_dtype` in older ones).
pub(crate) fn with_dtype(config: &Map<String, Value>, infos: &[TensorInfo]) -> Map<String, Value> {
    let mut config = config.clone();
    let Some(name) = main_type(infos).and_then(torch_name) else { return config };
    let old = config.contains_key("torch_dtype") && !config.contains_key("dtype");
    config.insert(if old { "torch_dtype" } else { "dtype" }.to_string(), Value::from(name));
    config
}

/// What torch calls a float type that folders hold.
pub(crate) fn torch_name(dtype: Dtype) -> Option<&'static str> {
    match dtype {
        Dtype::F16 => Some("float16"),
        Dtype::BF16 => Some("bfloat16"),
        Dtype::F64 => Some("float64"),
        Dtype::F32 => Some("float32"),
        _ => None,
    }
}

/// The float type of most values; none where there are none.
pub(crate) fn main_type(infos: &[TensorInfo]) -> Option<Dtype> {
    let values_of = |dtype: Dtype| -> usize {
        let typed = infos.iter().filter(|info| info.dtype == dtype);
        typed.map(|info| info.shape.iter().product::<usize>()).sum()
    };
    let types = [Dtype::F64, Dtype::F16, Dtype::BF16, Dtype::F32];
    types.into_iter().max_by_key(|dtype| values_of(*dtype)).filter(|dtype| values_of(*dtype) > 0)
}

/// The side files of an encoder-decoder made of a decoder-only model: its tokenizer and templates as they are, and a
/// generation_config.json that says with which token the decoder starts. A card describes another model and stays out.
pub(crate) fn encoder_decoder_side_files(parent: &[SideFile], config: &Map<String, Value>) -> Vec<SideFile> {
    const NAME: &str = "generation_config.json";
    let parsed = parent.iter().find(|file| file.name == NAME);
    let mut generation: Map<String, Value> =
        parsed.and_then(|file| serde_json::from_slice(&file.bytes).ok()).unwrap_or_default();
    for key in ["bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"] {
        match config.get(key) {
            // Several end tokens of the parent say more than the one of its config.
            Some(_) if key == "eos_token_id" && generation.contains_key(key) => {}
            Some(value) if !value.is_null() => _ = generation.insert(key.to_string(), value.clone()),
            _ => {}
        }
    }
    let mut files: Vec<SideFile> =
        parent.iter().filter(|file| file.name != NAME && file.name != "README.md").cloned().collect();
    files.push(SideFile { name: NAME.to_string(), bytes: json::to_text(&generation).into_bytes() });
    files
}
