//! What becomes of a weight's bytes between a Hugging Face folder and a GGUF file.

use luthier_checkpoint::layout::{Part, Projection, Role};
use luthier_checkpoint::values::to_f32;
use luthier_checkpoint::{Dtype, TensorInfo};
use luthier_kernels::blocks::BlockType;
use luthier_kernels::bytes::SharedBytes;

use super::GgufDialect;
use crate::blocks::stack::StackShape;
use crate::{Error, Result};

// h heads, d head width

/// A change of a weight, and its undoing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transform {
    /// None.
    Keep,
    /// Rows of each head: Hugging Face holds the first halves of all pairs, then the second halves; GGUF pair by pair.
    /// Whole rows move, so that it works on quantised rows too.
    Interleave {
        /// h.
        heads: usize,
    },
    /// 1 is added to each value, which is then f32.
    AddOne,
    /// Each value is multiplied by width^-0.5, and is then f32.
    ScaleStates {
        /// Of the states.
        width: usize,
    },
}

impl Transform {
    /// The transform of the weight at `role`.
    pub fn of(role: Role, stack: &StackShape, dialect: &GgufDialect) -> Transform {
        use Part::*;
        let heads = |projection: Projection| {
            let attention = role.layer.map(|layer| &stack.layers[layer].attention)?;
            match projection {
                Projection::Query => Some(attention.query_heads),
                Projection::Key => Some(attention.kv_heads),
                Projection::Value | Projection::Output => None,
            }
        };
        match role.part {
            SelfAttention(projection) | SelfAttentionBias(projection) if dialect.interleaved_heads => {
                heads(projection).map_or(Transform::Keep, |heads| Transform::Interleave { heads })
            }
            FinalNorm | SelfAttentionNorm | SelfAttentionPostNorm | FeedForwardNorm | FeedForwardPostNorm
                if dialect.whole_norms =>
            {
                Transform::AddOne
            }
            _ => Transform::Keep,
        }
    }

    /// Type and bytes in the GGUF file, of a tensor described by `info` (as it stands in the folder).
    pub fn apply(self, info: &TensorInfo, bytes: SharedBytes) -> Result<(Dtype, SharedBytes)> {
        match self {
            Transform::Keep => Ok((info.dtype, bytes)),
            Transform::Interleave { heads } => {
                Ok((info.dtype, move_rows(info, &bytes, heads, |row, half| row % half * 2 + row / half)?))
            }
            Transform::AddOne => mapped(info, &bytes, |value| value + 1.0),
            Transform::ScaleStates { width } => mapped(info, &bytes, |value| value * factor(width)),
        }
    }

    /// Type and bytes as in a folder, of a tensor described by `info` (as it stands in the GGUF file).
    pub fn undo(self, info: &TensorInfo, bytes: SharedBytes) -> Result<(Dtype, SharedBytes)> {
        match self {
            Transform::Keep => Ok((info.dtype, bytes)),
            Transform::Interleave { heads } => {
                Ok((info.dtype, move_rows(info, &bytes, heads, |row, half| row % 2 * half + row / 2)?))
            }
            Transform::AddOne => mapped(info, &bytes, |value| value - 1.0),
            Transform::ScaleStates { width } => mapped(info, &bytes, |value| value / factor(width)),
        }
    }

    /// The type that `undo` gives.
    pub fn undone_dtype(self, dtype: Dtype) -> Dtype {
        match self {
            Transform::AddOne | Transform::ScaleStates { .. } => Dtype::Weights(BlockType::F32),
            Transform::Keep | Transform::Interleave { .. } => dtype,
        }
    }
}

/// Within each head, row r goes to `target(r, d / 2)`.
fn move_rows(
    info: &TensorInfo,
    bytes: &[u8],
    heads: usize,
    target: impl Fn(usize, usize) -> usize,
) -> Result<SharedBytes> {
    let rows = info.shape.first().copied().unwrap_or(0);
    let width = rows / heads.max(1);
    if rows == 0 || rows % heads != 0 || !width.is_multiple_of(2) || !bytes.len().is_multiple_of(rows) {
        let what = format!("shape {:?} is not {heads} heads of an even width", info.shape);
        return Err(Error::tensor(&info.name, what));
    }
    let row_bytes = bytes.len() / rows;
    let mut moved = vec![0u8; bytes.len()];
    for (row, source) in bytes.chunks_exact(row_bytes).enumerate() {
        let (head, inner) = (row / width, row % width);
        let at = (head * width + target(inner, width / 2)) * row_bytes;
        moved[at..at + row_bytes].copy_from_slice(source);
    }
    Ok(SharedBytes::from_vec(moved))
}

fn factor(width: usize) -> f32 {
    (width as f64).powf(-0.5) as f32
}

fn mapped(info: &TensorInfo, bytes: &[u8], change: impl Fn(f32) -> f32) -> Result<(Dtype, SharedBytes)> {
    let values = to_f32(&info.name, info.dtype, bytes)?;
    let bytes = values.iter().flat_map(|value| change(*value).to_le_bytes()).collect();
    Ok((Dtype::Weights(BlockType::F32), SharedBytes::from_vec(bytes)))
}
