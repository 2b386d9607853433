//! Shares one budget of neurons and groups out among layers, by their scores.
//!
//! A unit is worth its part in the energy of its layer's activations (the squares of its scores, which are sizes), times the
//! layer's block influence. Energy alone says too little of a layer: where a few neurons have most of it, as in the last layers,
//! all others look worthless, and cut by that the result is worse than an even one. Hence also no layer loses or gains more than
//! a fifth of its even share. How far the perplexity rises without a layer does as well in a deep model, but spreads too far in
//! one of four layers. Measured on both: docs/log.md.

use luthier_arch::sizes::{HeadSizes, StackSizes};
use luthier_checkpoint::layout::{Layout, Part, Projection, Role};

use super::amount::step;
use super::scored::Scored;
use super::shape::{StackShape, even};
use crate::Result;

/// How much of its even share a layer keeps at least; as much as it may lose it may gain.
const SHARE_KEPT_MIN: f64 = 0.8;

/// The shape with the same number of neurons and of heads altogether in the kept `layers`, but layer by layer as many as
/// matter there.
pub(super) fn spread(
    layout: &Layout,
    stack: &StackSizes,
    shape: &StackShape,
    layers: &[usize],
    scored: &Scored,
) -> Result<StackShape> {
    let mut spread = shape.clone();
    let role = |layer: usize, part: Part| Role { stack: stack.kind, layer: Some(layer), part };
    let with_inner: Vec<usize> =
        layers.iter().copied().filter(|layer| stack.layers[*layer].inner.is_some()).collect();
    let worth = scored.influence(stack.kind, stack.layers.len())?;
    let mut scores = Vec::new();
    for &layer in &with_inner {
        let before = stack.layers[layer].inner.unwrap_or(0);
        scores.push(parts(&scored.neurons(layout, role(layer, Part::Down), before)?, worth[layer]));
    }
    let wanted: usize = with_inner.iter().filter_map(|layer| shape.inner[*layer]).sum();
    let widest = with_inner.iter().filter_map(|layer| stack.layers[*layer].inner).max().unwrap_or(1);
    for (layer, inner) in with_inner.iter().zip(shared_out(&scores, wanted, step(widest))) {
        spread.inner[*layer] = Some(inner);
    }
    let with_heads: Vec<(usize, HeadSizes, HeadSizes)> = layers
        .iter()
        .filter_map(|layer| Some((*layer, stack.layers[*layer].heads?, shape.heads[*layer]?)))
        .collect();
    // Groups go whole: within a group every layer keeps as many heads as the shape says.
    let mut scores = Vec::new();
    for (layer, before, _) in &with_heads {
        let part = Part::SelfAttention(Projection::Output);
        scores.push(parts(&scored.heads(layout, role(*layer, part), *before)?.1, worth[*layer]));
    }
    let wanted: usize = with_heads.iter().map(|(_, _, after)| after.kv).sum();
    for ((layer, _, after), kv) in with_heads.iter().zip(shared_out(&scores, wanted, 1)) {
        let query = after.query / after.kv * kv;
        spread.heads[*layer] = Some(HeadSizes { query, kv, width: after.width });
    }
    Ok(spread)
}

/// The parts that units have in the energy of their layer, times what that is worth.
fn parts(scores: &[f64], worth: f64) -> Vec<f64> {
    let squares: Vec<f64> = scores.iter().map(|score| score * score).collect();
    even(&squares).into_iter().map(|part| part * worth).collect()
}

/// How many units each list keeps so that together they are `wanted`, in steps: always the step that is worth most. Every
/// list keeps one step, and most of its even share.
fn shared_out(scores: &[Vec<f64>], wanted: usize, step: usize) -> Vec<usize> {
    let sorted: Vec<Vec<f64>> = scores
        .iter()
        .map(|scores| {
            let mut sorted = scores.clone();
            sorted.sort_by(|a, b| b.total_cmp(a));
            sorted
        })
        .collect();
    let all: usize = scores.iter().map(Vec::len).sum();
    let share = |list: usize, factor: f64| {
        let steps = factor * wanted as f64 * sorted[list].len() as f64 / all.max(1) as f64 / step as f64;
        sorted[list].len().min((steps.floor() as usize).max(1) * step)
    };
    let mut kept: Vec<usize> = (0..sorted.len()).map(|list| share(list, SHARE_KEPT_MIN)).collect();
    let mut most: Vec<usize> =
        (0..sorted.len()).map(|list| share(list, 2.0 - SHARE_KEPT_MIN).max(kept[list])).collect();
    // Short lists of long steps round down: what they leave goes where there is room.
    if most.iter().sum::<usize>() < wanted {
        most = sorted.iter().map(Vec::len).collect();
    }
    let mut left = wanted.saturating_sub(kept.iter().sum());
    while left > 0 {
        let worth = |list: usize| {
            let next = step.min(most[list] - kept[list]).min(left);
            (next > 0).then(|| {
                (sorted[list][kept[list]..kept[list] + next].iter().sum::<f64>() / next as f64, next)
            })
        };
        let lists = (0..sorted.len()).filter_map(|list| worth(list).map(|(worth, next)| (list, worth, next)));
        // Of equal worths the first list's.
        let Some((list, _, next)) = lists.reduce(|best, other| if other.1 > best.1 { other } else { best })
        else {
            break;
        };
        kept[list] += next;
        left -= next;
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_goes_where_it_is_worth_most() {
        let steep: Vec<f64> = (0..20).map(|at| 0.5f64.powi(at)).collect();
        let flat = vec![0.05; 20];
        assert_eq!(shared_out(&[flat.clone(), steep.clone()], 20, 1), [12, 8]);
        assert_eq!(shared_out(&[flat.clone(), steep.clone()], 36, 1), [20, 16]);
        assert_eq!(shared_out(&[flat.clone(), steep.clone()], 40, 2), [20, 20]);
        // What a layer is worth weighs more than its own spread.
        let worthy: Vec<f64> = steep.iter().map(|part| part * 1e6).collect();
        assert_eq!(shared_out(&[flat, worthy], 20, 1), [8, 12]);
        assert_eq!(shared_out(&[vec![1.0]], 0, 1), [1]);
        assert_eq!(shared_out(&[vec![1.0; 3], vec![2.0; 3]], 3, 1), [1, 2]);
    }

    #[test]
    fn a_unit_is_worth_its_part_of_the_energy() {
        assert_eq!(parts(&[2.0, 1.0, 1.0, 0.0], 3.0), [2.0, 0.5, 0.5, 0.0]);
    }
}
