//! The float types that `--dtype` names.

use luthier_checkpoint::Dtype;
use luthier_kernels::blocks::BlockType;
use serde::Deserialize;

/// A type to store weights in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum FloatType {
    /// 32 bits
    #[serde(alias = "F32")]
    F32,
    /// 16 bits, the range of f32
    #[serde(alias = "BF16")]
    Bf16,
    /// 16 bits, finer than bf16, up to 65504
    #[serde(alias = "F16")]
    F16,
}

impl FloatType {
    /// The type as checkpoints call it.
    pub fn dtype(self) -> Dtype {
        Dtype::Weights(match self {
            FloatType::F32 => BlockType::F32,
            FloatType::Bf16 => BlockType::BF16,
            FloatType::F16 => BlockType::F16,
        })
    }
}
