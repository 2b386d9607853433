//! The sizes that a search for a shape chooses from, axis by axis, and what each loses.
//!
//! Sizes go down in steps: powers of two of at most 256 (hidden) and 512 (feed-forward; both as NVIDIA's Model-Optimizer),
//! small enough that a size has 16 and 32 of them; layers, heads and groups one by one.

use luthier_arch::sizes::HeadSizes;

use super::keep::kept_layers;
use super::losses::{Axis, Losses};
use super::search::Search;
use super::shape::{StackShape, at_most, most_heads};
use crate::Result;

/// The largest step and the fewest steps of a size.
const HIDDEN: (usize, usize) = (256, 16);
const FFN: (usize, usize) = (512, 32);
/// What of an axis stays at least where no cut of it was measured.
const WIDTH_KEPT_MIN: f64 = 0.6;
const DEPTH_KEPT_MIN: f64 = 0.8;
/// Parts of scores are sums of many; one that equals a measured one may differ in the last digits.
const PART_TOLERANCE: f64 = 1e-6;

/// One choice on an axis, for every stack, and what it loses.
pub(super) struct Choice<T> {
    pub(super) sizes: Vec<T>,
    /// Of the layers' axis: which stay.
    pub(super) kept: Vec<Vec<usize>>,
    pub(super) loss: f64,
}

/// All choices; those of feed-forward widths from the widest on.
pub(super) struct Choices {
    pub(super) layers: Vec<Choice<usize>>,
    pub(super) hidden: Vec<Choice<usize>>,
    pub(super) ffn: Vec<Choice<usize>>,
    pub(super) heads: Vec<Choice<(usize, usize)>>,
}

impl Choices {
    /// `careful`: no cut of an axis goes beyond those that were measured, or beyond 40% of a width and 20% of the depth.
    pub(super) fn new(search: &Search, careful: bool) -> Result<Choices> {
        let (shapes, targets, divisors) = (search.shapes, search.targets, search.divisors);
        let all = |of: fn(&StackShape) -> usize| shapes.iter().map(of).collect::<Vec<usize>>();
        let options = |is_named: bool, sizes: Vec<usize>, divisor: usize| match is_named {
            true => vec![sizes],
            false => options(&sizes, divisor),
        };
        let widest = |shape: &StackShape| shape.inner.iter().copied().flatten().max().unwrap_or(1);
        let (depths, widths, inners) = (all(|shape| shape.n_layers), all(|shape| shape.width), all(widest));
        let usual = |sizes: &[usize], limits| step(sizes.iter().copied().min().unwrap_or(1), limits);
        let heads_named = targets.heads.is_some() || targets.kv_groups.is_some();
        // Heads that share out the width go with it.
        let own = |(stack, shape): (&luthier_arch::sizes::StackSizes, &StackShape)| {
            let heads = shape.heads.iter().flatten().next().filter(|_| stack.heads_fill_width);
            heads.map(|heads| heads.width)
        };
        let filled = search.sizes.stacks.iter().zip(shapes).find_map(own);
        let hidden_step = divisors.hidden.unwrap_or(usual(&widths, HIDDEN));
        let hidden_step = filled.map_or(hidden_step, |head| hidden_step.div_ceil(head) * head);
        let hidden_named = targets.hidden.is_some() || (filled.is_some() && heads_named);
        let ffn_step = divisors.ffn.unwrap_or(usual(&inners, FFN));
        let layer_options = options(targets.layers.is_some(), depths.clone(), divisors.layers.unwrap_or(1));
        let losses = Losses::new(search.layout, search.sizes, search.scored);
        let bounds = Bounds { search, careful };
        let mut layers = Vec::new();
        for sizes in layer_options {
            let mut kept = Vec::new();
            for ((stack, shape), n_layers) in search.sizes.stacks.iter().zip(shapes).zip(&sizes) {
                kept.push(kept_layers(
                    stack,
                    &StackShape { n_layers: *n_layers, ..shape.clone() },
                    search.scored,
                )?);
            }
            let part = losses.layers(&kept)?;
            if targets.layers.is_some() || bounds.allow(Axis::Layers, sizes[0], depths[0], part) {
                layers.push(Choice { loss: losses.nats(Axis::Layers, part), sizes, kept });
            }
        }
        let one = |axis: Axis, is_named: bool, options: Vec<Vec<usize>>, before: usize| -> Result<_> {
            let mut choices = Vec::new();
            for sizes in options {
                let part = if axis == Axis::Hidden { losses.hidden(&sizes)? } else { losses.ffn(&sizes)? };
                if is_named || bounds.allow(axis, sizes[0], before, part) {
                    choices.push(Choice { loss: losses.nats(axis, part), sizes, kept: Vec::new() });
                }
            }
            Ok(choices)
        };
        let hidden_options = options(hidden_named, widths.clone(), hidden_step);
        let ffn_options = options(targets.ffn.is_some(), inners.clone(), ffn_step);
        let mut ffn = one(Axis::Ffn, targets.ffn.is_some(), ffn_options, inners[0])?;
        ffn.sort_by(|a, b| b.sizes[0].cmp(&a.sizes[0]));
        let mut heads = Vec::new();
        for sizes in head_options(shapes, heads_named || filled.is_some()) {
            let (whole, within) = losses.heads(&sizes)?;
            let ((query, kv), most) = (sizes[0], most_heads(&shapes[0].heads));
            let is_allowed = bounds.allow(Axis::Groups, kv, most.1, whole)
                && bounds.allow(Axis::Heads, query / kv, most.0 / most.1, within);
            if heads_named || is_allowed {
                let loss = losses.nats(Axis::Groups, whole) + losses.nats(Axis::Heads, within);
                heads.push(Choice { sizes, kept: Vec::new(), loss });
            }
        }
        Ok(Choices {
            layers,
            hidden: one(Axis::Hidden, hidden_named, hidden_options, widths[0])?,
            ffn,
            heads,
        })
    }
}

