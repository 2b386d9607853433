//! What a GGUF file of a model holds: metadata and tensors, from its config alone.

use std::collections::HashMap;

use luthier_checkpoint::TensorInfo;
use luthier_checkpoint::gguf::{GgufArray, GgufValue};
use luthier_checkpoint::layout::Space;
use serde_json::{Map, Value};

use super::metadata::HEAD;
use super::names::{experts_of, stored_shape};
use super::per_layer;
use super::rope_factors::factors;
use super::{CONFIG_KEY, GgufDialect, NAMES_KEY, Transform, encoder_decoder, encoder_only, name_of};
use crate::blocks::stack::{Positions, StackShape};
use crate::config::Keys;
use crate::table::{self, Architecture, ModelShape};
use crate::{Error, Result};

/// A GGUF file to be, the tokenizer's metadata aside.
pub struct GgufForm {
    /// `general.architecture`, the sizes, and the config under [`CONFIG_KEY`].
    pub metadata: Vec<(String, GgufValue)>,
    /// In file order.
    pub tensors: Vec<GgufTensor>,
}

/// One tensor of a GGUF file to be.
pub struct GgufTensor {
    /// Its name there.
    pub name: String,
    /// Outermost axis first.
    pub shape: Vec<usize>,
    /// Whether llama.cpp wants it in f32 though it is a matrix.
    pub stays_f32: bool,
    /// Where its values come from.
    pub origin: GgufOrigin,
}

/// Where the values of a tensor come from.
pub enum GgufOrigin {
    /// A tensor of the model, changed.
    Tensor {
        /// Its Hugging Face name.
        name: String,
        /// How.
        transform: Transform,
    },
    /// All experts of a layer, one after the other.
    Stacked {
        /// Their Hugging Face names.
        names: Vec<String>,
    },
    /// Made from the config, f32.
    Made(Vec<f32>),
}

/// The GGUF form of a model of this config. An error names the key that llama.cpp would compute otherwise.
pub fn plan(config: &Map<String, Value>) -> Result<GgufForm> {
    plan_with(config, &[])
}

/// The same of a model whose folder has these tensors, in that order: their names go along, and tell the form of an
/// architecture that leaves names and heads open.
pub fn plan_with(config: &Map<String, Value>, infos: &[TensorInfo]) -> Result<GgufForm> {
    let keys = Keys::new(config)?;
    let architecture = table::architecture(&keys)?;
    let shape = table::read(&keys)?.fitted(infos);
    let mut tensors = tensors(&shape, architecture)?;
    let text =
        serde_json::to_string(config).map_err(|error| Error::config("config.json", error.to_string()))?;
    let mut metadata = match (&shape, architecture.gguf) {
        (ModelShape::DecoderOnly { stack, .. }, Some(dialect)) => {
            refuse_what_llama_cpp_ignores(architecture.model_type, &keys, stack)?;
            if let Some(factors) = rope_factors(&keys, stack)? {
                tensors.insert(
                    0,
                    GgufTensor {
                        name: "rope_freqs.weight".to_string(),
                        shape: vec![stack.layers[0].attention.head_dim / 2],
                        stays_f32: true,
                        origin: GgufOrigin::Made(factors),
                    },
                );
            }
            metadata(per_layer::architecture(&dialect, stack)?, &keys, stack)?
        }
        (ModelShape::EncoderOnly(shape), Some(dialect)) => {
            encoder_only::check(&keys, shape)?;
            encoder_only::metadata(dialect.architecture, shape)?
        }
        (ModelShape::EncoderDecoder(shape), Some(dialect)) => {
            encoder_decoder::check(&keys, shape)?;
            encoder_decoder::metadata(dialect.architecture, &keys, shape)?
        }
        (_, None) => {
            vec![("general.architecture".to_string(), GgufValue::String(architecture.model_type.to_string()))]
        }
    };
    metadata.push((CONFIG_KEY.to_string(), GgufValue::String(text)));
    if architecture.gguf.is_some() && !infos.is_empty() {
        let names = infos.iter().map(|info| info.name.clone()).collect();
        metadata.push((NAMES_KEY.to_string(), GgufValue::Array(GgufArray::String(names))));
    }
    Ok(GgufForm { metadata, tensors })
}

