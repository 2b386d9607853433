//! A linear map over frozen weights with a trained product of two narrow matrices beside it:
//! `y = x W^T + b + s (x A^T) B^T` (LoRA, arXiv:2106.09685, section 4.1).
//!
//! Beside what its input holds anyway the backward pass needs the `r` values of each row between A and B, no more: W gives
//! only the gradient by x, and its encoding stays that of its file.

use std::sync::OnceLock;

use candle_core::{Result, Shape, Tensor};
use luthier_kernels::buffer::unfilled;
use luthier_kernels::matmul::{View, Write, matmul};
use luthier_kernels::rows;

use crate::Weight;
use crate::linear::{add_outer, multiply, multiply_transposed, on_cpu, with_values};
use crate::tape::{self, Fused, Pass};

// m inputs, n outputs, r rank

/// What is trained beside a weight W: [n, m].
#[derive(Clone, Debug)]
pub struct Lora {
    /// A: [r, m].
    pub down: Weight,
    /// B: [n, r].
    pub up: Weight,
    /// s.
    pub scale: f32,
}

impl Lora {
    /// Refuses factors that do not belong to a weight of that name and shape.
    pub(crate) fn check(&self, name: &str, shape: &[usize]) -> Result<()> {
        let (down, up) = (self.down.shape(), self.up.shape());
        match (shape, down, up) {
            (&[n, m], &[r, inputs], &[outputs, inner]) if (inputs, outputs, inner) == (m, n, r) && r > 0 => {
                Ok(())
            }
            _ => candle_core::bail!(
                "{name}: factors {down:?} and {up:?} beside a weight {shape:?}, wanted [r, m] and [n, r] for [n, m]"
            ),
        }
    }
}

/// x: [.., m] -> [.., n], the shapes checked before.
pub(crate) fn adapted(x: &Tensor, weight: &Weight, bias: Option<&Weight>, lora: &Lora) -> Result<Tensor> {
    let fits = on_cpu(weight) && bias.is_none_or(on_cpu) && on_cpu(&lora.down) && on_cpu(&lora.up);
    if !tape::is_fused(&[x]) || !fits {
        return reference(x, weight, bias, lora);
    }
    let mut dims = x.dims().to_vec();
    dims.pop();
    dims.push(weight.shape()[0]);
    let op = Adapted {
        weight: weight.clone(),
        bias: bias.cloned(),
        lora: lora.clone(),
        shape: dims.into(),
        low: OnceLock::new(),
    };
    tape::apply(op, &[x])
}

fn reference(x: &Tensor, weight: &Weight, bias: Option<&Weight>, lora: &Lora) -> Result<Tensor> {
    let y = crate::linear::reference(x, weight, bias)?;
    let low = crate::linear::reference(x, &lora.down, None)?;
    y + (crate::linear::reference(&low, &lora.up, None)? * f64::from(lora.scale))?
}

struct Adapted {
    weight: Weight,
    bias: Option<Weight>,
    lora: Lora,
    shape: Shape,
    /// s x A^T: [rows, r], left by a forward pass that a backward pass follows.
    low: OnceLock<Vec<f32>>,
}

impl Adapted {
    fn rank(&self) -> usize {
        self.lora.down.shape()[0]
    }

    fn outputs(&self) -> usize {
        self.weight.shape()[0]
    }

    fn inputs(&self) -> usize {
        self.weight.shape()[1]
    }
}

impl Fused for Adapted {
    fn name(&self) -> &'static str {
        "lora"
    }

    fn trains_weights(&self) -> bool {
        let bias = self.bias.as_ref().is_some_and(Weight::is_trainable);
        bias || self.lora.down.is_trainable() || self.lora.up.is_trainable()
    }

    fn forward(&self, inputs: &[&[f32]]) -> Result<(Vec<f32>, Shape)> {
        let (n, r) = (self.outputs(), self.rank());
        let mut y = unfilled(self.shape.elem_count());
        let rows = y.len().checked_div(n).unwrap_or(0);
        multiply(inputs[0], &self.weight, &mut y)?;
        if let Some(bias) = &self.bias {
            with_values(bias, |bias| rows::add_bias(&mut y, bias))?;
        }
        let mut low = unfilled(rows * r);
        multiply(inputs[0], &self.lora.down, &mut low)?;
        rows::scale(&mut low, self.lora.scale);
        with_values(&self.lora.up, |up| {
            matmul(rows, r, n, View::rows(&low, r), View::rows(up, r).transposed(), &mut y, Write::Add);
        })?;
        if tape::is_recording() {
            // The operation is made anew for each call, so nothing was saved before.
            let _ = self.low.set(low);
        }
        Ok((y, self.shape.clone()))
    }

    fn backward(&self, pass: Pass) -> Result<Vec<Option<Vec<f32>>>> {
        let (x, dy) = (pass.inputs[0], pass.grad);
        let (m, r) = (self.inputs(), self.rank());
        let rows = x.len().checked_div(m).unwrap_or(0);
        let Some(low) = self.low.get() else {
            candle_core::bail!("{}: a backward pass without its forward pass", self.weight.name())
        };
        let mut dlow = unfilled(rows * r);
        multiply_transposed(dy, &self.lora.up, &mut dlow)?;
        rows::scale(&mut dlow, self.lora.scale);
        let mut dx = None;
        if pass.tracked[0] {
            let dx = dx.insert(unfilled(x.len()));
            multiply_transposed(dy, &self.weight, dx)?;
            with_values(&self.lora.down, |down| {
                matmul(rows, r, m, View::rows(&dlow, r), View::rows(down, m), dx, Write::Add);
            })?;
        }
        if self.lora.down.is_trainable() {
            add_outer(&self.lora.down, &dlow, x);
        }
        if self.lora.up.is_trainable() {
            add_outer(&self.lora.up, dy, low);
        }
        if let Some(bias) = self.bias.as_ref().filter(|bias| bias.is_trainable()) {
            bias.accumulate(|grad, write| rows::column_sums(dy, grad, write));
        }
        Ok(vec![dx])
    }
}
