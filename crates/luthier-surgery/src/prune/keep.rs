//! What is kept of a model, unit by unit: decided on scores and layouts alone.

use luthier_arch::sizes::{HeadSizes, LayerSizes, ModelSizes, NewStack, StackSizes};
use luthier_checkpoint::layout::{Layout, Part, Projection, Role, StackKind};

use super::scored::Scored;
use super::shape::{StackShape, even};
use crate::Result;

/// What is kept of one stack.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct StackKeep {
    pub(super) kind: StackKind,
    /// Width before.
    pub(super) width: usize,
    /// Channels of the residual stream, in order.
    pub(super) channels: Vec<usize>,
    /// Layers, in order.
    pub(super) layers: Vec<LayerKeep>,
}

/// What is kept of one layer.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct LayerKeep {
    /// Its number before.
    pub(super) before: usize,
    pub(super) window: Option<usize>,
    pub(super) neurons: Option<Vec<usize>>,
    /// Routed experts, where the layer has some.
    pub(super) experts: Option<Vec<usize>>,
    pub(super) own: Option<HeadKeep>,
    /// Of cross-attention, where there is one.
    pub(super) cross: Option<HeadKeep>,
}

/// What is kept of one attention.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct HeadKeep {
    /// Query heads, in order.
    pub(super) query: Vec<usize>,
    /// Key/value heads, in order.
    pub(super) kv: Vec<usize>,
    /// Width of a head.
    pub(super) width: usize,
}

impl HeadKeep {
    pub(super) fn sizes(&self) -> HeadSizes {
        HeadSizes { query: self.query.len(), kv: self.kv.len(), width: self.width }
    }
}

impl StackKeep {
    /// The sizes of what is left. The eps of norms follows the width, so that a stream whose lost channels were 0 is
    /// normed as before: x / sqrt(sum/m' + eps') * w sqrt(m/m') = x / sqrt(sum/m + eps) * w.
    pub(super) fn sizes(&self, before: &StackSizes) -> NewStack {
        let layers = self.layers.iter().map(|layer| LayerSizes {
            inner: layer.neurons.as_ref().map(Vec::len),
            experts: layer.experts.as_ref().map(Vec::len),
            heads: layer.own.as_ref().map(HeadKeep::sizes),
            window: layer.window,
        });
        NewStack {
            width: self.channels.len(),
            norm_eps: before.norm_eps * self.width as f64 / self.channels.len() as f64,
            kept: self.layers.iter().map(|layer| layer.before).collect(),
            layers: layers.collect(),
        }
    }
}

/// The units that a model of these shapes keeps: those of the highest scores, in their old order.
pub(super) fn keep(
    layout: &Layout,
    sizes: &ModelSizes,
    shapes: &[StackShape],
    scored: &Scored,
    uneven: bool,
) -> Result<Vec<StackKeep>> {
    let joint = shares_channels(layout, sizes);
    let mut keeps = Vec::with_capacity(shapes.len());
    for (stack, shape) in sizes.stacks.iter().zip(shapes) {
        let layers = kept_layers(stack, shape, scored)?;
        let shape = if uneven {
            super::uneven::spread(layout, stack, shape, &layers, scored)?
        } else {
            shape.clone()
        };
        keeps.push(StackKeep {
            kind: stack.kind,
            width: stack.width,
            channels: Vec::new(),
            layers: layer_keeps(layout, stack, &shape, &layers, scored)?,
        });
    }
    for at in 0..keeps.len() {
        let mut scores = vec![0f64; keeps[at].width];
        for (other, keep) in keeps.iter().enumerate() {
            if shapes[at].width < keeps[at].width && (joint || other == at) {
                let layers: Vec<usize> = keep.layers.iter().map(|layer| layer.before).collect();
                let more = scored.channels(layout, keep.kind, &layers, keep.width)?;
                scores.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
            }
        }
        keeps[at].channels = highest(&scores, shapes[at].width);
    }
    Ok(keeps)
}

/// Whether both stacks read one embedding, so that they keep the same channels.
pub(super) fn shares_channels(layout: &Layout, sizes: &ModelSizes) -> bool {
    let own = Role { stack: StackKind::Encoder, layer: None, part: Part::Embedding };
    sizes.stacks.len() > 1 && layout.at(own).is_none()
}

/// Numbers of the layers that are kept: those of the highest block influence.
pub(super) fn kept_layers(stack: &StackSizes, shape: &StackShape, scored: &Scored) -> Result<Vec<usize>> {
    let n_layers = stack.layers.len();
    match shape.n_layers == n_layers {
        true => Ok((0..n_layers).collect()),
        false => Ok(highest(&scored.influence(stack.kind, n_layers)?, shape.n_layers)),
    }
}

