//! Attention of one query a sequence over cached keys and values, which decoding does for every token.
//!
//! Keys lie in blocks of 16 positions, [d, 16], so that a register holds one channel of 16 keys and scores need no sums across
//! lanes; values lie position by position. Query heads that share keys are computed together, runs of positions by
//! different threads, joined by their maxima and sums (arXiv:2205.14135).

mod form;
mod prompt;
mod scaled;

use std::cell::RefCell;
use std::ops::Range;

use super::softmax::{shape_scores, softmax};
use super::{DistanceBias, Rule};
use crate::buffer::unfilled;
use crate::isa::{Element, Isa, ROWS, on_processor};
use crate::pool::{self, Shared};
pub use form::{Cached, KEY_BLOCK};
pub use prompt::attend_prompt;
use scaled::{Rows, SCALED_TOGETHER};
pub use scaled::{narrow_row, scales_of};

/// Positions of one run.
const RUN: usize = 128;
/// Query heads that are computed together at most.
const HEADS: usize = 4;

#[derive(Default)]
struct Scratch {
    scores: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl<E: Element> Cached<'_, E> {
    /// Keys and values as [b, k, s, d] in f32, of all tokens.
    pub fn widened(&self) -> (Vec<f32>, Vec<f32>) {
        let (d, s) = (self.head_dim, self.len);
        let (mut keys, mut values) =
            (unfilled(self.batch * self.kv_heads * s * d), unfilled(self.batch * self.kv_heads * s * d));
        let (key_target, value_target) = (Shared::new(&mut keys), Shared::new(&mut values));
        let n_blocks = s.div_ceil(ROWS);
        pool::run(self.batch * self.kv_heads * n_blocks, &|task| {
            let (block, place) = (task % n_blocks, task / n_blocks);
            let tokens = block * ROWS..s.min((block + 1) * ROWS);
            // SAFETY: every task has tokens of its own.
            let (key_target, value_target) = unsafe {
                let (start, len) = ((place * s + tokens.start) * d, tokens.len() * d);
                (key_target.slice(start, len), value_target.slice(start, len))
            };
            SCRATCH.with_borrow_mut(|scratch| {
                let wide = &mut scratch.scores;
                wide.resize(wide.len().max(d * ROWS), 0.0);
                let wide = &mut wide[..d * ROWS];
                let keys = self.keys_of(place, tokens.start..tokens.start + ROWS);
                E::widen(keys.values, wide);
                for (token, key) in key_target.chunks_exact_mut(d).enumerate() {
                    for (channel, value) in key.iter_mut().enumerate() {
                        *value = wide[channel * ROWS + token];
                        if E::SCALED {
                            *value *= keys.scales[channel / SCALED_TOGETHER * ROWS + token];
                        }
                    }
                }
            });
            for (token, value) in tokens.zip(value_target.chunks_exact_mut(d)) {
                let row = self.values_of(place, token..token + 1);
                E::widen(&row.values[..d], value);
                for (values, scale) in value.chunks_mut(SCALED_TOGETHER).zip(row.scales) {
                    values.iter_mut().for_each(|value| *value *= scale);
                }
            }
        });
        (keys, values)
    }
}

/// q: [b, h, d] -> out: [b, h, d]; the query of each sequence stands at `rule.query_offset`. A rule with documents is not for
/// this kernel.
///
/// # Panics
/// Where lengths do not belong together, and for such a rule.
pub fn attend_cached<E: Element>(rule: Rule, q: &[f32], heads: usize, cached: Cached<E>, out: &mut [f32]) {
    let Cached { batch, kv_heads, head_dim, .. } = cached;
    assert!(rule.segments.is_none(), "a rule without documents");
    cached.check(heads);
    assert_eq!((q.len(), out.len()), (batch * heads * head_dim, q.len()), "values of queries and outputs");
    let group = heads / kv_heads;
    let seen = rule.near(0, cached.len);
    let first_run = seen.start / RUN;
    let n_runs = seen.end.div_ceil(RUN).saturating_sub(first_run).max(1);
    // Of each run and head: the output, then the maximum, then the sum.
    let width = cached.value_width() + ROWS;
    let mut parts = vec![0f32; batch * kv_heads * n_runs * group * width];
    let shared = Shared::new(&mut parts);
    pool::run(batch * kv_heads * n_runs, &|task| {
        let (run, place) = (first_run + task % n_runs, task / n_runs);
        let run = (run * RUN).max(seen.start)..((run + 1) * RUN).min(seen.end);
        let queries = &q[place * group * head_dim..][..group * head_dim];
        // SAFETY: every task has its own part.
        let target = unsafe { shared.slice(task * group * width, group * width) };
        SCRATCH.with_borrow_mut(|scratch| {
            attend_run(&rule, queries, &cached, place, run.start..run.end.max(run.start), scratch, target)
        });
    });
    for (at, out) in out.chunks_exact_mut(head_dim).enumerate() {
        let (place, head) = (at / group, at % group);
        let part = |run: usize| &parts[((place * n_runs + run) * group + head) * width..][..width];
        join((0..n_runs).map(part), cached.value_width(), out);
    }
}

