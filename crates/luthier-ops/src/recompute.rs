//! Layers that drop their activations and run again in the backward pass (arXiv:1604.06174).
//!
//! The first run leaves nothing on the tape but its inputs; the backward pass runs it again on fresh variables and
//! seeds it with the incoming gradient. Weight gradients go into the weights' buffers as always.

use std::sync::{Mutex, PoisonError};

use candle_core::{Device, Result, Shape, Tensor, Var};

use crate::tape::{self, Fused, Pass};

/// `layer(x)` without its activations. Elsewhere than on CPU the layer simply runs: its weight gradients would be lost
/// on the inner tape.
pub fn recompute(
    x: &Tensor,
    layer: impl Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    recompute_all(&[x], move |inputs| layer(&inputs[0]))
}

/// As [`recompute`] for a layer that reads a second tensor with a gradient (an encoder's states).
pub fn recompute_with(
    x: &Tensor,
    states: &Tensor,
    layer: impl Fn(&Tensor, &Tensor) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    recompute_all(&[x, states], move |inputs| layer(&inputs[0], &inputs[1]))
}

fn recompute_all(
    inputs: &[&Tensor],
    layer: impl Fn(&[Tensor]) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    let detached: Vec<Tensor> = inputs.iter().map(|x| x.detach()).collect();
    if !tape::is_fused(inputs) || !tape::is_recording() {
        return layer(&inputs.iter().map(|&x| x.clone()).collect::<Vec<_>>());
    }
    let y = tape::without_tape(|| layer(&detached))?.contiguous()?;
    let shapes = inputs.iter().map(|x| x.shape().clone()).collect();
    let (shape, first) = (y.shape().clone(), Mutex::new(Some(y)));
    tape::apply(Recompute { layer: Box::new(layer), shapes, shape, first }, inputs)
}

type Layer = Box<dyn Fn(&[Tensor]) -> Result<Tensor> + Send + Sync>;

struct Recompute {
    layer: Layer,
    shapes: Vec<Shape>,
    shape: Shape,
    /// The result of the first run, until the tape has it.
    first: Mutex<Option<Tensor>>,
}

impl Fused for Recompute {
    fn name(&self) -> &'static str {
        "recompute"
    }

    fn trains_weights(&self) -> bool {
        true
    }

    fn forward(&self, _: &[&[f32]]) -> Result<(Vec<f32>, Shape)> {
        let first = self.first.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(first) = first else { candle_core::bail!("recompute: the first run is applied once") };
        let values = tape::read(&[&first], |slices| Ok(slices[0].to_vec()))?;
        Ok((values, self.shape.clone()))
    }

    fn backward(&self, pass: Pass) -> Result<Vec<Option<Vec<f32>>>> {
        let inputs: Vec<Tensor> = pass
            .inputs
            .iter()
            .zip(&self.shapes)
            .zip(pass.tracked)
            .map(|((values, shape), tracked)| match tracked {
                true => Ok(Var::from_slice(values, shape, &Device::Cpu)?.into_inner()),
                false => Tensor::from_slice(values, shape, &Device::Cpu),
            })
            .collect::<Result<_>>()?;
        let y = (self.layer)(&inputs)?;
        if !y.track_op() {
            return Ok(pass
                .inputs
                .iter()
                .zip(pass.tracked)
                .map(|(x, on)| on.then(|| vec![0.0; x.len()]))
                .collect());
        }
        let mut grads = tape::apply(Seed { grad: pass.grad.to_vec() }, &[&y])?.backward()?;
        drop(y);
        inputs
            .iter()
            .zip(pass.tracked)
            .map(|(x, tracked)| match (tracked, grads.remove(x)) {
                (false, _) => Ok(None),
                (true, Some(grad)) => {
                    tape::read(&[&grad.contiguous()?], |slices| Ok(Some(slices[0].to_vec())))
                }
                // The layer does not depend on it.
                (true, None) => Ok(Some(vec![0.0; x.elem_count()])),
            })
            .collect()
    }
}

/// A scalar whose gradient by its input is `grad`.
struct Seed {
    grad: Vec<f32>,
}

impl Fused for Seed {
    fn name(&self) -> &'static str {
        "seed"
    }

    fn forward(&self, _: &[&[f32]]) -> Result<(Vec<f32>, Shape)> {
        Ok((vec![0.0], Shape::from(())))
    }

    fn backward(&self, _: Pass) -> Result<Vec<Option<Vec<f32>>>> {
        Ok(vec![Some(self.grad.clone())])
    }
}
