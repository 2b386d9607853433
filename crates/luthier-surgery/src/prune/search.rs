//! Picks the shape for a number of parameters or of bytes: of the candidates that fit, the one that loses least by the
//! scores.
//!
//! Candidates are multiples of divisors (hidden 256, feed-forward 512, layers 2: those of NVIDIA's Model-Optimizer), halved
//! until a size has at least four steps; at most 40% of a width and 20% of the depth go, unless nothing else fits.

use luthier_arch::sizes::{HeadSizes, ModelSizes};
use luthier_checkpoint::layout::{Layout, Part, Projection, Space, StackKind};
use serde::Serialize;

use super::keep::kept_layers;
use super::losses::{Axis, Losses};
use super::scored::Scored;
use super::shape::{StackShape, Targets, at_most, most_heads};
use crate::{Error, Result};

/// What the result may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Budget {
    /// Weights, each tied one counted once.
    Parameters(usize),
    /// Bytes of all weights in the types that are written.
    Memory(usize),
}

impl Budget {
    fn limit(self) -> usize {
        match self {
            Budget::Parameters(limit) | Budget::Memory(limit) => limit,
        }
    }
}

/// Sizes of candidates are multiples of these; none: the usual ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Divisors {
    pub hidden: Option<usize>,
    pub ffn: Option<usize>,
    pub layers: Option<usize>,
}

const DIVISORS: [usize; 3] = [256, 512, 2];
const STEPS_MIN: usize = 4;
pub(super) const WIDTH_KEPT_MIN: f64 = 0.6;
pub(super) const DEPTH_KEPT_MIN: f64 = 0.8;
/// Candidates that are reported.
const REPORTED: usize = 10;

/// A shape that fits.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Candidate {
    /// Layers of each stack.
    pub layers: Vec<usize>,
    /// Width of the residual stream of each stack.
    pub hidden: Vec<usize>,
    /// Inner width of most feed-forward blocks of each stack.
    pub ffn: Vec<usize>,
    /// Query heads and key/value groups of most layers of each stack.
    pub heads: Vec<(usize, usize)>,
    /// Number of weights.
    pub parameters: usize,
    /// Bytes of all weights.
    pub size_bytes: usize,
    /// What it loses by the scores: 0 is nothing.
    pub loss: f64,
}

/// A shape that fits, and what it is made of.
pub(super) type Found = (Candidate, Vec<StackShape>);

/// What a search works on.
pub(super) struct Search<'s> {
    pub(super) layout: &'s Layout,
    pub(super) sizes: &'s ModelSizes,
    pub(super) scored: &'s Scored,
    /// The shape that options ask for already; axes that they name are not searched.
    pub(super) shapes: &'s [StackShape],
    pub(super) targets: &'s Targets,
    pub(super) budget: Budget,
    pub(super) divisors: Divisors,
    /// Bytes of a value of each tensor of the layout, as written.
    pub(super) value_bytes: &'s [f64],
}

