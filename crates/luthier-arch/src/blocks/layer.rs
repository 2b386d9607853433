//! One layer: self-attention, cross-attention where there is an encoder, feed-forward, each as
//! `x + post_norm(block(pre_norm(x)))`, the second norm only where the architecture has one.

use luthier_checkpoint::layout::{Part, TensorSpec};
use luthier_ops::attention::KvCache;
use luthier_ops::{Result, Tensor, residual};

use super::attention::{Attention, AttentionShape, Reads};
use super::feed_forward::{FeedForward, FeedForwardShape};
use super::norm::{Norm, NormShape};
use super::pass::Pass;
use super::stack::Site;
use crate::weights::WeightSet;

// b batch, t tokens, m model width

/// What the norms around each block are called, inside `layers.{i}.`; the second after the block, where there is one.
#[derive(Clone, Copy, Debug)]
pub struct NormNames {
    /// Around self-attention.
    pub attention: (&'static str, Option<&'static str>),
    /// Around cross-attention.
    pub cross: (&'static str, Option<&'static str>),
    /// Around the feed-forward block.
    pub feed_forward: (&'static str, Option<&'static str>),
}

/// Sizes of one layer.
#[derive(Clone, Debug)]
pub struct LayerShape {
    /// Self-attention.
    pub attention: AttentionShape,
    /// Feed-forward.
    pub feed_forward: FeedForwardShape,
}

impl LayerShape {
    /// The tensors of layer `layer`, in forward order.
    pub fn specs(&self, site: &Site, layer: usize, norm: &NormShape, names: &NormNames) -> Vec<TensorSpec> {
        let norm_spec = |name: &str, part: Part| {
            norm.spec(site, &format!("layers.{layer}.{name}"), Some(layer), part, self.attention.width)
        };
        let mut specs = vec![norm_spec(names.attention.0, Part::SelfAttentionNorm)];
        specs.extend(self.attention.specs(site, layer, Reads::Own));
        specs.extend(names.attention.1.map(|name| norm_spec(name, Part::SelfAttentionPostNorm)));
        if let Some(encoder_width) = site.encoder_width {
            specs.push(norm_spec(names.cross.0, Part::CrossAttentionNorm));
            specs.extend(self.attention.cross(encoder_width).specs(site, layer, Reads::Encoder));
            specs.extend(names.cross.1.map(|name| norm_spec(name, Part::CrossAttentionPostNorm)));
        }
        specs.push(norm_spec(names.feed_forward.0, Part::FeedForwardNorm));
        specs.extend(self.feed_forward.specs(site, layer));
        specs.extend(names.feed_forward.1.map(|name| norm_spec(name, Part::FeedForwardPostNorm)));
        specs
    }

    /// The layer that runs.
    pub fn build(
        &self,
        site: &Site,
        weights: &WeightSet,
        layer: usize,
        norm: &NormShape,
        names: &NormNames,
    ) -> crate::Result<Layer> {
        let build_norm = |name: &str| norm.build(weights, &site.name(&format!("layers.{layer}.{name}")));
        let around = |(before, after): (&str, Option<&str>)| -> crate::Result<Around> {
            Ok(Around { before: build_norm(before)?, after: after.map(build_norm).transpose()? })
        };
        let cross = match site.encoder_width {
            Some(width) => {
                let attention = self.attention.cross(width).build(site, weights, layer, Reads::Encoder)?;
                Some((around(names.cross)?, attention))
            }
            None => None,
        };
        Ok(Layer {
            attention_norms: around(names.attention)?,
            attention: self.attention.build(site, weights, layer, Reads::Own)?,
            cross,
            feed_forward_norms: around(names.feed_forward)?,
            feed_forward: self.feed_forward.build(site, weights, layer)?,
        })
    }
}

/// The caches of one layer.
pub struct LayerCache<'a> {
    /// Of self-attention.
    pub own: &'a mut KvCache,
    /// Of cross-attention, where there is one.
    pub cross: Option<&'a mut KvCache>,
}

/// A layer that runs.
pub struct Layer {
    attention_norms: Around,
    attention: Attention,
    cross: Option<(Around, Attention)>,
    feed_forward_norms: Around,
    feed_forward: FeedForward,
}

impl Layer {
    /// x: [b, t, m] -> [b, t, m].
    pub fn forward(&self, x_btm: &Tensor, pass: &Pass, cache: Option<LayerCache>) -> Result<Tensor> {
        let (own_cache, cross_cache) = match cache {
            Some(cache) => (Some(cache.own), cache.cross),
            None => (None, None),
        };
        let mut x_btm = self.attention_norms.run(x_btm, |x| self.attention.own(x, pass, own_cache))?;
        if let Some((norms, attention)) = &self.cross {
            let Some(encoded_bse) = &pass.encoded else {
                candle_core::bail!("a layer with cross-attention needs the encoder's states")
            };
            x_btm = norms.run(&x_btm, |x| attention.cross(x, encoded_bse, pass, cross_cache))?;
        }
        self.feed_forward_norms.run(&x_btm, |x| self.feed_forward.forward(x))
    }
}

struct Around {
    before: Norm,
    after: Option<Norm>,
}

impl Around {
    fn run(&self, x: &Tensor, block: impl FnOnce(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
        let y = block(&self.before.forward(x)?)?;
        let y = self.after.as_ref().map_or(Ok(y.clone()), |norm| norm.forward(&y))?;
        residual::add(x, &y)
    }
}
