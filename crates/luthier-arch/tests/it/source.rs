//! Checkpoints in memory.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use luthier_checkpoint::{Checkpoint, Dtype, TensorInfo, TensorSource};
use luthier_kernels::blocks::BlockType;
use luthier_kernels::bytes::SharedBytes;
use serde_json::{Map, Value};

/// Tensors in memory, f32.
#[derive(Clone)]
pub(crate) struct Memory {
    infos: Vec<TensorInfo>,
    bytes: BTreeMap<String, SharedBytes>,
}

impl TensorSource for Memory {
    fn infos(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn read(&self, name: &str) -> luthier_checkpoint::Result<SharedBytes> {
        Ok(self.bytes[name].clone())
    }
}

impl Memory {
    pub(crate) fn new(tensors: &[(String, Vec<usize>, Vec<f32>)]) -> Memory {
        let info = |(name, shape, _): &(String, Vec<usize>, Vec<f32>)| TensorInfo {
            name: name.clone(),
            dtype: Dtype::Weights(BlockType::F32),
            shape: shape.clone(),
        };
        let bytes =
            |values: &[f32]| SharedBytes::from_vec(values.iter().flat_map(|v| v.to_le_bytes()).collect());
        Memory {
            infos: tensors.iter().map(info).collect(),
            bytes: tensors.iter().map(|(name, _, values)| (name.clone(), bytes(values))).collect(),
        }
    }
}

/// Name, shape, values.
pub(crate) type Named = (String, Vec<usize>, Vec<f32>);

/// A checkpoint of these tensors.
pub(crate) fn checkpoint(config: &Map<String, Value>, tensors: &[Named]) -> Checkpoint {
    Checkpoint {
        place: PathBuf::from("memory"),
        config: config.clone(),
        tensors: Arc::new(Memory::new(tensors)),
        side_files: Vec::new(),
    }
}

/// golden/<name>/<file>.
pub(crate) fn golden_path(name: &str, file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../golden").join(name).join(file)
}

/// The config.json of a golden model.
pub(crate) fn golden_config(name: &str) -> Map<String, Value> {
    serde_json::from_slice(&std::fs::read(golden_path(name, "config.json")).unwrap()).unwrap()
}

/// The tensors of a golden file, integers widened to f32.
pub(crate) fn golden_tensors(name: &str, file: &str) -> Vec<Named> {
    let bytes = std::fs::read(golden_path(name, file)).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut named = Vec::new();
    for (name, view) in tensors.tensors() {
        let word = |b: &[u8]| [b[0], b[1], b[2], b[3]];
        let values = view.data().chunks_exact(4).map(|b| match view.dtype() {
            safetensors::Dtype::F32 => f32::from_le_bytes(word(b)),
            safetensors::Dtype::I32 => i32::from_le_bytes(word(b)) as f32,
            other => panic!("golden files hold no {other:?}"),
        });
        named.push((name, view.shape().to_vec(), values.collect()));
    }
    named
}
