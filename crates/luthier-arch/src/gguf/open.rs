//! A model folder or a GGUF file as a checkpoint.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use luthier_checkpoint::gguf::{Gguf, GgufValue};
use luthier_checkpoint::layout::Layout;
use luthier_checkpoint::values::to_f32;
use luthier_checkpoint::{Checkpoint, Dtype, TensorInfo, TensorSource};
use luthier_kernels::blocks::BlockType;
use luthier_kernels::bytes::SharedBytes;
use serde_json::{Map, Value, json};

use super::agreement;
use super::rope_factors::rope_parameters;
use super::{CONFIG_KEY, GgufDialect, Transform, name_of};
use crate::blocks::stack::StackShape;
use crate::table::{self, ARCHITECTURES, Architecture, ModelShape};
use crate::{Error, Result};

const ROPE_FACTORS: &str = "rope_freqs.weight";
const HEAD: &str = "output.weight";

/// Opens a model folder, a lone file of PyTorch's with its config.json beside it, or a GGUF file as if it were a folder.
pub fn open(place: &Path) -> Result<Checkpoint> {
    if place.is_dir() {
        return Ok(Checkpoint::open_folder(place)?);
    }
    if luthier_checkpoint::torch::is_torch_name(place) {
        return Ok(Checkpoint::open_torch_file(place)?);
    }
    open_gguf(place)
}

/// Opens a GGUF file: config and names in Hugging Face terms, weights as a folder would hold them.
pub fn open_gguf(path: &Path) -> Result<Checkpoint> {
    let gguf = Arc::new(Gguf::open(path)?);
    let stored = stored_config(&gguf)?;
    if let Some(config) = &stored
        && let ModelShape::EncoderDecoder(_) = table::shape(config)?
    {
        agreement::check(config, &gguf)?;
        return checkpoint(path, config.clone(), Arc::clone(&gguf) as Arc<dyn TensorSource>, &gguf);
    }
    // The stored config says more, unless another program changed the weights since.
    let config = match stored {
        Some(stored) if fits(&stored, &gguf)? => {
            agreement::check(&stored, &gguf)?;
            stored
        }
        _ => derive_config(&gguf)?,
    };
    let source = renamed(&config, Arc::clone(&gguf))?;
    checkpoint(path, config, Arc::new(source), &gguf)
}

fn checkpoint(
    path: &Path,
    config: Map<String, Value>,
    tensors: Arc<dyn TensorSource>,
    gguf: &Gguf,
) -> Result<Checkpoint> {
    let side_files = luthier_checkpoint::gguf::side_files(gguf)?;
    Ok(Checkpoint { place: path.to_path_buf(), config, tensors, side_files })
}

fn stored_config(gguf: &Gguf) -> Result<Option<Map<String, Value>>> {
    let Some(value) = gguf.get(CONFIG_KEY) else { return Ok(None) };
    let wrong = |what: String| Error::config(CONFIG_KEY, what);
    let text =
        value.as_str().ok_or_else(|| wrong("expected a string that holds a config.json".to_string()))?;
    serde_json::from_str(text).map(Some).map_err(|error| wrong(format!("expected a JSON object: {error}")))
}

/// Whether the file holds exactly the weights that this config asks for.
fn fits(config: &Map<String, Value>, gguf: &Gguf) -> Result<bool> {
    let (layout, ..) = decoder_only(config)?;
    let infos: HashMap<&str, &TensorInfo> =
        gguf.infos().iter().map(|info| (info.name.as_str(), info)).collect();
    let tied = layout.ties.iter().all(|tie| !infos.contains_key(HEAD) || tie.name != "lm_head.weight");
    let same = |spec: &luthier_checkpoint::layout::TensorSpec| {
        let info = name_of(spec.role).and_then(|name| infos.get(name.as_str()).copied());
        info.is_some_and(|info| info.shape == spec.shape)
    };
    Ok(tied && layout.tensors.iter().all(same))
}

fn decoder_only(config: &Map<String, Value>) -> Result<(Layout, StackShape, GgufDialect)> {
    let shape = table::shape(config)?;
    let layout = shape.layout();
    let architecture = table::architecture(&crate::config::Keys::new(config)?)?;
    match (shape, architecture.gguf) {
        (ModelShape::DecoderOnly { stack, .. }, Some(dialect)) => Ok((layout, *stack, dialect)),
        _ => Err(Error::config("model_type", format!("{} has no GGUF names", architecture.model_type))),
    }
}

/// Hugging Face names over a GGUF file.
struct Renamed {
    gguf: Arc<Gguf>,
    infos: Vec<TensorInfo>,
    origins: HashMap<String, (TensorInfo, Transform)>,
}

