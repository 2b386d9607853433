//! A GGUF file again, with other values in what the adapters changed: its names, types, order and metadata are kept.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use luthier_arch::gguf::{GgufOrigin, Transform};
use luthier_checkpoint::gguf::GgufValue;
use luthier_checkpoint::{Error, Gguf, Result as FileResult, TensorInfo, TensorSource, values};
use luthier_kernels::bytes::SharedBytes;
use serde_json::{Map, Value};

use super::Sources;
use super::rounded::Rounded;
use crate::Result;
use crate::convert::restore::TENSOR_KEY;
use crate::view::find;
use crate::writing::Origin;

/// The file's tensors, under its own names.
pub(super) struct FileAgain {
    file: Arc<Gguf>,
    rounded: Rounded,
    /// By the file's name, for those that changed: the model's name, and how its values stand in the file.
    changed: HashMap<String, (String, Transform)>,
    /// The file's name by the model's, for all.
    names: HashMap<String, String>,
}

impl FileAgain {
    pub(super) fn new(
        file: Arc<Gguf>,
        config: &Map<String, Value>,
        rounded: Rounded,
        changed: &HashSet<String>,
    ) -> Result<FileAgain> {
        let (mut by_name, mut names) = (HashMap::new(), HashMap::new());
        for tensor in luthier_arch::gguf::plan(config)?.tensors {
            let GgufOrigin::Tensor { name, transform } = tensor.origin else { continue };
            names.insert(name.clone(), tensor.name.clone());
            if changed.contains(&name) {
                by_name.insert(tensor.name, (name, transform));
            }
        }
        let is_placed = |name: &&String| by_name.values().any(|(placed, _)| placed == *name);
        if let Some(name) = changed.iter().filter(|name| !is_placed(name)).min() {
            return Err(Error::tensor(name, "has no place in a GGUF file; name a folder as OUT").into());
        }
        if let Some(name) = by_name.keys().find(|name| find(file.infos(), name).is_err()) {
            return Err(Error::tensor(name, format!("is not in {}", file.path().display())).into());
        }
        Ok(FileAgain { file, rounded, changed: by_name, names })
    }

    /// Where the tensors come from, `sources` being the answer for names of the model.
    pub(super) fn origins(&self, sources: Sources) -> Vec<Origin> {
        let origin = |info: &TensorInfo| match self.changed.get(&info.name) {
            None => Origin::From { input: 0, name: info.name.clone() },
            Some((model, _)) => {
                let sources =
                    sources(model).into_iter().map(|(part, name)| (part, self.name_in(part, name))).collect();
                Origin::Merged { sources, how: format!("with an adapter, as {}", info.dtype) }
            }
        };
        self.file.infos().iter().map(origin).collect()
    }

    /// The name of a part's tensor where the ledger counts it: the file's own for the base, which is part 0.
    pub(super) fn name_in(&self, part: usize, name: String) -> String {
        match self.names.get(&name) {
            Some(file) if part == 0 => file.clone(),
            _ => name,
        }
    }
}

impl TensorSource for FileAgain {
    fn infos(&self) -> &[TensorInfo] {
        self.file.infos()
    }

    fn read(&self, name: &str) -> FileResult<SharedBytes> {
        let Some((model, transform)) = self.changed.get(name) else { return self.file.read(name) };
        let info = find(self.rounded.infos(), model)?;
        let (dtype, bytes) = transform
            .apply(info, self.rounded.read(model)?)
            .map_err(|problem| Error::tensor(name, problem.to_string()))?;
        let wanted = find(self.file.infos(), name)?.dtype;
        match dtype == wanted {
            true => Ok(bytes),
            false => Ok(SharedBytes::from_vec(values::cast(name, dtype, &bytes, wanted)?)),
        }
    }
}

/// The file's metadata without its record, and without what it remembers of vectors that changed.
pub(super) fn metadata(file: &Gguf, changed: &HashSet<String>) -> Vec<(String, GgufValue)> {
    let is_stale = |key: &str| {
        key == luthier_checkpoint::lineage::LINEAGE_KEY
            || key.strip_prefix(TENSOR_KEY).is_some_and(|name| changed.contains(name))
    };
    file.metadata.iter().filter(|(key, _)| !is_stale(key)).cloned().collect()
}
