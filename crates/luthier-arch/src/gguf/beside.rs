//! Tensors of a model that llama.cpp has no place for, kept in a file's metadata so that the way back gives the same folder.
//!
//! [`BESIDE_KEY`] is a JSON object: each tensor's name with its `dtype` and `shape`, its bytes standing under
//! [`TENSOR_KEY`]`NAME`; or with `same_as`, where it repeats another tensor of the model.

use luthier_checkpoint::gguf::{Gguf, GgufArray, GgufValue};
use luthier_checkpoint::{Dtype, TensorInfo};
use serde_json::{Map, Value, json};

use crate::{Error, Result};

/// Metadata key: what stands beside the file's tensors.
pub const BESIDE_KEY: &str = "luthier.beside";
/// Before a tensor's name: its bytes.
pub const TENSOR_KEY: &str = "luthier.tensor.";

/// A tensor that a file keeps in its metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Beside {
    /// Its bytes stand under their own key.
    Bytes(TensorInfo),
    /// It is another tensor of the model once more.
    SameAs {
        /// Its name.
        name: String,
        /// That of the other.
        target: String,
    },
}

/// The metadata that keeps these tensors, bytes aside; none where there are none.
pub fn describe(tensors: &[Beside]) -> Option<(String, GgufValue)> {
    let mut object = Map::new();
    for tensor in tensors {
        let (name, value) = match tensor {
            Beside::Bytes(info) => (&info.name, json!({"dtype": info.dtype.name(), "shape": info.shape})),
            Beside::SameAs { name, target } => (name, json!({"same_as": target})),
        };
        object.insert(name.clone(), value);
    }
    let text = Value::Object(object).to_string();
    (!tensors.is_empty()).then(|| (BESIDE_KEY.to_string(), GgufValue::String(text)))
}

/// What a file keeps in its metadata. Refuses what cannot be read, naming the key.
pub(super) fn read(gguf: &Gguf) -> Result<Vec<Beside>> {
    let Some(value) = gguf.get(BESIDE_KEY) else { return Ok(Vec::new()) };
    let wrong =
        |what: &str| Error::config(BESIDE_KEY, format!("{what}; remove the key to do without these tensors"));
    let text = value.as_str().ok_or_else(|| wrong("expected text"))?;
    let object: Map<String, Value> =
        serde_json::from_str(text).map_err(|problem| wrong(&format!("expected a JSON object: {problem}")))?;
    let mut tensors = Vec::new();
    for (name, value) in object {
        if let Some(target) = value.get("same_as").and_then(Value::as_str) {
            tensors.push(Beside::SameAs { name, target: target.to_string() });
            continue;
        }
        let dtype = value.get("dtype").and_then(Value::as_str).and_then(Dtype::from_name);
        let sizes = value.get("shape").and_then(Value::as_array);
        let shape: Option<Vec<usize>> = sizes.and_then(|sizes| {
            sizes.iter().map(|size| size.as_u64().and_then(|size| usize::try_from(size).ok())).collect()
        });
        let (Some(dtype), Some(shape)) = (dtype, shape) else {
            return Err(wrong(&format!("{name}: expected a dtype and a shape")));
        };
        let values = shape.iter().try_fold(1usize, |all, size| all.checked_mul(*size));
        let wanted = values.and_then(|_| dtype.size_bytes(&shape));
        if wanted.is_none() || bytes(gguf, &name).map(<[u8]>::len) != wanted {
            let what =
                format!("{name}: expected {wanted:?} bytes under {TENSOR_KEY}{name} for shape {shape:?}");
            return Err(wrong(&what));
        }
        tensors.push(Beside::Bytes(TensorInfo { name, dtype, shape }));
    }
    Ok(tensors)
}

/// Names, types and shapes of those with bytes of their own.
pub(super) fn infos(gguf: &Gguf) -> Result<Vec<TensorInfo>> {
    let own = read(gguf)?.into_iter().filter_map(|tensor| match tensor {
        Beside::Bytes(info) => Some(info),
        Beside::SameAs { .. } => None,
    });
    Ok(own.collect())
}

/// The bytes of a tensor that stands in the metadata.
pub(super) fn bytes<'g>(gguf: &'g Gguf, name: &str) -> Option<&'g [u8]> {
    match gguf.get(&format!("{TENSOR_KEY}{name}")) {
        Some(GgufValue::Array(GgufArray::U8(bytes))) => Some(bytes),
        _ => None,
    }
}
