//! Our own encoder-decoder: two decoder-only models of any architectures of the table, joined as T5Gemma joins Gemmas.
//!
//! Paper: arXiv:2504.06225. Each parent's whole config stands under `encoder` and `decoder` and is read by its own
//! architecture; tensors keep their parents' names behind `model.encoder.` and `model.decoder.`. Differs from the parents
//! in: the encoder sees its whole input; decoder layers have `cross_attn` between self-attention and feed-forward, with
//! the heads, biases and head norms of `self_attn`, no positions and no window, behind a norm of its own
//! (`cross_attn_layernorm`; `pre_cross_attn_layernorm` and `post_cross_attn_layernorm` in Gemma 2 layers).
//!
//! Keys: `model_type` luthier_encoder_decoder, `encoder`, `decoder`, `decoder_start_token_id`, `tie_word_embeddings` (head
//! and decoder embedding), `tie_encoder_embeddings` (encoder and decoder embedding; written once).

use serde_json::{Map, Value, json};

use crate::blocks::encoder_decoder::EncoderDecoderShape;
use crate::blocks::stack::{Site, StackShape};
use crate::config::{Keys, MAX_VOCABULARY};
use crate::table::{self, Architecture, ModelShape};
use crate::{Error, Result};

/// Its line in the table.
pub const ARCHITECTURE: Architecture =
    Architecture { model_type: MODEL_TYPE, shape, stack: None, encoder_decoder: None, gguf: None };

const MODEL_TYPE: &str = "luthier_encoder_decoder";

fn shape(keys: &Keys) -> Result<ModelShape> {
    let encoder = stack(keys, "encoder", &Site::encoder())?;
    let decoder = stack(keys, "decoder", &Site::decoder(encoder.width))?;
    let start = keys.optional_token("decoder_start_token_id")?;
    let shape = EncoderDecoderShape {
        prefixes: ["model.encoder.", "model.decoder."],
        shared_embedding: None,
        state_scale: None,
        head: "lm_head.weight",
        tied_head: keys.flag_or("tie_word_embeddings", true)?,
        tied_embeddings: keys.flag_or("tie_encoder_embeddings", false)?,
        writes_tied_embedding: false,
        decoder_start_token: start.ok_or_else(|| Error::config("decoder_start_token_id", "missing"))?,
        initializer_range: decoder.initializer_range,
        encoder,
        decoder,
    };
    let rows = shape.decoder.vocab_size;
    if let Some(said) = keys.optional_size("vocab_size", MAX_VOCABULARY)?.filter(|said| *said != rows) {
        let what = format!("{said}, but the decoder's is {rows}; they must be equal");
        return Err(Error::config("vocab_size", what));
    }
    shape.check()?;
    Ok(ModelShape::EncoderDecoder(Box::new(shape)))
}

fn stack(keys: &Keys, side: &'static str, site: &Site) -> Result<StackShape> {
    let missing = || Error::config(side, "missing; expected the whole config of a decoder-only model");
    let nested = keys.object(side)?.ok_or_else(missing)?;
    // Means the whole model where it stands beside `encoder`, and nothing inside.
    nested.flag_or("tie_word_embeddings", false)?;
    let architecture = table::architecture(&nested)?;
    let stack = architecture.stack.ok_or_else(|| {
        let what = format!("{} is not a decoder-only model", architecture.model_type);
        Error::config(nested.name("model_type"), what)
    })?;
    stack(&nested, site)
}

/// The config of an encoder and a decoder of these configs. The decoder starts from its own start token, or for want
/// of one from its end token.
pub fn config(encoder: &Map<String, Value>, decoder: &Map<String, Value>) -> Map<String, Value> {
    let size =
        |config: &Map<String, Value>| (config.get("hidden_size").cloned(), config.get("vocab_size").cloned());
    let first = |value: &Value| value.as_array().map_or(Some(value.clone()), |list| list.first().cloned());
    let token = |key: &str| decoder.get(key).filter(|value| !value.is_null()).and_then(first);
    let start = token("bos_token_id").or_else(|| token("eos_token_id")).unwrap_or(json!(0));
    let tied = decoder.get("tie_word_embeddings").cloned();
    let tied = tied.unwrap_or(json!(decoder.get("model_type") == Some(&json!("gemma2"))));
    let mut config = Map::new();
    for (key, value) in [
        ("model_type", json!(MODEL_TYPE)),
        ("architectures", json!(["LuthierEncoderDecoder"])),
        ("is_encoder_decoder", json!(true)),
        ("decoder_start_token_id", start),
        ("tie_word_embeddings", tied),
        ("tie_encoder_embeddings", json!(size(encoder) == size(decoder))),
        ("encoder", Value::Object(encoder.clone())),
        ("decoder", Value::Object(decoder.clone())),
    ] {
        config.insert(key.to_string(), value);
    }
    for key in ["vocab_size", "bos_token_id", "eos_token_id", "pad_token_id", "dtype", "torch_dtype"] {
        if let Some(value) = decoder.get(key) {
            config.insert(key.to_string(), value.clone());
        }
    }
    config
}
