//! Mistral: Llama with a sliding window.
//!
//! Paper: arXiv:2310.06825. Reference: transformers, `modeling_mistral.py`. Differs from llama in: every layer sees a
//! window of `sliding_window` tokens where that is not null; no biases.

use crate::Result;
use crate::blocks::attention::{AttentionShape, Heads};
use crate::blocks::feed_forward::{FeedForwardShape, activation};
use crate::blocks::layer::{LayerShape, NormNames};
use crate::blocks::norm::NormShape;
use crate::blocks::rope::Rope;
use crate::blocks::stack::{Site, StackShape};
use crate::blocks::window::{LayerType, layer_types};
use crate::config::{Keys, MAX_LAYERS, MAX_POSITIONS, MAX_VOCABULARY, MAX_WIDTH};
use crate::gguf::GgufDialect;
use crate::table::{Architecture, ModelShape};

/// Its line in the table.
pub const ARCHITECTURE: Architecture = Architecture {
    model_type: "mistral",
    shape,
    stack: Some(stack),
    encoder_decoder: None,
    gguf: Some(GgufDialect {
        architecture: "llama",
        class: "MistralForCausalLM",
        interleaved_heads: true,
        whole_norms: false,
        always_tied: false,
    }),
};

const NORM_NAMES: NormNames = NormNames {
    attention: ("input_layernorm", None),
    cross: ("cross_attn_layernorm", None),
    feed_forward: ("post_attention_layernorm", None),
};

fn shape(keys: &Keys) -> Result<ModelShape> {
    let tied_head = keys.flag_or("tie_word_embeddings", false)?;
    Ok(ModelShape::DecoderOnly { stack: Box::new(stack(keys, &Site::decoder_only())?), tied_head })
}

fn stack(keys: &Keys, site: &Site) -> Result<StackShape> {
    let width = keys.size("hidden_size", MAX_WIDTH)?;
    let heads = Heads::read(keys, width, Some(8), None)?;
    let context_length = keys.optional_size("max_position_embeddings", MAX_POSITIONS)?;
    let attention = AttentionShape {
        width,
        source_width: width,
        query_heads: heads.query,
        kv_heads: heads.kv,
        head_dim: heads.width,
        qkv_bias: false,
        output_bias: false,
        head_norm: None,
        scale: (heads.width as f64).powf(-0.5),
        softcap: None,
        window: None,
    };
    let feed_forward = FeedForwardShape {
        width,
        inner: keys.size("intermediate_size", MAX_WIDTH)?,
        bias: false,
        activation: activation(keys, "hidden_act", "silu")?,
    };
    // Absent means the reference's default, null means no window.
    let window = match keys.optional_size("sliding_window", MAX_POSITIONS)? {
        None if !keys.map().contains_key("sliding_window") => Some(4096),
        given => given,
    };
    let n_layers = keys.size("num_hidden_layers", MAX_LAYERS)?;
    let types = layer_types(keys, n_layers, |_| LayerType::sliding_if(window.is_some()))?;
    let layers = types.iter().map(|layer_type| LayerShape {
        attention: AttentionShape {
            window: window.and_then(|window| layer_type.window(site, window)),
            ..attention.clone()
        },
        feed_forward: feed_forward.clone(),
    });
    Ok(StackShape {
        vocab_size: keys.size("vocab_size", MAX_VOCABULARY)?,
        width,
        embedding_scale: 1.0,
        layers: layers.collect(),
        norm: NormShape { eps: keys.number_or("rms_norm_eps", 1e-6)?, offset: 0.0 },
        norm_names: NORM_NAMES,
        rope: Rope::read(keys, heads.width, context_length, 10_000.0)?,
        logit_softcap: None,
        context_length,
        hidden_token: None,
        initializer_range: keys.number_or("initializer_range", 0.02)?,
        pad_token: keys.optional_token("pad_token_id")?,
    })
}
