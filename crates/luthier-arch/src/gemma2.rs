//! Gemma 2: norms before and after each block, soft-capped scores and logits, every other layer with a sliding window.
//!
//! Paper: arXiv:2408.00118. Reference: transformers, `modeling_gemma2.py`. Differs from llama in: norm weights are
//! differences from 1 and each block has a second norm behind it; embeddings are scaled by sqrt(hidden_size); scores are
//! scaled by query_pre_attn_scalar^-0.5 and capped; logits are capped; the gate is a tanh GELU; layers 0, 2, 4, ... see
//! a window only; the head is tied.

use serde_json::{Map, Value, json};

use crate::blocks::names;
use crate::blocks::stack::{Site, StackShape};
use crate::blocks::stack_rules::StackRules;
use crate::blocks::window::alternating_windows;
use crate::config::Keys;
use crate::gguf::GgufDialect;
use crate::table::{Architecture, ModelShape};
use crate::{Error, Result};

/// Its line in the table.
pub const ARCHITECTURE: Architecture = Architecture {
    model_type: "gemma2",
    shape: |keys| ModelShape::decoder_only(keys, stack, true),
    stack: Some(stack),
    encoder_decoder: Some(encoder_decoder),
    gguf: Some(GgufDialect {
        architecture: "gemma2",
        class: "Gemma2ForCausalLM",
        interleaved_heads: false,
        whole_norms: true,
        always_tied: true,
    }),
};

fn stack(keys: &Keys, site: &Site) -> Result<StackShape> {
    if keys.flag_or("use_bidirectional_attention", false)? {
        let what = "true, but this architecture is read as a causal decoder only";
        return Err(Error::config(keys.name("use_bidirectional_attention"), what));
    }
    let rules = StackRules::gemma2(keys, names::GEMMA2)?;
    rules.read(keys, |n_layers| alternating_windows(keys, site, n_layers))
}

/// The T5Gemma config (arXiv:2504.06225) of an encoder and a decoder made of two Gemma 2 models.
fn encoder_decoder(encoder: &Map<String, Value>, decoder: &Map<String, Value>) -> Result<Map<String, Value>> {
    let module = |config: &Map<String, Value>, is_decoder: bool| {
        let mut module = config.clone();
        for key in ["architectures", "dtype", "torch_dtype", "transformers_version", "_name_or_path"] {
            module.shift_remove(key);
        }
        module.insert("model_type".to_string(), json!("t5_gemma_module"));
        module.insert("is_decoder".to_string(), json!(is_decoder));
        module
    };
    let (encoder_width, decoder_width) = (encoder.get("hidden_size"), decoder.get("hidden_size"));
    let same_embedding =
        encoder_width == decoder_width && encoder.get("vocab_size") == decoder.get("vocab_size");
    let mut decoder_module = module(decoder, true);
    if let Some(width) = encoder_width {
        decoder_module.insert("cross_attention_hidden_size".to_string(), width.clone());
    }
    let mut config = Map::new();
    let mut set = |key: &str, value: Value| {
        config.insert(key.to_string(), value);
    };
    set("architectures", json!(["T5GemmaForConditionalGeneration"]));
    set("model_type", json!("t5gemma"));
    set("is_encoder_decoder", json!(true));
    set("encoder", Value::Object(module(encoder, false)));
    set("decoder", Value::Object(decoder_module));
    for key in ["bos_token_id", "eos_token_id", "pad_token_id", "vocab_size", "dtype", "torch_dtype"] {
        if let Some(value) = decoder.get(key) {
            set(key, value.clone());
        }
    }
    set("decoder_start_token_id", decoder.get("bos_token_id").cloned().unwrap_or(json!(2)));
    set("tie_word_embeddings", decoder.get("tie_word_embeddings").cloned().unwrap_or(json!(true)));
    set("tie_encoder_embeddings", json!(same_embedding));
    set("dropout_rate", json!(0.0));
    set("classifier_dropout_rate", json!(0.0));
    set("attention_dropout", json!(0.0));
    set("initializer_range", decoder.get("initializer_range").cloned().unwrap_or(json!(0.02)));
    Ok(config)
}
