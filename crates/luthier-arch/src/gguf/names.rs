//! What llama.cpp calls the tensor that stands at a role.

use luthier_checkpoint::layout::{Part, Projection, Role};

/// The GGUF name of a weight of a decoder-only model; none for parts that such a model has not.
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

fn attention(projection: Projection) -> &'static str {
    match projection {
        Projection::Query => "attn_q",
        Projection::Key => "attn_k",
        Projection::Value => "attn_v",
        Projection::Output => "attn_output",
    }
}