impl TensorSource for Renamed {
    fn infos(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn read(&self, name: &str) -> luthier_checkpoint::Result<SharedBytes> {
        let Some((info, transform)) = self.origins.get(name) else {
            let what = format!("is not in {}", self.gguf.path().display());
            return Err(luthier_checkpoint::Error::Tensor { name: name.to_string(), what });
        };
        let bytes = self.gguf.read(&info.name)?;
        match transform.undo(info, bytes) {
            Ok((_, bytes)) => Ok(bytes),
            Err(Error::Checkpoint(error)) => Err(error),
            Err(other) => {
                Err(luthier_checkpoint::Error::Tensor { name: name.to_string(), what: other.to_string() })
            }
        }
    }
}

fn renamed(config: &Map<String, Value>, gguf: Arc<Gguf>) -> Result<Renamed> {
    let (layout, stack, dialect) = decoder_only(config)?;
    let mut names = HashMap::new();
    for spec in &layout.tensors {
        if let Some(name) = name_of(spec.role) {
            names.insert(name, (spec.name.clone(), Transform::of(spec.role, &stack, &dialect)));
        }
    }
    let (mut infos, mut origins) = (Vec::new(), HashMap::new());
    for info in gguf.infos() {
        // The config holds what it says.
        if info.name == ROPE_FACTORS {
            continue;
        }
        // A tensor that the config has no place for keeps its name, under which it is reported.
        let kept = (info.name.clone(), Transform::Keep);
        let (name, transform) = names.get(&info.name).cloned().unwrap_or(kept);
        let dtype = transform.undone_dtype(info.dtype);
        infos.push(TensorInfo { name: name.clone(), dtype, shape: info.shape.clone() });
        if let Some((other, _)) = origins.insert(name, (info.clone(), transform)) {
            let what = format!("stands for the same weight as {}", other.name);
            return Err(Error::tensor(&info.name, what));
        }
    }
    Ok(Renamed { gguf, infos, origins })
}

/// The config.json that the metadata amounts to.
fn derive_config(gguf: &Gguf) -> Result<Map<String, Value>> {
    let metadata = Metadata::new(gguf)?;
    let (architecture, dialect) = metadata.architecture()?;
    let mut config = Map::new();
    let mut set = |key: &str, value: Value| {
        config.insert(key.to_string(), value);
    };
    set("architectures", json!([dialect.class]));
    set("model_type", json!(architecture.model_type));
    set("vocab_size", json!(metadata.embedding()?.shape[0]));
    set("hidden_size", metadata.size("embedding_length")?);
    set("intermediate_size", metadata.uniform("feed_forward_length")?);
    set("num_hidden_layers", metadata.size("block_count")?);
    let heads = metadata.uniform("attention.head_count")?;
    let kv_heads = match metadata.get("attention.head_count_kv") {
        Some(_) => metadata.uniform("attention.head_count_kv")?,
        None => heads.clone(),
    };
    set("head_dim", json!(metadata.head_dim(&heads)?));
    set("num_attention_heads", heads);
    set("num_key_value_heads", kv_heads);
    if let Some(length) = metadata.get("context_length").and_then(GgufValue::as_u64) {
        set("max_position_embeddings", json!(length));
    }
    if let Some(eps) = metadata.number("attention.layer_norm_rms_epsilon") {
        set("rms_norm_eps", json!(eps));
    }
    set("rope_parameters", metadata.rope()?);
    set("tie_word_embeddings", json!(dialect.always_tied || metadata.info(HEAD).is_none()));
    for (key, value) in metadata.peculiarities(architecture.model_type)? {
        set(key, value);
    }
    for (key, name) in [("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding")] {
        let id = gguf.get(&format!("tokenizer.ggml.{name}_token_id")).and_then(GgufValue::as_u64);
        set(key, id.map_or(Value::Null, |id| json!(id)));
    }
    let dtype = match metadata.embedding()?.dtype {
        Dtype::Weights(BlockType::F16) => "float16",
        Dtype::Weights(BlockType::BF16) => "bfloat16",
        _ => "float32",
    };
    set("dtype", json!(dtype));
    Ok(config)
}

/// The metadata of one architecture.
struct Metadata<'a> {
    gguf: &'a Gguf,
    architecture: &'a str,
}

impl<'a> Metadata<'a> {
    fn new(gguf: &'a Gguf) -> Result<Metadata<'a>> {
        const KEY: &str = "general.architecture";
        let architecture = gguf.get(KEY).and_then(GgufValue::as_str);
        let architecture = architecture.ok_or_else(|| Error::config(KEY, "missing; expected a string"))?;
        Ok(Metadata { gguf, architecture })
    }

    /// The first line of the table that is called so in GGUF files.
    fn architecture(&self) -> Result<(&'static Architecture, GgufDialect)> {
        let dialects = ARCHITECTURES.iter().filter_map(|a| a.gguf.map(|dialect| (a, dialect)));
        let known: Vec<_> = dialects.collect();
        if self.get("expert_count").and_then(GgufValue::as_u64).is_some_and(|count| count > 0) {
            return Err(Error::config(self.name("expert_count"), "models with experts are not supported"));
        }
        known.iter().find(|(_, dialect)| dialect.architecture == self.architecture).copied().ok_or_else(
            || {
                let mut names: Vec<&str> = known.iter().map(|(_, dialect)| dialect.architecture).collect();
                names.dedup();
                Error::UnknownArchitecture {
                    model_type: self.architecture.to_string(),
                    known: names.join(", "),
                }
            },
        )
    }

    fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn get(&self, key: &str) -> Option<&'a GgufValue> {
        self.gguf.get(&self.name(key))
    }

