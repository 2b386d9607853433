//! Inputs of packed products, rounded to whole numbers: each 32 values of a row share a scale.

use super::codes::BLOCK;
use crate::isa::{Isa, ROWS, on_processor};
use crate::pool::{self, Shared};

/// Rows that are multiplied with a block's codes at a time.
pub(crate) const TILE: usize = 8;

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

/// Blocks of a row for whose memory is asked before they are written: other processors have read it last.
pub(crate) const AHEAD: usize = 8;
/// Values that a task rounds.
const TASK_VALUES: usize = 1 << 14;

/// Rows of the tile that begins at row `start` of `rows`.
pub(crate) fn tile_rows(start: usize, rows: usize) -> usize {
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
        each_row(x, rows, cols, blocks, &|x, place| round_row(x, wanted, &target, place));
    }
}

/// Calls `work` with every row of `cols` values and where its `blocks` blocks go, on all threads.
pub(crate) fn each_row(
    x: &[f32],
    rows: usize,
    cols: usize,
    blocks: usize,
    work: &(dyn Fn(&[f32], Place) + Sync),
) {
    let rows_a_task = (TASK_VALUES / cols.max(1)).max(1).next_multiple_of(TILE);
    pool::run(rows.div_ceil(rows_a_task), &|task| {
        let (mut tile, end) = (task * rows_a_task, rows.min((task + 1) * rows_a_task));
        while tile < end {
            let count = tile_rows(tile, rows);
            for row in 0..count {
                let place = Place { first: tile * blocks + row, step: count };
                work(&x[(tile + row) * cols..][..cols], place);
            }
            tile += count;
        }
    });
}

struct Target<'t> {
    bytes: Shared<'t, i8>,
    scales: Shared<'t, f32>,
    seeds: Shared<'t, i32>,
    sums: Shared<'t, f32>,
}

/// Where a row's blocks go: the number of the first, and how many further each next one is.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub(crate) first: usize,
    pub(crate) step: usize,
}

on_processor! {
    fn round_row(x: &[f32], wanted: Wanted, target: &Target, place: Place) = round_row_on
}

/// # Safety
/// As [`Isa`].
#[inline(always)]
unsafe fn round_row_on<I: Isa>(x: &[f32], wanted: Wanted, target: &Target, place: Place) {
    let (whole, rest) = x.as_chunks::<BLOCK>();
    for (block, values) in whole.iter().enumerate() {
        let at = place.first + block * place.step;
        // SAFETY: the caller's promise; a hint.
        unsafe {
            let ahead = (at + AHEAD * place.step) * block_bytes(wanted.is_wide);
            I::prefetch_to_write(target.bytes.pointer(0).wrapping_add(ahead).cast());
            round_block::<I>(values, wanted, target, at);
        }
    }
    // Blocks of weights fill whole units, so that more than one may be missing.
    let mut last = [0f32; BLOCK];
    last[..rest.len()].copy_from_slice(rest);
    for block in whole.len()..wanted.blocks {
        // SAFETY: the caller's promise.
        unsafe { round_block::<I>(&last, wanted, target, place.first + block * place.step) };
        last.fill(0.0);
    }
}

/// # Safety
/// As [`Isa`].
#[inline(always)]
unsafe fn round_block<I: Isa>(values: &[f32; BLOCK], wanted: Wanted, target: &Target, at: usize) {
    let (parts, bytes_a_block) = (wanted.parts, block_bytes(wanted.is_wide));
    // SAFETY: every row has blocks of its own, and tasks have different rows.
    let (bytes, scales, seeds, sums) = unsafe {
        (
            target.bytes.slice(at * bytes_a_block, bytes_a_block),
            target.scales.slice(at, 1),
            target.seeds.slice(at * parts, parts),
            target.sums.slice(at * parts, parts),
        )
    };
    // SAFETY: the caller's promise; two registers of values make a block, and `bytes` has one or two bytes for each.
    unsafe {
        let halves = [I::load_floats(values.as_ptr()), I::load_floats(values.as_ptr().add(ROWS))];
        let largest = I::largest(halves[0], halves[1]);
        // What is not finite stays so in the product, by its scale.
        let reach = if wanted.is_wide { 32_512.0 } else { 127.0 };
        let inverse = I::float(if largest > 0.0 { reach / largest } else { 0.0 });
        let whole = halves.map(|half| I::round(I::mul(half, inverse)));
        for (at, whole) in whole.into_iter().enumerate() {
            I::store_bytes(bytes.as_mut_ptr().add(at * ROWS), whole);
            if wanted.is_wide {
                I::store_bytes(bytes.as_mut_ptr().add(BLOCK + at * ROWS), I::high(whole));
            }
        }
        let scale = largest * (1.0 / reach);
        scales[0] = scale;
        let totals = match parts {
            1 => [I::sum(I::add(whole[0], whole[1])), 0],
            _ => whole.map(|whole| I::sum(whole)),
        };
        for part in 0..parts {
            seeds[part] = -wanted.offset * totals[part];
            sums[part] = totals[part] as f32 * scale;
        }
    }
}
