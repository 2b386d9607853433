//! BERT as llama.cpp has it: an encoder for embeddings, without the heads.
//!
//! What a file carries beside the stack (heads, pooler, buffers) has no place there; files that we write keep it in their
//! metadata ([`super::beside`]), and the names that the stack's tensors had ([`super::NAMES_KEY`]).

use luthier_checkpoint::gguf::{Gguf, GgufValue};
use luthier_checkpoint::layout::{Part, Role};
use luthier_checkpoint::{Dtype, TensorInfo, TensorSource};
use luthier_ops::activation::Activation;
use serde_json::{Map, Value, json};

use super::metadata::Metadata;
use super::write::{GgufOrigin, GgufTensor, refused, size};
use super::{NAMES_KEY, Transform, beside, name_of};
use crate::Result;
use crate::blocks::encoder_only::EncoderOnlyShape;
use crate::config::Keys;

/// What llama.cpp calls the tensor that stands at a role; none for what it has no place for.
fn gguf_name(role: Role) -> Option<String> {
    use Part::*;
    let Some(layer) = role.layer else {
        let name = match role.part {
            Embedding => "token_embd.weight",
            PositionEmbedding => "position_embd.weight",
            TokenTypeEmbedding => "token_types.weight",
            EmbeddingNorm => "token_embd_norm.weight",
            EmbeddingNormBias => "token_embd_norm.bias",
            _ => return None,
        };
        return Some(name.to_string());
    };
    let inner = match role.part {
        SelfAttentionSumNorm => "attn_output_norm.weight",
        SelfAttentionSumNormBias => "attn_output_norm.bias",
        FeedForwardSumNorm => "layer_output_norm.weight",
        FeedForwardSumNormBias => "layer_output_norm.bias",
        _ => return name_of(role),
    };
    Some(format!("blk.{layer}.{inner}"))
}

/// The tensors that the file holds. llama.cpp adds rows of the last two embeddings to f32 values as they are.
pub(super) fn tensors(shape: &EncoderOnlyShape) -> Vec<GgufTensor> {
    let layout = shape.layout();
    let held = layout.tensors.iter().filter_map(|spec| Some((gguf_name(spec.role)?, spec)));
    let tensor = |(name, spec): (String, &luthier_checkpoint::layout::TensorSpec)| GgufTensor {
        name,
        shape: spec.shape.clone(),
        stays_f32: matches!(spec.role.part, Part::PositionEmbedding | Part::TokenTypeEmbedding),
        origin: GgufOrigin::Tensor { name: spec.name.clone(), transform: Transform::Keep },
    };
    held.map(tensor).collect()
}

/// The keys of the sizes.
pub(super) fn metadata(architecture: &str, shape: &EncoderOnlyShape) -> Result<Vec<(String, GgufValue)>> {
    let mut metadata = vec![
        ("general.architecture".to_string(), GgufValue::String(architecture.to_string())),
        ("tokenizer.ggml.token_type_count".to_string(), size("type_vocab_size", shape.token_types)?),
    ];
    let mut set = |key: &str, value: GgufValue| metadata.push((format!("{architecture}.{key}"), value));
    set("block_count", size("num_hidden_layers", shape.layers.len())?);
    set("context_length", size("max_position_embeddings", shape.positions)?);
    set("embedding_length", size("hidden_size", shape.width)?);
    if let Some(layer) = shape.layers.first() {
        set("feed_forward_length", size("intermediate_size", layer.feed_forward.inner())?);
        set("attention.head_count", size("num_attention_heads", layer.attention.query_heads)?);
    }
    set("attention.causal", GgufValue::Bool(false));
    set("attention.layer_norm_epsilon", GgufValue::F32(shape.norm_eps as f32));
    set("vocab_size", size("vocab_size", shape.vocab_size)?);
    Ok(metadata)
}

/// Refuses what llama.cpp computes otherwise. It takes the tanh form for exact GELU too, within its own rounding.
pub(super) fn check(keys: &Keys, shape: &EncoderOnlyShape) -> Result<()> {
    let activation = shape.layers.first().map(|layer| layer.feed_forward.activation());
    match activation {
        Some(Activation::Gelu | Activation::GeluTanh) | None => Ok(()),
        Some(other) => Err(refused(keys, "hidden_act", format!("GGUF files assume gelu, found {other:?}"))),
    }
}

/// Names and shapes that tell the form of the folder which a file stands for: those that it remembers, or, of a file of
/// another program, the plain model's.
pub(super) fn form_of(shape: &EncoderOnlyShape, gguf: &Gguf) -> Result<Vec<TensorInfo>> {
    let mut infos = beside::infos(gguf)?;
    let known = gguf.get(NAMES_KEY).and_then(GgufValue::as_strings).map(<[String]>::to_vec);
    let names = known.unwrap_or_else(|| {
        let held = tensors(shape)
            .into_iter()
            .filter(|tensor| gguf.infos().iter().any(|info| info.name == tensor.name));
        held.filter_map(|tensor| match tensor.origin {
            GgufOrigin::Tensor { name, .. } => Some(name),
            GgufOrigin::Stacked { .. } | GgufOrigin::Made(_) => None,
        })
        .collect()
    });
    let dtype = Dtype::F32;
    infos.extend(names.into_iter().map(|name| TensorInfo { name, dtype, shape: Vec::new() }));
    Ok(infos)
}

/// What the ordinary keys say of the model.
pub(super) fn config(metadata: &Metadata, set: &mut impl FnMut(&str, Value)) -> Result<()> {
    set("hidden_size", metadata.size("embedding_length")?);
    set("intermediate_size", metadata.uniform("feed_forward_length")?);
    set("num_hidden_layers", metadata.size("block_count")?);
    set("num_attention_heads", metadata.uniform("attention.head_count")?);
    set("max_position_embeddings", metadata.size("context_length")?);
    set("layer_norm_eps", json!(metadata.number("attention.layer_norm_epsilon")?.unwrap_or(1e-12)));
    if let Some(types) = metadata.info("token_types.weight").and_then(|info| info.shape.first()) {
        set("type_vocab_size", json!(types));
    }
    set("hidden_act", json!("gelu"));
    Ok(())
}

/// The config of sentence-transformers' pooling that `pooling_type` amounts to; none where it says nothing of that kind.
pub(super) fn pooling_config(architecture: &str, gguf: &Gguf, width: Option<&Value>) -> Option<Value> {
    let kind = gguf.get(&format!("{architecture}.pooling_type")).and_then(GgufValue::as_u64)?;
    let modes =
        [(2, "pooling_mode_cls_token"), (1, "pooling_mode_mean_tokens"), (3, "pooling_mode_lasttoken")];
    modes.iter().find(|mode| mode.0 == kind)?;
    let mut pooling = Map::new();
    pooling.insert("word_embedding_dimension".to_string(), width.cloned().unwrap_or(Value::Null));
    pooling.extend(modes.map(|(number, name)| (name.to_string(), json!(number == kind))));
    Some(Value::Object(pooling))
}