impl Search<'_> {
    /// Candidates that fit, the best first, with their shapes; refuses where none does.
    pub(super) fn run(&self) -> Result<(Vec<Found>, Vec<String>)> {
        let mut notes = Vec::new();
        if Axis::ALL.iter().all(|axis| self.scored.trials(axis.name()).is_empty()) {
            notes.push(
                "what a cut costs is guessed from another model; luthier score --perplexity measures it on this one".to_string(),
            );
        }
        for limits in [(WIDTH_KEPT_MIN, DEPTH_KEPT_MIN), (0.0, 0.0)] {
            let mut found = self.candidates(limits)?;
            if !found.is_empty() {
                found.sort_by(|(a, _), (b, _)| {
                    a.loss.total_cmp(&b.loss).then(b.parameters.cmp(&a.parameters))
                });
                found.truncate(10 * REPORTED);
                return Ok((found, notes));
            }
            notes.push(
                "nothing fits within 40% of the widths and 20% of the depth; more was cut, which needs more retraining"
                    .to_string(),
            );
        }
        let (name, unit) = match self.budget {
            Budget::Parameters(_) => ("--params", "parameters"),
            Budget::Memory(_) => ("--memory", "bytes"),
        };
        let limit = self.budget.limit();
        Err(Error::Use(format!(
            "{name} {limit}: no shape of this model is that small in {unit}; the vocabulary alone takes its part, see luthier \
             trim-vocab"
        )))
    }

    fn candidates(&self, limits: (f64, f64)) -> Result<Vec<Found>> {
        let axes = Axes::new(self, limits)?;
        let mut found = Vec::new();
        for layers in &axes.layers {
            let costs = Costs::new(self, &layers.kept);
            for hidden in &axes.hidden {
                for ffn in &axes.ffn {
                    for heads in &axes.heads {
                        let shapes = shapes(self.shapes, layers, hidden, ffn, heads);
                        let (parameters, size_bytes) = costs.of(&shapes);
                        let cost = match self.budget {
                            Budget::Parameters(_) => parameters,
                            Budget::Memory(_) => size_bytes,
                        };
                        if cost <= self.budget.limit() {
                            let loss = layers.loss + hidden.loss + ffn.loss + heads.loss;
                            found.push((candidate(&shapes, parameters, size_bytes, loss), shapes));
                        }
                    }
                }
            }
        }
        Ok(found)
    }
}

/// The candidates to report.
pub(super) fn reported(found: &[Found]) -> Vec<Candidate> {
    found.iter().take(REPORTED).map(|(candidate, _)| candidate.clone()).collect()
}

fn candidate(shapes: &[StackShape], parameters: usize, size_bytes: usize, loss: f64) -> Candidate {
    let widest = |shape: &StackShape| shape.inner.iter().copied().flatten().max().unwrap_or(0);
    let most = |shape: &StackShape| {
        let sizes = shape.heads.iter().flatten().max_by_key(|heads| (heads.query, heads.kv));
        sizes.map_or((0, 0), |heads| (heads.query, heads.kv))
    };
    Candidate {
        layers: shapes.iter().map(|shape| shape.n_layers).collect(),
        hidden: shapes.iter().map(|shape| shape.width).collect(),
        ffn: shapes.iter().map(widest).collect(),
        heads: shapes.iter().map(most).collect(),
        parameters,
        size_bytes,
        loss,
    }
}

/// One choice on an axis, for every stack, and what it loses.
struct Choice<T> {
    sizes: Vec<T>,
    /// Of the layers' axis: which stay.
    kept: Vec<Vec<usize>>,
    loss: f64,
}

struct Axes {
    layers: Vec<Choice<usize>>,
    hidden: Vec<Choice<usize>>,
    ffn: Vec<Choice<usize>>,
    heads: Vec<Choice<(usize, usize)>>,
}

impl Axes {
    fn new(search: &Search, (width_min, depth_min): (f64, f64)) -> Result<Axes> {
        let (shapes, targets, divisors) = (search.shapes, search.targets, search.divisors);
        let all = |of: fn(&StackShape) -> usize| shapes.iter().map(of).collect::<Vec<usize>>();
        let options = |is_named: bool, sizes: Vec<usize>, divisor: usize, kept_min: f64| match is_named {
            true => vec![sizes],
            false => options(&sizes, divisor, kept_min),
        };
        let [hidden, ffn, layers] = DIVISORS;
        let widest = |shape: &StackShape| shape.inner.iter().copied().flatten().max().unwrap_or(1);
        let halved = |usual: usize, own: Option<usize>, sizes: &[usize]| {
            own.unwrap_or_else(|| halved(usual, sizes.iter().copied().min().unwrap_or(1)))
        };
        let (depths, widths, inners) = (all(|shape| shape.n_layers), all(|shape| shape.width), all(widest));
        let layer_options = options(
            targets.layers.is_some(),
            depths.clone(),
            halved(layers, divisors.layers, &depths),
            depth_min,
        );
        let hidden_options = options(
            targets.hidden.is_some(),
            widths.clone(),
            halved(hidden, divisors.hidden, &widths),
            width_min,
        );
        let ffn_options =
            options(targets.ffn.is_some(), inners.clone(), halved(ffn, divisors.ffn, &inners), width_min);
        let heads_named = targets.heads.is_some() || targets.kv_groups.is_some();
        let losses = Losses::new(search.layout, search.sizes, search.scored);
        Ok(Axes {
            layers: layer_options
                .into_iter()
                .map(|sizes| -> Result<_> {
                    let mut kept = Vec::new();
                    for ((stack, shape), n_layers) in search.sizes.stacks.iter().zip(shapes).zip(&sizes) {
                        let shape = StackShape { n_layers: *n_layers, ..shape.clone() };
                        kept.push(kept_layers(stack, &shape, search.scored)?);
                    }
                    Ok(Choice { loss: losses.nats(Axis::Layers, losses.layers(&kept)?), sizes, kept })
                })
                .collect::<Result<_>>()?,
            hidden: with_losses(
                hidden_options,
                |sizes| Ok(losses.nats(Axis::Hidden, losses.hidden(sizes)?)),
            )?,
            ffn: with_losses(ffn_options, |sizes| Ok(losses.nats(Axis::Ffn, losses.ffn(sizes)?)))?,
            heads: with_losses(head_options(shapes, heads_named, width_min), |sizes| {
                let (groups, heads) = losses.heads(sizes)?;
                Ok(losses.nats(Axis::Groups, groups) + losses.nats(Axis::Heads, heads))
            })?,
        })
    }
}

