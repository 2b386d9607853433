//! Qwen3-MoE: Qwen3 with experts.
//!
//! Paper: arXiv:2505.09388. Reference: transformers, `modeling_qwen3_moe.py`. Differs from qwen3 in: layers have
//! `num_experts` experts of width `moe_intermediate_size`, but those that `decoder_sparse_step` and `mlp_only_layers` leave
//! out; the weights of the chosen experts sum to 1 only with `norm_topk_prob`; `head_dim` follows from the width where the
//! config does not say; with `use_sliding_window` every layer sees a window only.

use crate::Result;
use crate::blocks::experts::{ExpertsNames, ExpertsShape, balance, counts, put, sparse_layers};
use crate::blocks::feed_forward::activation;
use crate::blocks::stack::{Site, StackShape};
use crate::blocks::stack_rules::StackRules;
use crate::config::{Keys, MAX_POSITIONS, MAX_WIDTH};
use crate::gguf::GgufDialect;
use crate::table::{Architecture, ModelShape};

/// Its line in the table.
pub const ARCHITECTURE: Architecture = Architecture {
    model_type: "qwen3_moe",
    shape: |keys| ModelShape::decoder_only(keys, stack, false),
    stack: Some(stack),
    encoder_decoder: None,
    gguf: Some(GgufDialect {
        architecture: "qwen3moe",
        class: "Qwen3MoeForCausalLM",
        interleaved_heads: false,
        whole_norms: false,
        always_tied: false,
    }),
};

fn stack(keys: &Keys, site: &Site) -> Result<StackShape> {
    let attention_bias = keys.flag_or("attention_bias", false)?;
    let rules = StackRules {
        default_kv_heads: Some(4),
        qkv_bias: attention_bias,
        output_bias: attention_bias,
        head_norm: true,
        ..StackRules::llama(keys)?
    };
    let slides = keys.flag_or("use_sliding_window", false)?;
    // Published files carry it, the reference passes it over.
    keys.optional_count("max_window_layers")?;
    let window = keys.size_or("sliding_window", MAX_POSITIONS, 4096)?;
    let window = slides.then(|| site.window(window));
    let mut stack = rules.read(keys, |n_layers| Ok(vec![window; n_layers]))?;
    let (count, top_k) = counts(keys, ["num_experts", "num_local_experts"], (128, 8))?;
    let experts = ExpertsShape {
        width: stack.width,
        inner: keys.size_or("moe_intermediate_size", MAX_WIDTH, 768)?,
        count,
        top_k,
        normalized: keys.flag_or("norm_topk_prob", false)?,
        shared: None,
        activation: activation(keys, "hidden_act", "silu")?,
        balance: balance(keys)?,
        names: ExpertsNames::QWEN,
    };
    let sparse = sparse_layers(keys, stack.layers.len())?;
    put(keys, &mut stack.layers, &sparse, &experts)?;
    Ok(stack)
}
