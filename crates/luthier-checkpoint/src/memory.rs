//! Tensors that lie in memory, not in a file.

use std::collections::HashMap;

use luthier_kernels::bytes::SharedBytes;

use crate::{Error, Result, TensorInfo, TensorSource};

/// Tensors by name, in the order in which they were given.
#[derive(Debug, Default)]
pub struct MemoryTensors {
    infos: Vec<TensorInfo>,
    bytes: HashMap<String, SharedBytes>,
}

impl MemoryTensors {
    /// Refuses a name given twice and bytes that do not fit their shape.
    pub fn new(tensors: Vec<(TensorInfo, SharedBytes)>) -> Result<MemoryTensors> {
        let mut memory = MemoryTensors::default();
        for (info, bytes) in tensors {
            if info.dtype.size_bytes(&info.shape) != Some(bytes.len()) {
                let what = format!("{} bytes are not shape {:?} of {}", bytes.len(), info.shape, info.dtype);
                return Err(Error::tensor(&info.name, what));
            }
            if memory.bytes.insert(info.name.clone(), bytes).is_some() {
                return Err(Error::tensor(&info.name, "is given twice"));
            }
            memory.infos.push(info);
        }
        Ok(memory)
    }
}

impl TensorSource for MemoryTensors {
    fn infos(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn read(&self, name: &str) -> Result<SharedBytes> {
        self.bytes.get(name).cloned().ok_or_else(|| Error::tensor(name, "is not among these tensors"))
    }
}

/// Tensors of which only the headers are left, once a model has been made of them: what a file's metadata took is free again.
#[derive(Debug)]
pub struct HeadersOnly(pub Vec<TensorInfo>);

impl TensorSource for HeadersOnly {
    fn infos(&self) -> &[TensorInfo] {
        &self.0
    }

    fn read(&self, name: &str) -> Result<SharedBytes> {
        Err(Error::tensor(name, "was let go after the model was loaded"))
    }
}
