//! RMSNorm: `x / sqrt(mean(x^2) + eps) * (offset + w)` (arXiv:1910.07467; Gemma's offset is 1).

use candle_core::{D, Result, Shape, Tensor};
use luthier_kernels::buffer::unfilled;
use luthier_kernels::norm::{Norm, rms_norm as forward_kernel, rms_norm_backward};

use crate::Weight;
use crate::linear::{on_cpu, with_values};
use crate::tape::{self, Fused, Pass};

/// x: [.., m], weight: [m] -> [.., m]. Also used per head, with m the head width.
pub fn rms_norm(x: &Tensor, weight: &Weight, eps: f64, offset: f64) -> Result<Tensor> {
    let width = x.dims().last().copied().unwrap_or(0);
    if weight.shape() != [width] || width == 0 {
        candle_core::bail!("{}: has shape {:?}, wanted [{width}]", weight.name(), weight.shape());
    }
    if !tape::is_fused(&[x]) || !on_cpu(weight) {
        return reference(x, weight, eps, offset);
    }
    let op =
        RmsNorm { weight: weight.clone(), eps: eps as f32, offset: offset as f32, shape: x.shape().clone() };
    tape::apply(op, &[x])
}

fn reference(x: &Tensor, weight: &Weight, eps: f64, offset: f64) -> Result<Tensor> {
    let scale = (x.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?.recip()?;
    x.broadcast_mul(&scale)?.broadcast_mul(&(weight.to_tensor(x.device())? + offset)?)
}

struct RmsNorm {
    weight: Weight,
    eps: f32,
    offset: f32,
    shape: Shape,
}

impl RmsNorm {
    fn with_norm<R>(&self, work: impl FnOnce(Norm) -> R) -> Result<R> {
        with_values(&self.weight, |weight| work(Norm { weight, eps: self.eps, offset: self.offset }))
    }
}

impl Fused for RmsNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn trains_weights(&self) -> bool {
        self.weight.is_trainable()
    }

    fn forward(&self, inputs: &[&[f32]]) -> Result<(Vec<f32>, Shape)> {
        let mut y = unfilled(inputs[0].len());
        self.with_norm(|norm| forward_kernel(inputs[0], norm, &mut y))?;
        Ok((y, self.shape.clone()))
    }

    fn backward(&self, pass: Pass) -> Result<Vec<Option<Vec<f32>>>> {
        let x = pass.inputs[0];
        let mut dx = pass.tracked[0].then(|| unfilled(x.len()));
        self.with_norm(|norm| {
            if self.weight.is_trainable() {
                self.weight.accumulate(|grad, write| {
                    rms_norm_backward(x, norm, pass.grad, dx.as_deref_mut(), Some((grad, write)));
                });
            } else {
                rms_norm_backward(x, norm, pass.grad, dx.as_deref_mut(), None);
            }
        })?;
        Ok(vec![dx])
    }
}
