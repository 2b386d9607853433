//! Rotary position embedding over halves (arXiv:2104.09864, in the layout of Hugging Face checkpoints).

use candle_core::{D, Result, Tensor};

// b batch, t tokens, h heads, d head width

/// x: [b, t, h, d]; cos, sin: [b, t, d/2] or [1, t, d/2], angles of each token's position -> [b, t, h, d].
/// The pair (i, i + d/2) is turned by angle i.
pub fn rope(x_bthd: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    reference(x_bthd, cos, sin)
}

fn reference(x_bthd: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let half = x_bthd.dim(D::Minus1)? / 2;
    let (cos, sin) = (cos.unsqueeze(2)?, sin.unsqueeze(2)?);
    let (low, high) = (x_bthd.narrow(D::Minus1, 0, half)?, x_bthd.narrow(D::Minus1, half, half)?);
    let turned_low = (low.broadcast_mul(&cos)? - high.broadcast_mul(&sin)?)?;
    let turned_high = (high.broadcast_mul(&cos)? + low.broadcast_mul(&sin)?)?;
    Tensor::cat(&[turned_low, turned_high], D::Minus1)
}
