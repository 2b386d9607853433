//! Qwen3: Llama with a norm over each query and key head.
//!
//! Paper: arXiv:2505.09388. Reference: transformers, `modeling_qwen3.py`. Differs from llama in: queries and keys are
//! normed head by head before they are turned; `head_dim` is 128 where the config does not say; one flag,
//! `attention_bias`, for all four projections; with `use_sliding_window` the layers from `max_window_layers` on see a
//! window only.

use crate::Result;
use crate::blocks::stack::{Site, StackShape};
use crate::blocks::stack_rules::StackRules;
use crate::blocks::window::optional_windows;
use crate::config::Keys;
use crate::gguf::GgufDialect;
use crate::table::{Architecture, ModelShape};

/// Its line in the table.
pub const ARCHITECTURE: Architecture = Architecture {
    model_type: "qwen3",
    shape: |keys| ModelShape::decoder_only(keys, stack, false),
    stack: Some(stack),
    encoder_decoder: None,
    gguf: Some(GgufDialect {
        architecture: "qwen3",
        class: "Qwen3ForCausalLM",
        interleaved_heads: false,
        whole_norms: false,
        always_tied: false,
    }),
};

fn stack(keys: &Keys, site: &Site) -> Result<StackShape> {
    let attention_bias = keys.flag_or("attention_bias", false)?;
    let rules = StackRules {
        default_head_dim: Some(128),
        qkv_bias: attention_bias,
        output_bias: attention_bias,
        head_norm: true,
        ..StackRules::llama(keys)?
    };
    rules.read(keys, |n_layers| optional_windows(keys, site, n_layers))
}
