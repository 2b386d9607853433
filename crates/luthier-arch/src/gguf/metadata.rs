//! The metadata of a GGUF file in the terms of one architecture: each key by its type, or an error that names it.

use luthier_checkpoint::gguf::{Gguf, GgufValue};
use luthier_checkpoint::values::to_f32;
use luthier_checkpoint::{TensorInfo, TensorSource};
use serde_json::{Value, json};

use super::GgufDialect;
use super::agreement::in_words;
use super::per_layer;
use super::rope_factors::rope_parameters;
use crate::blocks::per_layer::common;
use crate::config::MAX_LAYERS;
use crate::table::{ARCHITECTURES, Architecture};
use crate::{Error, Result};

/// What rotary frequencies are divided by.
pub(super) const ROPE_FACTORS: &str = "rope_freqs.weight";
/// The embedding.
pub(super) const EMBEDDING: &str = "token_embd.weight";
/// Those whose files say how many experts there are.
const WITH_EXPERTS: &[&str] = &["mixtral", "qwen2_moe", "qwen3_moe"];
/// The head, where it is not the embedding.
pub(super) const HEAD: &str = "output.weight";

/// The metadata of one architecture.
pub(super) struct Metadata<'a> {
    gguf: &'a Gguf,
    architecture: &'a str,
}

impl<'a> Metadata<'a> {
    pub(super) fn new(gguf: &'a Gguf) -> Result<Metadata<'a>> {
        const KEY: &str = "general.architecture";
        let architecture = gguf.get(KEY).and_then(GgufValue::as_str);
        let architecture = architecture.ok_or_else(|| Error::config(KEY, "missing; expected a string"))?;
        Ok(Metadata { gguf, architecture })
    }

    /// The first line of the table that is called so in GGUF files.
    pub(super) fn architecture(&self) -> Result<(&'static Architecture, GgufDialect)> {
        let dialects = ARCHITECTURES.iter().filter_map(|a| a.gguf.map(|dialect| (a, dialect)));
        let known: Vec<_> = dialects.collect();
        let has_experts = self.get("expert_count").and_then(GgufValue::as_u64).is_some_and(|count| count > 0);
        let name = per_layer::dialect_name(self.architecture);
        let is_named = |(_, dialect): &&(_, GgufDialect)| dialect.architecture == name;
        // Layers that differ are those of dense models.
        let fits = |(known, _): &&(&Architecture, GgufDialect)| {
            WITH_EXPERTS.contains(&known.model_type) == has_experts
                && (!has_experts || name == self.architecture)
        };
        let fitting = || known.iter().filter(is_named).filter(fits);
        // Several architectures may share a name there; the one that is called so itself says most.
        let own = fitting().find(|(known, _)| known.model_type == name);
        let found = own.or_else(|| fitting().next()).copied();
        if found.is_none() && known.iter().any(|known| is_named(&known)) {
            let what = match has_experts {
                true => "models of this architecture with experts are not supported",
                false => "missing or 0; models of this architecture have experts",
            };
            return Err(Error::config(self.name("expert_count"), what));
        }
        found.ok_or_else(|| {
            let mut names: Vec<&str> = known.iter().map(|(_, dialect)| dialect.architecture).collect();
            names.sort_unstable();
            names.dedup();
            Error::UnknownArchitecture { model_type: self.architecture.to_string(), known: names.join(", ") }
        })
    }

    pub(super) fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    pub(super) fn get(&self, key: &str) -> Option<&'a GgufValue> {
        self.gguf.get(&self.name(key))
    }