fn with_losses<T>(options: Vec<Vec<T>>, loss: impl Fn(&[T]) -> Result<f64>) -> Result<Vec<Choice<T>>> {
    let choice = |sizes: Vec<T>| Ok(Choice { loss: loss(&sizes)?, sizes, kept: Vec::new() });
    options.into_iter().map(choice).collect()
}

/// The divisor, halved until the size has enough steps.
fn halved(usual: usize, size: usize) -> usize {
    let mut divisor = usual;
    while divisor > 1 && size / divisor < STEPS_MIN {
        divisor /= 2;
    }
    divisor
}

/// Sizes of every stack: those of the first go down by the divisor, the others in proportion.
fn options(sizes: &[usize], divisor: usize, kept_min: f64) -> Vec<Vec<usize>> {
    let first = sizes[0];
    let least = ((first as f64 * kept_min).ceil() as usize).max(1);
    let below =
        (1..=first / divisor).map(|steps| steps * divisor).filter(|size| (least..first).contains(size));
    let proportion = |size: usize, other: usize| {
        let steps = (size as f64 / first as f64 * other as f64 / divisor as f64).round() as usize;
        (steps.max(1) * divisor).min(other)
    };
    below
        .chain([first])
        .map(|size| sizes.iter().map(|other| proportion_or(size, first, *other, &proportion)).collect())
        .collect()
}

fn proportion_or(
    size: usize,
    first: usize,
    other: usize,
    proportion: &impl Fn(usize, usize) -> usize,
) -> usize {
    if size == first { other } else { proportion(size, other) }
}

/// Query heads and groups of every stack: fewer groups, or fewer heads in each.
fn head_options(shapes: &[StackShape], is_named: bool, kept_min: f64) -> Vec<Vec<(usize, usize)>> {
    let most: Vec<(usize, usize)> = shapes.iter().map(|shape| most_heads(&shape.heads)).collect();
    let mut options = vec![most.clone()];
    if is_named {
        return options;
    }
    let enough = |part: usize, whole: usize| part as f64 >= kept_min * whole as f64;
    let part = |part: usize, whole: usize, other: usize| {
        ((part * other) as f64 / whole as f64).round().max(1.0) as usize
    };
    let (query, kv) = most[0];
    for groups in (1..kv).rev().filter(|groups| enough(*groups, kv)) {
        let of = |(q, k): &(usize, usize)| (q / k * part(groups, kv, *k), part(groups, kv, *k));
        options.push(most.iter().map(of).collect());
    }
    for shared in (1..query / kv).rev().filter(|shared| enough(*shared, query / kv)) {
        let of = |(q, k): &(usize, usize)| (part(shared, query / kv, q / k) * k, *k);
        options.push(most.iter().map(of).collect());
    }
    options
}

