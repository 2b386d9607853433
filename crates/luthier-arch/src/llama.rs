//! Llama: a pre-norm decoder with RMSNorm, rotary positions, grouped keys and a gated feed-forward block.
//!
//! Papers: arXiv:2302.13971, arXiv:2307.09288, arXiv:2407.21783. Reference: transformers, `modeling_llama.py`.
//! SmolLM2 is this architecture. The others name their differences from it.

use crate::Result;
use crate::blocks::stack::{Site, StackShape};
use crate::blocks::stack_rules::StackRules;
use crate::config::Keys;
use crate::gguf::GgufDialect;
use crate::table::{Architecture, ModelShape};

/// Its line in the table.
pub const ARCHITECTURE: Architecture = Architecture {
    model_type: "llama",
    shape: |keys| ModelShape::decoder_only(keys, stack, false),
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

fn stack(keys: &Keys, _site: &Site) -> Result<StackShape> {
    let attention_bias = keys.flag_or("attention_bias", false)?;
    let rules = StackRules {
        qkv_bias: attention_bias,
        output_bias: attention_bias,
        feed_forward_bias: keys.flag_or("mlp_bias", false)?,
        ..StackRules::llama(keys)?
    };
    rules.read(keys, |n_layers| Ok(vec![None; n_layers]))
}
