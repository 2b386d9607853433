//! A pruned model as a source of tensors: each is cut out of its parent's when it is asked for.

use std::collections::HashMap;
use std::sync::Arc;

use luthier_checkpoint::{Dtype, Error, Result, TensorInfo, TensorSource, values};
use luthier_kernels::bytes::SharedBytes;

use super::cut::Cut;
use super::slice::slice;
use super::sparse::{Sparse, mask};
use crate::view::find;

/// A parent's tensors, cut.
pub(super) struct Pruned {
    /// In the types of the output.
    pub(super) source: Arc<dyn TensorSource>,
    pub(super) infos: Vec<TensorInfo>,
    pub(super) pieces: HashMap<String, Piece>,
}

/// How one tensor is made.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    pub(super) cut: Cut,
    /// Whether weights go, and the sizes of the kept inputs.
    pub(super) thinned: Option<(Sparse, Option<Vec<f32>>)>,
}

impl TensorSource for Pruned {
    fn infos(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn read(&self, name: &str) -> Result<SharedBytes> {
        let piece =
            self.pieces.get(name).ok_or_else(|| Error::tensor(name, "is not part of the pruned model"))?;
        let source = find(self.source.infos(), &piece.cut.source)?;
        let bytes = self.source.read(&source.name)?;
        let is_cut = piece.cut.places.iter().any(Option::is_some);
        let is_changed = piece.cut.scaled.is_some() || piece.cut.added.is_some();
        if !is_cut && !is_changed && piece.thinned.is_none() {
            return Ok(bytes);
        }
        let info = find(&self.infos, name)?;
        let mut cut = match is_cut {
            true => slice(&bytes, &source.shape, unit(source)?, &piece.cut.places),
            false => bytes.to_vec(),
        };
        drop(bytes);
        if is_changed {
            let mut numbers = values::to_f32(name, source.dtype, &cut)?;
            if let Some(scaled) = piece.cut.scaled {
                for number in &mut numbers {
                    *number = ((f64::from(*number) + scaled.offset) * scaled.factor - scaled.offset) as f32;
                }
            }
            if let Some(added) = &piece.cut.added {
                let other = find(self.source.infos(), &added.source)?;
                let bytes = self.source.read(&other.name)?;
                let bytes = slice(&bytes, &other.shape, unit(other)?, &piece.cut.places);
                for (number, other) in numbers.iter_mut().zip(values::to_f32(name, other.dtype, &bytes)?) {
                    *number = (f64::from(*number) + added.times * f64::from(other)) as f32;
                }
            }
            let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
            drop(numbers);
            cut = values::cast(name, Dtype::F32, &bytes, source.dtype)?;
        }
        if let Some((sparse, inputs)) = &piece.thinned {
            let numbers = values::to_f32(name, source.dtype, &cut)?;
            let columns = info.shape.last().copied().unwrap_or(1);
            let mask = mask(&numbers, columns, *sparse, inputs.as_deref());
            // All bits of a float that is 0 are 0.
            let unit = unit(source)?;
            for (value, _) in cut.chunks_exact_mut(unit).zip(mask).filter(|(_, gone)| *gone) {
                value.fill(0);
            }
        }
        Ok(SharedBytes::from_vec(cut))
    }
}

/// Bytes of a value.
fn unit(info: &TensorInfo) -> Result<usize> {
    match info.dtype.block() {
        (1, bytes) => Ok(bytes),
        _ => Err(Error::tensor(
            &info.name,
            format!("holds {}, which cannot be cut; wanted floats", info.dtype),
        )),
    }
}
