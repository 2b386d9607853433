//! Cuts of one axis at a time, to measure what the scores of that axis are worth.

use luthier_arch::sizes::{ModelSizes, sizes};
use luthier_checkpoint::layout::Layout;
use luthier_checkpoint::{Checkpoint, Scores};

use super::amount::{Amount, Amounts, new_size, step};
use super::keep::kept_layers;
use super::losses::{Axis, Losses};
use super::prepare::Prepared;
use super::scored::Scored;
use super::shape::{StackShape, Targets, most_heads};
use super::{Options, REASON};
use crate::{Input, Result};

/// Cuts of each axis that are measured.
const CUTS: usize = 3;
/// Layers are few and each its own: what the first few cost says little of the others.
const CUTS_OF_DEPTH: usize = 4;
/// The shares that are kept, others where the config cannot say one or two come to the same.
const OF_WIDTH: [f64; 6] = [0.8, 0.6, 0.4, 0.7, 0.5, 0.3];
const OF_DEPTH: [f64; 6] = [0.95, 0.9, 0.8, 0.65, 0.75, 0.5];

/// A model that is cut along one axis.
pub struct TrialCut {
    /// The axis, as files of scores name it: `layers`, `hidden`, `ffn`, `groups` (whole), `heads` (within groups).
    pub axis: &'static str,
    /// Its shape in words.
    pub shape: String,
    /// The part of the axis's scores that is gone.
    pub part: f64,
    /// The model; tensors are made when they are read.
    pub model: Checkpoint,
}

/// Cuts of every axis of a model by these scores of it; a search for a shape goes as far as the largest. Sizes that the config
/// cannot say are passed over for others; an axis of one size has no cuts.
pub fn trial_cuts(input: &Input, scores: &Scores) -> Result<Vec<TrialCut>> {
    let layout = luthier_arch::layout_of(&input.checkpoint)?;
    let sizes = sizes(&input.checkpoint.config)?;
    let scored = Scored::new(Some(scores.clone()), None);
    let mut cuts = Vec::new();
    for axis in Axis::ALL {
        let (shares, cuts_max) =
            if axis == Axis::Layers { (OF_DEPTH, CUTS_OF_DEPTH) } else { (OF_WIDTH, CUTS) };
        let mut of_axis: Vec<TrialCut> = Vec::new();
        for share in shares {
            let wanted = axis_sizes(&sizes, axis, share)?;
            let part = part(&layout, &sizes, &scored, axis, &wanted)?;
            if of_axis.len() == cuts_max || part <= 0.0 || of_axis.iter().any(|cut| cut.part == part) {
                continue;
            }
            let options = Options { targets: targets(axis, &wanted), ..Options::default() };
            let prepared = Prepared::scored(input, &options, false, REASON, |_, _, _, _| Ok(scores.clone()));
            if let Ok(prepared) = prepared {
                let shape = prepared.shape_lines().join("; ");
                let model = prepared.model(&input.checkpoint.place);
                of_axis.push(TrialCut { axis: axis.name(), shape, part, model });
            }
        }
        cuts.append(&mut of_axis);
    }
    Ok(cuts)
}

/// Size of every stack, and of heads also the groups.
fn axis_sizes(sizes: &ModelSizes, axis: Axis, share: f64) -> Result<Vec<(usize, usize)>> {
    let part = |size: usize| ((size as f64 * share).round() as usize).max(1);
    let size = |shape: &StackShape, fills: bool| -> Result<(usize, usize)> {
        let widest = shape.inner.iter().copied().flatten().max().unwrap_or(1);
        let (query, kv) = most_heads(&shape.heads);
        Ok(match axis {
            Axis::Layers => (part(shape.n_layers), 0),
            Axis::Hidden => {
                let step = if fills { shape.width / query } else { step(shape.width) };
                (new_size("hidden", Amount::Share(share), shape.width, step)?, 0)
            }
            Axis::Ffn => (new_size("ffn", Amount::Share(share), widest, step(widest))?, 0),
            // Heads that share out the width go with it.
            Axis::Groups | Axis::Heads if fills => (query, kv),
            Axis::Groups => (query / kv * part(kv), part(kv)),
            Axis::Heads => (part(query / kv) * kv, kv),
        })
    };
    sizes.stacks.iter().map(|stack| size(&StackShape::of(stack), stack.heads_fill_width)).collect()
}

/// The part of the axis's scores that a cut to these sizes takes.
fn part(
    layout: &Layout,
    sizes: &ModelSizes,
    scored: &Scored,
    axis: Axis,
    wanted: &[(usize, usize)],
) -> Result<f64> {
    let losses = Losses::new(layout, sizes, scored);
    let first: Vec<usize> = wanted.iter().map(|(size, _)| *size).collect();
    match axis {
        Axis::Layers => {
            let kept = sizes.stacks.iter().zip(&first).map(|(stack, n_layers)| {
                kept_layers(stack, &StackShape { n_layers: *n_layers, ..StackShape::of(stack) }, scored)
            });
            losses.layers(&kept.collect::<Result<Vec<_>>>()?)
        }
        Axis::Hidden => losses.hidden(&first),
        Axis::Ffn => losses.ffn(&first),
        Axis::Groups => Ok(losses.heads(wanted)?.0),
        Axis::Heads => Ok(losses.heads(wanted)?.1),
    }
}

fn targets(axis: Axis, wanted: &[(usize, usize)]) -> Targets {
    let amounts = |of: fn(&(usize, usize)) -> usize| {
        Some(Amounts(wanted.iter().map(|size| Amount::Size(of(size))).collect()))
    };
    let (first, groups) = (amounts(|size| size.0), amounts(|size| size.1));
    match axis {
        Axis::Layers => Targets { layers: first, ..Targets::default() },
        Axis::Hidden => Targets { hidden: first, ..Targets::default() },
        Axis::Ffn => Targets { ffn: first, ..Targets::default() },
        Axis::Groups => Targets { kv_groups: groups, ..Targets::default() },
        Axis::Heads => Targets { heads: first, ..Targets::default() },
    }
}
