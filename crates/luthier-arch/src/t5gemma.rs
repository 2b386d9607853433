//! T5Gemma: two Gemma 2 stacks as encoder and decoder.
//!
//! Paper: arXiv:2504.06225. Reference: transformers, `modeling_t5gemma.py`. Differs from gemma2 in: the encoder sees its
//! whole input, in windowed layers up to and including `sliding_window` tokens on both sides; decoder layers read the
//! encoder between self-attention and feed-forward, with the decoder's heads, without positions or window; other names
//! of the norms around self-attention; the decoder starts from the decoder's start token. The reference holds two
//! embeddings; with `tie_encoder_embeddings`, a key of ours, they are one and are written twice.

use crate::blocks::attention::{AttentionShape, Heads};
use crate::blocks::encoder_decoder::EncoderDecoderShape;
use crate::blocks::feed_forward::{FeedForwardShape, activation};
use crate::blocks::layer::{LayerShape, NormNames};
use crate::blocks::norm::NormShape;
use crate::blocks::rope::Rope;
use crate::blocks::stack::{Site, StackShape};
use crate::blocks::window::{LayerType, layer_types};
use crate::config::{Keys, MAX_LAYERS, MAX_POSITIONS, MAX_VOCABULARY, MAX_WIDTH};
use crate::table::{Architecture, ModelShape};
use crate::{Error, Result};

/// Its line in the table.
pub const ARCHITECTURE: Architecture =
    Architecture { model_type: "t5gemma", shape, stack: None, encoder_decoder: None, gguf: None };

const NORM_NAMES: NormNames = NormNames {
    attention: ("pre_self_attn_layernorm", Some("post_self_attn_layernorm")),
    cross: ("pre_cross_attn_layernorm", Some("post_cross_attn_layernorm")),
    feed_forward: ("pre_feedforward_layernorm", Some("post_feedforward_layernorm")),
};

fn shape(keys: &Keys) -> Result<ModelShape> {
    let missing = |key: &str| Error::config(key, "missing; expected the config of this stack");
    let encoder_keys = keys.object("encoder")?.ok_or_else(|| missing("encoder"))?;
    let decoder_keys = keys.object("decoder")?.ok_or_else(|| missing("decoder"))?;
    let mut encoder = stack(&encoder_keys, &Site::encoder())?;
    // Without an attention mask the reference's encoder does not look at padding tokens.
    encoder.hidden_token = encoder.pad_token;
    let decoder = stack(&decoder_keys, &Site::decoder(encoder.width))?;
    if let Some(width) = decoder_keys.optional_size("cross_attention_hidden_size", MAX_WIDTH)?
        && width != encoder.width
    {
        let what = format!("expected encoder.hidden_size={}, found {width}", encoder.width);
        return Err(Error::config(decoder_keys.name("cross_attention_hidden_size"), what));
    }
    // Written beside the nested sizes; the reference computes with those.
    keys.optional_size("vocab_size", MAX_VOCABULARY)?;
    let start = match keys.optional_token("decoder_start_token_id")? {
        Some(start) => Some(start),
        None => decoder_keys.optional_token_or("bos_token_id", 2)?,
    };
    let shape = EncoderDecoderShape {
        head: "lm_head.out_proj.weight",
        tied_head: keys.flag_or("tie_word_embeddings", true)?,
        tied_embeddings: keys.flag_or("tie_encoder_embeddings", false)?,
        writes_tied_embedding: true,
        decoder_start_token: start.ok_or_else(|| Error::config("decoder_start_token_id", "missing"))?,
        initializer_range: keys.optional_positive("initializer_range")?.unwrap_or(decoder.initializer_range),
        encoder,
        decoder,
    };
    shape.check()?;
    Ok(ModelShape::EncoderDecoder(Box::new(shape)))
}

fn stack(keys: &Keys, site: &Site) -> Result<StackShape> {
    // The reference looks at the flag of the whole model only.
    keys.flag_or("tie_word_embeddings", true)?;
    let width = keys.size("hidden_size", MAX_WIDTH)?;
    let heads = Heads::read(keys, width, Some(4), Some(256))?;
    let context_length = keys.optional_size("max_position_embeddings", MAX_POSITIONS)?.or(Some(8192));
    let attention_bias = keys.flag_or("attention_bias", false)?;
    let attention = AttentionShape {
        width,
        source_width: width,
        query_heads: heads.query,
        kv_heads: heads.kv,
        head_dim: heads.width,
        qkv_bias: attention_bias,
        output_bias: attention_bias,
        head_norm: None,
        scale: keys.optional_positive("query_pre_attn_scalar")?.unwrap_or(256.0).powf(-0.5),
        softcap: softcap(keys, "attn_logit_softcapping", 50.0)?,
        window: None,
    };
    let feed_forward = FeedForwardShape {
        width,
        inner: keys.size("intermediate_size", MAX_WIDTH)?,
        bias: false,
        activation: activation(keys, "hidden_activation", "gelu_pytorch_tanh")?,
    };
    let n_layers = keys.size("num_hidden_layers", MAX_LAYERS)?;
    let window = keys.size_or("sliding_window", MAX_POSITIONS, 4096)?;
    let types = layer_types(keys, n_layers, |layer| LayerType::sliding_if(layer % 2 == 0))?;
    let layers = types.iter().map(|layer_type| LayerShape {
        attention: AttentionShape { window: layer_type.window(site, window), ..attention.clone() },
        feed_forward: feed_forward.clone(),
    });
    Ok(StackShape {
        vocab_size: keys.size("vocab_size", MAX_VOCABULARY)?,
        width,
        // The reference holds the factor in f32.
        embedding_scale: f64::from((width as f64).sqrt() as f32),
        layers: layers.collect(),
        norm: NormShape { eps: keys.number_or("rms_norm_eps", 1e-6)?, offset: 1.0 },
        norm_names: NORM_NAMES,
        rope: Rope::read(keys, heads.width, context_length, 10_000.0)?,
        logit_softcap: softcap(keys, "final_logit_softcapping", 30.0)?,
        context_length,
        hidden_token: None,
        initializer_range: keys.number_or("initializer_range", 0.02)?,
        pad_token: keys.optional_token_or("pad_token_id", 0)?,
    })
}

/// Absent means the default, null means none.
fn softcap(keys: &Keys, key: &'static str, default: f64) -> Result<Option<f64>> {
    if keys.map().contains_key(key) { keys.optional_positive(key) } else { Ok(Some(default)) }
}