/// The weights of a model as a GGUF file holds them; under their Hugging Face names where llama.cpp does not know the
/// architecture.
pub(super) fn tensors(shape: &ModelShape, architecture: &Architecture) -> Result<Vec<GgufTensor>> {
    match (shape, architecture.gguf) {
        (ModelShape::DecoderOnly { stack, .. }, Some(dialect)) => {
            decoder_only_tensors(shape, stack, architecture.model_type, &dialect)
        }
        (ModelShape::EncoderOnly(shape), Some(_)) => Ok(encoder_only::tensors(shape)),
        (ModelShape::EncoderDecoder(shape), Some(_)) => encoder_decoder::tensors(shape),
        (_, None) => {
            let keep = |spec: &luthier_checkpoint::layout::TensorSpec| GgufTensor {
                name: spec.name.clone(),
                shape: spec.shape.clone(),
                stays_f32: false,
                origin: GgufOrigin::Tensor { name: spec.name.clone(), transform: Transform::Keep },
            };
            Ok(shape.layout().tensors.iter().map(keep).collect())
        }
    }
}

fn decoder_only_tensors(
    shape: &ModelShape,
    stack: &StackShape,
    model_type: &str,
    dialect: &GgufDialect,
) -> Result<Vec<GgufTensor>> {
    let layout = shape.layout();
    let mut tensors = Vec::with_capacity(layout.tensors.len() + 1);
    let experts = experts_of(&layout);
    let mut stacks: HashMap<String, usize> = HashMap::new();
    for spec in &layout.tensors {
        let name = name_of(spec.role).ok_or_else(|| Error::tensor(&spec.name, "has no GGUF name"))?;
        let shape = stored_shape(spec, &experts);
        if spec.role.part.expert().is_some() {
            let at = *stacks.entry(name.clone()).or_insert_with(|| {
                let origin = GgufOrigin::Stacked { names: Vec::new() };
                tensors.push(GgufTensor { name, shape, stays_f32: false, origin });
                tensors.len() - 1
            });
            if let GgufOrigin::Stacked { names } = &mut tensors[at].origin {
                names.push(spec.name.clone());
            }
            continue;
        }
        debug_assert!(spec.spaces.iter().all(|space| *space != Space::Vocab) || spec.role.layer.is_none());
        let origin = GgufOrigin::Tensor {
            name: spec.name.clone(),
            transform: Transform::of(spec.role, stack, dialect),
        };
        tensors.push(GgufTensor { name, shape, stays_f32: false, origin });
    }
    if model_type == "qwen2_moe"
        && let Some(tie) = layout.ties.iter().find(|tie| tie.name == "lm_head.weight")
    {
        // llama.cpp wants a head of its own here.
        let origin = GgufOrigin::Tensor { name: tie.target.clone(), transform: Transform::Keep };
        let shape = vec![stack.vocab_size, stack.width];
        tensors.push(GgufTensor { name: HEAD.to_string(), shape, stays_f32: false, origin });
    }
    Ok(tensors)
}

/// A size as GGUF files have it; `key` is where the config says it.
pub(super) fn size(key: &str, size: usize) -> Result<GgufValue> {
    u32::try_from(size)
        .map(GgufValue::U32)
        .map_err(|_| Error::config(key, format!("{size} does not fit a GGUF file")))
}

/// What llama.cpp would compute otherwise.
pub(super) fn refused(keys: &Keys, key: &str, what: String) -> Error {
    let what = format!("{what}; llama.cpp would compute something else, keep this model as a folder");
    Error::config(keys.name(key), what)
}

/// The shortest attention window of a model whose GGUF form loses it: llama.cpp applies windows to Gemma 2 alone among
/// the architectures that we write, and computes something else for texts longer than this. None: nothing is lost.
pub fn ignored_window(config: &Map<String, Value>) -> Result<Option<usize>> {
    let keys = Keys::new(config)?;
    let architecture = table::architecture(&keys)?;
    let ModelShape::DecoderOnly { stack, .. } = table::read(&keys)? else { return Ok(None) };
    if architecture.model_type == "gemma2" {
        return Ok(None);
    }
    Ok(stack.layers.iter().filter_map(|layer| layer.attention.window).min())
}

