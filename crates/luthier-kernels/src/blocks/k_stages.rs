//! The stages that Q2_K to Q6_K share: groups side by side, the scale of a block's scales, values in stored scales.

use super::fit::{Lanes, Search, Signed, between, fit_positive, fit_signed, nearest, side_by_side, whole};
use super::floats::f16_at;
use super::quantize_legacy::put_half;

/// Values in a block.
pub(super) const LEN: usize = 256;

/// Blocks that share the second stage.
pub(super) const BATCH: usize = 16;

/// The part of the importance weights that belongs to block `block`, of rows of `weights.len()` columns.
#[inline(always)]
pub(super) fn weights_of(importance: Option<&[f32]>, block: usize) -> Option<&[f32]> {
    importance.map(|weights| &weights[block % (weights.len() / LEN) * LEN..][..LEN])
}

/// Group `lane` of the sixteen groups of N values that begin with `block`; a block that is not there is the first again.
#[inline(always)]
pub(super) fn groups<const N: usize>(blocks: &[f32], block: usize) -> [&[f32]; 16] {
    let a_block = LEN / N;
    std::array::from_fn(|lane| {
        let wanted = (block + lane / a_block) * LEN;
        let start = if wanted < blocks.len() { wanted } else { block * LEN };
        &blocks[start + lane % a_block * N..][..N]
    })
}

#[inline(always)]
pub(super) fn sum_of_squares(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |sum, value| sum + value * value)
}

/// Importance times sqrt(mean + x^2): how much an error at each value of the groups counts.
#[inline(always)]
pub(super) fn weighted<const N: usize>(x: &[Lanes; N], importance: &[Lanes; N], mean: &Lanes) -> [Lanes; N] {
    let mut w = [[0f32; 16]; N];
    for i in 0..N {
        for l in 0..16 {
            w[i][l] = importance[i][l] * (mean[l] + x[i][l] * x[i][l]).sqrt();
        }
    }
    w
}

#[inline(always)]
pub(super) fn totals<const N: usize>(w: &[Lanes; N]) -> Lanes {
    let mut total = [0f32; 16];
    for w in w {
        for l in 0..16 {
            total[l] += w[l];
        }
    }
    total
}

/// What the first stage found for the groups of a batch: `[block][group]`.
pub(super) struct Groups<const GROUPS: usize> {
    pub(super) scales: [[f32; GROUPS]; BATCH],
    pub(super) below: [[f32; GROUPS]; BATCH],
    pub(super) weights: [[f32; GROUPS]; BATCH],
}

impl<const GROUPS: usize> Groups<GROUPS> {
    #[inline(always)]
    pub(super) fn new() -> Self {
        let zeros = [[0f32; GROUPS]; BATCH];
        Groups { scales: zeros, below: zeros, weights: zeros }
    }
}

/// `[block][group]` as lanes of blocks.
#[inline(always)]
fn blocks_side_by_side<const GROUPS: usize>(values: &[[f32; GROUPS]; BATCH]) -> [Lanes; GROUPS] {
    side_by_side(std::array::from_fn(|block| &values[block][..]))
}

/// `nearest((value + below) / scale)` from 0 to `top`, over `codes`; they stay as they are for a scale of 0.
#[inline(always)]
pub(super) fn round_affine(values: &[f32], scale: f32, below: f32, top: f32, codes: &mut [u8]) {
    if scale == 0.0 {
        return;
    }
    for (code, value) in codes.iter_mut().zip(values) {
        *code = whole(between(0.0, nearest((value + below) / scale), top)) as u8;
    }
}

/// `nearest(value / scale)` from -n to n - 1, n added.
#[inline(always)]
pub(super) fn round_signed(values: &[f32], scale: f32, n: f32, codes: &mut [u8]) {
    if scale == 0.0 {
        return;
    }
    for (code, value) in codes.iter_mut().zip(values) {
        *code = whole(between(-n, nearest(value / scale), n - 1.0) + n) as u8;
    }
}

/// Codes of the first stage in the order of values. They are used where a stored scale is 0.
#[inline(always)]
pub(super) fn put_codes<const N: usize>(
    codes: &[Lanes; N],
    batch_codes: &mut [[u8; LEN]; BATCH],
    block: usize,
) {
    let a_block = LEN / N;
    for lane in 0..16 {
        let block = block + lane / a_block;
        if block < BATCH {
            let start = lane % a_block * N;
            for i in 0..N {
                batch_codes[block][start + i] = whole(codes[i][lane]) as u8;
            }
        }
    }
}

