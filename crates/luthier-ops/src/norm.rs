//! RMSNorm: `x / sqrt(mean(x^2) + eps) * (offset + w)` (arXiv:1910.07467; Gemma's offset is 1).

use candle_core::{D, Result, Tensor};

use crate::Weight;

/// x: [.., m], weight: [m] -> [.., m]. Also used per head, with m the head width.
pub fn rms_norm(x: &Tensor, weight: &Weight, eps: f64, offset: f64) -> Result<Tensor> {
    reference(x, weight, eps, offset)
}

fn reference(x: &Tensor, weight: &Weight, eps: f64, offset: f64) -> Result<Tensor> {
    let scale = (x.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?.recip()?;
    x.broadcast_mul(&scale)?.broadcast_mul(&(weight.to_tensor(x.device())? + offset)?)
}
