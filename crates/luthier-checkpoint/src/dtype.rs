//! Types of tensors on disk: safetensors' and GGUF's, under one name each.

use luthier_kernels::blocks::BlockType;

/// How the values of a tensor are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Dtype {
    /// Floats and quantised blocks that models compute with.
    Weights(BlockType),
    F64,
    I64,
    I32,
    I16,
    I8,
    U8,
    Bool,
}