/// Joins the outputs of runs of one head.
fn join<'p>(parts: impl Iterator<Item = &'p [f32]> + Clone, width: usize, out: &mut [f32]) {
    let top = parts.clone().map(|part| part[width]).fold(f32::NEG_INFINITY, f32::max);
    out.fill(0.0);
    let mut sum = 0.0;
    for part in parts {
        // A run that saw nothing has no maximum, unless it saw what is not a number.
        let factor = if part[width] == f32::NEG_INFINITY { 0.0 } else { (part[width] - top).exp() };
        if part[width + 1] == 0.0 {
            continue;
        }
        sum += factor * part[width + 1];
        if part[width + 1].is_nan() {
            sum = f32::NAN;
        }
        out.iter_mut().zip(part).for_each(|(out, value)| *out += factor * value);
    }
    let factor = if sum == 0.0 { 0.0 } else { 1.0 / sum };
    out.iter_mut().for_each(|value| *value *= factor);
}

/// One run of positions of the heads of one group.
fn attend_run<E: Element>(
    rule: &Rule,
    queries: &[f32],
    cached: &Cached<E>,
    place: usize,
    run: Range<usize>,
    scratch: &mut Scratch,
    target: &mut [f32],
) {
    let (d, width) = (cached.head_dim, cached.value_width());
    let group = queries.len() / d;
    scratch.scores.resize(group * (RUN + ROWS), 0.0);
    let stride = RUN + ROWS;
    let first_block = run.start / ROWS;
    let n_blocks = run.end.div_ceil(ROWS) - first_block;
    let keys = cached.keys_of(place, first_block * ROWS..(first_block + n_blocks) * ROWS);
    let scores = &mut scratch.scores;
    for (head, queries) in queries.chunks(HEADS * d).enumerate() {
        let scores = &mut scores[head * HEADS * stride..];
        score_heads(queries, d, keys, scores, stride);
    }
    let skipped = run.start - first_block * ROWS;
    for head in 0..group {
        let row = &mut scores[head * stride + skipped..][..run.len()];
        shape_scores_now(rule, row);
        if let Some(bias) = &rule.bias {
            add_bias(bias, place % cached.kv_heads * group + head, rule.query_offset, run.start, row);
        }
        let (top, sum) = softmax(row);
        let part = &mut target[head * (width + ROWS)..][..width + ROWS];
        (part[width], part[width + 1]) = (top, sum);
    }
    let values = cached.values_of(place, run.clone());
    for head in (0..group).step_by(HEADS) {
        let n_heads = HEADS.min(group - head);
        let weights = &scores[head * stride + skipped..];
        weigh_heads(n_heads, weights, stride, values, width, run.len(), &mut target[head * (width + ROWS)..]);
    }
}

/// Adds the bias of a query at position `query` to its scores with keys from position `first` on.
fn add_bias(bias: &DistanceBias, head: usize, query: usize, first: usize, scores: &mut [f32]) {
    let width = 2 * bias.reach + 1;
    let values = &bias.values[head * width..][..width];
    for (key, score) in (first..).zip(scores) {
        *score += values[(key + bias.reach).saturating_sub(query).min(2 * bias.reach)];
    }
}

crate::simd::dispatch! {
    fn shape_scores_now(rule: &Rule, scores: &mut [f32]) = shape_scores
}

on_processor! {
    /// Scores of up to four heads [n, d] with blocks of keys; rows of `scores` are `stride` apart.
    fn score_heads<E: Element>(q: &[f32], d: usize, keys: Rows<E>, scores: &mut [f32], stride: usize) = score_heads_on
}

/// # Safety
/// As [`Isa`].
#[inline(always)]
unsafe fn score_heads_on<I: Isa, E: Element>(
    q: &[f32],
    d: usize,
    keys: Rows<E>,
    scores: &mut [f32],
    stride: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        match q.len() / d {
            1 => score::<I, E, 1>(q, d, keys, scores, stride),
            2 => score::<I, E, 2>(q, d, keys, scores, stride),
            3 => score::<I, E, 3>(q, d, keys, scores, stride),
            _ => score::<I, E, 4>(q, d, keys, scores, stride),
        }
    }
}

