//! RMSNorm as a part of a model.

use luthier_checkpoint::layout::{Part, Space, TensorSpec};
use luthier_ops::{Result, Tensor, Weight};

use super::stack::Site;
use crate::observer::Tap;
use crate::weights::WeightSet;

/// What all norms of one stack share.
#[derive(Clone, Copy, Debug)]
pub struct NormShape {
    /// Under the root.
    pub eps: f64,
    /// Added to the weight: 1 in the Gemma family, whose stored weights are differences from 1.
    pub offset: f64,
}

impl NormShape {
    /// The tensor of one norm over the residual stream.
    pub fn spec(
        &self,
        site: &Site,
        module: &str,
        layer: Option<usize>,
        part: Part,
        width: usize,
    ) -> TensorSpec {
        site.spec(&format!("{module}.weight"), layer, part, &[(width, Space::Residual)])
    }

    /// Takes `{module}.weight`.
    pub fn build(&self, weights: &WeightSet, module: &str) -> crate::Result<Norm> {
        Ok(Norm {
            weight: weights.get(&format!("{module}.weight"))?,
            shape: *self,
            tap: weights.tap().clone(),
        })
    }
}

/// `x / sqrt(mean(x^2) + eps) * (offset + w)`.
pub struct Norm {
    weight: Weight,
    shape: NormShape,
    tap: Tap,
}

impl Norm {
    /// x: [.., m] -> [.., m].
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let y = luthier_ops::norm::rms_norm(x, &self.weight, self.shape.eps, self.shape.offset)?;
        self.tap.see(|observer| observer.norm(self.weight.name(), x, &y))?;
        Ok(y)
    }
}
