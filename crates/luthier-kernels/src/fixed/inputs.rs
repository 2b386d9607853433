//! Inputs, rounded.

use super::{BLOCK, NOTHING, REACH};
use crate::isa::{Isa, ROWS, on_processor};
use crate::packed::{AHEAD, Place, each_row};
use crate::pool::Shared;

/// Rounded rows, in tiles of rows that are multiplied together: of a tile of T rows block after block, in each row after row.
#[derive(Default)]
pub(super) struct Inputs {
    /// Blocks of a row.
    pub(super) blocks: usize,
    /// [blocks, T, 32] of each tile.
    pub(super) numbers: Vec<i16>,
    /// [blocks, T] of each tile.
    pub(super) scales: Vec<f32>,
}

impl Inputs {
    /// Rounds `rows` rows of `cols` values; memory is used again.
    pub(super) fn round(&mut self, x: &[f32], rows: usize, cols: usize) {
        let blocks = cols.div_ceil(BLOCK);
        self.blocks = blocks;
        self.numbers.resize(rows * blocks * BLOCK, 0);
        self.scales.resize(rows * blocks, 0.0);
        let target =
            Target { numbers: Shared::new(&mut self.numbers), scales: Shared::new(&mut self.scales) };
        each_row(x, rows, cols, blocks, &|x, place| round_row(x, &target, place));
    }
}

struct Target<'t> {
    numbers: Shared<'t, i16>,
    scales: Shared<'t, f32>,
}

on_processor! {
    fn round_row(x: &[f32], target: &Target, place: Place) = round_row_on
}

/// # Safety
/// As [`Isa`].
#[inline(always)]
unsafe fn round_row_on<I: Isa>(x: &[f32], target: &Target, place: Place) {
    let (whole, rest) = x.as_chunks::<BLOCK>();
    for (block, values) in whole.iter().enumerate() {
        let at = place.first + block * place.step;
        // SAFETY: the caller's promise; a hint.
        unsafe {
            I::prefetch_to_write(
                target.numbers.pointer(0).wrapping_add((at + AHEAD * place.step) * BLOCK).cast(),
            );
            round_block::<I>(values, target, at);
        }
    }
    if !rest.is_empty() {
        let mut last = [0f32; BLOCK];
        last[..rest.len()].copy_from_slice(rest);
        // SAFETY: the caller's promise.
        unsafe { round_block::<I>(&last, target, place.first + whole.len() * place.step) };
    }
}

/// # Safety
/// As [`Isa`].
#[inline(always)]
unsafe fn round_block<I: Isa>(values: &[f32; BLOCK], target: &Target, at: usize) {
    // SAFETY: the caller's promise; two registers of values make a block, and every row has blocks of its own.
    unsafe {
        let (numbers, scales) = (target.numbers.slice(at * BLOCK, BLOCK), target.scales.slice(at, 1));
        let halves = [I::load_floats(values.as_ptr()), I::load_floats(values.as_ptr().add(ROWS))];
        let largest = I::largest(halves[0], halves[1]);
        // What is not finite stays so in the product, by its scale.
        let is_nothing = largest <= NOTHING;
        let inverse = I::float(if is_nothing { 0.0 } else { REACH / largest });
        for (at, half) in halves.into_iter().enumerate() {
            I::store_words(numbers.as_mut_ptr().add(at * ROWS), I::round(I::mul(half, inverse)));
        }
        scales[0] = if is_nothing { 0.0 } else { largest * (1.0 / REACH) };
    }
}
