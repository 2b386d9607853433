//! What llama.cpp calls the tensor that stands at a role.

use std::collections::HashMap;

use luthier_checkpoint::layout::{Layout, Part, Projection, Role, TensorSpec};

/// The GGUF name of a weight of a decoder-only model; none for parts that such a model has not. All experts of a layer
/// have one name: they lie in one tensor, one after the other.
pub fn name_of(role: Role) -> Option<String> {
    use Part::*;
    let Some(layer) = role.layer else {
        let name = match role.part {
            Embedding => "token_embd.weight",
            FinalNorm => "output_norm.weight",
            Head => "output.weight",
            _ => return None,
        };
        return Some(name.to_string());
    };
    let inner = match role.part {
        SelfAttentionNorm => "attn_norm.weight".to_string(),
        SelfAttentionPostNorm => "post_attention_norm.weight".to_string(),
        SelfAttention(projection) => format!("{}.weight", attention(projection)),
        SelfAttentionBias(projection) => format!("{}.bias", attention(projection)),
        SelfAttentionHeadNorm(projection) => format!("{}_norm.weight", attention(projection)),
        FeedForwardNorm => "ffn_norm.weight".to_string(),
        FeedForwardPostNorm => "post_ffw_norm.weight".to_string(),
        Gate => "ffn_gate.weight".to_string(),
        Up => "ffn_up.weight".to_string(),
        Down => "ffn_down.weight".to_string(),
        GateBias => "ffn_gate.bias".to_string(),
        UpBias => "ffn_up.bias".to_string(),
        DownBias => "ffn_down.bias".to_string(),
        Router => "ffn_gate_inp.weight".to_string(),
        ExpertGate(_) => "ffn_gate_exps.weight".to_string(),
        ExpertUp(_) => "ffn_up_exps.weight".to_string(),
        ExpertDown(_) => "ffn_down_exps.weight".to_string(),
        SharedRouter => "ffn_gate_inp_shexp.weight".to_string(),
        SharedGate => "ffn_gate_shexp.weight".to_string(),
        SharedUp => "ffn_up_shexp.weight".to_string(),
        SharedDown => "ffn_down_shexp.weight".to_string(),
        Embedding
        | PositionEmbedding
        | TokenTypeEmbedding
        | EmbeddingNorm
        | EmbeddingNormBias
        | RelativeBias
        | Head
        | HeadBias
        | HeadTransform
        | HeadTransformBias
        | HeadNorm
        | HeadNormBias
        | Pooler
        | PoolerBias
        | SentencePairHead
        | SentencePairHeadBias
        | Classifier
        | ClassifierBias
        | FinalNorm
        | SelfAttentionSumNorm
        | SelfAttentionSumNormBias
        | FeedForwardSumNorm
        | FeedForwardSumNormBias
        | CrossAttention(_)
        | CrossAttentionBias(_)
        | CrossAttentionHeadNorm(_)
        | CrossAttentionNorm
        | CrossAttentionPostNorm => return None,
    };
    Some(format!("blk.{layer}.{inner}"))
}

/// How many routed experts each layer has that has some.
pub(super) fn experts_of(layout: &Layout) -> HashMap<usize, usize> {
    let mut experts = HashMap::new();
    for spec in &layout.tensors {
        if let (Some(layer), Part::ExpertGate(_)) = (spec.role.layer, spec.role.part) {
            *experts.entry(layer).or_default() += 1;
        }
    }
    experts
}

/// The shape of the file's tensor that a weight is, or lies in: experts have an axis in front, and what is one row for
/// one shared expert is a vector.
pub(super) fn stored_shape(spec: &TensorSpec, experts: &HashMap<usize, usize>) -> Vec<usize> {
    match (spec.role.part, spec.role.layer) {
        (Part::SharedRouter, _) => spec.shape[1..].to_vec(),
        (part, Some(layer)) if part.expert().is_some() => {
            std::iter::once(experts[&layer]).chain(spec.shape.iter().copied()).collect()
        }
        _ => spec.shape.clone(),
    }
}

fn attention(projection: Projection) -> &'static str {
    match projection {
        Projection::Query => "attn_q",
        Projection::Key => "attn_k",
        Projection::Value => "attn_v",
        Projection::Output => "attn_output",
    }
}
