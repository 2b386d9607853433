//! LayerNorm: `(x - mean(x)) / sqrt(var(x) + eps) * w + b` (arXiv:1607.06450).

use candle_core::{D, Result, Shape, Tensor};
use luthier_kernels::buffer::unfilled;
use luthier_kernels::layer_norm::{
    LayerNorm as Norm, LayerNormGrads, layer_norm as forward_kernel, layer_norm_backward,
};
use luthier_kernels::matmul::Write;

use crate::Weight;
use crate::linear::{on_cpu, with_values};
use crate::tape::{self, Fused, Pass};

/// x: [.., m], weight: [m], bias: [m] -> [.., m].
pub fn layer_norm(x: &Tensor, weight: &Weight, bias: &Weight, eps: f64) -> Result<Tensor> {
    let width = x.dims().last().copied().unwrap_or(0);
    for vector in [weight, bias] {
        if vector.shape() != [width] || width == 0 {
            candle_core::bail!("{}: has shape {:?}, wanted [{width}]", vector.name(), vector.shape());
        }
    }
    if !tape::is_fused(&[x]) || !on_cpu(weight) || !on_cpu(bias) {
        return reference(x, weight, bias, eps);
    }
    let op =
        LayerNorm { weight: weight.clone(), bias: bias.clone(), eps: eps as f32, shape: x.shape().clone() };
    tape::apply(op, &[x])
}

fn reference(x: &Tensor, weight: &Weight, bias: &Weight, eps: f64) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let scale = (centred.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?.recip()?;
    let normed = centred.broadcast_mul(&scale)?;
    normed.broadcast_mul(&weight.to_tensor(x.device())?)?.broadcast_add(&bias.to_tensor(x.device())?)
}

struct LayerNorm {
    weight: Weight,
    bias: Weight,
    eps: f32,
    shape: Shape,
}

impl LayerNorm {
    fn with_norm<R>(&self, work: impl FnOnce(Norm) -> R) -> Result<R> {
        with_values(&self.weight, |weight| {
            with_values(&self.bias, |bias| work(Norm { weight, bias, eps: self.eps }))
        })?
    }
}

impl Fused for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn trains_weights(&self) -> bool {
        self.weight.is_trainable() || self.bias.is_trainable()
    }

    fn forward(&self, inputs: &[&[f32]]) -> Result<(Vec<f32>, Shape)> {
        let mut y = unfilled(inputs[0].len());
        self.with_norm(|norm| forward_kernel(inputs[0], norm, &mut y))?;
        Ok((y, self.shape.clone()))
    }

    fn backward(&self, pass: Pass) -> Result<Vec<Option<Vec<f32>>>> {
        let x = pass.inputs[0];
        let mut dx = pass.tracked[0].then(|| unfilled(x.len()));
        let (mut dw, mut db) = (self.grad_of(&self.weight), self.grad_of(&self.bias));
        self.with_norm(|norm| {
            let grads = LayerNormGrads {
                weight: dw.as_deref_mut().map(|grad| (grad, Write::Overwrite)),
                bias: db.as_deref_mut().map(|grad| (grad, Write::Overwrite)),
            };
            layer_norm_backward(x, norm, pass.grad, dx.as_deref_mut(), grads);
        })?;
        for (weight, grad) in [(&self.weight, dw), (&self.bias, db)] {
            let Some(grad) = grad else { continue };
            weight.accumulate(|sum, write| match write {
                Write::Overwrite => sum.copy_from_slice(&grad),
                Write::Add => sum.iter_mut().zip(&grad).for_each(|(sum, grad)| *sum += grad),
            });
        }
        Ok(vec![dx])
    }
}

impl LayerNorm {
    /// Room for a gradient; none for a frozen weight.
    fn grad_of(&self, weight: &Weight) -> Option<Vec<f32>> {
        weight.is_trainable().then(|| unfilled(weight.elem_count()))
    }
}
