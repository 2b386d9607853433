//! The gated feed-forward block: `down(act(gate(x)) * up(x))` (arXiv:2002.05202).

use luthier_checkpoint::layout::{Part, Space, TensorSpec};
use luthier_ops::activation::{Activation, gated};
use luthier_ops::{Result, Tensor};

use super::linear::Linear;
use super::stack::Site;
use crate::Error;
use crate::config::Keys;
use crate::weights::WeightSet;

// m model width, f inner width

/// Sizes of one feed-forward block.
#[derive(Clone, Debug)]
pub struct FeedForwardShape {
    /// m.
    pub width: usize,
    /// f.
    pub inner: usize,
    /// Whether all three projections have a bias.
    pub bias: bool,
    /// On the gate.
    pub activation: Activation,
}

impl FeedForwardShape {
    /// The tensors of layer `layer`.
    pub fn specs(&self, site: &Site, layer: usize) -> Vec<TensorSpec> {
        let (m, f) = ((self.width, Space::Residual), (self.inner, Space::Ffn));
        let projections = [
            ("gate_proj", Part::Gate, Part::GateBias, f, m),
            ("up_proj", Part::Up, Part::UpBias, f, m),
            ("down_proj", Part::Down, Part::DownBias, m, f),
        ];
        let mut specs = Vec::new();
        for (name, part, bias_part, output, input) in projections {
            let module = format!("layers.{layer}.mlp.{name}");
            specs.push(site.spec(&format!("{module}.weight"), Some(layer), part, &[output, input]));
            if self.bias {
                specs.push(site.spec(&format!("{module}.bias"), Some(layer), bias_part, &[output]));
            }
        }
        specs
    }

    /// The block of layer `layer`.
    pub fn build(&self, site: &Site, weights: &WeightSet, layer: usize) -> crate::Result<FeedForward> {
        let linear =
            |name: &str| Linear::build(weights, &site.name(&format!("layers.{layer}.mlp.{name}")), self.bias);
        Ok(FeedForward {
            gate: linear("gate_proj")?,
            up: linear("up_proj")?,
            down: linear("down_proj")?,
            activation: self.activation,
        })
    }
}

/// A feed-forward block that runs.
pub struct FeedForward {
    gate: Linear,
    up: Linear,
    down: Linear,
    activation: Activation,
}

impl FeedForward {
    /// x: [b, t, m] -> [b, t, m].
    pub fn forward(&self, x_btm: &Tensor) -> Result<Tensor> {
        let (gate_btf, up_btf) = (self.gate.forward(x_btm)?, self.up.forward(x_btm)?);
        self.down.forward(&gated(&gate_btf, &up_btf, self.activation)?)
    }
}

/// The activation that config key `key` names.
pub fn activation(keys: &Keys, key: &'static str, default: &str) -> crate::Result<Activation> {
    match keys.optional_text(key)?.unwrap_or(default) {
        "silu" | "swish" => Ok(Activation::Silu),
        "gelu_pytorch_tanh" | "gelu_new" | "gelu_fast" => Ok(Activation::GeluTanh),
        "gelu" => Ok(Activation::Gelu),
        "relu" => Ok(Activation::Relu),
        other => {
            let what = format!("expected silu, gelu_pytorch_tanh, gelu or relu, found {other:?}");
            Err(Error::config(keys.name(key), what))
        }
    }
}
