//! LoRA adapters in llama.cpp's form: a GGUF file of pairs under the base's GGUF names, seen as, and made of, a folder in PEFT's.
//!
//! `general.type` is `adapter`, `adapter.type` is `lora`; beside the weight `W` stand `W.lora_a` `[r, in]` and `W.lora_b`
//! `[out, r]`, for the token embedding `[vocab, r]` and `[width, r]`; the product is scaled by `adapter.lora.alpha` / r, or not at
//! all where that is 0. Rows of B move as those of W do. Source: convert_lora_to_gguf.py and llama-adapter.cpp of llama.cpp
//! (llama-cpp-python 0.3.36's archive). llama.cpp applies nothing but pairs.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use luthier_arch::gguf::{GgufOrigin, Transform};
use luthier_checkpoint::adapter::{Adapter, Kind, PREFIX};
use luthier_checkpoint::gguf::GgufValue;
use luthier_checkpoint::{
    Checkpoint, Dtype, Error as FileError, Gguf, Result as FileResult, TensorInfo, TensorSource, values,
};
use luthier_kernels::bytes::SharedBytes;
use serde_json::{Map, Value, json};

use crate::view::find;
use crate::writing::Origin;
use crate::{Error, Result};

/// The embedding's name in GGUF files.
const EMBEDDING: &str = "token_embd.weight";
const TYPE_KEY: &str = "general.type";
const KIND_KEY: &str = "adapter.type";
const ALPHA_KEY: &str = "adapter.lora.alpha";

/// Whether a file is an adapter in this form, or says that it is one of another kind.
pub fn is_adapter(path: &Path) -> Result<bool> {
    if !path.is_file() || !Gguf::is_gguf(path) {
        return Ok(false);
    }
    Ok(Gguf::open(path)?.get(TYPE_KEY).and_then(GgufValue::as_str) == Some("adapter"))
}

/// An adapter of `base`: the folder at `path` in PEFT's form, or the file in llama.cpp's.
pub fn open(path: &Path, base: Option<&Checkpoint>) -> Result<Adapter> {
    if !is_adapter(path)? {
        return Ok(Adapter::open(path)?);
    }
    let what = "an adapter in a GGUF file is read beside its base, whose heads say where its rows belong; name the base";
    let base = base.ok_or_else(|| FileError::format(path, what))?;
    read(Arc::new(Gguf::open(path)?), base)
}

/// Names of a base's weights in GGUF files: theirs, ours, and how rows stand there.
fn names(base: &Checkpoint) -> Result<HashMap<String, (String, Transform)>> {
    let tensors = luthier_arch::gguf::plan(&base.config)?.tensors;
    let named = tensors.into_iter().filter_map(|tensor| match tensor.origin {
        GgufOrigin::Tensor { name, transform } => Some((tensor.name, (name, transform))),
        GgufOrigin::Made(_) => None,
    });
    Ok(named.collect())
}

/// How a tensor of one form becomes one of the other.
#[derive(Clone, Copy)]
enum Turn {
    /// Rows move back.
    Undo(Transform),
    /// Rows move.
    Apply(Transform),
    /// Rows and columns are exchanged.
    Transpose,
}

/// Another source's tensors in the other form, as floats.
pub(crate) struct Turned {
    source: Arc<dyn TensorSource>,
    infos: Vec<TensorInfo>,
    /// Source's name, turn, and what values are multiplied with.
    origins: HashMap<String, (String, Turn, f64)>,
}

