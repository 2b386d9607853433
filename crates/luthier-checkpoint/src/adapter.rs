//! PEFT's LoRA adapters: `adapter_config.json` and `adapter_model.safetensors` as what they add to which weight.
//!
//! W' = W + s B A with s = lora_alpha / r, or lora_alpha / sqrt(r) with `use_rslora` (arXiv:2106.09685, arXiv:2312.03732);
//! with `use_dora` each output's weights are then scaled to the length in `lora_magnitude_vector` (arXiv:2402.09353, eq. 5).
//! Format: peft 0.21.2. Every tensor of the file is paired with a module or is a weight that replaces one; what is neither, a
//! half of a pair, and options that add something else than such a product, are refused.

mod config;
mod written;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

pub use self::config::{AdapterConfig, Bias};
pub use self::written::NewAdapter;
use crate::safetensors::SafetensorsFile;
use crate::torch::TorchFile;
use crate::{Error, Result, TensorInfo, TensorSource, values};

/// The config's name inside an adapter's folder.
pub const CONFIG_NAME: &str = "adapter_config.json";
/// The weights' name inside an adapter's folder.
pub const WEIGHTS_NAME: &str = "adapter_model.safetensors";
/// Their older name.
pub const TORCH_WEIGHTS_NAME: &str = "adapter_model.bin";

/// What PEFT puts before a module's path in the base model.
pub const PREFIX: &str = "base_model.model.";

/// An adapter, its tensors paired by module. Nothing but headers is read before [`Adapter::delta`].
#[derive(Clone)]
pub struct Adapter {
    /// Its folder.
    pub place: PathBuf,
    /// What adapter_config.json says.
    pub config: AdapterConfig,
    /// Its tensors, under the names of the file.
    pub tensors: Arc<dyn TensorSource>,
    /// By the path of the module in the base model (`model.layers.0.self_attn.q_proj`).
    pub modules: BTreeMap<String, Module>,
    /// Weights that replace the base's (`modules_to_save`, `bias`, saved embeddings): name in the base, name in the file.
    pub saved: BTreeMap<String, String>,
    /// Names in the file that say nothing of their own, and why.
    pub repeated: Vec<(String, String)>,
    /// What to know: keys of the config that are not known.
    pub notes: Vec<String>,
}

/// What kind of layer a module is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A linear layer: A `[r, in]`, B `[out, r]`.
    Linear,
    /// An embedding: A `[r, vocab]`, B `[width, r]`.
    Embedding,
}

/// The pair of one module.
#[derive(Clone, Debug, PartialEq)]
pub struct Module {
    /// Linear or embedding.
    pub kind: Kind,
    /// r of this module.
    pub rank: usize,
    /// What the product is multiplied with.
    pub scale: f64,
    /// Values that go in: columns of A.
    pub n_in: usize,
    /// Values that come out: rows of B.
    pub n_out: usize,
    /// A's name in the file.
    pub a: String,
    /// B's name in the file.
    pub b: String,
    /// The name of DoRA's lengths, where there are any.
    pub magnitude: Option<String>,
    /// The name of B's bias, where there is one.
    pub bias: Option<String>,
}

/// What a module adds to its stored weight: `scale * left right`, with `left` `[rows, rank]` and `right` `[rank, cols]`,
/// rows and columns as the weight has them.
#[derive(Clone, Debug, PartialEq)]
pub struct Factors {
    /// Rows of the weight.
    pub rows: usize,
    /// Its columns.
    pub cols: usize,
    /// The inner size.
    pub rank: usize,
    /// What the product is multiplied with.
    pub scale: f32,
    /// Row by row.
    pub left: Vec<f32>,
    /// Row by row.
    pub right: Vec<f32>,
    /// The lengths that DoRA gives the rows or columns of the sum.
    pub magnitude: Option<Magnitude>,
}

/// Lengths (Euclidean norms) of a weight's rows or columns.
#[derive(Clone, Debug, PartialEq)]
pub enum Magnitude {
    /// One a row.
    Rows(Vec<f32>),
    /// One a column.
    Columns(Vec<f32>),
}

impl Adapter {
    /// Whether a folder holds an adapter.
    pub fn is_adapter(place: &Path) -> bool {
        place.join(CONFIG_NAME).is_file()
    }

    /// Opens a folder and pairs its tensors.
    pub fn open(place: &Path) -> Result<Adapter> {
        let path = place.join(CONFIG_NAME);
        let json = crate::folder::read_config(&path)?;
        let (config, notes) = AdapterConfig::parse(&json).map_err(|what| Error::format(&path, what))?;
        let weights = place.join(WEIGHTS_NAME);
        let torch_weights = place.join(TORCH_WEIGHTS_NAME);
        let tensors: Arc<dyn TensorSource> = if weights.exists() || !torch_weights.exists() {
            Arc::new(SafetensorsFile::open(&weights)?)
        } else {
            Arc::new(TorchFile::open(&torch_weights)?)
        };
        Adapter::with_config(place, config, notes, tensors)
    }

