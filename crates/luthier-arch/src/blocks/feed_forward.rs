//! The feed-forward block: gated, `down(act(gate(x)) * up(x))` (arXiv:2002.05202), or plain, `down(act(up(x)))`.

use luthier_checkpoint::layout::{Part, Space, TensorSpec};
use luthier_ops::activation::{Activation, gated, plain};
use luthier_ops::{Result, Tensor};

use super::linear::Linear;
use super::names::{FeedForwardNames, in_layer};
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
    /// Whether all projections have a bias.
    pub bias: bool,
    /// Whether there is a gate.
    pub gated: bool,
    /// On the gate, or on what goes up where there is none.
    pub activation: Activation,
}

impl FeedForwardShape {
    /// The tensors of layer `layer`.
    pub fn specs(&self, site: &Site, layer: usize, names: &FeedForwardNames) -> Vec<TensorSpec> {
        let (m, f) = ((self.width, Space::Residual), (self.inner, Space::Ffn));
        let [gate, up, down] = names.projections;
        let projections = [
            (gate, Part::Gate, Part::GateBias, f, m),
            (up, Part::Up, Part::UpBias, f, m),
            (down, Part::Down, Part::DownBias, m, f),
        ];
        let mut specs = Vec::new();
        for (name, part, bias_part, output, input) in projections {
            if part == Part::Gate && !self.gated {
                continue;
            }
            let module = format!("{}.{name}", in_layer(names.module, layer));
            specs.push(site.spec(&format!("{module}.weight"), Some(layer), part, &[output, input]));
            if self.bias {
                specs.push(site.spec(&format!("{module}.bias"), Some(layer), bias_part, &[output]));
            }
        }
        specs
    }

    /// The block of layer `layer`.
    pub fn build(
        &self,
        site: &Site,
        weights: &WeightSet,
        layer: usize,
        names: &FeedForwardNames,
    ) -> crate::Result<FeedForward> {
        let module = site.name(&in_layer(names.module, layer));
        let linear = |name: &str| Linear::build(weights, &format!("{module}.{name}"), self.bias);
        let [gate, up, down] = names.projections;
        Ok(FeedForward {
            gate: if self.gated { Some(linear(gate)?) } else { None },
            up: linear(up)?,
            down: linear(down)?,
            activation: self.activation,
        })
    }
}

/// A feed-forward block that runs.
pub struct FeedForward {
    gate: Option<Linear>,
    up: Linear,
    down: Linear,
    activation: Activation,
}

impl FeedForward {
    /// A gated block without biases whose projections (gate, up, down) lie under `module`.
    pub(crate) fn of_projections(
        weights: &WeightSet,
        module: &str,
        [gate, up, down]: [&str; 3],
        activation: Activation,
    ) -> crate::Result<FeedForward> {
        let linear = |name: &str| Linear::build(weights, &format!("{module}.{name}"), false);
        Ok(FeedForward { gate: Some(linear(gate)?), up: linear(up)?, down: linear(down)?, activation })
    }

    /// x: [b, t, m] -> [b, t, m].
    pub fn forward(&self, x_btm: &Tensor) -> Result<Tensor> {
        let inner_btf = match &self.gate {
            Some(gate) => {
                let [gate_btf, up_btf] = Linear::forward_all([gate, &self.up], x_btm)?;
                gated(&gate_btf, &up_btf, self.activation)?
            }
            None => plain(&self.up.forward(x_btm)?, self.activation)?,
        };
        self.down.forward(&inner_btf)
    }
}

/// The activation that config key `key` names.
pub fn activation(keys: &Keys, key: &'static str, default: &str) -> crate::Result<Activation> {
    let name = keys.text_or(key, default)?;
    activation_called(name).ok_or_else(|| {
        let what = format!("expected silu, gelu_pytorch_tanh, gelu or relu, found {name:?}");
        Error::config(keys.name(key), what)
    })
}

/// The activation of that name, as configs spell it.
pub fn activation_called(name: &str) -> Option<Activation> {
    match name {
        "silu" | "swish" => Some(Activation::Silu),
        "gelu_pytorch_tanh" | "gelu_new" | "gelu_fast" => Some(Activation::GeluTanh),
        "gelu" => Some(Activation::Gelu),
        "relu" => Some(Activation::Relu),
        _ => None,
    }
}