    fn info(&self, name: &str) -> Option<&'a TensorInfo> {
        self.gguf.infos().iter().find(|info| info.name == name)
    }

    fn embedding(&self) -> Result<&'a TensorInfo> {
        const NAME: &str = "token_embd.weight";
        let info = self.info(NAME).filter(|info| info.shape.len() == 2);
        info.ok_or_else(|| Error::tensor(NAME, "missing or not a matrix; every model has this embedding"))
    }

    fn size(&self, key: &str) -> Result<Value> {
        let size = self.get(key).and_then(GgufValue::as_u64);
        let missing = || Error::config(self.name(key), "missing; expected a whole number");
        size.map(|size| json!(size)).ok_or_else(missing)
    }

    /// A size that may be given layer by layer, but must then be the same for all.
    fn uniform(&self, key: &str) -> Result<Value> {
        let Some(sizes) = self.get(key).and_then(GgufValue::as_numbers) else { return self.size(key) };
        match sizes.first() {
            Some(first) if sizes.iter().all(|size| size == first) => Ok(json!(*first as u64)),
            _ => Err(Error::config(self.name(key), "differs from layer to layer, which is not supported")),
        }
    }

    /// As the f32 reads in decimal, so that 1e-5 stays 1e-5.
    fn number(&self, key: &str) -> Option<f64> {
        match self.get(key)? {
            GgufValue::F32(value) => value.to_string().parse().ok(),
            other => other.as_f64(),
        }
    }

    fn head_dim(&self, heads: &Value) -> Result<u64> {
        let given = |key: &str| self.get(key).and_then(GgufValue::as_u64);
        let (key, value) = (given("attention.key_length"), given("attention.value_length"));
        if key != value {
            let what = format!("{value:?}, but attention.key_length is {key:?}; they must be equal");
            return Err(Error::config(self.name("attention.value_length"), what));
        }
        let shared = || {
            let (width, heads) = (self.size("embedding_length").ok()?.as_u64()?, heads.as_u64()?);
            width.checked_div(heads)
        };
        let width = key.or_else(shared);
        let width =
            width.ok_or_else(|| Error::config(self.name("attention.head_count"), "expected at least 1"))?;
        match given("rope.dimension_count") {
            Some(turned) if turned != width => {
                let what =
                    format!("{turned}, but heads are {width} wide; partly turned heads are not supported");
                Err(Error::config(self.name("rope.dimension_count"), what))
            }
            _ => Ok(width),
        }
    }

    fn rope(&self) -> Result<Value> {
        let theta = self.number("rope.freq_base").unwrap_or(10_000.0);
        if let Some(info) = self.info(ROPE_FACTORS) {
            let factors = to_f32(ROPE_FACTORS, info.dtype, &self.gguf.read(ROPE_FACTORS)?)?;
            let heads = self.uniform("attention.head_count")?;
            let pairs = self.head_dim(&heads)? / 2;
            if factors.len() as u64 != pairs {
                let what = format!("expected {pairs} factors, half a head, found {}", factors.len());
                return Err(Error::tensor(ROPE_FACTORS, what));
            }
            return rope_parameters(&factors, theta);
        }
        let factor = self.number("rope.scaling.factor").or_else(|| self.number("rope.scale_linear"));
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
                    if let Some(number) = self.number(key) {
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

    /// What single architectures add.
    fn peculiarities(&self, model_type: &str) -> Result<Vec<(&'static str, Value)>> {
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
            "gemma2" => {
                let heads = self.uniform("attention.head_count")?;
                let (layers, width) = (self.size("block_count")?, self.size("embedding_length")?);
                // llama.cpp tells the 27B model, whose scale is another, by its layers.
                let scalar = match (layers.as_u64(), width.as_u64(), heads.as_u64()) {
                    (Some(46), Some(width), Some(heads)) if heads > 0 => width / heads,
                    _ => self.head_dim(&heads)?,
                };
                vec![
                    ("hidden_activation", json!("gelu_pytorch_tanh")),
                    ("query_pre_attn_scalar", json!(scalar)),
                    (
                        "sliding_window",
                        json!(
                            self.get("attention.sliding_window").and_then(GgufValue::as_u64).unwrap_or(4096)
                        ),
                    ),
                    ("attn_logit_softcapping", json!(self.number("attn_logit_softcapping").unwrap_or(50.0))),
                    (
                        "final_logit_softcapping",
                        json!(self.number("final_logit_softcapping").unwrap_or(30.0)),
                    ),
                ]
            }
            _ => Vec::new(),
        })
    }
}