#[inline(always)]
fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |largest, &value| if value > largest { value } else { largest })
}

/// Small scales of one block without importance weights: shares of the largest, from 0 to `top`.
#[inline(always)]
fn shares<const GROUPS: usize>(values: &[f32; GROUPS], top: f32) -> (f32, [u8; GROUPS]) {
    let largest = largest(values);
    let inverse = if largest > 0.0 { top / largest } else { 0.0 };
    let mut codes = [0u8; GROUPS];
    for (code, value) in codes.iter_mut().zip(values) {
        *code = whole(between(0.0, nearest(inverse * value), top)) as u8;
    }
    (largest / top, codes)
}

/// The second stage for types with minima: scale of scales, small scales, and the same for the minima, of each block.
pub(super) type Second<const GROUPS: usize> = [(f32, [u8; GROUPS], f32, [u8; GROUPS]); BATCH];

#[inline(always)]
pub(super) fn second_stage<const GROUPS: usize>(
    groups: &Groups<GROUPS>,
    top: f32,
    is_weighted: bool,
    n_blocks: usize,
) -> Second<GROUPS> {
    let mut second = [(0f32, [0u8; GROUPS], 0f32, [0u8; GROUPS]); BATCH];
    if !is_weighted {
        for (block, second) in second.iter_mut().enumerate().take(n_blocks) {
            let (scale, small_scales) = shares(&groups.scales[block], top);
            let (minimum, small_minima) = shares(&groups.below[block], top);
            *second = (scale, small_scales, minimum, small_minima);
        }
        return second;
    }
    let weights = blocks_side_by_side(&groups.weights);
    let scales = fit_positive(top, &blocks_side_by_side(&groups.scales), &weights);
    let minima = fit_positive(top, &blocks_side_by_side(&groups.below), &weights);
    for (block, second) in second.iter_mut().enumerate().take(n_blocks) {
        let codes = |fit: &Signed<GROUPS>| std::array::from_fn(|group| whole(fit.codes[group][block]) as u8);
        *second = (scales.scale[block], codes(&scales), minima.scale[block], codes(&minima));
    }
    second
}

/// Writes an f16 and gives back what it holds.
#[inline(always)]
pub(super) fn stored(bytes: &mut [u8], value: f32) -> f32 {
    put_half(bytes, value);
    f16_at(bytes, 0)
}

/// With importance weights the same scales are searched for all types with minima.
pub(super) const fn weighted_search(top: f32) -> Search {
    Search { top, from: -0.9, step: 0.05, steps: 36, absolute: false }
}

/// The second stage of Q3_K: a scale of scales for each block, and small scales from 0 to 63 that stand for -32 to 31.
#[inline(always)]
pub(super) fn signed_second_stage(
    groups: &Groups<16>,
    is_weighted: bool,
    n_blocks: usize,
) -> [(f32, [u8; 16]); BATCH] {
    let mut second = [(0f32, [0u8; 16]); BATCH];
    if is_weighted {
        let weights = blocks_side_by_side(&groups.weights);
        let fit = fit_signed(32.0, &blocks_side_by_side(&groups.scales), &weights);
        for (block, second) in second.iter_mut().enumerate().take(n_blocks) {
            *second = (fit.scale[block], std::array::from_fn(|group| whole(fit.codes[group][block]) as u8));
        }
        return second;
    }
    for (block, second) in second.iter_mut().enumerate().take(n_blocks) {
        let (mut first, mut largest) = (0f32, 0f32);
        for &scale in &groups.scales[block] {
            if scale.abs() > largest {
                (first, largest) = (scale, scale.abs());
            }
        }
        if first != 0.0 {
            let inverse = -32.0 / first;
            let codes =
                groups.scales[block].map(|scale| between(-32.0, nearest(inverse * scale), 31.0) + 32.0);
            *second = (1.0 / inverse, codes.map(|code| whole(code) as u8));
        }
    }
    second
}

/// The weights without importance: the root of the group's mean square, plus the magnitude.
#[inline(always)]
pub(super) fn root_mean_square_and_magnitude(x: &[Lanes; 32]) -> [Lanes; 32] {
    let mut sums = [0f32; 16];
    for x in x {
        for l in 0..16 {
            sums[l] += x[l] * x[l];
        }
    }
    let root = sums.map(|sum| (sum / 32.0).sqrt());
    let mut w = [[0f32; 16]; 32];
    for i in 0..32 {
        for l in 0..16 {
            w[i][l] = root[l] + x[i][l].abs();
        }
    }
    w
}