    pub(super) fn info(&self, name: &str) -> Option<&'a TensorInfo> {
        self.gguf.infos().iter().find(|info| info.name == name)
    }

    pub(super) fn embedding(&self) -> Result<&'a TensorInfo> {
        let info = self.info(EMBEDDING).filter(|info| info.shape.len() == 2);
        info.ok_or_else(|| {
            Error::tensor(EMBEDDING, "missing or not a matrix; every model has this embedding")
        })
    }

    /// Rows of the embedding, which a key of its own may repeat but not contradict.
    pub(super) fn vocab_size(&self) -> Result<u64> {
        let rows = self.embedding()?.shape[0] as u64;
        match self.optional_size("vocab_size")? {
            Some(said) if said != rows => {
                let what = format!("{said}, but token_embd.weight has {rows} rows; they must be equal");
                Err(Error::config(self.name("vocab_size"), what))
            }
            _ => Ok(rows),
        }
    }

    fn wrong(&self, key: &str, wanted: &str, found: &GgufValue) -> Error {
        Error::config(self.name(key), format!("expected {wanted}, found {}", in_words(found)))
    }

    pub(super) fn optional_size(&self, key: &str) -> Result<Option<u64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_u64().map(Some).ok_or_else(|| self.wrong(key, "a whole number from 0 on", value))
    }

    pub(super) fn size(&self, key: &str) -> Result<Value> {
        let missing = || Error::config(self.name(key), "missing; expected a whole number");
        self.optional_size(key)?.map(|size| json!(size)).ok_or_else(missing)
    }

    pub(super) fn n_layers(&self) -> Result<usize> {
        let layers = self.size("block_count")?.as_u64().unwrap_or(0);
        let known = usize::try_from(layers).ok().filter(|layers| (1..=MAX_LAYERS).contains(layers));
        known.ok_or_else(|| {
            Error::config(self.name("block_count"), format!("expected 1 to {MAX_LAYERS}, found {layers}"))
        })
    }

    /// A size of every layer, given once for all or layer by layer. Only some architectures have layers that differ.
    pub(super) fn sizes(&self, key: &str, n_layers: usize) -> Result<Vec<usize>> {
        let Some(sizes) = self.get(key).and_then(GgufValue::as_numbers) else {
            let size = self.size(key)?.as_u64().and_then(|size| usize::try_from(size).ok());
            return Ok(vec![size.unwrap_or(0); n_layers]);
        };
        if sizes.len() != n_layers || sizes.iter().any(|size| *size < 0.0 || size.fract() != 0.0) {
            let what =
                format!("expected {n_layers} whole numbers, one a layer, found {} values", sizes.len());
            return Err(Error::config(self.name(key), what));
        }
        let alike = sizes.iter().all(|size| *size == sizes[0]);
        if !alike && per_layer::dialect_name(self.architecture) == self.architecture {
            let what = "differs from layer to layer, which llama.cpp does not follow in this architecture";
            return Err(Error::config(self.name(key), what));
        }
        Ok(sizes.iter().map(|size| *size as usize).collect())
    }

    /// Query heads of most layers.
    fn query_heads(&self) -> Result<usize> {
        let mut heads = self.sizes("attention.head_count", self.n_layers()?)?;
        heads.retain(|heads| *heads > 0);
        Ok(common(&heads))
    }

    /// A size that may be given layer by layer, but must then be the same for all.
    pub(super) fn uniform(&self, key: &str) -> Result<Value> {
        let Some(sizes) = self.get(key).and_then(GgufValue::as_numbers) else { return self.size(key) };
        match sizes.first() {
            Some(first) if sizes.iter().all(|size| size == first) => Ok(json!(*first as u64)),
            _ => Err(Error::config(self.name(key), "differs from layer to layer, which is not supported")),
        }
    }

    /// As the f32 reads in decimal, so that 1e-5 stays 1e-5.
    pub(super) fn number(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let number = match value {
            GgufValue::F32(value) => value.to_string().parse().ok(),
            other => other.as_f64(),
        };
        let finite = number.filter(|number| number.is_finite());
        finite.map(Some).ok_or_else(|| self.wrong(key, "a finite number", value))
    }

    pub(super) fn head_dim(&self) -> Result<u64> {
        let key = self.optional_size("attention.key_length")?;
        let value = self.optional_size("attention.value_length")?;
        if key != value {
            let said = |size: Option<u64>| size.map_or("absent".to_string(), |size| size.to_string());
            let what =
                format!("{}, but attention.key_length is {}; they must be equal", said(value), said(key));
            return Err(Error::config(self.name("attention.value_length"), what));
        }
        let shared = || {
            let (width, heads) = (self.size("embedding_length").ok()?.as_u64()?, self.query_heads().ok()?);
            width.checked_div(heads as u64)
        };
        let width = key.or_else(shared);
        let width =
            width.ok_or_else(|| Error::config(self.name("attention.head_count"), "expected at least 1"))?;
        match self.optional_size("rope.dimension_count")? {
            Some(turned) if turned != width => {
                let what =
                    format!("{turned}, but heads are {width} wide; partly turned heads are not supported");
                Err(Error::config(self.name("rope.dimension_count"), what))
            }
            _ => Ok(width),
        }
    }

    pub(super) fn rope(&self) -> Result<Value> {
        let theta = self.number("rope.freq_base")?.unwrap_or(10_000.0);
        if let Some(info) = self.info(ROPE_FACTORS) {
            let factors = to_f32(ROPE_FACTORS, info.dtype, &self.gguf.read(ROPE_FACTORS)?)?;
            let pairs = self.head_dim()? / 2;
            if factors.len() as u64 != pairs {
                let what = format!("expected {pairs} factors, half a head, found {}", factors.len());
                return Err(Error::tensor(ROPE_FACTORS, what));
            }
            return rope_parameters(&factors, theta);
        }
        let factor = match self.number("rope.scaling.factor")? {
            None => self.number("rope.scale_linear")?,
            factor => factor,
        };
        let kind = self.get("rope.scaling.type").and_then(GgufValue::as_str);
        match (kind.unwrap_or("linear"), factor) {
            ("none", _) | (_, None) => Ok(json!({"rope_type": "default", "rope_theta": theta})),
            ("linear", Some(1.0)) => Ok(json!({"rope_type": "default", "rope_theta": theta})),
            ("linear", Some(factor)) => {
                Ok(json!({"rope_type": "linear", "rope_theta": theta, "factor": factor}))
            }
            ("yarn", Some(factor)) => {
                let mut rope = json!({"rope_type": "yarn", "rope_theta": theta, "factor": factor});
                for (key, hf_key) in [
                    ("rope.scaling.original_context_length", "original_max_position_embeddings"),
                    ("rope.scaling.yarn_beta_fast", "beta_fast"),
                    ("rope.scaling.yarn_beta_slow", "beta_slow"),
                    ("rope.scaling.yarn_attn_factor", "attention_factor"),
                ] {
                    if let Some(number) = self.number(key)? {
                        rope[hf_key] =
                            if number.fract() == 0.0 { json!(number as u64) } else { json!(number) };
                    }
                }
                Ok(rope)
            }
            (other, _) => {
                let what = format!("expected none, linear or yarn, found {other:?}");
                Err(Error::config(self.name("rope.scaling.type"), what))
            }
        }
    }

    /// What Qwen's models with experts say of them.
    fn experts(&self, normalized: bool) -> Result<Vec<(&'static str, Value)>> {
        let used = self.uniform("expert_used_count")?;
        let shared_out = || -> Result<Value> {
            let inner = self.uniform("feed_forward_length")?;
            let size = inner.as_u64().zip(used.as_u64()).and_then(|(inner, used)| inner.checked_div(used));
            size.map(|size| json!(size))
                .ok_or_else(|| Error::config(self.name("expert_used_count"), "expected at least 1"))
        };
        let inner = match self.get("expert_feed_forward_length") {
            Some(_) => self.uniform("expert_feed_forward_length")?,
            None => shared_out()?,
        };
        Ok(vec![
            ("hidden_act", json!("silu")),
            ("num_experts", self.size("expert_count")?),
            ("num_experts_per_tok", used),
            ("moe_intermediate_size", inner),
            ("norm_topk_prob", json!(normalized)),
            ("decoder_sparse_step", json!(1)),
            ("mlp_only_layers", json!([])),
            ("use_sliding_window", json!(false)),
        ])
    }

    /// What single architectures add.
    pub(super) fn peculiarities(&self, model_type: &str) -> Result<Vec<(&'static str, Value)>> {
        let has = |name: &str| self.info(name).is_some();
        Ok(match model_type {
            "llama" => vec![
                ("hidden_act", json!("silu")),
                ("attention_bias", json!(has("blk.0.attn_q.bias"))),
                ("mlp_bias", json!(has("blk.0.ffn_gate.bias"))),
            ],
            "qwen2" => vec![("hidden_act", json!("silu")), ("use_sliding_window", json!(false))],
            "qwen3" => vec![
                ("hidden_act", json!("silu")),
                ("use_sliding_window", json!(false)),
                ("attention_bias", json!(has("blk.0.attn_q.bias"))),
            ],
            "mixtral" => vec![
                ("hidden_act", json!("silu")),
                ("num_local_experts", self.size("expert_count")?),
                ("num_experts_per_tok", self.uniform("expert_used_count")?),
            ],
            "qwen2_moe" => {
                let mut keys = self.experts(false)?;
                let shared =
                    self.optional_size("expert_shared_feed_forward_length")?.filter(|size| *size > 0);
                let shared =
                    shared.map_or_else(|| self.uniform("feed_forward_length"), |size| Ok(json!(size)))?;
                keys.push(("shared_expert_intermediate_size", shared));
                keys.push(("qkv_bias", json!(has("blk.0.attn_q.bias"))));
                keys
            }
            "qwen3_moe" => self.experts(true)?,
            "gemma2" => {
                let heads = self.query_heads()?;
                let (layers, width) = (self.size("block_count")?, self.size("embedding_length")?);
                // llama.cpp tells the 27B model, whose scale is another, by its layers.
                let scalar = match (layers.as_u64(), width.as_u64(), heads as u64) {
                    (Some(46), Some(width), heads) if heads > 0 => width / heads,
                    _ => self.head_dim()?,
                };
                vec![
                    ("hidden_activation", json!("gelu_pytorch_tanh")),
                    ("query_pre_attn_scalar", json!(scalar)),
                    (
                        "sliding_window",
                        json!(self.optional_size("attention.sliding_window")?.unwrap_or(4096)),
                    ),
                    ("attn_logit_softcapping", json!(self.number("attn_logit_softcapping")?.unwrap_or(50.0))),
                    (
                        "final_logit_softcapping",
                        json!(self.number("final_logit_softcapping")?.unwrap_or(30.0)),
                    ),
                ]
            }
            _ => Vec::new(),
        })
    }
}
