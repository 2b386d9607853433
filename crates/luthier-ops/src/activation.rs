//! Activations of feed-forward blocks: gated, `act(gate) * up`, and plain.

use candle_core::{Result, Shape, Tensor};
use luthier_kernels::activation::{Gate, gated as kernel, gated_backward};
use luthier_kernels::buffer::unfilled;

use crate::tape::{self, Fused, Pass};

/// The non-linearity of a feed-forward block, named as config.json's `hidden_act`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// x * sigmoid(x) (`silu`, `swish`).
    Silu,
    /// The tanh approximation of GELU (`gelu_pytorch_tanh`, `gelu_new`).
    GeluTanh,
    /// Exact GELU by the error function (`gelu`).
    Gelu,
    /// max(x, 0) (`relu`).
    Relu,
}

impl From<Activation> for Gate {
    fn from(activation: Activation) -> Gate {
        match activation {
            Activation::Silu => Gate::Silu,
            Activation::GeluTanh => Gate::GeluTanh,
            Activation::Gelu => Gate::Gelu,
            Activation::Relu => Gate::Relu,
        }
    }
}

/// gate, up: [.., f] -> [.., f].
pub fn gated(gate: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor> {
    if gate.dims() != up.dims() {
        candle_core::bail!("gated activation: gate {:?}, up {:?}", gate.dims(), up.dims());
    }
    if !tape::is_fused(&[gate, up]) {
        return reference(gate, up, activation);
    }
    tape::apply(Gated { kind: activation.into(), shape: gate.shape().clone() }, &[gate, up])
}

/// x: [.., f] -> [.., f], without a gate.
pub fn plain(x: &Tensor, activation: Activation) -> Result<Tensor> {
    match activation {
        Activation::Silu => x.silu(),
        Activation::GeluTanh => x.gelu(),
        Activation::Gelu => x.gelu_erf(),
        Activation::Relu => x.relu(),
    }
}

fn reference(gate: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor> {
    plain(gate, activation)?.mul(up)
}

struct Gated {
    kind: Gate,
    shape: Shape,
}

impl Fused for Gated {
    fn name(&self) -> &'static str {
        "gated"
    }

    fn forward(&self, inputs: &[&[f32]]) -> Result<(Vec<f32>, Shape)> {
        let mut y = unfilled(inputs[0].len());
        kernel(inputs[0], inputs[1], self.kind, &mut y);
        Ok((y, self.shape.clone()))
    }

    fn backward(&self, pass: Pass) -> Result<Vec<Option<Vec<f32>>>> {
        let (gate, up) = (pass.inputs[0], pass.inputs[1]);
        let (mut dgate, mut dup) = (unfilled(gate.len()), unfilled(up.len()));
        gated_backward(gate, up, self.kind, pass.grad, &mut dgate, &mut dup);
        Ok([dgate, dup]
            .into_iter()
            .zip(pass.tracked)
            .map(|(grad, tracked)| tracked.then_some(grad))
            .collect())
    }
}
