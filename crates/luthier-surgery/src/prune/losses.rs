//! What a cut loses by the scores, on one scale for all axes: about so many nats of a token before any retraining.
//!
//! Each axis loses the part of its squared activations (of layers: of block influence) that is gone, times how much that
//! part costs. The prices were measured one axis at a time on SmolLM2-135M, scored on 50,196 tokens of one novel: 24 of 30
//! layers 0.80 nats more, hidden 512 of 576 0.75 (384: 2.9), ffn 1216 of 1536 0.27, 2 of 3 groups 0.41, 6 of 9 heads 1.44.

use luthier_arch::sizes::{ModelSizes, StackSizes};
use luthier_checkpoint::layout::{Layout, Part, Projection, Role};

use super::keep::{highest, shares_channels};
use super::scored::Scored;
use crate::Result;

const LAYERS_NATS: f64 = 13.0;
const HIDDEN_NATS: f64 = 23.0;
const FFN_NATS: f64 = 4.0;
const GROUPS_NATS: f64 = 2.0;
const HEADS_NATS: f64 = 7.0;

/// Losses of cuts of one model.
pub(super) struct Losses<'l> {
    layout: &'l Layout,
    sizes: &'l ModelSizes,
    scored: &'l Scored,
}

impl<'l> Losses<'l> {
    pub(super) fn new(layout: &'l Layout, sizes: &'l ModelSizes, scored: &'l Scored) -> Losses<'l> {
        Losses { layout, sizes, scored }
    }

    /// The block influence of the layers that are gone.
    pub(super) fn layers(&self, kept: &[Vec<usize>]) -> Result<f64> {
        let mut loss = 0.0;
        for (stack, kept) in self.sizes.stacks.iter().zip(kept) {
            if kept.len() < stack.layers.len() {
                let influence = self.scored.influence(stack.kind, stack.layers.len())?;
                loss += LAYERS_NATS * gone(&influence, kept);
            }
        }
        Ok(loss)
    }

    /// The part of the channels' squares that is gone.
    pub(super) fn hidden(&self, widths: &[usize]) -> Result<f64> {
        let joint = shares_channels(self.layout, self.sizes);
        let mut loss = 0.0;
        for (at, (stack, width)) in self.sizes.stacks.iter().zip(widths).enumerate() {
            if *width == stack.width {
                continue;
            }
            let mut sums = vec![0f64; stack.width];
            for (other, from) in
                self.sizes.stacks.iter().enumerate().filter(|(other, _)| joint || *other == at)
            {
                debug_assert!(joint || other == at);
                let layers: Vec<usize> = (0..from.layers.len()).collect();
                let scores = self.scored.channels(self.layout, from.kind, &layers, from.width)?;
                sums.iter_mut().zip(scores).for_each(|(sum, score)| *sum += score);
            }
            loss += HIDDEN_NATS * lost(&sums, *width);
        }
        Ok(loss)
    }

    /// The mean part of the neurons' squares that is gone, layer by layer.
    pub(super) fn ffn(&self, inners: &[usize]) -> Result<f64> {
        let mut loss = 0.0;
        for (stack, inner) in self.sizes.stacks.iter().zip(inners) {
            loss += mean_over_layers(stack, |layer, role| {
                let before = stack.layers[layer].inner.filter(|before| before > inner);
                let scores = |before: usize| self.scored.neurons(self.layout, role(Part::Down), before);
                before.map_or(Ok(0.0), |before| Ok(FFN_NATS * lost(&scores(before)?, *inner)))
            })?;
        }
        Ok(loss)
    }

    /// The same of heads: of whole groups, or within groups.
    pub(super) fn heads(&self, sizes: &[(usize, usize)]) -> Result<f64> {
        let mut loss = 0.0;
        for (stack, (query, kv)) in self.sizes.stacks.iter().zip(sizes) {
            loss += mean_over_layers(stack, |layer, role| {
                let Some(before) = stack.layers[layer].heads.filter(|heads| heads.query > *query) else {
                    return Ok(0.0);
                };
                let part = Part::SelfAttention(Projection::Output);
                let (heads, groups) = self.scored.heads(self.layout, role(part), before)?;
                let in_groups: f64 =
                    heads.chunks(before.query / before.kv).map(|heads| lost(heads, query / kv)).sum::<f64>()
                        / before.kv as f64;
                let of_groups = if *kv < before.kv { lost(&groups, *kv) } else { 0.0 };
                Ok(GROUPS_NATS * of_groups + HEADS_NATS * in_groups)
            })?;
        }
        Ok(loss)
    }
}

fn mean_over_layers(
    stack: &StackSizes,
    loss: impl Fn(usize, &dyn Fn(Part) -> Role) -> Result<f64>,
) -> Result<f64> {
    let n_layers = stack.layers.len().max(1);
    let mut sum = 0.0;
    for layer in 0..stack.layers.len() {
        sum += loss(layer, &|part| Role { stack: stack.kind, layer: Some(layer), part })?;
    }
    Ok(sum / n_layers as f64)
}

/// The part of the squares that all but the `n` highest have.
fn lost(scores: &[f64], n: usize) -> f64 {
    let squares: Vec<f64> = scores.iter().map(|score| score * score).collect();
    let all: f64 = squares.iter().sum();
    let kept: f64 = highest(&squares, n).iter().map(|at| squares[*at]).sum();
    if all > 0.0 { (all - kept) / all } else { 0.0 }
}

/// The part of the scores that all but these have.
fn gone(scores: &[f64], kept: &[usize]) -> f64 {
    let all: f64 = scores.iter().sum();
    let left: f64 = kept.iter().map(|at| scores[*at]).sum();
    if all > 0.0 { (all - left) / all } else { 0.0 }
}
