//! One layer: self-attention, cross-attention where there is an encoder, feed-forward, each as
//! `x + post_norm(block(pre_norm(x)))`, the second norm only where the architecture has one.

use luthier_checkpoint::layout::{Part, TensorSpec};
use luthier_ops::attention::KvCache;
use luthier_ops::{Result, Tensor, profile, residual};

use super::attention::{Attention, AttentionShape, Reads};
use super::mlp::{Mlp, MlpShape};
use super::names::{StackNames, in_layer};
use super::norm::{Norm, NormShape};
use super::pass::Pass;
use super::stack::Site;
use crate::weights::WeightSet;

// b batch, t tokens, m model width

/// Sizes of one layer.
#[derive(Clone, Debug)]
pub struct LayerShape {
    /// Self-attention.
    pub attention: AttentionShape,
    /// Feed-forward, or experts.
    pub feed_forward: MlpShape,
    /// What it has not.
    pub skips: Skips,
}

/// The blocks that a layer goes without, their norms included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Skips {
    /// Self-attention.
    pub attention: bool,
    /// Feed-forward.
    pub feed_forward: bool,
}

impl LayerShape {
    /// The tensors of layer `layer`, in forward order.
    pub fn specs(&self, site: &Site, layer: usize, norm: &NormShape, names: &StackNames) -> Vec<TensorSpec> {
        let norm_spec = |name: &str, part: Part| {
            norm.spec(site, &in_layer(name, layer), Some(layer), part, self.attention.width)
        };
        let mut specs = Vec::new();
        if !self.skips.attention {
            specs.push(norm_spec(names.own.norms.0, Part::SelfAttentionNorm));
            specs.extend(self.attention.specs(site, layer, Reads::Own, &names.own));
            specs.extend(names.own.norms.1.map(|name| norm_spec(name, Part::SelfAttentionPostNorm)));
        }
        if let Some(encoder_width) = site.encoder_width {
            specs.push(norm_spec(names.cross.norms.0, Part::CrossAttentionNorm));
            specs.extend(self.attention.cross(encoder_width).specs(
                site,
                layer,
                Reads::Encoder,
                &names.cross,
            ));
            specs.extend(names.cross.norms.1.map(|name| norm_spec(name, Part::CrossAttentionPostNorm)));
        }
        if !self.skips.feed_forward {
            specs.push(norm_spec(names.feed_forward.norms.0, Part::FeedForwardNorm));
            specs.extend(self.feed_forward.specs(site, layer, &names.feed_forward));
            specs.extend(names.feed_forward.norms.1.map(|name| norm_spec(name, Part::FeedForwardPostNorm)));
        }
        specs
    }

    /// The layer that runs.
    pub fn build(
        &self,
        site: &Site,
        weights: &WeightSet,
        layer: usize,
        norm: &NormShape,
        names: &StackNames,
    ) -> crate::Result<Layer> {
        let build_norm = |name: &str| norm.build(weights, &site.name(&in_layer(name, layer)));
        let around = |(before, after): (&str, Option<&str>)| -> crate::Result<Around> {
            Ok(Around { before: build_norm(before)?, after: after.map(build_norm).transpose()? })
        };
        let cross = match site.encoder_width {
            Some(width) => {
                let attention = self.attention.cross(width).build(site, weights, layer, &names.cross)?;
                Some((around(names.cross.norms)?, attention))
            }
            None => None,
        };
        let own = match self.skips.attention {
            true => None,
            false => {
                Some((around(names.own.norms)?, self.attention.build(site, weights, layer, &names.own)?))
            }
        };
        let feed_forward = match self.skips.feed_forward {
            true => None,
            false => {
                let block = self.feed_forward.build(site, weights, layer, &names.feed_forward)?;
                Some((around(names.feed_forward.norms)?, block))
            }
        };
        Ok(Layer { own, cross, feed_forward })
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
    own: Option<(Around, Attention)>,
    cross: Option<(Around, Attention)>,
    feed_forward: Option<(Around, Mlp)>,
}

impl Layer {
    /// e, where it has experts.
    pub fn experts(&self) -> Option<usize> {
        self.feed_forward.as_ref().and_then(|(_, block)| block.experts())
    }

    /// x: [b, t, m] -> [b, t, m], and the logits of its router [b * t, e] where it has experts.
    pub fn forward(
        &self,
        x_btm: &Tensor,
        pass: &Pass,
        cache: Option<LayerCache>,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let (own_cache, cross_cache) = match cache {
            Some(cache) => (Some(cache.own), cache.cross),
            None => (None, None),
        };
        let span = profile::part("attention");
        let mut x_btm = match &self.own {
            Some((norms, attention)) => norms.run(x_btm, |x| attention.own(x, pass, own_cache))?,
            None => x_btm.clone(),
        };
        drop(span);
        if let Some((norms, attention)) = &self.cross {
            let _span = profile::part("cross-attention");
            let Some(encoded_bse) = &pass.encoded else {
                candle_core::bail!("a layer with cross-attention needs the encoder's states")
            };
            x_btm = norms.run(&x_btm, |x| attention.cross(x, encoded_bse, pass, cross_cache))?;
        }
        let Some((norms, block)) = &self.feed_forward else { return Ok((x_btm, None)) };
        let _span = profile::part("feed-forward");
        let mut logits_ne = None;
        let y_btm = norms.run(&x_btm, |x| {
            let (y, logits) = block.forward(x)?;
            logits_ne = logits;
            Ok(y)
        })?;
        Ok((y_btm, logits_ne))
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
