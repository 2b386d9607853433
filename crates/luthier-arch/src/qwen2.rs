//! Qwen2 and Qwen2.5: Llama with biased queries, keys and values.
//!
//! Papers: arXiv:2407.10671, arXiv:2412.15115. Reference: transformers, `modeling_qwen2.py`. Differs from llama in:
//! query, key and value projections have a bias, the output projection has none; with `use_sliding_window` the layers
//! from `max_window_layers` on see a window only.

use crate::Result;
use crate::blocks::stack::{Site, StackShape};
use crate::blocks::stack_rules::StackRules;
use crate::blocks::window::optional_windows;
use crate::config::Keys;
use crate::gguf::GgufDialect;
use crate::table::{Architecture, ModelShape};

/// Its line in the table.
pub const ARCHITECTURE: Architecture = Architecture {
    model_type: "qwen2",
    shape: |keys| ModelShape::decoder_only(keys, stack, false),
    stack: Some(stack),
    encoder_decoder: None,
    gguf: Some(GgufDialect {
        architecture: "qwen2",
        class: "Qwen2ForCausalLM",
        interleaved_heads: false,
        whole_norms: false,
        always_tied: false,
    }),
};

fn stack(keys: &Keys, site: &Site) -> Result<StackShape> {
    let rules = StackRules { qkv_bias: true, ..StackRules::llama(keys)? };
    rules.read(keys, |n_layers| optional_windows(keys, site, n_layers))
}
