//! A mapped PyTorch file as a source of tensors.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use luthier_kernels::bytes::SharedBytes;

use super::header::{Header, HeaderEntry};
use super::strided;
use super::zip::Stored;
use crate::mapped::MappedFile;
use crate::{Error, Result, TensorInfo, TensorSource};

/// One file of `torch.save`, of either container.
pub struct TorchFile {
    map: Arc<MappedFile>,
    infos: Vec<TensorInfo>,
    entries: HashMap<String, HeaderEntry>,
    /// By place, each with whether its checksum has been found right.
    storages: Vec<(Stored, AtomicBool)>,
}

/// What is mapped of a storage at once to check it.
const CHECKED_BYTES: usize = 4 << 20;

impl TorchFile {
    /// Maps and checks a file; nothing in it is run.
    pub fn open(path: &Path) -> Result<TorchFile> {
        let map = MappedFile::open(path)?;
        let header = Header::parse(map.bytes()).map_err(|what| Error::format(path, what))?;
        let infos = header.entries.iter().map(|entry| entry.info.clone()).collect();
        let entries = header.entries.into_iter().map(|entry| (entry.info.name.clone(), entry)).collect();
        let storages = header.storages.into_iter().map(|stored| (stored, AtomicBool::new(false))).collect();
        Ok(TorchFile { map, infos, entries, storages })
    }

    /// Refuses values of a storage whose bytes are not those that were saved. Each storage is looked at once.
    fn check_storage(&self, name: &str, start: usize) -> Result<()> {
        let after = self.storages.partition_point(|(stored, _)| stored.range.start <= start);
        let Some((stored, is_right)) = after.checked_sub(1).and_then(|at| self.storages.get(at)) else {
            return Ok(());
        };
        if is_right.load(Ordering::Relaxed) || !stored.range.contains(&start) {
            return Ok(());
        }
        let end = stored.range.end;
        let pieces = stored.range.clone().step_by(CHECKED_BYTES);
        if !stored.holds(pieces.map(|at| self.map.share_now(at..end.min(at + CHECKED_BYTES)))) {
            let what = format!(
                "its bytes in {} have another checksum than the archive says; the file is damaged, download or save it again",
                self.map.path().display()
            );
            return Err(Error::tensor(name, what));
        }
        is_right.store(true, Ordering::Relaxed);
        Ok(())
    }
}

impl TensorSource for TorchFile {
    fn infos(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn read(&self, name: &str) -> Result<SharedBytes> {
        let missing = || Error::tensor(name, format!("is not in {}", self.map.path().display()));
        let entry = self.entries.get(name).ok_or_else(missing)?;
        self.check_storage(name, entry.range.start)?;
        let bytes = self.map.share(entry.range.clone());
        let Some(strides) = &entry.strides else { return Ok(bytes) };
        let (shape, value_bytes) = (&entry.info.shape, entry.info.dtype.block().1);
        Ok(SharedBytes::from_vec(strided::gather(&bytes, shape, strides, value_bytes)))
    }
}
