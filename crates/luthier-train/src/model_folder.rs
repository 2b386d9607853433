//! The model files of a run: weights and config of a checkpoint or of the finished model, and reading them back.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs;
use std::path::Path;

use luthier_arch::model::Model;
use luthier_ops::Weight;
use safetensors::tensor::{Dtype, SafeTensors, View};
use serde_json::{Map, Value};

use crate::parameters;
use crate::recipe::Precision;
use crate::{Error, Result};

/// Writes all weights of a model under their names, f32 or rounded to bf16.
pub(crate) fn write_weights(path: &Path, weights: &[Weight], precision: Precision) -> Result<()> {
    let views = weights.iter().map(|weight| {
        let bytes = || match precision {
            Precision::F32 => encode(weight, |value| value.to_le_bytes()),
            Precision::Bf16 => {
                encode(weight, |value| ((value.to_bits().wrapping_add(0x8000) >> 16) as u16).to_le_bytes())
            }
        };
        (weight.name().to_string(), Lazy { dtype: dtype(precision), shape: weight.shape(), bytes })
    });
    write(path, views)
}

/// Writes named f32 vectors.
pub(crate) fn write_vectors(path: &Path, vectors: &[(String, &[f32])]) -> Result<()> {
    let shapes: Vec<[usize; 1]> = vectors.iter().map(|(_, values)| [values.len()]).collect();
    let views = vectors.iter().zip(&shapes).map(|((name, values), shape)| {
        let bytes = || values.iter().flat_map(|value| value.to_le_bytes()).collect();
        (name.clone(), Lazy { dtype: Dtype::F32, shape, bytes })
    });
    write(path, views)
}

/// The f32 tensors of a file, by name.
pub(crate) struct F32File {
    path: std::path::PathBuf,
    bytes: Vec<u8>,
}

impl F32File {
    pub(crate) fn open(path: &Path) -> Result<F32File> {
        let bytes = fs::read(path).map_err(Error::io(path))?;
        Ok(F32File { path: path.to_path_buf(), bytes })
    }

    /// Lets `fill` copy each named tensor into place; every tensor of the file must be asked for.
    pub(crate) fn tensors(&self) -> Result<F32Tensors<'_>> {
        let format = |what: String| Error::Format { path: self.path.clone(), what };
        let parsed = SafeTensors::deserialize(&self.bytes)
            .map_err(|error| format(format!("{error}; the checkpoint is damaged")))?;
        let mut by_name = HashMap::new();
        for (name, view) in parsed.iter() {
            if view.dtype() != Dtype::F32 {
                return Err(format(format!("tensor {name} is {:?}, wanted F32", view.dtype())));
            }
            by_name.insert(name.to_string(), view.data());
        }
        Ok(F32Tensors { path: &self.path, by_name })
    }
}

/// Tensors of a file that wait for their place.
pub(crate) struct F32Tensors<'a> {
    path: &'a Path,
    by_name: HashMap<String, &'a [u8]>,
}

impl F32Tensors<'_> {
    /// Copies one tensor into `values`.
    pub(crate) fn take(&mut self, name: &str, values: &mut [f32]) -> Result<()> {
        let format = |what: String| Error::Format { path: self.path.to_path_buf(), what };
        let bytes = self.by_name.remove(name).ok_or_else(|| format(format!("tensor {name} is missing")))?;
        if bytes.len() != values.len() * 4 {
            return Err(format(format!(
                "tensor {name}: wanted {} values, has {}",
                values.len(),
                bytes.len() / 4
            )));
        }
        for (value, bytes) in values.iter_mut().zip(bytes.chunks_exact(4)) {
            *value = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        Ok(())
    }
}

/// The model's config with the dtype that its weights are written in.
pub(crate) fn config_with_dtype(model: &dyn Model, precision: Precision) -> Map<String, Value> {
    let mut config = model.config().clone();
    let name = match precision {
        Precision::F32 => "float32",
        Precision::Bf16 => "bfloat16",
    };
    // Old folders say torch_dtype, new ones dtype.
    let key = if config.contains_key("torch_dtype") { "torch_dtype" } else { "dtype" };
    config.insert(key.to_string(), Value::from(name));
    config
}

/// JSON as Hugging Face folders have it: two spaces, a newline at the end.
pub(crate) fn pretty(value: &impl serde::Serialize) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(value).expect("JSON is plain data");
    text.push(b'\n');
    text
}

fn dtype(precision: Precision) -> Dtype {
    match precision {
        Precision::F32 => Dtype::F32,
        Precision::Bf16 => Dtype::BF16,
    }
}

fn encode<const N: usize>(weight: &Weight, to_bytes: impl Fn(f32) -> [u8; N]) -> Vec<u8> {
    let all = |values: &[f32]| values.iter().flat_map(|&value| to_bytes(value)).collect();
    parameters::view_values(weight, all).unwrap_or_else(|_| {
        let values =
            weight.to_tensor(&luthier_ops::Device::Cpu).and_then(|values| values.flatten_all()?.to_vec1());
        all(&values.expect("a weight widens to f32"))
    })
}

fn write<'a, F: Fn() -> Vec<u8>>(
    path: &Path,
    views: impl IntoIterator<Item = (String, Lazy<'a, F>)>,
) -> Result<()> {
    let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
    safetensors::serialize_to_file(views, Some(metadata), path)
        .map_err(|error| Error::Format { path: path.to_path_buf(), what: error.to_string() })
}

/// A tensor whose bytes are made when they are written, one tensor in memory at a time.
struct Lazy<'a, F> {
    dtype: Dtype,
    shape: &'a [usize],
    bytes: F,
}

impl<F: Fn() -> Vec<u8>> View for Lazy<'_, F> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        (self.bytes)().into()
    }
    fn data_len(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8
    }
}
