//! Qwen2-MoE and Qwen1.5-MoE: Qwen2 with experts, one of which all tokens share.
//!
//! Paper: arXiv:2407.10671, section 2.2.2. Reference: transformers, `modeling_qwen2_moe.py`. Differs from qwen2 in: layers
//! have `num_experts` experts of width `moe_intermediate_size` and a shared one of `shared_expert_intermediate_size`, which
//! counts by the sigmoid of a projection of its own, but those that `decoder_sparse_step` and `mlp_only_layers` leave out;
//! the weights of the chosen experts sum to 1 only with `norm_topk_prob`; `qkv_bias` can be off; with `use_sliding_window`
//! every second layer before `max_window_layers` sees a window only.

use crate::blocks::experts::{ExpertsNames, ExpertsShape, balance, counts, put, sparse_layers};
use crate::blocks::feed_forward::activation;
use crate::blocks::stack::{Site, StackShape};
use crate::blocks::stack_rules::StackRules;
use crate::blocks::window::{LayerType, layer_types};
use crate::config::{Keys, MAX_POSITIONS, MAX_WIDTH};
use crate::gguf::GgufDialect;
use crate::table::{Architecture, ModelShape};
use crate::{Error, Result};

/// Its line in the table.
pub const ARCHITECTURE: Architecture = Architecture {
    model_type: "qwen2_moe",
    shape: |keys| ModelShape::decoder_only(keys, stack, false),
    stack: Some(stack),
    encoder_decoder: None,
    gguf: Some(GgufDialect {
        architecture: "qwen2moe",
        class: "Qwen2MoeForCausalLM",
        interleaved_heads: false,
        whole_norms: false,
        always_tied: false,
    }),
};

fn stack(keys: &Keys, site: &Site) -> Result<StackShape> {
    let rules = StackRules {
        default_kv_heads: Some(16),
        qkv_bias: keys.flag_or("qkv_bias", true)?,
        ..StackRules::llama(keys)?
    };
    let mut stack = rules.read(keys, |n_layers| windows(keys, site, n_layers))?;
    let (count, top_k) = counts(keys, ["num_experts", "num_local_experts"], (60, 4))?;
    let experts = ExpertsShape {
        width: stack.width,
        inner: keys.size_or("moe_intermediate_size", MAX_WIDTH, 1408)?,
        count,
        top_k,
        normalized: keys.flag_or("norm_topk_prob", false)?,
        shared: Some(keys.size_or("shared_expert_intermediate_size", MAX_WIDTH, 5632)?),
        activation: activation(keys, "hidden_act", "silu")?,
        balance: balance(keys)?,
        names: ExpertsNames::QWEN,
    };
    let sparse = sparse_layers(keys, stack.layers.len())?;
    put(keys, &mut stack.layers, &sparse, &experts)?;
    Ok(stack)
}

fn windows(keys: &Keys, site: &Site, n_layers: usize) -> Result<Vec<Option<usize>>> {
    let slides = keys.flag_or("use_sliding_window", false)?;
    // The reference writes 0 where windows are off.
    let window = keys.optional_count("sliding_window")?.unwrap_or(4096);
    let before = keys.optional_count("max_window_layers")?.unwrap_or(28);
    if slides && !(1..=MAX_POSITIONS).contains(&window) {
        let what = format!("expected a whole number from 1 to {MAX_POSITIONS}, found {window}");
        return Err(Error::config(keys.name("sliding_window"), what));
    }
    let sliding = |layer: usize| slides && layer.is_multiple_of(2) && layer < before;
    let types = layer_types(keys, n_layers, |layer| LayerType::sliding_if(sliding(layer)))?;
    if !slides && types.contains(&LayerType::Sliding) {
        let what = "lists sliding_attention, but use_sliding_window is false";
        return Err(Error::config(keys.name("layer_types"), what));
    }
    Ok(types.iter().map(|layer_type| layer_type.window(site, window)).collect())
}
