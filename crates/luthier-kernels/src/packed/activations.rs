//! Inputs of packed products, rounded to whole numbers: each 32 values of a row share a scale.

use super::codes::BLOCK;
use crate::pool::{self, Shared};
use crate::simd::dispatch;

/// Rounded rows. Row `t` of n blocks: value = scale * (256 * high + low).
#[derive(Default)]
pub(super) struct Activations {
    /// Blocks of a row, up to whole units of the weights.
    pub(super) blocks: usize,
    /// [rows, blocks, 32]; signed.
    pub(super) low: Vec<i8>,
    /// The same, or nothing.
    pub(super) high: Vec<i8>,
    /// [rows, blocks].
    pub(super) scales: Vec<f32>,
    /// Minus the offset of the codes times the sum of each part of a block: [rows, blocks, parts].
    pub(super) seeds: Vec<i32>,
    /// The sum of each part times the scale.
    pub(super) sums: Vec<f32>,
}

/// What the weights ask of inputs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) cols: usize,
    pub(super) blocks: usize,
    /// Parts of a block that are summed on their own: 1 or 2.
    pub(super) parts: usize,
    pub(super) offset: i32,
    /// Whether inputs keep 16 bits, not 8.
    pub(super) is_wide: bool,
}

/// Values that a task rounds.
const TASK_VALUES: usize = 1 << 14;

impl Activations {
    /// Rounds `rows` rows of `wanted.cols` values; memory is used again.
    pub(super) fn round(&mut self, x: &[f32], rows: usize, wanted: Wanted) {
        let Wanted { cols, blocks, parts, is_wide, .. } = wanted;
        let n_blocks = rows * blocks;
        self.blocks = blocks;
        self.low.resize(n_blocks * BLOCK, 0);
        self.high.resize(if is_wide { n_blocks * BLOCK } else { 0 }, 0);
        self.scales.resize(n_blocks, 0.0);
        self.seeds.resize(n_blocks * parts, 0);
        self.sums.resize(n_blocks * parts, 0.0);
        let high_len = if is_wide { BLOCK } else { 0 };
        let (low, high) = (Shared::new(&mut self.low), Shared::new(&mut self.high));
        let (scales, seeds, sums) =
            (Shared::new(&mut self.scales), Shared::new(&mut self.seeds), Shared::new(&mut self.sums));
        let rows_a_task = (TASK_VALUES / cols.max(1)).max(1);
        pool::run(rows.div_ceil(rows_a_task), &|task| {
            for row in task * rows_a_task..rows.min((task + 1) * rows_a_task) {
                let at = row * blocks;
                // SAFETY: tasks have different rows.
                let target = unsafe {
                    Target {
                        low: low.slice(at * BLOCK, blocks * BLOCK),
                        high: high.slice(at * high_len, blocks * high_len),
                        scales: scales.slice(at, blocks),
                        seeds: seeds.slice(at * parts, blocks * parts),
                        sums: sums.slice(at * parts, blocks * parts),
                    }
                };
                round_row(&x[row * cols..][..cols], wanted, target);
            }
        });
    }
}

struct Target<'t> {
    low: &'t mut [i8],
    high: &'t mut [i8],
    scales: &'t mut [f32],
    seeds: &'t mut [i32],
    sums: &'t mut [f32],
}

dispatch! {
    fn round_row(x: &[f32], wanted: Wanted, target: Target) = round_row_body
}

#[inline(always)]
fn round_row_body<const FMA: bool>(x: &[f32], wanted: Wanted, target: Target) {
    let parts = wanted.parts;
    let mut last: [f32; BLOCK];
    for block in 0..wanted.blocks {
        let values: &[f32; BLOCK] = match x.get(block * BLOCK..) {
            Some(rest) if rest.len() >= BLOCK => rest.first_chunk().expect("just compared"),
            rest => {
                last = [0f32; BLOCK];
                let rest = rest.unwrap_or(&[]);
                last[..rest.len()].copy_from_slice(rest);
                &last
            }
        };
        let largest = largest(values);
        // What is not finite stays so in the product, by its scale.
        let reach = if wanted.is_wide { 32_512.0 } else { 127.0 };
        let inverse = if largest > 0.0 { reach / largest } else { 0.0 };
        let mut whole = [0i32; BLOCK];
        for at in 0..BLOCK {
            whole[at] = to_whole(values[at] * inverse);
        }
        let low: &mut [i8; BLOCK] =
            target.low[block * BLOCK..].first_chunk_mut().expect("blocks of the target");
        if wanted.is_wide {
            let high: &mut [i8; BLOCK] =
                target.high[block * BLOCK..].first_chunk_mut().expect("blocks of the target");
            for at in 0..BLOCK {
                low[at] = whole[at] as i8;
                high[at] = ((whole[at] - i32::from(low[at])) >> 8) as i8;
            }
        } else {
            for at in 0..BLOCK {
                low[at] = whole[at] as i8;
            }
        }
        let scale = largest / reach;
        target.scales[block] = scale;
        let len = BLOCK / parts;
        for part in 0..parts {
            let sum: i32 = whole[part * len..][..len].iter().sum();
            target.seeds[block * parts + part] = -wanted.offset * sum;
            target.sums[block * parts + part] = sum as f32 * scale;
        }
    }
}

/// The nearest whole number of a value of less than 2^21, halves to the even one; 0 for NaN.
#[inline(always)]
fn to_whole(value: f32) -> i32 {
    // 1.5 * 2^23: what is added shifts the whole number to the end of the fraction.
    const SHIFT: f32 = 12_582_912.0;
    if value.is_nan() { 0 } else { (value + SHIFT).to_bits() as i32 - SHIFT.to_bits() as i32 }
}

/// The largest magnitude; NaN or infinity where there is one.
#[inline(always)]
fn largest(values: &[f32; BLOCK]) -> f32 {
    let mut bits = 0u32;
    for value in values {
        // Magnitudes of floats are ordered as their bits are, those that are not finite last.
        bits = bits.max(value.to_bits() & 0x7fff_ffff);
    }
    f32::from_bits(bits)
}
