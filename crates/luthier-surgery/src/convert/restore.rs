//! What a GGUF file of ours remembers of the folder that it was made of, so that the way back gives the same bytes.
//!
//! Metadata keys: `luthier.types`, a JSON object from tensor to the type it had where the file holds another;
//! `luthier.tensor.NAME`, the bytes of a vector whose values the file's form rounds.

use std::collections::HashMap;
use std::sync::Arc;

use luthier_arch::gguf::GgufOrigin;
use luthier_checkpoint::gguf::{Gguf, GgufArray, GgufValue};
use luthier_checkpoint::{Checkpoint, Dtype, Result as CheckpointResult, TensorInfo, TensorSource, values};
use luthier_kernels::bytes::SharedBytes;
use serde_json::{Map, Value};

use super::gguf::View;
use crate::Result;
use crate::view::find;

const TYPES_KEY: &str = "luthier.types";
/// What stands before a vector's name in the key that remembers it.
pub(crate) const TENSOR_KEY: &str = "luthier.tensor.";

/// The keys for a file of this content. Types are remembered for vectors alone: that of a matrix was the user's wish.
pub(super) fn metadata(view: &View) -> Result<Vec<(String, GgufValue)>> {
    let (mut types, mut metadata) = (Map::new(), Vec::new());
    for (info, tensor) in view.infos().iter().zip(&view.tensors) {
        let GgufOrigin::Tensor { name, transform } = &tensor.origin else { continue };
        let stored = find(view.source.infos(), name)?;
        if info.shape.len() > 1 || !stored.dtype.is_float() {
            continue;
        }
        let (dtype, back) = transform.undo(info, view.read(&info.name)?)?;
        let original = view.source.read(name)?;
        let exact = values::cast(name, dtype, &back, stored.dtype).is_ok_and(|cast| cast[..] == original[..]);
        if !exact {
            let bytes = GgufValue::Array(GgufArray::U8(original.to_vec()));
            metadata.push((format!("{TENSOR_KEY}{name}"), bytes));
        }
        if stored.dtype != dtype || !exact {
            types.insert(name.clone(), Value::from(stored.dtype.name()));
        }
    }
    if !types.is_empty() {
        metadata.push((TYPES_KEY.to_string(), GgufValue::String(Value::Object(types).to_string())));
    }
    Ok(metadata)
}

/// The tensors of a GGUF file with the vectors as they were before; none for folders and files that remember nothing.
/// A vector that another program has changed since keeps what the file says.
pub(super) fn folder_tensors(checkpoint: &Checkpoint) -> Result<Option<Arc<Restored>>> {
    if !checkpoint.place.is_file() || luthier_checkpoint::torch::is_torch_name(&checkpoint.place) {
        return Ok(None);
    }
    let gguf = Gguf::open(&checkpoint.place)?;
    if gguf.get(luthier_arch::gguf::CONFIG_KEY).is_none() {
        return Ok(None);
    }
    let types = gguf.get(TYPES_KEY).and_then(GgufValue::as_str);
    let types =
        types.and_then(|types| serde_json::from_str::<Map<String, Value>>(types).ok()).unwrap_or_default();
    let mut kept = HashMap::new();
    for (name, dtype) in &types {
        let Some(dtype) = dtype.as_str().and_then(Dtype::from_name) else { continue };
        let Some(info) = checkpoint.tensors.infos().iter().find(|info| info.name == *name) else { continue };
        let bytes = checkpoint.tensors.read(name)?;
        let before = match gguf.get(&format!("{TENSOR_KEY}{name}")) {
            Some(GgufValue::Array(GgufArray::U8(before))) => before.clone(),
            _ => match values::cast(name, info.dtype, &bytes, dtype) {
                Ok(before) => before,
                Err(_) => continue,
            },
        };
        if dtype.size_bytes(&info.shape) == Some(before.len())
            && is_close(name, (dtype, &before), (info.dtype, &bytes))
        {
            kept.insert(name.clone(), (dtype, SharedBytes::from_vec(before)));
        }
    }
    let infos = checkpoint.tensors.infos().iter().map(|info| {
        let dtype = kept.get(&info.name).map_or(info.dtype, |(dtype, _)| *dtype);
        TensorInfo { dtype, ..info.clone() }
    });
    let infos = infos.collect();
    Ok(Some(Arc::new(Restored { source: Arc::clone(&checkpoint.tensors), infos, kept })))
}

/// Whether two vectors are the same but for the rounding of 1 + w in f32.
fn is_close(name: &str, a: (Dtype, &[u8]), b: (Dtype, &[u8])) -> bool {
    let (Ok(a), Ok(b)) = (values::to_f32(name, a.0, a.1), values::to_f32(name, b.0, b.1)) else {
        return false;
    };
    a.len() == b.len() && a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= f32::EPSILON * (1.0 + a.abs()))
}

/// A GGUF file's tensors, some of them as they were before.
pub(super) struct Restored {
    source: Arc<dyn TensorSource>,
    infos: Vec<TensorInfo>,
    kept: HashMap<String, (Dtype, SharedBytes)>,
}

impl Restored {
    /// Whether this tensor is not the one that the file holds.
    pub(super) fn differs(&self, name: &str) -> bool {
        self.kept.contains_key(name)
    }
}

impl TensorSource for Restored {
    fn infos(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn read(&self, name: &str) -> CheckpointResult<SharedBytes> {
        match self.kept.get(name) {
            Some((_, bytes)) => Ok(bytes.clone()),
            None => self.source.read(name),
        }
    }
}