fn layer_keeps(
    layout: &Layout,
    stack: &StackSizes,
    shape: &StackShape,
    layers: &[usize],
    scored: &Scored,
) -> Result<Vec<LayerKeep>> {
    let bias = Role { stack: stack.kind, layer: None, part: Part::RelativeBias };
    // Heads of all layers share the columns of the bias by distance.
    let shared = match layout.at(bias) {
        Some(_) => shared_heads(layout, stack, shape, layers, scored)?,
        None => None,
    };
    let mut keeps = Vec::with_capacity(layers.len());
    for &layer in layers {
        let sizes = &stack.layers[layer];
        let role = |part: Part| Role { stack: stack.kind, layer: Some(layer), part };
        let neurons = match (sizes.inner, shape.inner[layer]) {
            (Some(before), Some(after)) if after < before => {
                Some(highest(&scored.neurons(layout, role(Part::Down), before)?, after))
            }
            (Some(before), _) => Some((0..before).collect()),
            (None, _) => None,
        };
        let experts = match (sizes.experts, shape.experts[layer]) {
            (Some(before), Some(after)) if after < before => {
                Some(highest(&scored.experts(layout, role(Part::Router), before)?, after))
            }
            (before, _) => before.map(|before| (0..before).collect()),
        };
        let heads = |part: Part| -> Result<Option<HeadKeep>> {
            let (Some(before), Some(after), Some(_)) =
                (sizes.heads.or_else(|| cross_sizes(stack)), shape.heads[layer], layout.at(role(part)))
            else {
                return Ok(None);
            };
            kept_heads(before, after, || scored.heads(layout, role(part), before)).map(Some)
        };
        let own = match (&shared, sizes.heads) {
            (Some(shared), Some(_)) => Some(shared.clone()),
            _ => heads(Part::SelfAttention(Projection::Output))?,
        };
        let cross = heads(Part::CrossAttention(Projection::Output))?;
        keeps.push(LayerKeep { before: layer, window: sizes.window, neurons, experts, own, cross });
    }
    Ok(keeps)
}

/// Cross-attention has the heads of the self-attention beside it, also where that is skipped.
fn cross_sizes(stack: &StackSizes) -> Option<HeadSizes> {
    stack.layers.iter().find_map(|layer| layer.heads)
}

fn shared_heads(
    layout: &Layout,
    stack: &StackSizes,
    shape: &StackShape,
    layers: &[usize],
    scored: &Scored,
) -> Result<Option<HeadKeep>> {
    let Some(first) = layers.iter().copied().find(|layer| stack.layers[*layer].heads.is_some()) else {
        return Ok(None);
    };
    let (Some(before), Some(after)) = (stack.layers[first].heads, shape.heads[first]) else {
        return Ok(None);
    };
    let sums = || -> Result<(Vec<f64>, Vec<f64>)> {
        let (mut heads, mut groups) = (vec![0.0; before.query], vec![0.0; before.kv]);
        for &layer in layers {
            let part = Part::SelfAttention(Projection::Output);
            let (of_heads, of_groups) =
                scored.heads(layout, Role { stack: stack.kind, layer: Some(layer), part }, before)?;
            for (sums, scores) in [(&mut heads, even(&of_heads)), (&mut groups, even(&of_groups))] {
                sums.iter_mut().zip(scores).for_each(|(sum, score)| *sum += score);
            }
        }
        Ok((heads, groups))
    };
    kept_heads(before, after, sums).map(Some)
}

/// The groups of the highest scores, and within each the heads of the highest.
fn kept_heads(
    before: HeadSizes,
    after: HeadSizes,
    scores: impl FnOnce() -> Result<(Vec<f64>, Vec<f64>)>,
) -> Result<HeadKeep> {
    if before == after {
        return Ok(HeadKeep {
            query: (0..before.query).collect(),
            kv: (0..before.kv).collect(),
            width: before.width,
        });
    }
    let (heads, groups) = scores()?;
    let (shared_before, shared_after) = (before.query / before.kv, after.query / after.kv);
    let kv = highest(&groups, after.kv);
    let in_group = |group: &usize| {
        let start = group * shared_before;
        let best = highest(&heads[start..start + shared_before], shared_after);
        best.into_iter().map(move |head| start + head)
    };
    Ok(HeadKeep { query: kv.iter().flat_map(in_group).collect(), kv, width: before.width })
}

/// Places of the `n` highest scores, in order; of equal ones the first.
pub(super) fn highest(scores: &[f64], n: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
    order.truncate(n);
    order.sort_unstable();
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_keep_their_order() {
        assert_eq!(highest(&[1.0, 5.0, 3.0, 5.0, 0.0], 3), [1, 2, 3]);
        assert_eq!(highest(&[1.0, 1.0, 1.0], 2), [0, 1]);
    }

    #[test]
    fn heads_go_evenly_within_groups_and_groups_whole() {
        let sizes = |query, kv| HeadSizes { query, kv, width: 4 };
        let scores = || Ok((vec![1.0, 9.0, 2.0, 8.0, 7.0, 3.0], vec![9.0, 8.5, 8.0]));
        let kept = kept_heads(sizes(6, 3), sizes(3, 3), scores).unwrap();
        assert_eq!((kept.query, kept.kv), (vec![1, 3, 4], vec![0, 1, 2]));
        let kept = kept_heads(sizes(6, 3), sizes(4, 2), scores).unwrap();
        assert_eq!((kept.query, kept.kv), (vec![0, 1, 2, 3], vec![0, 1]));
    }
}
