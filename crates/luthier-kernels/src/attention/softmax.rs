//! From scores to weights: scale, cap, bias, masks, exponentials.

use std::ops::Range;

use super::{DistanceBias, KEYS, Rule, Sizes};
use crate::math;
use crate::simd::{LANES, dispatch, reduce};

/// A block of scores and where it lies.
pub(super) struct Mask<'a> {
    pub(super) sizes: &'a Sizes,
    pub(super) rule: &'a Rule<'a>,
    pub(super) row: usize,
    pub(super) head: usize,
    pub(super) block: Range<usize>,
    pub(super) keys: Range<usize>,
}

impl Mask<'_> {
    /// Where the bias of column `column` of the block's query `at` stands among the head's.
    #[inline(always)]
    pub(super) fn bias_index(&self, bias: &DistanceBias, at: usize, column: usize) -> usize {
        let query = self.block.start + at + self.rule.query_offset;
        (self.keys.start + column + bias.reach).saturating_sub(query).min(2 * bias.reach)
    }

    /// Adds the bias of `columns` to their scores.
    #[inline(always)]
    pub(super) fn add_bias(&self, at: usize, columns: Range<usize>, scores: &mut [f32]) {
        if let Some(bias) = &self.rule.bias {
            let width = 2 * bias.reach + 1;
            let values = &bias.values[self.head * width..][..width];
            for (score, column) in scores.iter_mut().zip(columns) {
                *score += values[self.bias_index(bias, at, column)];
            }
        }
    }

    /// Columns of the block that its query `at` sees by order and window.
    #[inline(always)]
    pub(super) fn columns(&self, at: usize) -> Range<usize> {
        let near = self.rule.near(self.block.start + at, self.sizes.keys);
        let start = near.start.clamp(self.keys.start, self.keys.end) - self.keys.start;
        let end = near.end.clamp(self.keys.start, self.keys.end) - self.keys.start;
        start..end.max(start)
    }

    /// Hides the scores of other documents among `columns`.
    #[inline(always)]
    pub(super) fn hide_other_documents(&self, at: usize, columns: Range<usize>, scores: &mut [f32]) {
        if let Some((query_docs, key_docs)) = self.rule.segments {
            let own = query_docs[self.row * self.sizes.queries + self.block.start + at];
            let docs = &key_docs[self.row * self.sizes.keys + self.keys.start..][columns];
            for (score, &doc) in scores.iter_mut().zip(docs) {
                *score = if doc == own && doc != u32::MAX { *score } else { f32::NEG_INFINITY };
            }
        }
    }
}

dispatch! {
    /// Turns scores into exponentials relative to the running maxima; rescales what was summed before.
    pub(super) fn running_softmax(mask: &Mask, scores: &mut [f32], out: &mut [f32], tops: &mut [f32], sums: &mut [f32])
        = running_softmax_body
}

#[inline(always)]
fn running_softmax_body<const FMA: bool>(
    mask: &Mask,
    scores: &mut [f32],
    out: &mut [f32],
    tops: &mut [f32],
    sums: &mut [f32],
) {
    let d = mask.sizes.head_dim;
    for at in 0..mask.block.len() {
        let row = &mut scores[at * KEYS..][..KEYS];
        let columns = mask.columns(at);
        // Whole registers: what lies beside the columns counts nothing.
        let wide = columns.start / LANES * LANES..columns.end.next_multiple_of(LANES).min(KEYS);
        row[..wide.start].fill(0.0);
        row[wide.end..].fill(0.0);
        let before = columns.start - wide.start;
        let row = &mut row[wide];
        shape_scores::<FMA>(mask.rule, row);
        mask.add_bias(at, columns.clone(), &mut row[before..]);
        mask.hide_other_documents(at, columns.clone(), &mut row[before..]);
        row[..before].fill(f32::NEG_INFINITY);
        row[before + columns.len()..].fill(f32::NEG_INFINITY);
        let top = largest(row).max(tops[at]);
        if top == f32::NEG_INFINITY {
            // Comparisons pass NaN by: it must still reach the output.
            if row.iter().any(|score| score.is_nan()) {
                sums[at] = f32::NAN;
            }
            row.fill(0.0);
            continue;
        }
        let shrink = math::exp::<FMA>(tops[at] - top);
        for score in row.iter_mut() {
            *score = math::exp::<FMA>(*score - top);
        }
        sums[at] = sums[at] * shrink + sum(row);
        tops[at] = top;
        if shrink != 1.0 {
            out[at * d..][..d].iter_mut().for_each(|value| *value *= shrink);
        }
    }
}

dispatch! {
    /// Turns scores into exponentials relative to their maximum; the maximum and the sum, which is NaN where a score is, and
    /// 0 where there is none.
    pub(super) fn softmax(scores: &mut [f32]) -> (f32, f32) = softmax_body
}

#[inline(always)]
fn softmax_body<const FMA: bool>(scores: &mut [f32]) -> (f32, f32) {
    let top = largest(scores);
    if top == f32::NEG_INFINITY {
        let sum = if scores.iter().any(|score| score.is_nan()) { f32::NAN } else { 0.0 };
        scores.fill(0.0);
        return (top, sum);
    }
    for score in scores.iter_mut() {
        *score = math::exp::<FMA>(*score - top);
    }
    (top, sum(scores))
}

#[inline(always)]
pub(super) fn shape_scores<const FMA: bool>(rule: &Rule, scores: &mut [f32]) {
    match rule.softcap {
        None => scores.iter_mut().for_each(|score| *score *= rule.scale),
        Some(cap) => {
            let scale = rule.scale / cap;
            scores.iter_mut().for_each(|score| *score = cap * math::tanh::<FMA>(*score * scale));
        }
    }
}

#[inline(always)]
fn largest(values: &[f32]) -> f32 {
    let mut tops = [f32::NEG_INFINITY; LANES];
    let lanes = values.chunks_exact(LANES);
    let tail = lanes.remainder();
    for values in lanes {
        for lane in 0..LANES {
            tops[lane] = if values[lane] > tops[lane] { values[lane] } else { tops[lane] };
        }
    }
    tops.iter().chain(tail).fold(f32::NEG_INFINITY, |top, &value| if value > top { value } else { top })
}

#[inline(always)]
fn sum(values: &[f32]) -> f32 {
    let mut sums = [0f32; LANES];
    let lanes = values.chunks_exact(LANES);
    let tail = lanes.remainder();
    for values in lanes {
        for lane in 0..LANES {
            sums[lane] += values[lane];
        }
    }
    for (lane, value) in tail.iter().enumerate() {
        sums[lane] += value;
    }
    reduce(sums)
}
