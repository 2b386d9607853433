//! Output projection: `z = cap(h E^T + b)`, with bias and soft cap only where a model has them.

use candle_core::{Result, Shape, Tensor};
use luthier_kernels::activation::{softcap as softcap_kernel, softcap_backward};
use luthier_kernels::buffer::unfilled;

use crate::Weight;
use crate::tape::{self, Fused, Pass};

// m width, v vocabulary

/// hidden: [.., m] -> logits [.., v], soft-capped.
pub fn project(hidden: &Tensor, head: &Weight, softcap: Option<f64>) -> Result<Tensor> {
    biased_project(hidden, head, None, softcap)
}

/// The same with a bias [v], before the soft cap.
pub fn biased_project(
    hidden: &Tensor,
    head: &Weight,
    bias: Option<&Weight>,
    softcap: Option<f64>,
) -> Result<Tensor> {
    let logits = crate::linear::linear(hidden, head, bias)?;
    match softcap {
        Some(cap) if tape::is_fused(&[&logits]) => {
            tape::apply(SoftCap { cap: cap as f32, shape: logits.shape().clone() }, &[&logits])
        }
        Some(cap) => (logits / cap)?.tanh()? * cap,
        None => Ok(logits),
    }
}

struct SoftCap {
    cap: f32,
    shape: Shape,
}

impl Fused for SoftCap {
    fn name(&self) -> &'static str {
        "softcap"
    }

    fn forward(&self, inputs: &[&[f32]]) -> Result<(Vec<f32>, Shape)> {
        let mut y = inputs[0].to_vec();
        softcap_kernel(&mut y, self.cap);
        Ok((y, self.shape.clone()))
    }

    fn backward(&self, pass: Pass) -> Result<Vec<Option<Vec<f32>>>> {
        let mut dx = unfilled(pass.grad.len());
        softcap_backward(pass.result, pass.grad, self.cap, &mut dx);
        Ok(vec![Some(dx)])
    }
}
