//! Packs the matrices of a checkpoint for products in whole numbers, from the form that their file has.

use luthier_checkpoint::Checkpoint;
use luthier_checkpoint::bitsandbytes::{RoundedMatrix, Rounding};
use luthier_checkpoint::layout::TensorSpec;
use luthier_kernels::blocks::BlockType;
use luthier_kernels::packed::{Kind, Layout, Packed, Stored};

use crate::load::check_bytes;
use crate::{Error, Result, finite};

/// What a tensor of that type is packed from.
pub(crate) fn kind(checkpoint: &Checkpoint, name: &str, block_type: BlockType) -> Kind {
    match checkpoint.tensors.rounding(name) {
        Some(Rounding::Int8) => Kind::Int8,
        Some(Rounding::FourBits { block_len }) if Packed::takes_blocks_of(block_len) => Kind::FourBits,
        _ => Kind::Blocks(block_type),
    }
}

/// Packs a matrix of that kind into `target`. An error for values that are not finite, and for what does not fit its shape.
pub(crate) fn pack(
    checkpoint: &Checkpoint,
    spec: &TensorSpec,
    kind: Kind,
    target: &mut [u8],
) -> Result<Layout> {
    let (name, rows, cols) = (&spec.name, spec.shape[0], spec.shape[1]);
    if let Kind::Blocks(block_type) = kind {
        let bytes = checkpoint.tensors.read(name)?;
        check_bytes(name, &spec.shape, block_type, bytes.len())?;
        finite::check(name, block_type, &bytes)?;
        return Ok(Packed::pack(Stored::Blocks(block_type, &bytes), rows, cols, target));
    }
    let matrix = checkpoint.tensors.read_rounded(name)?;
    let matrix = matrix.ok_or_else(|| Error::tensor(name, "is rounded, but its parts are not to be read"))?;
    // What codes are multiplied with, at most.
    let (scales, most) = match &matrix {
        RoundedMatrix::Int8 { scales, .. } => (scales, 128.0),
        RoundedMatrix::FourBits { levels, scales, .. } => {
            (scales, levels.iter().fold(0f32, |most, level| most.max(level.abs())))
        }
    };
    if let Some(at) = scales.iter().position(|scale| !(scale * most).is_finite()) {
        let what = format!("scale {at} is NaN or too large; the file is damaged or its training went wrong");
        return Err(Error::tensor(name, what));
    }
    let stored = match &matrix {
        RoundedMatrix::Int8 { codes, scales } => Stored::Int8 { codes, scales },
        RoundedMatrix::FourBits { levels, codes, scales, block_len } => {
            Stored::FourBits { levels, codes, scales, block_len: *block_len }
        }
    };
    Ok(Packed::pack(stored, rows, cols, target))
}
