//! Differentiable operations on candle tensors, one a file: the formula in plain candle (`reference`), and on CPU a
//! fused forward and backward on top of luthier-kernels.
//!
//! Weights do not travel on candle's tape: an operation takes a [`Weight`] beside its tensor arguments and adds the
//! weight's gradient into the weight's own buffer during the backward pass (docs/decisions.md).

pub mod activation;
pub mod attention;
pub mod cross_entropy;
pub mod embedding;
pub mod experts;
mod kv_cache;
pub mod layer_norm;
pub mod linear;
pub mod lora;
pub mod norm;
pub mod profile;
mod project;
pub mod recompute;
mod relative_bias;
pub mod residual;
pub mod rope;
pub mod router;
pub mod tape;
pub mod weight;

pub use candle_core::{DType, Device, Result, Tensor};
pub use lora::Lora;
pub use recompute::{recompute, recompute_with};
pub use residual::add;
pub use tape::{with_reference, without_tape};
pub use weight::{StoredMatrix, Weight};
