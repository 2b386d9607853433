//! T5 and mT5 as llama.cpp has them.

use luthier_checkpoint::gguf::{Gguf, GgufValue};
use luthier_checkpoint::layout::{Part, Projection, Role, StackKind};
use luthier_ops::activation::Activation;
use serde_json::{Value, json};

use super::Transform;
use super::metadata::{HEAD, Metadata};
use super::write::{GgufOrigin, GgufTensor, refused, size};
use crate::blocks::encoder_decoder::EncoderDecoderShape;
use crate::blocks::stack::Positions;
use crate::config::{Keys, MAX_POSITIONS};
use crate::{Error, Result};

/// The distance behind which all share a bucket, which llama.cpp has built in.
const MAX_DISTANCE: usize = 128;
/// llama.cpp's context where the config says nothing.
const CONTEXT: usize = 512;
/// Says that the file's logits need no scaling any more, where those of its family do.
const LOGIT_SCALE: &str = "logit_scale";

fn gguf_name(role: Role) -> Option<String> {
    use Part::*;
    let stack = match role.stack {
        StackKind::Encoder => "enc",
        StackKind::Decoder => "dec",
    };
    let Some(layer) = role.layer else {
        return Some(match role.part {
            Embedding => "token_embd.weight".to_string(),
            Head => HEAD.to_string(),
            FinalNorm => format!("{stack}.output_norm.weight"),
            RelativeBias => format!("{stack}.blk.0.attn_rel_b.weight"),
            _ => return None,
        });
    };
    let projected = |projection: Projection| match projection {
        Projection::Query => "attn_q",
        Projection::Key => "attn_k",
        Projection::Value => "attn_v",
        Projection::Output => "attn_o",
    };
    let inner = match role.part {
        SelfAttentionNorm => "attn_norm".to_string(),
        SelfAttention(projection) => projected(projection).to_string(),
        CrossAttentionNorm => "cross_attn_norm".to_string(),
        CrossAttention(projection) => format!("cross_{}", projected(projection)),
        FeedForwardNorm => "ffn_norm".to_string(),
        Gate => "ffn_gate".to_string(),
        Up => "ffn_up".to_string(),
        Down => "ffn_down".to_string(),
        _ => return None,
    };
    Some(format!("{stack}.blk.{layer}.{inner}.weight"))
}

/// The tensors that the file holds. States that are scaled before the head are so by the norm before it, since llama.cpp
/// does not scale them.
pub(super) fn tensors(shape: &EncoderDecoderShape) -> Result<Vec<GgufTensor>> {
    let layout = shape.layout();
    let mut tensors = Vec::with_capacity(layout.tensors.len());
    for spec in &layout.tensors {
        let name = gguf_name(spec.role).ok_or_else(|| Error::tensor(&spec.name, "has no GGUF name"))?;
        let is_last_norm = (spec.role.stack, spec.role.part) == (StackKind::Decoder, Part::FinalNorm);
        let transform = match is_last_norm && shape.state_scale.is_some() {
            true => Transform::ScaleStates { width: shape.decoder.width },
            false => Transform::Keep,
        };
        let origin = GgufOrigin::Tensor { name: spec.name.clone(), transform };
        tensors.push(GgufTensor { name, shape: spec.shape.clone(), stays_f32: false, origin });
    }
    Ok(tensors)
}

