//! A model's tensors seen in other types: nothing is converted before it is read, and one tensor at a time.

use std::sync::Arc;

use luthier_checkpoint::{Dtype, Error, Result, TensorInfo, TensorSource, values};
use luthier_kernels::blocks::BlockType;
use luthier_kernels::bytes::SharedBytes;

/// Another source's tensors, cast where their types must change. Every float that is read through it is finite.
pub(crate) struct Cast {
    source: Arc<dyn TensorSource>,
    infos: Vec<TensorInfo>,
}

impl Cast {
    /// Tensor by tensor in the type that `target` gives for it.
    pub(crate) fn new(source: Arc<dyn TensorSource>, target: impl Fn(&TensorInfo) -> Dtype) -> Cast {
        let infos = source.infos().iter();
        let infos = infos.map(|info| TensorInfo { dtype: target(info), ..info.clone() }).collect();
        Cast { source, infos }
    }

    /// As `read`; whoever reads a tensor that keeps its type looks for NaN and infinity.
    pub(crate) fn read_unchecked(&self, name: &str) -> Result<SharedBytes> {
        let same = find(self.source.infos(), name)?.dtype == find(&self.infos, name)?.dtype;
        if same { self.source.read(name) } else { self.read(name) }
    }
}

impl TensorSource for Cast {
    fn infos(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn read(&self, name: &str) -> Result<SharedBytes> {
        let bytes = self.source.read(name)?;
        let (from, to) = (find(self.source.infos(), name)?.dtype, find(&self.infos, name)?.dtype);
        values::check_finite(name, from, &bytes)?;
        if from == to { Ok(bytes) } else { Ok(SharedBytes::from_vec(values::cast(name, from, &bytes, to)?)) }
    }
}

/// The tensor of this name.
pub(crate) fn find<'i>(infos: &'i [TensorInfo], name: &str) -> Result<&'i TensorInfo> {
    let found = infos.iter().find(|info| info.name == name);
    found.ok_or_else(|| Error::tensor(name, "wanted by the verb, the model has none of this name"))
}

/// The type that a tensor gets in a model folder: floats the asked one; otherwise its own where safetensors can hold
/// it, and F32 for quantised blocks, which keeps their values exactly.
pub(crate) fn folder_type(dtype: Dtype, wanted: Option<Dtype>) -> Dtype {
    match dtype {
        Dtype::Weights(BlockType::F32 | BlockType::F16 | BlockType::BF16) | Dtype::F64 => {
            wanted.unwrap_or(dtype)
        }
        Dtype::Weights(_) => wanted.unwrap_or(Dtype::F32),
        _ => dtype,
    }
}
