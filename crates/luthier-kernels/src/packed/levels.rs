//! Matrices whose 4-bit codes are numbers of sixteen levels (nf4, fp4), with a scale for each 64 columns.
//!
//! A level becomes a whole number of two bytes, each looked up with the code: w = step * (256 * (high - 128) + low). With
//! inputs of two bytes as well, what the two low bytes would give together is left out, as it is below their rounding.

use super::activations::{Activations, block_bytes};
use super::codes::BLOCK;
use super::format::{FLOATS, Format, FourBits, STEPS, codes, put_codes, scales};
use crate::isa::Isa;

/// Columns that share a scale.
pub(super) const SCALED: usize = 2 * BLOCK;

/// The whole number that the largest level becomes.
const REACH: f32 = 127.0 * 256.0;

/// Sixteen levels, as they are and as whole numbers.
#[derive(Clone, Debug)]
pub(super) struct Levels {
    pub(super) values: [f32; 16],
    high: [u8; 16],
    low: [u8; 16],
    step: f32,
}

impl Levels {
    pub(super) fn new(values: [f32; 16]) -> Levels {
        let largest = values.iter().fold(0f32, |largest, value| largest.max(value.abs()));
        let inverse = if largest > 0.0 { REACH / largest } else { 0.0 };
        let whole = values.map(|value| (value * inverse).round_ties_even() as i32);
        Levels {
            values,
            high: whole.map(|whole| ((whole >> 8) + 128) as u8),
            low: whole.map(|whole| whole as u8),
            step: largest / REACH,
        }
    }
}

/// Packs up to 16 rows into a group: `packed` holds their codes, two a byte and the first in the upper half, `rows` of them
/// `cols` wide from value `first` of the matrix on; `block_len` values of the matrix share a scale.
pub(super) fn pack_group(
    (packed, all_scales, block_len): (&[u8], &[f32], usize),
    first: usize,
    (n_rows, cols): (usize, usize),
    group: &mut [u8],
) {
    for (unit_at, unit) in group.chunks_exact_mut(FourBits::UNIT_BYTES).enumerate() {
        unit.fill(0);
        for row in 0..n_rows {
            let start = first + row * cols + unit_at * SCALED;
            for (inner, bytes) in packed[start / 2..][..SCALED / 2].chunks_exact(BLOCK / 2).enumerate() {
                let mut codes = [0u8; BLOCK];
                for (pair, byte) in codes.chunks_exact_mut(2).zip(bytes) {
                    (pair[0], pair[1]) = (byte >> 4, byte & 15);
                }
                let planes = &mut unit[inner * FourBits::CODE_BYTES..][..FourBits::CODE_BYTES];
                put_codes::<FourBits>(planes, row, &codes);
            }
            let scale = all_scales[start / block_len].to_le_bytes();
            unit[FourBits::SCALES_AT..][..FLOATS][row * 4..][..4].copy_from_slice(&scale);
        }
    }
}

/// The sums of 16 rows for `T` rows of inputs.
///
/// # Safety
/// As [`Isa`]; the group and the inputs are whole, and the inputs hold `T` rows from `token` on.
#[inline(always)]
pub(super) unsafe fn sums<I: Isa, F: Format, const T: usize, const PRECISE: bool>(
    levels: &Levels,
    group: &[u8],
    inputs: &Activations,
    token: usize,
) -> [I::Floats; T] {
    let n = inputs.blocks;
    assert!(group.len() == n / F::UNIT * F::UNIT_BYTES && (token + T) * n <= inputs.scales.len());
    let bytes = block_bytes(PRECISE);
    // SAFETY: the caller's promise, compared above.
    unsafe {
        let inputs_bytes = inputs.bytes.as_ptr().add(token * n * bytes);
        let (input_scales, seeds) =
            (inputs.scales.as_ptr().add(token * n), inputs.seeds.as_ptr().add(token * n));
        let (high_table, low_table) = (I::table(&levels.high), I::table(&levels.low));
        let step = I::float(if PRECISE { 256.0 * levels.step } else { levels.step });
        let mut sums = [I::float(0.0); T];
        for unit_at in 0..n / F::UNIT {
            let unit = group.as_ptr().add(unit_at * F::UNIT_BYTES);
            let weight_scales = I::mul(scales::<I, F>(unit.add(F::SCALES_AT), 0, 0, false), step);
            for inner in 0..F::UNIT {
                let block = (unit_at * F::UNIT + inner) * T;
                let planes = unit.add(inner * F::CODE_BYTES);
                let x = inputs_bytes.add(block * bytes);
                let mut low = [I::whole(0); T];
                let mut high = [I::whole(0); T];
                for t in 0..T {
                    let seed = I::whole(*seeds.add(block + t));
                    *(if PRECISE { &mut low[t] } else { &mut high[t] }) = seed;
                }
                for at in 0..STEPS {
                    let codes = codes::<I, F>(planes, at);
                    let (w_high, w_low) = (I::lookup(high_table, codes), I::lookup(low_table, codes));
                    for t in 0..T {
                        let x = x.add(t * bytes + at * 4);
                        if PRECISE {
                            let x_high = x.add(BLOCK);
                            high[t] = I::dot::<true>(high[t], w_high, x_high);
                            low[t] = I::dot::<true>(low[t], w_high, x);
                            low[t] = I::dot::<true>(low[t], w_low, x_high);
                        } else {
                            high[t] = I::dot::<true>(high[t], w_high, x);
                            low[t] = I::dot::<true>(low[t], w_low, x);
                        }
                    }
                }
                for t in 0..T {
                    let scale = I::mul(weight_scales, I::float(*input_scales.add(block + t)));
                    sums[t] = I::mul_add(I::to_floats(I::join(high[t], low[t])), scale, sums[t]);
                }
            }
        }
        sums
    }
}