/// The keys of the sizes.
pub(super) fn metadata(
    architecture: &str,
    keys: &Keys,
    shape: &EncoderDecoderShape,
) -> Result<Vec<(String, GgufValue)>> {
    let (encoder, decoder) = (&shape.encoder, &shape.decoder);
    let (Some(layer), Positions::Relative { buckets, .. }) = (decoder.layers.first(), &decoder.positions)
    else {
        return Err(Error::config(keys.name("num_decoder_layers"), "a GGUF file needs a layer"));
    };
    let attention = &layer.attention;
    let mut metadata =
        vec![("general.architecture".to_string(), GgufValue::String(architecture.to_string()))];
    let mut set = |key: &str, value: GgufValue| metadata.push((format!("{architecture}.{key}"), value));
    set("context_length", size("n_positions", keys.size_or("n_positions", MAX_POSITIONS, CONTEXT)?)?);
    set("embedding_length", size("d_model", decoder.width)?);
    set("feed_forward_length", size("d_ff", layer.feed_forward.inner())?);
    set("block_count", size("num_layers", encoder.layers.len())?);
    set("decoder_block_count", size("num_decoder_layers", decoder.layers.len())?);
    set("attention.head_count", size("num_heads", attention.query_heads)?);
    set("attention.key_length", size("d_kv", attention.head_dim)?);
    set("attention.value_length", size("d_kv", attention.head_dim)?);
    set("attention.layer_norm_epsilon", GgufValue::F32(decoder.norm.eps as f32));
    set("attention.layer_norm_rms_epsilon", GgufValue::F32(decoder.norm.eps as f32));
    set("attention.relative_buckets_count", size("relative_attention_num_buckets", buckets.count)?);
    set("decoder_start_token_id", GgufValue::U32(shape.decoder_start_token));
    set("vocab_size", size("vocab_size", decoder.vocab_size)?);
    if shape.state_scale.is_some() {
        set(LOGIT_SCALE, GgufValue::F32(1.0));
    }
    Ok(metadata)
}

/// Refuses what llama.cpp computes otherwise.
pub(super) fn check(keys: &Keys, shape: &EncoderDecoderShape) -> Result<()> {
    let layers = shape.encoder.layers.iter().chain(&shape.decoder.layers);
    for block in layers.filter_map(|layer| layer.feed_forward.dense()) {
        let (assumed, name) = match block.gated {
            true => (Activation::GeluTanh, "gated-gelu"),
            false => (Activation::Relu, "relu"),
        };
        if block.activation != assumed {
            let what = format!("GGUF files assume {name}, found {:?}", block.activation);
            return Err(refused(keys, "feed_forward_proj", what));
        }
    }
    for stack in [&shape.encoder, &shape.decoder] {
        if let Positions::Relative { buckets, .. } = &stack.positions
            && buckets.max_distance != MAX_DISTANCE
        {
            let what = format!("GGUF files assume {MAX_DISTANCE}, found {}", buckets.max_distance);
            return Err(refused(keys, "relative_attention_max_distance", what));
        }
    }
    Ok(())
}

/// Whether the last norm of a file holds the scaling of states.
pub(super) fn is_scaled(gguf: &Gguf) -> bool {
    gguf.metadata.iter().any(|(key, _)| key.strip_suffix(LOGIT_SCALE).is_some_and(|rest| rest.ends_with('.')))
}

/// What the ordinary keys say of the model. Version 1.0 is told by its tied head; llama.cpp's own converter loses its
/// scaling of states, which that version always has.
pub(super) fn config(metadata: &Metadata, set: &mut impl FnMut(&str, Value)) -> Result<()> {
    set("is_encoder_decoder", json!(true));
    set("d_model", metadata.size("embedding_length")?);
    set("d_ff", metadata.uniform("feed_forward_length")?);
    set("num_layers", metadata.size("block_count")?);
    let layers = metadata.optional_size("decoder_block_count")?.map(|count| json!(count));
    set("num_decoder_layers", layers.map_or_else(|| metadata.size("block_count"), Ok)?);
    let heads = metadata.uniform("attention.head_count")?;
    set("d_kv", json!(metadata.head_dim()?));
    set("num_heads", heads);
    set("relative_attention_num_buckets", metadata.size("attention.relative_buckets_count")?);
    set("relative_attention_max_distance", json!(MAX_DISTANCE));
    set("layer_norm_epsilon", json!(metadata.number("attention.layer_norm_rms_epsilon")?.unwrap_or(1e-6)));
    let gated = metadata.info("enc.blk.0.ffn_gate.weight").is_some();
    set("feed_forward_proj", json!(if gated { "gated-gelu" } else { "relu" }));
    if let Some(length) = metadata.optional_size("context_length")? {
        set("n_positions", json!(length));
    }
    let tied = metadata.info(HEAD).is_none();
    set("tie_word_embeddings", json!(tied));
    let start = metadata.optional_size("decoder_start_token_id")?;
    set("decoder_start_token_id", json!(start.unwrap_or(0)));
    Ok(())
}