    /// The adapter that these keys of an adapter_config.json and these tensors make; both come from `place`.
    pub fn of_parts(
        place: &Path,
        keys: &Map<String, Value>,
        tensors: Arc<dyn TensorSource>,
    ) -> Result<Adapter> {
        let (config, notes) = AdapterConfig::parse(keys).map_err(|what| Error::format(place, what))?;
        Adapter::with_config(place, config, notes, tensors)
    }

    fn with_config(
        place: &Path,
        config: AdapterConfig,
        notes: Vec<String>,
        tensors: Arc<dyn TensorSource>,
    ) -> Result<Adapter> {
        let (modules, saved, repeated) = pairs(&config, tensors.as_ref())?;
        if modules.is_empty() && saved.is_empty() {
            return Err(Error::format(place, "holds no pair of lora_A and lora_B, and no other weight"));
        }
        Ok(Adapter { place: place.to_path_buf(), config, tensors, modules, saved, repeated, notes })
    }

    /// The files that it consists of.
    pub fn files(place: &Path) -> Vec<PathBuf> {
        let names = [CONFIG_NAME, WEIGHTS_NAME, TORCH_WEIGHTS_NAME];
        names.iter().map(|name| place.join(name)).filter(|path| path.is_file()).collect()
    }

    /// What the module at `path` adds to its weight, which is stored with that shape; none where it adds nothing. A weight
    /// whose axes are the other way round (GPT-2's) is told by its shape, a square one by `fan_in_fan_out`.
    pub fn delta(&self, path: &str, stored: &[usize]) -> Result<Option<Factors>> {
        let Some(module) = self.modules.get(path) else { return Ok(None) };
        let (n_in, n_out) = (module.n_in, module.n_out);
        let swapped = match (module.kind, stored) {
            (Kind::Embedding, [rows, cols]) if (*rows, *cols) == (n_in, n_out) => true,
            (Kind::Linear, [rows, cols]) if rows == cols && (*rows, *cols) == (n_out, n_in) => {
                self.config.fan_in_fan_out
            }
            (Kind::Linear, [rows, cols]) if (*rows, *cols) == (n_out, n_in) => false,
            (Kind::Linear, [rows, cols]) if (*rows, *cols) == (n_in, n_out) => true,
            _ => {
                let what = format!(
                    "the adapter maps {n_in} values to {n_out}, but the weight of {path} has shape {stored:?}; it belongs \
                     to another base"
                );
                return Err(Error::tensor(&module.a, what));
            }
        };
        let (a, b) = (self.values(&module.a)?, self.values(&module.b)?);
        let rank = module.rank;
        let (rows, cols, left, right) = if swapped {
            (n_in, n_out, transposed(&a, rank), transposed(&b, n_out))
        } else {
            (n_out, n_in, b, a)
        };
        let magnitude = match &module.magnitude {
            None => None,
            Some(name) if swapped => Some(Magnitude::Columns(self.values(name)?)),
            Some(name) => Some(Magnitude::Rows(self.values(name)?)),
        };
        let scale = module.scale as f32;
        Ok(Some(Factors { rows, cols, rank, scale, left, right, magnitude }))
    }

    /// What the module at `path` adds to its bias (`[out]`, scaled); none where it adds nothing.
    pub fn bias_delta(&self, path: &str) -> Result<Option<Vec<f32>>> {
        let Some(module) = self.modules.get(path) else { return Ok(None) };
        let Some(name) = &module.bias else { return Ok(None) };
        let scale = module.scale as f32;
        Ok(Some(self.values(name)?.into_iter().map(|value| value * scale).collect()))
    }

    /// The finite values of a tensor of the file.
    fn values(&self, name: &str) -> Result<Vec<f32>> {
        let info = self.tensors.infos().iter().find(|info| info.name == name);
        let info = info.ok_or_else(|| Error::tensor(name, "is not in the adapter"))?;
        let bytes = self.tensors.read(name)?;
        values::check_finite(name, info.dtype, &bytes)?;
        values::to_f32(name, info.dtype, &bytes)
    }
}

impl Module {
    /// The names of its tensors in the file.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        [Some(&self.a), Some(&self.b), self.magnitude.as_ref(), self.bias.as_ref()]
            .into_iter()
            .flatten()
            .map(String::as_str)
    }
}

/// `[rows, cols]` of that many rows as `[cols, rows]`.
fn transposed(values: &[f32], rows: usize) -> Vec<f32> {
    let cols = values.len() / rows.max(1);
    (0..cols).flat_map(|col| (0..rows).map(move |row| values[row * cols + col])).collect()
}

/// The tensors of one module by what they are.
type Found<'i> = BTreeMap<&'static str, &'i TensorInfo>;

/// What may follow a module's path, and what it is.
const ENDINGS: &[(&str, &str)] = &[
    ("lora_A.weight", "A"),
    ("lora_B.weight", "B"),
    ("lora_B.bias", "bias"),
    ("lora_embedding_A", "embedding A"),
    ("lora_embedding_B", "embedding B"),
    ("lora_magnitude_vector", "magnitude"),
    ("lora_magnitude_vector.weight", "magnitude"),
];

