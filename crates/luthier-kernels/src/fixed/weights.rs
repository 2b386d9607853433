//! Sixteen rows of weights, rounded.

use super::{BLOCK, NOTHING, PAIRS, REACH};
use crate::isa::{Isa, ROWS};

/// A float of 16 bits.
pub(super) trait Half: Copy {
    /// The two in each lane.
    ///
    /// # Safety
    /// As [`Isa`].
    unsafe fn pairs<I: Isa>(pairs: I::Ints) -> [I::Floats; 2];
}

impl Half for half::f16 {
    #[inline(always)]
    unsafe fn pairs<I: Isa>(pairs: I::Ints) -> [I::Floats; 2] {
        // SAFETY: the caller's promise.
        unsafe { I::f16_pairs(pairs) }
    }
}

impl Half for half::bf16 {
    #[inline(always)]
    unsafe fn pairs<I: Isa>(pairs: I::Ints) -> [I::Floats; 2] {
        // SAFETY: the caller's promise.
        unsafe { I::bf16_pairs(pairs) }
    }
}

/// Rows that are multiplied side by side.
#[derive(Default)]
pub(super) struct Group {
    /// [blocks, 16 pairs of columns, 16 rows, 2].
    pub(super) codes: Vec<i16>,
    /// [blocks, 16 rows].
    pub(super) scales: Vec<f32>,
}

impl Group {
    /// Rounds `count` rows of `cols` values; rows and columns that are missing become zeros.
    ///
    /// # Safety
    /// As [`Isa`].
    #[inline(always)]
    pub(super) unsafe fn take<I: Isa, H: Half>(&mut self, rows: &[u8], count: usize, cols: usize) {
        let blocks = cols.div_ceil(BLOCK);
        self.codes.resize(blocks * BLOCK * ROWS, 0);
        self.scales.resize(blocks * ROWS, 0.0);
        let whole = if count == ROWS { cols / BLOCK } else { 0 };
        for block in 0..whole {
            // SAFETY: the caller's promise; registers of 32 halves inside of the rows.
            unsafe {
                let load =
                    |row: usize| I::load(rows[2 * (row * cols + block * BLOCK)..][..2 * BLOCK].as_ptr());
                self.round::<I, H>(block, std::array::from_fn(load));
            }
        }
        for block in whole..blocks {
            let start = block * BLOCK;
            let mut filled = [[0u8; 2 * BLOCK]; ROWS];
            for (row, filled) in filled.iter_mut().enumerate().take(count) {
                let own = &rows[2 * (row * cols + start)..2 * (row * cols + cols.min(start + BLOCK))];
                filled[..own.len()].copy_from_slice(own);
            }
            // SAFETY: the caller's promise; registers of 64 bytes.
            unsafe { self.round::<I, H>(block, std::array::from_fn(|row| I::load(filled[row].as_ptr()))) };
        }
    }

    /// # Safety
    /// As [`Isa`].
    #[inline(always)]
    unsafe fn round<I: Isa, H: Half>(&mut self, block: usize, by_row: [I::Ints; ROWS]) {
        let codes = &mut self.codes[block * BLOCK * ROWS..][..BLOCK * ROWS];
        let scales = &mut self.scales[block * ROWS..][..ROWS];
        // SAFETY: the caller's promise.
        unsafe { round_block::<I, H>(I::transpose(by_row), codes, scales) };
    }
}

/// # Safety
/// As [`Isa`].
#[inline(always)]
unsafe fn round_block<I: Isa, H: Half>(pairs: [I::Ints; PAIRS], codes: &mut [i16], scales: &mut [f32]) {
    // SAFETY: the caller's promise; a block has a register for each pair of columns.
    unsafe {
        let largest = pairs.iter().fold(I::whole(0), |most, pair| I::larger_halves(most, *pair));
        let mut lanes = [[0f32; ROWS]; 2];
        for (lanes, half) in lanes.iter_mut().zip(H::pairs::<I>(largest)) {
            I::store_floats(lanes.as_mut_ptr(), half);
        }
        let mut inverse = [0f32; ROWS];
        for row in 0..ROWS {
            // As bits, magnitudes that are not finite are the largest.
            let largest = f32::from_bits(lanes[0][row].to_bits().max(lanes[1][row].to_bits()));
            let is_nothing = largest <= NOTHING;
            inverse[row] = if is_nothing { 0.0 } else { REACH / largest };
            scales[row] = if is_nothing { 0.0 } else { largest / REACH };
        }
        let inverse = I::load_floats(inverse.as_ptr());
        for (at, pair) in pairs.into_iter().enumerate() {
            let [low, high] = H::pairs::<I>(pair).map(|values| I::round(I::mul(values, inverse)));
            I::store(codes.as_mut_ptr().add(at * 2 * ROWS).cast(), I::pair_words(low, high));
        }
    }
}
