//! Attention of many queries over cached keys and values, which reading a prompt does: tiles of queries stay in registers
//! while keys and values are widened from the cache, each once a tile.

use std::cell::RefCell;
use std::ops::Range;

use super::super::softmax::{Mask, running_softmax};
use super::super::{KEYS, Rule, Sizes};
use super::Cached;
use super::scaled::{Rows, SCALED_TOGETHER, scales_of};
use crate::isa::{Element, Isa, ROWS, on_processor};
use crate::pool::{self, Shared};

/// Queries of one task.
const QUERIES: usize = 24;

#[derive(Default)]
struct Scratch {
    scores: Vec<f32>,
    out: Vec<f32>,
    tops: Vec<f32>,
    sums: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// q: [b, t, h, d] -> out: [b, t, h, d]; the first query of each sequence stands at `rule.query_offset`.
///
/// # Panics
/// Where lengths do not belong together.
pub fn attend_prompt<E: Element>(rule: Rule, q: &[f32], heads: usize, cached: Cached<E>, out: &mut [f32]) {
    cached.check(heads);
    let Cached { batch, kv_heads, head_dim, len, .. } = cached;
    let token = heads * head_dim;
    assert!(
        q.len() == out.len() && q.len().is_multiple_of((batch * token).max(1)),
        "queries of {batch} x {token}"
    );
    let queries = q.len() / (batch * token).max(1);
    // The scratch holds outputs in rows of whole registers.
    let sizes = Sizes { batch, queries, keys: len, heads, kv_heads, head_dim: cached.value_width() };
    let n_blocks = queries.div_ceil(QUERIES);
    let out = Shared::new(out);
    pool::run(batch * heads * n_blocks, &|task| {
        let (block, head, row) = (task % n_blocks, task / n_blocks % heads, task / n_blocks / heads);
        // The last block of a causal row is the largest: it goes first.
        let start = (n_blocks - 1 - block) * QUERIES;
        let block = start..queries.min(start + QUERIES);
        let at = |query: usize| (row * queries + query) * token + head * head_dim;
        SCRATCH.with_borrow_mut(|scratch| {
            forward(&sizes, &rule, (row, head), block.clone(), &q[at(start)..], &cached, scratch);
            for (place, query) in block.enumerate() {
                let sum = scratch.sums[place];
                let factor = if sum == 0.0 { 0.0 } else { 1.0 / sum };
                // SAFETY: each task owns its queries' rows of one head.
                let target = unsafe { out.slice(at(query), head_dim) };
                for (target, value) in target.iter_mut().zip(&scratch.out[place * sizes.head_dim..]) {
                    *target = value * factor;
                }
            }
        });
    });
}

/// Outputs before the division by their sums, maxima and sums of a block of queries of one head.
fn forward<E: Element>(
    sizes: &Sizes,
    rule: &Rule,
    (row, head): (usize, usize),
    block: Range<usize>,
    q: &[f32],
    cached: &Cached<E>,
    scratch: &mut Scratch,
) {
    let (d, width, n) = (cached.head_dim, sizes.head_dim, block.len());
    let place = row * sizes.kv_heads + head / (sizes.heads / sizes.kv_heads);
    let Scratch { scores, out, tops, sums } = scratch;
    scores.resize(QUERIES * KEYS, 0.0);
    out.clear();
    out.resize(QUERIES * width, 0.0);
    tops.clear();
    tops.resize(QUERIES, f32::NEG_INFINITY);
    sums.clear();
    sums.resize(QUERIES, 0.0);
    let reach = rule.reach(block.clone(), sizes.keys);
    let mut start = reach.start / ROWS * ROWS;
    while start < reach.end {
        let part = start..reach.end.min(start + KEYS);
        start = part.end;
        if !rule.meets(sizes, row, block.clone(), part.clone()) {
            continue;
        }
        for (first, count) in tiles(n) {
            let seen = seen_by(rule, sizes, block.start + first, count, &part);
            let keys = cached.keys_of(place, seen.start..seen.end.next_multiple_of(ROWS));
            let target = &mut scores[first * KEYS + seen.start - part.start..];
            score_tile(&q[first * sizes.heads * d..], sizes.heads * d, count, keys, d, target);
        }
        let mask = Mask { sizes, rule, row, head, block: block.clone(), keys: part.clone() };
        running_softmax(&mask, scores, out, tops, sums);
        for (first, count) in tiles(n) {
            let seen = seen_by(rule, sizes, block.start + first, count, &part);
            let weights = &scores[first * KEYS + seen.start - part.start..];
            weigh_tile(weights, count, cached.values_of(place, seen), width, &mut out[first * width..]);
        }
    }
}

/// Of a part of the keys, those that a tile of queries sees, from the first of a block on.
fn seen_by(rule: &Rule, sizes: &Sizes, first: usize, count: usize, part: &Range<usize>) -> Range<usize> {
    let reach = rule.reach(first..first + count, sizes.keys);
    let start = (reach.start / ROWS * ROWS).clamp(part.start, part.end);
    start..reach.end.clamp(start, part.end)
}

/// Rows that are computed together, as first and count.
fn tiles(n: usize) -> impl Iterator<Item = (usize, usize)> {
    let mut first = 0;
    std::iter::from_fn(move || {
        let count = [12, 6, 3, 2, 1].into_iter().find(|count| first + count <= n)?;
        first += count;
        Some((first - count, count))
    })
}

on_processor! {
    /// Scores [count, keys] of `count` queries, `step` apart, with blocks of keys; rows of `scores` are [`KEYS`] apart.
    fn score_tile<E: Element>(q: &[f32], step: usize, count: usize, keys: Rows<E>, d: usize, scores: &mut [f32]) = score_on
}

/// # Safety
/// As [`Isa`].
#[inline(always)]
unsafe fn score_on<I: Isa, E: Element>(
    q: &[f32],
    step: usize,
    count: usize,
    keys: Rows<E>,
    d: usize,
    scores: &mut [f32],
) {
    // SAFETY: the caller's promise.
    unsafe {
        match count {
            12 if I::REGISTERS >= 32 => score::<I, E, 12, 2>(q, step, keys, d, scores),
            12 => {
                score::<I, E, 6, 1>(q, step, keys, d, scores);
                score::<I, E, 6, 1>(&q[6 * step..], step, keys, d, &mut scores[6 * KEYS..]);
            }
            6 => score::<I, E, 6, 1>(q, step, keys, d, scores),
            3 => score::<I, E, 3, 1>(q, step, keys, d, scores),
            2 => score::<I, E, 2, 1>(q, step, keys, d, scores),
            _ => score::<I, E, 1, 1>(q, step, keys, d, scores),
        }
    }
}

/// # Safety
/// As [`Isa`].
#[inline(always)]
unsafe fn score<I: Isa, E: Element, const N: usize, const B: usize>(
    q: &[f32],
    step: usize,
    keys: Rows<E>,
    d: usize,
    scores: &mut [f32],
) {
    let (scales, n_blocks) = (scales_of::<E>(d), keys.values.len() / (d * ROWS).max(1));
    keys.check_scales(d);
    assert!(q.len() >= (N - 1) * step + d && scores.len() >= (N - 1) * KEYS + n_blocks * ROWS);
    let mut block = 0;
    while block < n_blocks {
        // SAFETY: channels and lanes inside the slices, as compared above.
        unsafe {
            let to = scores.as_mut_ptr().add(block * ROWS);
            let from = Rows {
                values: &keys.values[block * d * ROWS..],
                scales: &keys.scales[block * scales * ROWS..],
            };
            if block + B <= n_blocks {
                score_blocks::<I, E, N, B>(q.as_ptr(), step, from, d, to);
                block += B;
            } else {
                score_blocks::<I, E, N, 1>(q.as_ptr(), step, from, d, to);
                block += 1;
            }
        }
    }
}

/// # Safety
/// As [`Isa`]; `N` queries of `d`, `B` blocks of keys, as many scores.
#[inline(always)]
unsafe fn score_blocks<I: Isa, E: Element, const N: usize, const B: usize>(
    q: *const f32,
    step: usize,
    keys: Rows<E>,
    d: usize,
    scores: *mut f32,
) {
    let (mut start, scales) = (0, scales_of::<E>(d));
    while start < d {
        let end = keys.scaled_together(start, d);
        // SAFETY: the caller's promise.
        unsafe {
            let mut sums = [[I::float(0.0); B]; N];
            for channel in start..end {
                let mut key = [I::float(0.0); B];
                for (block, key) in key.iter_mut().enumerate() {
                    *key = E::load::<I>(keys.values.as_ptr().add((block * d + channel) * ROWS));
                }
                for (query, sums) in sums.iter_mut().enumerate() {
                    let value = I::float(*q.add(query * step + channel));
                    for block in 0..B {
                        sums[block] = I::mul_add(key[block], value, sums[block]);
                    }
                }
            }
            for (query, sums) in sums.into_iter().enumerate() {
                for (block, mut sum) in sums.into_iter().enumerate() {
                    let target = scores.add(query * KEYS + block * ROWS);
                    if E::SCALED {
                        let at = (block * scales + start / SCALED_TOGETHER) * ROWS;
                        let scale = I::load_floats(keys.scales.as_ptr().add(at));
                        let before = if start == 0 { I::float(0.0) } else { I::load_floats(target) };
                        sum = I::mul_add(sum, scale, before);
                    }
                    I::store_floats(target, sum);
                }
            }
        }
        start = end;
    }
}

on_processor! {
    /// Adds the values [positions, width], each times its weight, to `count` rows of `out`; rows of weights are [`KEYS`]
    /// apart.
    fn weigh_tile<E: Element>(weights: &[f32], count: usize, values: Rows<E>, width: usize, out: &mut [f32]) = weigh_on
}

/// # Safety
/// As [`Isa`].
#[inline(always)]
unsafe fn weigh_on<I: Isa, E: Element>(
    weights: &[f32],
    count: usize,
    values: Rows<E>,
    width: usize,
    out: &mut [f32],
) {
    // SAFETY: the caller's promise.
    unsafe {
        match count {
            12 => {
                weigh::<I, E, 6>(weights, values, width, out);
                weigh::<I, E, 6>(&weights[6 * KEYS..], values, width, &mut out[6 * width..]);
            }
            6 => weigh::<I, E, 6>(weights, values, width, out),
            3 => weigh::<I, E, 3>(weights, values, width, out),
            2 => weigh::<I, E, 2>(weights, values, width, out),
            _ => weigh::<I, E, 1>(weights, values, width, out),
        }
    }
}

/// # Safety
/// As [`Isa`].
#[inline(always)]
unsafe fn weigh<I: Isa, E: Element, const N: usize>(
    weights: &[f32],
    values: Rows<E>,
    width: usize,
    out: &mut [f32],
) {
    let positions = values.values.len() / width.max(1);
    values.check_scales(width);
    assert!(width.is_multiple_of(ROWS) && out.len() >= N * width);
    assert!(positions == 0 || weights.len() >= (N - 1) * KEYS + positions);
    let mut start = 0;
    while start < width {
        // SAFETY: positions and channels inside the slices, as compared above.
        unsafe {
            let weights = weights.as_ptr();
            let out = out.as_mut_ptr().add(start);
            if I::REGISTERS >= 32 && width - start >= 4 * ROWS {
                weigh_channels::<I, E, N, 4>(weights, values, start, width, positions, out);
                start += 4 * ROWS;
            } else {
                weigh_channels::<I, E, N, 1>(weights, values, start, width, positions, out);
                start += ROWS;
            }
        }
    }
}

/// # Safety
/// As [`Isa`]; `W` registers of each position and row from the channel `start` on, `N` rows.
#[inline(always)]
unsafe fn weigh_channels<I: Isa, E: Element, const N: usize, const W: usize>(
    weights: *const f32,
    values: Rows<E>,
    start: usize,
    width: usize,
    positions: usize,
    out: *mut f32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sums = [[I::float(0.0); W]; N];
        for (row, sums) in sums.iter_mut().enumerate() {
            for (part, sum) in sums.iter_mut().enumerate() {
                *sum = I::load_floats(out.add(row * width + part * ROWS));
            }
        }
        let scales = scales_of::<E>(width);
        for position in 0..positions {
            let mut value = [I::float(0.0); W];
            for (part, value) in value.iter_mut().enumerate() {
                *value = E::load::<I>(values.values.as_ptr().add(position * width + start + part * ROWS));
            }
            for (row, sums) in sums.iter_mut().enumerate() {
                let weight = *weights.add(row * KEYS + position);
                let weight = I::float(values.scaled(weight, position, start, scales));
                for part in 0..W {
                    sums[part] = I::mul_add(value[part], weight, sums[part]);
                }
            }
        }
        for (row, sums) in sums.into_iter().enumerate() {
            for (part, sum) in sums.into_iter().enumerate() {
                I::store_floats(out.add(row * width + part * ROWS), sum);
            }
        }
    }
}
