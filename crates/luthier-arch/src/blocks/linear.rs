//! A weight matrix with its optional bias.

use luthier_ops::{Result, Tensor, Weight};

use crate::observer::Tap;
use crate::weights::WeightSet;

// m inputs, n outputs

/// `y = x W^T + b`.
pub struct Linear {
    weight: Weight,
    bias: Option<Weight>,
    tap: Tap,
}

impl Linear {
    /// Takes `{module}.weight` and, with `bias`, `{module}.bias`.
    pub fn build(weights: &WeightSet, module: &str, bias: bool) -> crate::Result<Linear> {
        let weight = weights.get(&format!("{module}.weight"))?;
        let bias = bias.then(|| weights.get(&format!("{module}.bias"))).transpose()?;
        Ok(Linear { weight, bias, tap: weights.tap().clone() })
    }

    /// The name of the weight.
    pub fn name(&self) -> &str {
        self.weight.name()
    }

    /// x: [.., m] -> [.., n].
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.tap.see(|observer| observer.matrix(self.weight.name(), x))?;
        luthier_ops::linear::linear(x, &self.weight, self.bias.as_ref())
    }
}
