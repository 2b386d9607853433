//! LayerNorm as a part of a model.

use luthier_checkpoint::layout::{Part, Space, TensorSpec};
use luthier_ops::{Result, Tensor, Weight};

use super::stack::Site;
use crate::observer::Tap;
use crate::weights::WeightSet;

/// What all norms of one stack share.
#[derive(Clone, Copy, Debug)]
pub struct LayerNormShape {
    /// Under the root.
    pub eps: f64,
    /// What weight and bias are called: `gamma` and `beta` in files of TensorFlow's time.
    pub vectors: [&'static str; 2],
}

impl LayerNormShape {
    /// The two tensors of one norm over the residual stream, at those parts.
    pub fn specs(
        &self,
        site: &Site,
        module: &str,
        layer: Option<usize>,
        parts: [Part; 2],
        width: usize,
    ) -> [TensorSpec; 2] {
        let axes = [(width, Space::Residual)];
        let spec = |at: usize| site.spec(&format!("{module}.{}", self.vectors[at]), layer, parts[at], &axes);
        [spec(0), spec(1)]
    }

    /// Takes weight and bias of `module`.
    pub fn build(&self, weights: &WeightSet, module: &str) -> crate::Result<LayerNorm> {
        let [weight, bias] = self.vectors.map(|name| weights.get(&format!("{module}.{name}")));
        Ok(LayerNorm { weight: weight?, bias: bias?, eps: self.eps, tap: weights.tap().clone() })
    }
}

/// `(x - mean(x)) / sqrt(var(x) + eps) * w + b`.
pub struct LayerNorm {
    weight: Weight,
    bias: Weight,
    eps: f64,
    tap: Tap,
}

impl LayerNorm {
    /// x: [.., m] -> [.., m].
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = luthier_ops::layer_norm::layer_norm(x, &self.weight, &self.bias, self.eps)?;
        self.tap.see(|observer| observer.norm(self.weight.name(), x, &y))?;
        Ok(y)
    }
}