impl TensorSource for Turned {
    fn infos(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn read(&self, name: &str) -> FileResult<SharedBytes> {
        let info = find(&self.infos, name)?;
        let (source, turn, factor) = &self.origins[name];
        let stored = find(self.source.infos(), source)?;
        let bytes = self.source.read(source)?;
        values::check_finite(source, stored.dtype, &bytes)?;
        let refused = |problem: luthier_arch::Error| FileError::tensor(source, problem.to_string());
        let (dtype, bytes) = match turn {
            Turn::Undo(transform) => transform.undo(stored, bytes).map_err(refused)?,
            Turn::Apply(transform) => transform.apply(stored, bytes).map_err(refused)?,
            Turn::Transpose => (Dtype::F32, transposed(stored, &bytes)?),
        };
        if *factor == 1.0 {
            return match dtype == info.dtype {
                true => Ok(bytes),
                false => Ok(SharedBytes::from_vec(values::cast(name, dtype, &bytes, info.dtype)?)),
            };
        }
        let wide = values::to_f32(name, dtype, &bytes)?;
        let scaled = wide.iter().flat_map(|value| ((f64::from(*value) * factor) as f32).to_le_bytes());
        Ok(SharedBytes::from_vec(values::cast(name, Dtype::F32, &scaled.collect::<Vec<u8>>(), info.dtype)?))
    }
}

impl Turned {
    /// Where its tensors come from, the source's being those of input 0.
    pub(crate) fn origins(&self) -> Vec<Origin> {
        let origin = |info: &TensorInfo| {
            let (name, turn, factor) = &self.origins[&info.name];
            let (input, name) = (0, name.clone());
            let how = match turn {
                Turn::Undo(Transform::Keep) | Turn::Apply(Transform::Keep) if *factor == 1.0 => {
                    return Origin::From { input, name };
                }
                Turn::Transpose => "rows and columns exchanged",
                Turn::Undo(_) | Turn::Apply(_) if *factor == 1.0 => "rows of heads in GGUF's order",
                Turn::Undo(_) | Turn::Apply(_) => "scaled, rows in GGUF's order",
            };
            Origin::Changed { input, name, how: how.to_string() }
        };
        self.infos.iter().map(origin).collect()
    }
}

fn transposed(info: &TensorInfo, bytes: &[u8]) -> FileResult<SharedBytes> {
    let wide = values::to_f32(&info.name, info.dtype, bytes)?;
    let cols = info.shape.last().copied().unwrap_or(0).max(1);
    let turned = (0..cols).flat_map(|col| wide.iter().skip(col).step_by(cols));
    Ok(SharedBytes::from_vec(turned.flat_map(|value| value.to_le_bytes()).collect()))
}

fn read(file: Arc<Gguf>, base: &Checkpoint) -> Result<Adapter> {
    let path = file.path().to_path_buf();
    let refused = |what: String| Error::from(FileError::format(&path, what));
    match file.get(KIND_KEY).and_then(GgufValue::as_str) {
        Some("lora") => {}
        came => return Err(refused(format!("{KIND_KEY}: wanted lora, came {}", came.unwrap_or("none")))),
    }
    let alpha = match file.get(ALPHA_KEY) {
        None => 0.0,
        Some(value) => value.as_f64().ok_or_else(|| refused(format!("{ALPHA_KEY}: wanted a number")))?,
    };
    let names = names(base)?;
    let (mut infos, mut origins, mut ranks) = (Vec::new(), HashMap::new(), BTreeMap::new());
    for info in file.infos() {
        let ending = [".lora_a", ".lora_b"].into_iter().find(|ending| info.name.ends_with(ending));
        let Some(ending) = ending else {
            let what = "is no half of a pair; llama.cpp applies nothing else, and it would be lost";
            return Err(FileError::tensor(&info.name, what).into());
        };
        let weight = &info.name[..info.name.len() - ending.len()];
        let (model_name, transform) = names.get(weight).ok_or_else(|| {
            FileError::tensor(
                &info.name,
                format!("changes {weight}, which the base does not have; it belongs to another base"),
            )
        })?;
        let module = model_name.strip_suffix(".weight").unwrap_or(model_name);
        let (is_a, is_embedding) = (ending == ".lora_a", weight == EMBEDDING);
        let (name, turn) = match (is_a, is_embedding) {
            (true, true) => ("lora_embedding_A", Turn::Transpose),
            (false, true) => ("lora_embedding_B", Turn::Undo(Transform::Keep)),
            (true, false) => ("lora_A.weight", Turn::Undo(Transform::Keep)),
            (false, false) => ("lora_B.weight", Turn::Undo(*transform)),
        };
        let mut shape = info.shape.clone();
        if matches!(turn, Turn::Transpose) {
            shape.reverse();
        }
        if !is_a {
            ranks.insert(module.to_string(), shape.last().copied().unwrap_or(0));
        }
        let is_plain = [Dtype::F32, Dtype::F16, Dtype::BF16].contains(&info.dtype);
        let dtype = if is_plain { info.dtype } else { Dtype::F32 };
        let name = format!("{PREFIX}{module}.{name}");
        infos.push(TensorInfo { name: name.clone(), dtype, shape });
        origins.insert(name, (info.name.clone(), turn, 1.0));
    }
    let keys = keys(&ranks, alpha);
    let tensors = Arc::new(Turned { source: file, infos, origins });
    Ok(Adapter::of_parts(&path, &keys, tensors)?)
}

/// What an adapter_config.json says of such ranks and such an alpha.
fn keys(ranks: &BTreeMap<String, usize>, alpha: f64) -> Map<String, Value> {
    let rank = ranks.values().copied().max().unwrap_or(1);
    let other: Map<String, Value> =
        ranks.iter().filter(|(_, own)| **own != rank).map(|(path, own)| (path.clone(), json!(own))).collect();
    let alphas = if alpha == 0.0 { Value::Object(other.clone()) } else { json!({}) };
    let alpha = if alpha == 0.0 { rank as f64 } else { alpha };
    let keys = json!({
        "peft_type": "LORA", "r": rank, "lora_alpha": alpha, "rank_pattern": other, "alpha_pattern": alphas,
        "inference_mode": true, "bias": "none", "fan_in_fan_out": false, "target_modules": [],
    });
    keys.as_object().cloned().unwrap_or_default()
}

/// An adapter's tensors in llama.cpp's form, and the metadata that say what they are. Refuses what llama.cpp does not apply.
pub(crate) fn form(
    adapter: &Adapter,
    base: &Checkpoint,
    dtype: Option<Dtype>,
) -> Result<(Turned, Vec<(String, GgufValue)>)> {
    let lost = adapter.saved.values().next().or_else(|| {
        adapter.modules.values().find_map(|module| module.magnitude.as_ref().or(module.bias.as_ref()))
    });
    if let Some(name) = lost {
        let what = "llama.cpp applies pairs alone and would leave it out; fuse the adapter into its base instead (fuse-adapter)";
        return Err(FileError::tensor(name, what).into());
    }
    let by_model: HashMap<String, (String, Transform)> =
        names(base)?.into_iter().map(|(file, (model, transform))| (model, (file, transform))).collect();
    let layout = luthier_arch::layout(&base.config)?;
    let (mut infos, mut origins) = (Vec::new(), HashMap::new());
    for (path, module) in &adapter.modules {
        let model_name = format!("{path}.weight");
        let spec = layout.tensors.iter().find(|spec| spec.name == model_name);
        let wanted = match module.kind {
            Kind::Linear => [module.n_out, module.n_in],
            Kind::Embedding => [module.n_in, module.n_out],
        };
        let (Some((file_name, transform)), Some(spec)) = (by_model.get(&model_name), spec) else {
            let what =
                format!("changes {model_name}, which the base does not have, or ties to another weight");
            return Err(FileError::tensor(&module.a, what).into());
        };
        let is_known = module.kind == Kind::Linear || file_name == EMBEDDING;
        if spec.shape != wanted || !is_known {
            let what = format!(
                "maps {} values to {}, but {model_name} has shape {:?}",
                module.n_in, module.n_out, spec.shape
            );
            return Err(FileError::tensor(&module.a, what).into());
        }
        let (a_shape, a_turn) = match module.kind {
            Kind::Linear => (vec![module.rank, module.n_in], Turn::Apply(Transform::Keep)),
            Kind::Embedding => (vec![module.n_in, module.rank], Turn::Transpose),
        };
        // llama.cpp scales by alpha over the pair's own rank; what is left goes into B.
        let factor = module.scale / (adapter.config.alpha / module.rank as f64);
        let halves = [
            ("lora_a", &module.a, a_shape, a_turn, 1.0),
            ("lora_b", &module.b, vec![module.n_out, module.rank], Turn::Apply(*transform), factor),
        ];
        for (ending, source, shape, turn, factor) in halves {
            let stored = find(adapter.tensors.infos(), source)?.dtype;
            let name = format!("{file_name}.{ending}");
            let dtype = dtype.unwrap_or(if stored == Dtype::F64 { Dtype::F32 } else { stored });
            infos.push(TensorInfo { name: name.clone(), dtype, shape });
            origins.insert(name, (source.clone(), turn, factor));
        }
    }
    let architecture = luthier_arch::gguf::plan(&base.config)?.metadata;
    let mut metadata: Vec<(String, GgufValue)> =
        architecture.into_iter().filter(|(key, _)| key == "general.architecture").collect();
    let text = |key: &str, text: &str| (key.to_string(), GgufValue::String(text.to_string()));
    metadata.extend([text(TYPE_KEY, "adapter"), text(KIND_KEY, "lora")]);
    metadata.push((ALPHA_KEY.to_string(), GgufValue::F32(adapter.config.alpha as f32)));
    Ok((Turned { source: Arc::clone(&adapter.tensors), infos, origins }, metadata))
}