fn metadata(architecture: &str, keys: &Keys, stack: &StackShape) -> Result<Vec<(String, GgufValue)>> {
    let attention = &stack.layers[0].attention;
    let mut metadata =
        vec![("general.architecture".to_string(), GgufValue::String(architecture.to_string()))];
    let mut set = |key: &str, value: GgufValue| metadata.push((format!("{architecture}.{key}"), value));
    set("block_count", size("num_hidden_layers", stack.layers.len())?);
    if let Some(length) = stack.context_length {
        set("context_length", size("max_position_embeddings", length)?);
    }
    set("embedding_length", size("hidden_size", stack.width)?);
    let experts = stack.layers.iter().find_map(|layer| layer.feed_forward.experts());
    let dense = keys.optional_size("intermediate_size", crate::config::MAX_WIDTH)?;
    for (key, config_key, of) in per_layer::SIZES {
        let value = match (config_key, experts, dense) {
            // The width of the blocks that a model of experts alone has not.
            ("intermediate_size", Some(_), Some(inner)) => size(config_key, inner)?,
            _ => per_layer::value(config_key, stack, of)?,
        };
        set(key, value);
    }
    set("attention.key_length", size("head_dim", attention.head_dim)?);
    set("attention.value_length", size("head_dim", attention.head_dim)?);
    set("attention.layer_norm_rms_epsilon", GgufValue::F32(stack.norm.eps as f32));
    set("rope.dimension_count", size("head_dim", attention.head_dim)?);
    set("rope.freq_base", GgufValue::F32(theta(keys)? as f32));
    set("vocab_size", size("vocab_size", stack.vocab_size)?);
    if let Some(window) = stack.layers.iter().find_map(|layer| layer.attention.window) {
        set("attention.sliding_window", size("sliding_window", window)?);
    }
    if let Some(cap) = attention.softcap {
        set("attn_logit_softcapping", GgufValue::F32(cap as f32));
    }
    if let Some(cap) = stack.logit_softcap {
        set("final_logit_softcapping", GgufValue::F32(cap as f32));
    }
    if let Some(experts) = experts {
        set("expert_count", size("num_experts", experts.count)?);
        set("expert_used_count", size("num_experts_per_tok", experts.top_k)?);
        // Mixtral's files know one width alone.
        if architecture != "llama" {
            set("expert_feed_forward_length", size("moe_intermediate_size", experts.inner)?);
        }
        if let Some(inner) = experts.shared {
            set("expert_shared_feed_forward_length", size("shared_expert_intermediate_size", inner)?);
        }
    }
    scaling(keys, &mut set)?;
    Ok(metadata)
}

/// The object that holds the rotary parameters, and its type.
fn rope_keys<'a>(keys: &Keys<'a>) -> Result<(Option<Keys<'a>>, &'a str)> {
    let older = keys.object("rope_scaling")?.filter(|keys| !keys.map().is_empty());
    let Some(rope) = older.or(keys.object("rope_parameters")?) else { return Ok((None, "default")) };
    let kind = match rope.optional_text("rope_type")? {
        Some(kind) => kind,
        None => rope.optional_text("type")?.unwrap_or("default"),
    };
    Ok((Some(rope), kind))
}

fn theta(keys: &Keys) -> Result<f64> {
    let default = if keys.optional_text("model_type")? == Some("mixtral") { 1e6 } else { 10_000.0 };
    let inner = match rope_keys(keys)?.0 {
        Some(rope) => rope.optional_positive("rope_theta")?,
        None => None,
    };
    Ok(match inner {
        Some(theta) => theta,
        None => keys.optional_positive("rope_theta")?.unwrap_or(default),
    })
}

