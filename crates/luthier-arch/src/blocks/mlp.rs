//! What stands between attention and the next layer: one feed-forward block, or experts.

use luthier_checkpoint::layout::TensorSpec;
use luthier_ops::activation::Activation;
use luthier_ops::{Result, Tensor};

use super::experts::{Experts, ExpertsShape};
use super::feed_forward::{FeedForward, FeedForwardShape};
use super::names::FeedForwardNames;
use super::stack::Site;
use crate::weights::WeightSet;

/// Sizes of one.
#[derive(Clone, Debug)]
pub enum MlpShape {
    /// All tokens go through one block.
    Dense(FeedForwardShape),
    /// Each token goes through a few of many.
    Experts(ExpertsShape),
}

impl MlpShape {
    /// The tensors of layer `layer`; `names` are those of a dense block.
    pub fn specs(&self, site: &Site, layer: usize, names: &FeedForwardNames) -> Vec<TensorSpec> {
        match self {
            MlpShape::Dense(shape) => shape.specs(site, layer, names),
            MlpShape::Experts(shape) => shape.specs(site, layer),
        }
    }

    /// The one of layer `layer`.
    pub fn build(
        &self,
        site: &Site,
        weights: &WeightSet,
        layer: usize,
        names: &FeedForwardNames,
    ) -> crate::Result<Mlp> {
        Ok(match self {
            MlpShape::Dense(shape) => Mlp::Dense(shape.build(site, weights, layer, names)?),
            MlpShape::Experts(shape) => Mlp::Experts(shape.build(site, weights, layer)?),
        })
    }

    /// The experts, where there are some.
    pub fn experts(&self) -> Option<&ExpertsShape> {
        match self {
            MlpShape::Dense(_) => None,
            MlpShape::Experts(shape) => Some(shape),
        }
    }

    /// The one block, where all tokens go through it.
    pub fn dense(&self) -> Option<&FeedForwardShape> {
        match self {
            MlpShape::Dense(shape) => Some(shape),
            MlpShape::Experts(_) => None,
        }
    }

    /// The inner width: of the block, or of one expert.
    pub fn inner(&self) -> usize {
        match self {
            MlpShape::Dense(shape) => shape.inner,
            MlpShape::Experts(shape) => shape.inner,
        }
    }

    /// Gives it another inner width.
    pub fn set_inner(&mut self, inner: usize) {
        match self {
            MlpShape::Dense(shape) => shape.inner = inner,
            MlpShape::Experts(shape) => shape.inner = inner,
        }
    }

    /// The activation.
    pub fn activation(&self) -> Activation {
        match self {
            MlpShape::Dense(shape) => shape.activation,
            MlpShape::Experts(shape) => shape.activation,
        }
    }
}

impl From<FeedForwardShape> for MlpShape {
    fn from(shape: FeedForwardShape) -> MlpShape {
        MlpShape::Dense(shape)
    }
}

/// One that runs.
pub enum Mlp {
    /// One block.
    Dense(FeedForward),
    /// Experts.
    Experts(Experts),
}

impl Mlp {
    /// How many experts it has, where it has some.
    pub fn experts(&self) -> Option<usize> {
        match self {
            Mlp::Dense(_) => None,
            Mlp::Experts(block) => Some(block.count()),
        }
    }

    /// x: [b, t, m] -> [b, t, m], and the logits of the router [n, e] where there is one.
    pub fn forward(&self, x_btm: &Tensor) -> Result<(Tensor, Option<Tensor>)> {
        match self {
            Mlp::Dense(block) => Ok((block.forward(x_btm)?, None)),
            Mlp::Experts(block) => block.forward(x_btm).map(|(y, logits)| (y, Some(logits))),
        }
    }
}
