//! Shares one budget of neurons and groups out among layers, by their scores.

use luthier_arch::sizes::{HeadSizes, StackSizes};
use luthier_checkpoint::layout::{Layout, Part, Projection, Role};

use super::amount::step;
use super::scored::Scored;
use super::shape::{StackShape, even};
use crate::Result;

/// The shape with the same number of neurons and of heads altogether in the kept `layers`, but layer by layer as many as
/// matter there. What a layer's next units are worth is their part in its own activations: scales differ between layers,
/// and block influence tells more of the residual stream's than of a block's worth.
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
    let mut scores = Vec::new();
    for &layer in &with_inner {
        let before = stack.layers[layer].inner.unwrap_or(0);
        scores.push(even(&scored.neurons(layout, role(layer, Part::Down), before)?));
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
        scores.push(even(&scored.heads(layout, role(*layer, part), *before)?.1));
    }
    let wanted: usize = with_heads.iter().map(|(_, _, after)| after.kv).sum();
    for ((layer, _, after), kv) in with_heads.iter().zip(shared_out(&scores, wanted, 1)) {
        let query = after.query / after.kv * kv;
        spread.heads[*layer] = Some(HeadSizes { query, kv, width: after.width });
    }
    Ok(spread)
}

/// How many units each list keeps so that together they are `wanted`, in steps: always the step that is worth most. Every
/// list keeps one step.
fn shared_out(scores: &[Vec<f64>], wanted: usize, step: usize) -> Vec<usize> {
    let sorted: Vec<Vec<f64>> = scores
        .iter()
        .map(|scores| {
            let mut sorted = scores.clone();
            sorted.sort_by(|a, b| b.total_cmp(a));
            sorted
        })
        .collect();
    let mut kept: Vec<usize> = sorted.iter().map(|scores| scores.len().min(step)).collect();
    let mut left = wanted.saturating_sub(kept.iter().sum());
    while left > 0 {
        let worth = |list: usize| {
            let next = step.min(sorted[list].len() - kept[list]).min(left);
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
        let scores = [vec![0.5, 0.3, 0.1, 0.1], vec![0.97, 0.01, 0.01, 0.01]];
        assert_eq!(shared_out(&scores, 4, 1), [3, 1]);
        assert_eq!(shared_out(&scores, 8, 1), [4, 4]);
        assert_eq!(shared_out(&scores, 6, 2), [4, 2]);
        assert_eq!(shared_out(&[vec![1.0]], 0, 1), [1]);
    }
}
