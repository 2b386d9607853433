//! Inputs of packed products, rounded to whole numbers: each 32 values of a row share a scale.

use super::codes::BLOCK;
use crate::pool::{self, Shared};
use crate::simd::dispatch;

/// Rows that are multiplied with a block's codes at a time.
pub(super) const TILE: usize = 8;

/// Rounded rows, value = scale * (256 * high + low), in tiles of rows that are multiplied together: of a tile of T rows block
/// after block, in each row after row, so that one address and fixed distances from it reach all of a block.
#[derive(Default)]
pub(super) struct Activations {
    /// Blocks of a row, up to whole units of the weights.
    pub(super) blocks: usize,
    /// Whether there are high bytes.
    pub(super) is_wide: bool,
    /// [blocks, T, 32] low bytes, or 32 low and then 32 high ones, of each tile; signed.
    pub(super) bytes: Vec<i8>,
    /// [blocks, T] of each tile.
    pub(super) scales: Vec<f32>,
    /// Minus the offset of the codes times the sum of each part of a block: [blocks, T, parts] of each tile.
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

/// Rows of the tile that begins at row `start` of `rows`.
pub(super) fn tile_rows(start: usize, rows: usize) -> usize {
    match rows - start {
        TILE.. => TILE,
        4..TILE => 4,
        2..4 => 2,
        _ => 1,
    }
}

/// Bytes of a row in a block.
pub(super) const fn block_bytes(is_wide: bool) -> usize {
    if is_wide { 2 * BLOCK } else { BLOCK }
}

impl Activations {
    /// Rounds `rows` rows of `wanted.cols` values; memory is used again.
    pub(super) fn round(&mut self, x: &[f32], rows: usize, wanted: Wanted) {
        let Wanted { cols, blocks, parts, is_wide, .. } = wanted;
        let n_blocks = rows * blocks;
        (self.blocks, self.is_wide) = (blocks, is_wide);
        self.bytes.resize(n_blocks * block_bytes(is_wide), 0);
        self.scales.resize(n_blocks, 0.0);
        self.seeds.resize(n_blocks * parts, 0);
        self.sums.resize(n_blocks * parts, 0.0);
        let target = Target {
            bytes: Shared::new(&mut self.bytes),
            scales: Shared::new(&mut self.scales),
            seeds: Shared::new(&mut self.seeds),
            sums: Shared::new(&mut self.sums),
        };
        let rows_a_task = (TASK_VALUES / cols.max(1)).max(1).next_multiple_of(TILE);
        pool::run(rows.div_ceil(rows_a_task), &|task| {
            let (mut tile, end) = (task * rows_a_task, rows.min((task + 1) * rows_a_task));
            while tile < end {
                let count = tile_rows(tile, rows);
                for row in 0..count {
                    let place = Place { first: tile * blocks + row, step: count };
                    round_row(&x[(tile + row) * cols..][..cols], wanted, &target, place);
                }
                tile += count;
            }
        });
    }
}

struct Target<'t> {
    bytes: Shared<'t, i8>,
    scales: Shared<'t, f32>,
    seeds: Shared<'t, i32>,
    sums: Shared<'t, f32>,
}

/// Where a row's blocks go: the number of the first, and how many further each next one is.
#[derive(Clone, Copy)]
struct Place {
    first: usize,
    step: usize,
}

dispatch! {
    fn round_row(x: &[f32], wanted: Wanted, target: &Target, place: Place) = round_row_body
}

#[inline(always)]
fn round_row_body<const FMA: bool>(x: &[f32], wanted: Wanted, target: &Target, place: Place) {
    let parts = wanted.parts;
    let bytes_a_block = block_bytes(wanted.is_wide);
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
        let at = place.first + block * place.step;
        // SAFETY: every row has blocks of its own, and tasks have different rows.
        let (bytes, scales, seeds, sums) = unsafe {
            (
                target.bytes.slice(at * bytes_a_block, bytes_a_block),
                target.scales.slice(at, 1),
                target.seeds.slice(at * parts, parts),
                target.sums.slice(at * parts, parts),
            )
        };
        let (low, high) = bytes.split_at_mut(BLOCK);
        for at in 0..BLOCK {
            low[at] = whole[at] as i8;
        }
        if let Some(high) = high.first_chunk_mut::<BLOCK>() {
            for at in 0..BLOCK {
                high[at] = ((whole[at] - i32::from(whole[at] as i8)) >> 8) as i8;
            }
        }
        let scale = largest / reach;
        scales[0] = scale;
        let len = BLOCK / parts;
        for part in 0..parts {
            let sum: i32 = whole[part * len..][..len].iter().sum();
            seeds[part] = -wanted.offset * sum;
            sums[part] = sum as f32 * scale;
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
