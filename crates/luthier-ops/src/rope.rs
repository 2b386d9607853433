//! Rotary position embedding over halves (arXiv:2104.09864, in the layout of Hugging Face checkpoints).

use candle_core::{D, Result, Shape, Tensor};
use luthier_kernels::buffer::unfilled;
use luthier_kernels::rope::rope as kernel;

use crate::tape::{self, Fused, Pass};

// b batch, t tokens, h heads, d head width

/// x: [b, t, h, d]; cos, sin: [b, t, d/2] or [1, t, d/2], angles of each token's position -> [b, t, h, d].
/// The pair (i, i + d/2) is turned by angle i.
pub fn rope(x_bthd: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let ((b, t, h, d), angles) = (x_bthd.dims4()?, cos.dims3()?);
    if sin.dims() != cos.dims() || (angles != (b, t, d / 2) && angles != (1, t, d / 2)) || d % 2 != 0 {
        candle_core::bail!("rope: {:?} turned by {:?} and {:?}", x_bthd.dims(), cos.dims(), sin.dims());
    }
    if !tape::is_fused(&[x_bthd, cos, sin]) {
        return reference(x_bthd, cos, sin);
    }
    let (cos, sin) = (cos.contiguous()?.detach(), sin.contiguous()?.detach());
    tape::apply(Rope { cos, sin, heads: h, head_dim: d, shape: x_bthd.shape().clone() }, &[x_bthd])
}

fn reference(x_bthd: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    let half = x_bthd.dim(D::Minus1)? / 2;
    let (cos, sin) = (cos.unsqueeze(2)?, sin.unsqueeze(2)?);
    let (low, high) = (x_bthd.narrow(D::Minus1, 0, half)?, x_bthd.narrow(D::Minus1, half, half)?);
    let turned_low = (low.broadcast_mul(&cos)? - high.broadcast_mul(&sin)?)?;
    let turned_high = (high.broadcast_mul(&cos)? + low.broadcast_mul(&sin)?)?;
    Tensor::cat(&[turned_low, turned_high], D::Minus1)
}

struct Rope {
    cos: Tensor,
    sin: Tensor,
    heads: usize,
    head_dim: usize,
    shape: Shape,
}

impl Rope {
    fn turn(&self, x: &[f32], sense: f32) -> Result<Vec<f32>> {
        let mut y = unfilled(x.len());
        tape::read(&[&self.cos, &self.sin], |angles| {
            kernel(x, angles[0], angles[1], self.heads, self.head_dim, sense, &mut y);
            Ok(())
        })?;
        Ok(y)
    }
}

impl Fused for Rope {
    fn name(&self) -> &'static str {
        "rope"
    }

    fn forward(&self, inputs: &[&[f32]]) -> Result<(Vec<f32>, Shape)> {
        Ok((self.turn(inputs[0], 1.0)?, self.shape.clone()))
    }

    fn backward(&self, pass: Pass) -> Result<Vec<Option<Vec<f32>>>> {
        Ok(vec![Some(self.turn(pass.grad, -1.0)?)])
    }
}
