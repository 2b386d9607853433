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

    /// Several maps of the same x: [.., m] -> [.., n] each.
    pub fn forward_all<const N: usize>(maps: [&Linear; N], x: &Tensor) -> Result<[Tensor; N]> {
        for map in maps {
            map.tap.see(|observer| observer.matrix(map.weight.name(), x))?;
        }
        luthier_ops::linear::linear_all(x, maps.map(|map| (&map.weight, map.bias.as_ref())))
    }

    /// x: [.., m] -> [.., n].
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.tap.see(|observer| observer.matrix(self.weight.name(), x))?;
        luthier_ops::linear::linear(x, &self.weight, self.bias.as_ref())
    }
}
