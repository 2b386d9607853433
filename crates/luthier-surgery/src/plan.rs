//! What a verb would do, from headers alone.

use luthier_checkpoint::TensorInfo;
use serde::Serialize;

/// What a verb would write.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Plan {
    /// Every tensor of the output.
    pub tensors: Vec<PlannedTensor>,
    /// Bytes of all of them.
    pub size_bytes: usize,
    /// What `run` holds in memory at most while it writes, mapped input pages apart: three times the largest tensor in f32.
    pub memory_bytes: usize,
    /// What to know and to do next.
    pub notes: Vec<String>,
}

/// One tensor of the output.
#[derive(Clone, Debug, Serialize, PartialEq)]
#[allow(missing_docs)]
pub struct PlannedTensor {
    pub name: String,
    pub dtype: String,
    pub shape: Vec<usize>,
    /// Where it comes from.
    pub from: String,
}

impl Plan {
    /// The plan that writes `infos`, each from `from` in the same order.
    pub(crate) fn new(infos: &[TensorInfo], from: Vec<String>, notes: Vec<String>) -> Plan {
        let values = |info: &TensorInfo| info.shape.iter().product::<usize>();
        let tensors = infos.iter().zip(from).map(|(info, from)| PlannedTensor {
            name: info.name.clone(),
            dtype: info.dtype.name().to_string(),
            shape: info.shape.clone(),
            from,
        });
        Plan {
            tensors: tensors.collect(),
            size_bytes: infos.iter().filter_map(|info| info.dtype.size_bytes(&info.shape)).sum(),
            memory_bytes: 3 * 4 * infos.iter().map(values).max().unwrap_or(0),
            notes,
        }
    }
}
