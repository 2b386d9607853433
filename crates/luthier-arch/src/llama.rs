//! Llama: a pre-norm decoder with RMSNorm, rotary positions, grouped keys and a gated feed-forward block.
//!
//! Papers: arXiv:2302.13971, arXiv:2307.09288, arXiv:2407.21783. Reference: transformers, `modeling_llama.py`.
//! SmolLM2 is this architecture. The others name their differences from it.

use crate::Result;
use crate::blocks::attention::{AttentionShape, Heads};
use crate::blocks::feed_forward::{FeedForwardShape, activation};
use crate::blocks::layer::{LayerShape, NormNames};
use crate::blocks::norm::NormShape;
use crate::blocks::rope::Rope;
use crate::blocks::stack::{Site, StackShape};
use crate::config::{Keys, MAX_LAYERS, MAX_POSITIONS, MAX_VOCABULARY, MAX_WIDTH};
use crate::gguf::GgufDialect;
use crate::table::{Architecture, ModelShape};

/// Its line in the table.
pub const ARCHITECTURE: Architecture = Architecture {
    model_type: "llama",
    shape,
    stack: Some(stack),
    encoder_decoder: None,
    gguf: Some(GgufDialect {
        architecture: "llama",
        class: "LlamaForCausalLM",
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

fn stack(keys: &Keys, _site: &Site) -> Result<StackShape> {
    let width = keys.size("hidden_size", MAX_WIDTH)?;
    let heads = Heads::read(keys, width, None, None)?;
    let context_length = keys.optional_size("max_position_embeddings", MAX_POSITIONS)?;
    let norm = NormShape { eps: keys.number_or("rms_norm_eps", 1e-6)?, offset: 0.0 };
    let attention_bias = keys.flag_or("attention_bias", false)?;
    let layer = LayerShape {
        attention: AttentionShape {
            width,
            source_width: width,
            query_heads: heads.query,
            kv_heads: heads.kv,
            head_dim: heads.width,
            qkv_bias: attention_bias,
            output_bias: attention_bias,
            head_norm: None,
            scale: (heads.width as f64).powf(-0.5),
            softcap: None,
            window: None,
        },
        feed_forward: FeedForwardShape {
            width,
            inner: keys.size("intermediate_size", MAX_WIDTH)?,
            bias: keys.flag_or("mlp_bias", false)?,
            activation: activation(keys, "hidden_act", "silu")?,
        },
    };
    Ok(StackShape {
        vocab_size: keys.size("vocab_size", MAX_VOCABULARY)?,
        width,
        embedding_scale: 1.0,
        layers: vec![layer; keys.size("num_hidden_layers", MAX_LAYERS)?],
        norm,
        norm_names: NORM_NAMES,
        rope: Rope::read(keys, heads.width, context_length, 10_000.0)?,
        logit_softcap: None,
        context_length,
        hidden_token: None,
        initializer_range: keys.number_or("initializer_range", 0.02)?,
        pad_token: keys.optional_token("pad_token_id")?,
    })
}
