//! Mixtral: Mistral with experts in place of every feed-forward block.
//!
//! Paper: arXiv:2401.04088. Reference: transformers, `modeling_mixtral.py`. Differs from mistral in: each token goes through
//! `num_experts_per_tok` of `num_local_experts` blocks, whose weights sum to 1; without `sliding_window` there is no
//! window; other values where the config does not say. Files hold each expert's matrices on their own (`w1` gate, `w3` up,
//! `w2` down), or all of them stacked as transformers 5 holds them in memory (see `fused.rs`).

use crate::Result;
use crate::blocks::experts::{ExpertsNames, ExpertsShape, balance, counts, put};
use crate::blocks::feed_forward::activation;
use crate::blocks::stack::{Site, StackShape};
use crate::blocks::stack_rules::StackRules;
use crate::config::{Keys, MAX_POSITIONS, MAX_WIDTH};
use crate::gguf::GgufDialect;
use crate::table::{Architecture, ModelShape};

/// Its line in the table.
pub const ARCHITECTURE: Architecture = Architecture {
    model_type: "mixtral",
    shape: |keys| ModelShape::decoder_only(keys, stack, false),
    stack: Some(stack),
    encoder_decoder: None,
    gguf: Some(GgufDialect {
        architecture: "llama",
        class: "MixtralForCausalLM",
        interleaved_heads: true,
        whole_norms: false,
        always_tied: false,
    }),
};

fn stack(keys: &Keys, site: &Site) -> Result<StackShape> {
    let rules = StackRules {
        default_kv_heads: Some(8),
        default_eps: 1e-5,
        default_theta: 1e6,
        ..StackRules::llama(keys)?
    };
    let window = keys.optional_size("sliding_window", MAX_POSITIONS)?.map(|window| site.window(window));
    let mut stack = rules.read(keys, |n_layers| Ok(vec![window; n_layers]))?;
    let (count, top_k) = counts(keys, ["num_local_experts", "num_experts"], (8, 2))?;
    let (activation, balance) = (activation(keys, "hidden_act", "silu")?, balance(keys)?);
    let experts = ExpertsShape {
        width: stack.width,
        inner: keys.size("intermediate_size", MAX_WIDTH)?,
        count,
        top_k,
        normalized: true,
        shared: None,
        activation,
        balance,
        names: ExpertsNames::MIXTRAL,
    };
    let sparse = vec![true; stack.layers.len()];
    put(keys, &mut stack.layers, &sparse, &experts)?;
    Ok(stack)
}