fn shapes(
    before: &[StackShape],
    layers: &Choice<usize>,
    hidden: &Choice<usize>,
    ffn: &Choice<usize>,
    heads: &Choice<(usize, usize)>,
) -> Vec<StackShape> {
    let of = |(at, shape): (usize, &StackShape)| {
        let cut = |own: HeadSizes| at_most(own, heads.sizes[at]);
        StackShape {
            n_layers: layers.sizes[at],
            width: hidden.sizes[at],
            inner: shape.inner.iter().map(|inner| inner.map(|inner| inner.min(ffn.sizes[at]))).collect(),
            experts: shape.experts.clone(),
            heads: shape.heads.iter().map(|heads| heads.map(cut)).collect(),
        }
    };
    before.iter().enumerate().map(of).collect()
}

/// Counts the weights of a shape.
struct Costs<'s> {
    search: &'s Search<'s>,
    kept: &'s [Vec<usize>],
}

impl<'s> Costs<'s> {
    fn new(search: &'s Search<'s>, kept: &'s [Vec<usize>]) -> Costs<'s> {
        Costs { search, kept }
    }

    /// Weights and bytes.
    fn of(&self, shapes: &[StackShape]) -> (usize, usize) {
        let stacks = &self.search.sizes.stacks;
        let at = |kind: StackKind| stacks.iter().position(|stack| stack.kind == kind).unwrap_or(0);
        let (mut parameters, mut size_bytes) = (0, 0.0);
        for (spec, value_bytes) in self.search.layout.tensors.iter().zip(self.search.value_bytes) {
            let stack = at(spec.role.stack);
            if spec.role.layer.is_some_and(|layer| !self.kept[stack].contains(&layer)) {
                continue;
            }
            let shape = &shapes[stack];
            let experts = spec.role.layer.and_then(|layer| shape.experts[layer]);
            // Which experts go does not matter here: all are of one size.
            if spec.role.part.expert().is_some_and(|expert| experts.is_some_and(|experts| expert >= experts))
            {
                continue;
            }
            let heads =
                spec.role.layer.or(self.kept[stack].first().copied()).and_then(|layer| shape.heads[layer]);
            let len = |(axis, space): (usize, &Space)| {
                use Projection::{Key, Value};
                let reads_encoder = matches!(spec.role.part, Part::CrossAttention(Key | Value)) && axis == 1;
                match (space, heads) {
                    (Space::Residual, _) if reads_encoder => shapes[at(StackKind::Encoder)].width,
                    (Space::Residual, _) => shape.width,
                    (Space::Ffn, _) => spec.role.layer.and_then(|layer| shape.inner[layer]).unwrap_or(0),
                    (Space::Experts, _) => experts.unwrap_or(spec.shape[axis]),
                    (Space::Heads, Some(heads)) => heads.query * heads.width,
                    (Space::KvHeads, Some(heads)) => heads.kv * heads.width,
                    (Space::QueryHeads, Some(heads)) => heads.query,
                    _ => spec.shape[axis],
                }
            };
            let count: usize = spec.spaces.iter().enumerate().map(len).product();
            parameters += count;
            size_bytes += count as f64 * value_bytes;
        }
        (parameters, size_bytes as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_multiples_within_limits() {
        assert_eq!(
            (halved(256, 576), halved(512, 1536), halved(2, 30), halved(256, 4096)),
            (128, 256, 2, 256)
        );
        assert_eq!(options(&[576], 128, 0.6), [[384], [512], [576]]);
        assert_eq!(options(&[30, 12], 2, 0.8), [[24, 10], [26, 10], [28, 12], [30, 12]]);
        let heads = Some(HeadSizes { query: 9, kv: 3, width: 4 });
        let shape = StackShape {
            n_layers: 1,
            width: 8,
            inner: vec![Some(4)],
            experts: vec![None],
            heads: vec![heads],
        };
        assert_eq!(head_options(std::slice::from_ref(&shape), false, 0.6), [[(9, 3)], [(6, 2)], [(6, 3)]]);
        assert_eq!(head_options(&[shape], true, 0.0), [[(9, 3)]]);
    }
}