/// How far cuts go.
struct Bounds<'b> {
    search: &'b Search<'b>,
    careful: bool,
}

impl Bounds<'_> {
    /// Whether an axis may go from one size to another, which takes that part of its scores.
    fn allow(&self, axis: Axis, size: usize, before: usize, part: f64) -> bool {
        let kept_min = if axis == Axis::Layers { DEPTH_KEPT_MIN } else { WIDTH_KEPT_MIN };
        match self.search.scored.trials(axis.name()).last() {
            _ if !self.careful || size == before => true,
            Some((measured, _)) => part <= measured + PART_TOLERANCE,
            None => size as f64 >= kept_min * before as f64,
        }
    }
}

/// The largest power of two up to `largest` that goes into the size so many times.
fn step(size: usize, (largest, steps_min): (usize, usize)) -> usize {
    let mut step = largest;
    while step > 1 && size / step < steps_min {
        step /= 2;
    }
    step
}

/// Sizes of every stack: those of the first go down by the divisor, the others in proportion.
fn options(sizes: &[usize], divisor: usize) -> Vec<Vec<usize>> {
    let first = sizes[0];
    let below = (1..=first / divisor).map(|steps| steps * divisor).filter(|size| *size < first);
    let proportion = |size: usize, other: usize| {
        let steps = (size as f64 / first as f64 * other as f64 / divisor as f64).round() as usize;
        if size == first { other } else { (steps.max(1) * divisor).min(other) }
    };
    let all = |size: usize| sizes.iter().map(|other| proportion(size, *other)).collect();
    below.chain([first]).map(all).collect()
}

/// Query heads and groups of every stack: fewer groups, fewer heads in each, or both.
fn head_options(shapes: &[StackShape], is_named: bool) -> Vec<Vec<(usize, usize)>> {
    let most: Vec<(usize, usize)> = shapes.iter().map(|shape| most_heads(&shape.heads)).collect();
    if is_named {
        return vec![most];
    }
    let part = |part: usize, whole: usize, other: usize| {
        ((part * other) as f64 / whole as f64).round().max(1.0) as usize
    };
    let (query, kv) = most[0];
    let shared = query / kv;
    let mut options = Vec::new();
    for groups in (1..=kv).rev() {
        for heads in (1..=shared).rev() {
            let of = |(q, k): &(usize, usize)| {
                let kept = part(groups, kv, *k);
                (part(heads, shared, q / k) * kept, kept)
            };
            options.push(most.iter().map(of).collect());
        }
    }
    options
}

/// The shapes of these choices.
pub(super) fn shapes(
    search: &Search,
    layers: &Choice<usize>,
    hidden: &Choice<usize>,
    ffn: &Choice<usize>,
    heads: &Choice<(usize, usize)>,
) -> Vec<StackShape> {
    let of = |(at, shape): (usize, &StackShape)| {
        let fills = search.sizes.stacks[at].heads_fill_width;
        let cut = |own: HeadSizes| match fills {
            true => {
                let count = hidden.sizes[at] / own.width;
                HeadSizes { query: count, kv: count, width: own.width }
            }
            false => at_most(own, heads.sizes[at]),
        };
        StackShape {
            n_layers: layers.sizes[at],
            width: hidden.sizes[at],
            inner: shape.inner.iter().map(|inner| inner.map(|inner| inner.min(ffn.sizes[at]))).collect(),
            experts: shape.experts.clone(),
            heads: shape.heads.iter().map(|heads| heads.map(cut)).collect(),
        }
    };
    search.shapes.iter().enumerate().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_multiples_of_their_step() {
        assert_eq!(
            (step(576, HIDDEN), step(1536, FFN), step(4096, HIDDEN), step(14336, FFN)),
            (32, 32, 256, 256)
        );
        assert_eq!(options(&[576], 192), [[192], [384], [576]]);
        assert_eq!(options(&[6, 4], 2), [[2, 2], [4, 2], [6, 4]]);
        let heads = Some(HeadSizes { query: 6, kv: 2, width: 4 });
        let shape = StackShape {
            n_layers: 1,
            width: 8,
            inner: vec![Some(4)],
            experts: vec![None],
            heads: vec![heads],
        };
        let all = [[(6, 2)], [(4, 2)], [(2, 2)], [(3, 1)], [(2, 1)], [(1, 1)]];
        assert_eq!(head_options(std::slice::from_ref(&shape), false), all);
        assert_eq!(head_options(&[shape], true), [[(6, 2)]]);
    }
}
