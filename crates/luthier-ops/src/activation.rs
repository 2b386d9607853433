//! Gated activations: `act(gate) * up`.

use candle_core::{Result, Tensor};

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

/// gate, up: [.., f] -> [.., f].
pub fn gated(gate: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor> {
    reference(gate, up, activation)
}

fn reference(gate: &Tensor, up: &Tensor, activation: Activation) -> Result<Tensor> {
    let activated = match activation {
        Activation::Silu => gate.silu()?,
        Activation::GeluTanh => gate.gelu()?,
        Activation::Gelu => gate.gelu_erf()?,
        Activation::Relu => gate.relu()?,
    };
    activated.mul(up)
}
