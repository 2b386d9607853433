//! A model as a value: config, tensors by name, tokenizer and side files, wherever they lie.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use luthier_kernels::bytes::SharedBytes;
use serde_json::{Map, Value};

use crate::bitsandbytes::{RoundedMatrix, Rounding};
use crate::{Dtype, Error, Result};

/// Name, type and shape of one tensor, from headers alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// The name in Hugging Face terms.
    pub name: String,
    /// How it is stored.
    pub dtype: Dtype,
    /// Outermost axis first, as in safetensors.
    pub shape: Vec<usize>,
}

/// Something that holds tensors under Hugging Face names: a folder, or a GGUF file seen through its architecture.
pub trait TensorSource: Send + Sync {
    /// All tensors, in file order.
    fn infos(&self) -> &[TensorInfo];
    /// The bytes of one tensor; shared with the mapped file where it is stored as wanted.
    fn read(&self, name: &str) -> Result<SharedBytes>;
    /// How bitsandbytes rounded a matrix whose values `read` gives; none for every other tensor.
    fn rounding(&self, _name: &str) -> Option<Rounding> {
        None
    }
    /// Such a matrix as it is stored; none for every other tensor.
    fn read_rounded(&self, _name: &str) -> Result<Option<RoundedMatrix>> {
        Ok(None)
    }
    /// In what pieces, in bytes, `read_part` gives this tensor without making all of it first; none where it does not.
    fn part_bytes(&self, _name: &str) -> Option<usize> {
        None
    }
    /// The bytes `range` of one tensor, where they are wanted as `part_bytes` has them: from a multiple of it on.
    fn read_part(&self, name: &str, range: Range<usize>) -> Result<SharedBytes> {
        let outside = || Error::tensor(name, format!("has no bytes {} to {}", range.start, range.end));
        self.read(name)?.part(range.clone()).ok_or_else(outside)
    }
}

/// Something that tensors are written to, one at a time and in any order, all announced before.
pub trait TensorSink {
    /// Writes one announced tensor. Refuses an unknown name, one written before, and a wrong number of bytes.
    fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()>;
    /// Ends the file; refuses while an announced tensor is missing.
    fn finish(&mut self) -> Result<()>;
}

/// A small file that travels with the weights unchanged (`generation_config.json`, `chat_template.jinja`, ...).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SideFile {
    /// Its name inside the folder.
    pub name: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// A model.
#[derive(Clone)]
pub struct Checkpoint {
    /// The folder or file it was read from.
    pub place: PathBuf,
    /// config.json, key order kept. For a GGUF file: what its architecture made of the metadata.
    pub config: Map<String, Value>,
    /// The weights.
    pub tensors: Arc<dyn TensorSource>,
    /// Everything else that a folder of this model holds: tokenizer.json, tokenizer_config.json, templates, ...
    pub side_files: Vec<SideFile>,
}