/// By path: pairs, and names of weights that replace the base's; names that say nothing of their own, and why.
type Paired = (BTreeMap<String, Module>, BTreeMap<String, String>, Vec<(String, String)>);

/// Pairs the tensors of a file.
fn pairs(config: &AdapterConfig, tensors: &dyn TensorSource) -> Result<Paired> {
    let mut found: BTreeMap<String, Found> = BTreeMap::new();
    let mut saved: BTreeMap<String, String> = BTreeMap::new();
    let mut repeated = Vec::new();
    for info in tensors.infos() {
        let name = info.name.as_str();
        // With bias: all peft also writes the biases of modules that modules_to_save replaced, as the base has them.
        if name.contains(".original_module.") {
            repeated.push((name.to_string(), "the base's own, which a saved module replaces".to_string()));
            continue;
        }
        if !info.dtype.is_float() {
            return Err(Error::tensor(name, format!("holds {}; adapters hold floats", info.dtype)));
        }
        let path = name.strip_prefix(PREFIX).ok_or_else(|| {
            Error::tensor(name, format!("wanted a name that begins with {PREFIX}, as PEFT writes them"))
        })?;
        // Files that were not written by PEFT itself may keep the adapter's name.
        let path =
            path.replace(".default.", ".").replace(".modules_to_save.", ".").replace(".base_layer.", ".");
        let path = path.strip_suffix(".default").unwrap_or(&path);
        let ending = ENDINGS
            .iter()
            .find(|(ending, _)| path.strip_suffix(ending).is_some_and(|rest| rest.ends_with('.')));
        match ending {
            Some((ending, what)) => {
                let module = path[..path.len() - ending.len() - 1].to_string();
                if found.entry(module).or_default().insert(what, info).is_some() {
                    return Err(Error::tensor(name, "is in the adapter twice"));
                }
            }
            None if path.contains("lora_") || path.contains("token_adapter") => {
                return Err(Error::tensor(
                    name,
                    "is no part of an adapter that luthier knows; it would be lost",
                ));
            }
            None => {
                if let Some(other) = saved.insert(path.to_string(), name.to_string()) {
                    if tensors.read(&other)?[..] != tensors.read(name)?[..] {
                        let what = format!("stands for the same weight as {other}, with other values");
                        return Err(Error::tensor(name, what));
                    }
                    repeated.push((other, format!("repeats {name}")));
                }
            }
        }
    }
    let paired = found.into_iter().map(|(path, found)| Ok((path.clone(), paired(config, &path, &found)?)));
    Ok((paired.collect::<Result<_>>()?, saved, repeated))
}

/// The module whose tensors those are.
fn paired(config: &AdapterConfig, path: &str, found: &Found) -> Result<Module> {
    let some = found.values().next().expect("a module is found by its tensors");
    let (kind, [a, b]) = match found.keys().any(|what| what.starts_with("embedding")) {
        true => (Kind::Embedding, ["embedding A", "embedding B"]),
        false => (Kind::Linear, ["A", "B"]),
    };
    let half = |what: &str| {
        found.get(what).ok_or_else(|| {
            Error::tensor(&some.name, format!("its pair is not whole: {path} has no {what} of LoRA"))
        })
    };
    let (a, b) = (half(a)?, half(b)?);
    let (&[rank, n_in], &[n_out, inner]) = (&a.shape[..], &b.shape[..]) else {
        let what = format!(
            "A has shape {:?} and B {:?}; wanted two axes each (adapters of convolutions are not fused)",
            a.shape, b.shape
        );
        return Err(Error::tensor(&a.name, what));
    };
    if rank != inner || rank == 0 {
        let what = format!("A has shape {:?} and B {:?}; wanted [r, in] and [out, r]", a.shape, b.shape);
        return Err(Error::tensor(&a.name, what));
    }
    let (wanted, scale) = config.rank_and_scale(path);
    if wanted != rank {
        let what = format!("has rank {rank}, but {CONFIG_NAME} says {wanted} for {path}");
        return Err(Error::tensor(&a.name, what));
    }
    let magnitude = found.get("magnitude").map(|info| info.name.clone());
    if config.use_dora != magnitude.is_some() {
        let what =
            format!("use_dora is {}, and {path} has a magnitude: {}", config.use_dora, magnitude.is_some());
        return Err(Error::tensor(&a.name, what));
    }
    for what in ["magnitude", "bias"] {
        if let Some(info) = found.get(what)
            && info.shape.iter().product::<usize>() != n_out
        {
            let wanted = format!("has shape {:?}; wanted {n_out} values, one for each output", info.shape);
            return Err(Error::tensor(&info.name, wanted));
        }
    }
    let bias = found.get("bias").map(|info| info.name.clone());
    let (a, b) = (a.name.clone(), b.name.clone());
    Ok(Module { kind, rank, scale, n_in, n_out, a, b, magnitude, bias })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_matrix_is_transposed() {
        assert_eq!(transposed(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 2), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    }
}