fn scaling(keys: &Keys, set: &mut impl FnMut(&str, GgufValue)) -> Result<()> {
    let (Some(rope), kind) = rope_keys(keys)? else { return Ok(()) };
    if kind != "linear" && kind != "yarn" {
        return Ok(());
    }
    set("rope.scaling.type", GgufValue::String(kind.to_string()));
    let number = |key: &'static str| rope.optional_positive(key);
    let gguf_keys = [
        ("factor", "rope.scaling.factor"),
        ("attention_factor", "rope.scaling.yarn_attn_factor"),
        ("beta_fast", "rope.scaling.yarn_beta_fast"),
        ("beta_slow", "rope.scaling.yarn_beta_slow"),
    ];
    for (key, gguf_key) in gguf_keys {
        if let Some(value) = number(key)? {
            set(gguf_key, GgufValue::F32(value as f32));
        }
    }
    if let Some(trained) = rope.optional_count("original_max_position_embeddings")? {
        let trained = u32::try_from(trained).unwrap_or(u32::MAX);
        set("rope.scaling.original_context_length", GgufValue::U32(trained));
    }
    Ok(())
}

fn rope_factors(keys: &Keys, stack: &StackShape) -> Result<Option<Vec<f32>>> {
    let (_, kind) = rope_keys(keys)?;
    let Positions::Rotary(rope) = &stack.positions else { return Ok(None) };
    Ok(matches!(kind, "llama3" | "longrope").then(|| factors(rope, theta(keys).unwrap_or(10_000.0))))
}

fn refuse_what_llama_cpp_ignores(model_type: &str, keys: &Keys, stack: &StackShape) -> Result<()> {
    let refuse = |key: &'static str, what: String| Err(refused(keys, key, what));
    let attention = &stack.layers[0].attention;
    if model_type == "gemma2" {
        let assumed =
            if stack.layers.len() == 46 { stack.width / attention.query_heads } else { attention.head_dim };
        let scalar = (attention.scale.powi(-2) * 1e6).round() / 1e6;
        if (scalar - assumed as f64).abs() > 1e-6 * scalar {
            return refuse("query_pre_attn_scalar", format!("GGUF files assume {assumed}, found {scalar}"));
        }
        let alternates = |(at, layer): (usize, &crate::blocks::layer::LayerShape)| {
            layer.attention.window.is_some() == (at % 2 == 0)
        };
        if !stack.layers.iter().enumerate().all(alternates) {
            return refuse("layer_types", "GGUF files assume that layers alternate".to_string());
        }
        if attention.softcap.is_none() || stack.logit_softcap.is_none() {
            return refuse("attn_logit_softcapping", "GGUF files assume soft caps".to_string());
        }
        if !keys.flag_or("tie_word_embeddings", true)? {
            return refuse("tie_word_embeddings", "GGUF files assume a tied head".to_string());
        }
    }
    if let Some(experts) = stack.layers.iter().find_map(|layer| layer.feed_forward.experts()) {
        let assumed = model_type != "qwen2_moe";
        if experts.normalized != assumed {
            let what =
                format!("GGUF files of this architecture assume {assumed}, found {}", experts.normalized);
            return refuse("norm_topk_prob", what);
        }
        if stack.layers.iter().any(|layer| layer.feed_forward.experts().is_none()) {
            let what =
                "GGUF files of this architecture have experts in every layer, some layers here have none";
            return refuse("decoder_sparse_step", what.to_string());
        }
    }
    if model_type == "qwen2_moe" && attention.query_heads * attention.head_dim != stack.width {
        let what =
            format!("GGUF files of this architecture assume heads as wide as the model, {}", stack.width);
        return refuse("head_dim", what);
    }
    let activation = stack.layers[0].feed_forward.activation();
    let assumed = match model_type {
        "gemma2" => luthier_ops::activation::Activation::GeluTanh,
        _ => luthier_ops::activation::Activation::Silu,
    };
    if activation != assumed {
        return refuse("hidden_act", format!("GGUF files assume {assumed:?}, found {activation:?}"));
    }
    if matches!(model_type, "qwen3" | "qwen3_moe" | "gemma2") && attention.qkv_bias {
        return refuse("attention_bias", "GGUF files of this architecture have none".to_string());
    }
    Ok(())
}
