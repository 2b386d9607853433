//! Mistral: Llama with a sliding window.
//!
//! Paper: arXiv:2310.06825. Reference: transformers, `modeling_mistral.py`. Differs from llama in: every layer sees a
//! window of `sliding_window` tokens where that is not null; no biases.

use crate::Result;
use crate::blocks::stack::{Site, StackShape};
use crate::blocks::stack_rules::StackRules;
use crate::blocks::window::{LayerType, layer_types};
use crate::config::{Keys, MAX_POSITIONS};
use crate::gguf::GgufDialect;
use crate::table::{Architecture, ModelShape};

/// Its line in the table.
pub const ARCHITECTURE: Architecture = Architecture {
    model_type: "mistral",
    shape: |keys| ModelShape::decoder_only(keys, stack, false),
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

fn stack(keys: &Keys, site: &Site) -> Result<StackShape> {
    let rules = StackRules { default_kv_heads: Some(8), ..StackRules::llama(keys)? };
    rules.read(keys, |n_layers| windows(keys, site, n_layers))
}

fn windows(keys: &Keys, site: &Site, n_layers: usize) -> Result<Vec<Option<usize>>> {
    // Absent means the reference's default, null means no window.
    let window = match keys.optional_size("sliding_window", MAX_POSITIONS)? {
        None if !keys.map().contains_key("sliding_window") => Some(4096),
        given => given,
    };
    let types = layer_types(keys, n_layers, |_| LayerType::sliding_if(window.is_some()))?;
    let of_layer = |layer_type: &LayerType| window.and_then(|window| layer_type.window(site, window));
    Ok(types.iter().map(of_layer).collect())
}