/// # Safety
/// As [`Isa`].
#[inline(always)]
unsafe fn score<I: Isa, E: Element, const N: usize>(
    q: &[f32],
    d: usize,
    keys: Rows<E>,
    scores: &mut [f32],
    stride: usize,
) {
    let scales = scales_of::<E>(d);
    keys.check_scales(d);
    assert!(q.len() >= N * d && scores.len() >= (N - 1) * stride + keys.values.len() / d.max(1));
    for (block, key) in keys.values.chunks_exact(d * ROWS).enumerate() {
        let mut start = 0;
        while start < d {
            let end = keys.scaled_together(start, d);
            // SAFETY: channels and lanes inside the slices, as compared above and by [`Rows::check_scales`].
            unsafe {
                // Two sums a head, so that no addition waits for the one before.
                let mut sums = [[I::float(0.0); 2]; N];
                for channel in start..end {
                    let key = E::load::<I>(key.as_ptr().add(channel * ROWS));
                    for head in 0..N {
                        let query = I::float(*q.as_ptr().add(head * d + channel));
                        let sum = &mut sums[head][channel % 2];
                        *sum = I::mul_add(key, query, *sum);
                    }
                }
                for (head, [even, odd]) in sums.into_iter().enumerate() {
                    let mut both = I::mul_add(odd, I::float(1.0), even);
                    let target = scores.as_mut_ptr().add(head * stride + block * ROWS);
                    if E::SCALED {
                        let at = (block * scales + start / SCALED_TOGETHER) * ROWS;
                        let scale = I::load_floats(keys.scales.as_ptr().add(at));
                        let before = if start == 0 { I::float(0.0) } else { I::load_floats(target) };
                        both = I::mul_add(both, scale, before);
                    }
                    I::store_floats(target, both);
                }
            }
            start = end;
        }
    }
}

on_processor! {
    /// Sums of the values [run, width], each times its weight, of up to four heads whose weights are `stride` apart.
    fn weigh_heads<E: Element>(
        n_heads: usize,
        weights: &[f32],
        stride: usize,
        values: Rows<E>,
        width: usize,
        run: usize,
        target: &mut [f32],
    ) = weigh_heads_on
}

/// # Safety
/// As [`Isa`].
#[inline(always)]
unsafe fn weigh_heads_on<I: Isa, E: Element>(
    n_heads: usize,
    weights: &[f32],
    stride: usize,
    values: Rows<E>,
    width: usize,
    run: usize,
    target: &mut [f32],
) {
    // SAFETY: the caller's promise.
    unsafe {
        match n_heads {
            1 => weigh::<I, E, 1>(weights, stride, values, width, run, target),
            2 => weigh::<I, E, 2>(weights, stride, values, width, run, target),
            3 => weigh::<I, E, 3>(weights, stride, values, width, run, target),
            _ => weigh::<I, E, 4>(weights, stride, values, width, run, target),
        }
    }
}

/// # Safety
/// As [`Isa`].
#[inline(always)]
unsafe fn weigh<I: Isa, E: Element, const N: usize>(
    weights: &[f32],
    stride: usize,
    values: Rows<E>,
    width: usize,
    run: usize,
    target: &mut [f32],
) {
    /// Registers of a head at a time.
    const WIDE: usize = 4;
    let scales = scales_of::<E>(width);
    values.check_scales(width);
    assert!(weights.len() >= (N - 1) * stride + run && values.values.len() >= run * width);
    assert!(target.len() >= (N - 1) * (width + ROWS) + width && width.is_multiple_of(ROWS));
    let mut start = 0;
    while start < width {
        // SAFETY: positions and channels inside the slices, as compared above.
        unsafe {
            if width - start >= WIDE * ROWS {
                let mut sums = [[I::float(0.0); WIDE]; N];
                for position in 0..run {
                    for part in 0..WIDE {
                        let at = position * width + start + part * ROWS;
                        let value = E::load::<I>(values.values.as_ptr().add(at));
                        for head in 0..N {
                            let weight = *weights.as_ptr().add(head * stride + position);
                            let weight = I::float(values.scaled(weight, position, start, scales));
                            sums[head][part] = I::mul_add(value, weight, sums[head][part]);
                        }
                    }
                }
                for head in 0..N {
                    for part in 0..WIDE {
                        let at = head * (width + ROWS) + start + part * ROWS;
                        I::store_floats(target.as_mut_ptr().add(at), sums[head][part]);
                    }
                }
                start += WIDE * ROWS;
            } else {
                let mut sums = [I::float(0.0); N];
                for position in 0..run {
                    let value = E::load::<I>(values.values.as_ptr().add(position * width + start));
                    for head in 0..N {
                        let weight = *weights.as_ptr().add(head * stride + position);
                        let weight = I::float(values.scaled(weight, position, start, scales));
                        sums[head] = I::mul_add(value, weight, sums[head]);
                    }
                }
                for head in 0..N {
                    I::store_floats(target.as_mut_ptr().add(head * (width + ROWS) + start), sums[head]);
                }
                start += ROWS;
            }
        }
    }
}

#[cfg(test)]
mod tests;
