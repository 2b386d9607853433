//! A mapped PyTorch file as a source of tensors.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use luthier_kernels::bytes::SharedBytes;

use super::header::{Header, HeaderEntry};
use super::strided;
use crate::mapped::MappedFile;
use crate::{Error, Result, TensorInfo, TensorSource};

/// One file of `torch.save`, of either container.
pub struct TorchFile {
    map: Arc<MappedFile>,
    infos: Vec<TensorInfo>,
    entries: HashMap<String, HeaderEntry>,
}

impl TorchFile {
    /// Maps and checks a file; nothing in it is run.
    pub fn open(path: &Path) -> Result<TorchFile> {
        let map = MappedFile::open(path)?;
        let header = Header::parse(map.bytes()).map_err(|what| Error::format(path, what))?;
        let infos = header.entries.iter().map(|entry| entry.info.clone()).collect();
        let entries = header.entries.into_iter().map(|entry| (entry.info.name.clone(), entry)).collect();
        Ok(TorchFile { map, infos, entries })
    }
}

impl TensorSource for TorchFile {
    fn infos(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn read(&self, name: &str) -> Result<SharedBytes> {
        let missing = || Error::tensor(name, format!("is not in {}", self.map.path().display()));
        let entry = self.entries.get(name).ok_or_else(missing)?;
        let bytes = self.map.share(entry.range.clone());
        let Some(strides) = &entry.strides else { return Ok(bytes) };
        let (shape, value_bytes) = (&entry.info.shape, entry.info.dtype.block().1);
        Ok(SharedBytes::from_vec(strided::gather(&bytes, shape, strides, value_bytes)))
    }
}
