//! The product of a group of 16 rows with rounded inputs.

use super::activations::{Activations, TILE, block_bytes, tile_rows};
use super::codes::BLOCK;
use super::format::{Format, STEPS, Scales, codes, group_bytes, scales, units};
use super::int8::STEPS_A_SCALE;
use super::levels::{self, Levels};
use crate::isa::{Isa, Plain, ROWS, on_processor};
use crate::pool::Shared;

/// Which part of a product is computed.
#[derive(Clone, Copy)]
pub(super) struct Part<'i> {
    pub(super) inputs: &'i Activations,
    /// All rows of inputs.
    pub(super) rows: usize,
    /// Those that are multiplied here, from a tile's first on.
    pub(super) first: usize,
    pub(super) last: usize,
    /// The first row of the matrix.
    pub(super) first_row: usize,
    /// Those of the matrix, where its codes are numbers of levels.
    pub(super) levels: Option<&'i Levels>,
}

on_processor! {
    /// Multiplies whole groups; y: [m, rows].
    pub(super) fn groups<F: Format>(bytes: &[u8], part: Part, rows: usize, y: &Shared<f32>) = groups_on
}

/// # Safety
/// As [`Isa`].
#[inline(always)]
unsafe fn groups_on<I: Isa, F: Format>(bytes: &[u8], part: Part, rows: usize, y: &Shared<f32>) {
    const LINE: usize = 64;
    let group = group_bytes::<F>(part.inputs.blocks * BLOCK);
    // While one group is multiplied with all tokens, the next one comes from memory, a part with each tile.
    let tiles = (part.last - part.first).div_ceil(TILE);
    let lines = if tiles > 1 { (group / LINE).div_ceil(tiles) } else { 0 };
    for (at, bytes) in bytes.chunks_exact(group.max(1)).enumerate() {
        let mut next = bytes.as_ptr().wrapping_add(group);
        let row = part.first_row + at * ROWS;
        let mut token = part.first;
        while token < part.last {
            for _ in 0..lines {
                // SAFETY: a hint.
                unsafe { I::prefetch(next) };
                next = next.wrapping_add(LINE);
            }
            // SAFETY: the caller's promise; the inputs hold the tokens up to the last.
            unsafe {
                token += match tile_rows(token, part.rows) {
                    TILE => tile::<I, F, TILE>(bytes, part, token, row, rows, y),
                    4 => tile::<I, F, 4>(bytes, part, token, row, rows, y),
                    2 => tile::<I, F, 2>(bytes, part, token, row, rows, y),
                    _ => tile::<I, F, 1>(bytes, part, token, row, rows, y),
                };
            }
        }
    }
}

/// # Safety
/// As [`Isa`]; the inputs hold `T` rows from `token` on.
#[inline(always)]
unsafe fn tile<I: Isa, F: Format, const T: usize>(
    group: &[u8],
    part: Part,
    token: usize,
    row: usize,
    rows: usize,
    y: &Shared<f32>,
) -> usize {
    let inputs = part.inputs;
    // SAFETY: the caller's promise.
    let sums = unsafe {
        match (F::HAS_LEVELS, part.levels, inputs.is_wide) {
            (true, Some(own), false) => levels::sums::<I, F, T, false>(own, group, inputs, token),
            (true, Some(own), true) => levels::sums::<I, F, T, true>(own, group, inputs, token),
            (true, None, _) => unreachable!("a matrix of levels brings them"),
            (false, _, false) => sums::<I, F, T, false>(group, inputs, token),
            (false, _, true) => sums::<I, F, T, true>(group, inputs, token),
        }
    };
    for (at, sums) in sums.into_iter().enumerate() {
        let start = (token + at) * rows + row;
        let mut lanes = [0f32; ROWS];
        // SAFETY: 16 floats; groups have different rows of y.
        unsafe {
            I::store_floats(lanes.as_mut_ptr(), sums);
            let len = ROWS.min(rows - row);
            y.slice(start, len).copy_from_slice(&lanes[..len]);
        }
    }
    T
}

/// The sums of 16 rows for `T` rows of inputs.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn sums<I: Isa, F: Format, const T: usize, const PRECISE: bool>(
    group: &[u8],
    inputs: &Activations,
    token: usize,
) -> [I::Floats; T] {
    let n = inputs.blocks;
    debug_assert!(
        group.len() == n / F::UNIT * F::UNIT_BYTES + F::TAIL_BYTES && (token + T) * n <= inputs.scales.len()
    );
    let bytes = block_bytes(PRECISE);
    let at = token * n;
    // SAFETY: the inputs hold this tile; units are whole.
    unsafe {
        let inputs_bytes = inputs.bytes.as_ptr().add(at * bytes);
        let input_scales = inputs.scales.as_ptr().add(at);
        let seeds = inputs.seeds.as_ptr().add(at * F::PARTS);
        let input_sums = inputs.sums.as_ptr().add(at * F::PARTS);
        let mut sums = [I::float(0.0); T];
        for unit_at in 0..n / F::UNIT {
            let unit = group.as_ptr().add(unit_at * F::UNIT_BYTES);
            for inner in 0..F::UNIT {
                let block = (unit_at * F::UNIT + inner) * T;
                let planes = unit.add(inner * F::CODE_BYTES);
                let x = inputs_bytes.add(block * bytes);
                for part in 0..F::PARTS {
                    let len = STEPS / F::PARTS;
                    let mut low = [I::whole(0); T];
                    let mut high = [I::whole(0); T];
                    for t in 0..T {
                        low[t] = I::whole(*seeds.add((block + t) * F::PARTS + part));
                    }
                    for step in part * len..(part + 1) * len {
                        let codes = codes::<I, F>(planes, step);
                        for t in 0..T {
                            let x = x.add(t * bytes + step * 4);
                            low[t] = dot::<I, F>(low[t], codes, x);
                            if PRECISE {
                                high[t] = dot::<I, F>(high[t], codes, x.add(BLOCK));
                            }
                        }
                    }
                    let weight_scales = match F::SCALES {
                        Scales::Row => I::float(1.0),
                        _ => scales::<I, F>(unit.add(F::SCALES_AT), inner, part, false),
                    };
                    for t in 0..T {
                        let sum = if PRECISE { I::join(high[t], low[t]) } else { low[t] };
                        let scale = I::float(*input_scales.add(block + t));
                        let scale = match F::SCALES {
                            Scales::Row => scale,
                            _ => I::mul(weight_scales, scale),
                        };
                        sums[t] = I::mul_add(I::to_floats(sum), scale, sums[t]);
                    }
                    if F::MINIMUM != 0 {
                        let minima = scales::<I, F>(unit.add(F::MINIMA_AT), inner, part, true);
                        for t in 0..T {
                            let sum = *input_sums.add((block + t) * F::PARTS + part);
                            let sum = if F::MINIMUM < 0 { -sum } else { sum };
                            sums[t] = I::mul_add(minima, I::float(sum), sums[t]);
                        }
                    }
                }
            }
        }
        if let Scales::Row = F::SCALES {
            let row_scales = I::load_floats(group.as_ptr().add(n / F::UNIT * F::UNIT_BYTES).cast());
            let row_scales = I::mul(row_scales, I::float(STEPS_A_SCALE));
            sums.iter_mut().for_each(|sum| *sum = I::mul(*sum, row_scales));
        }
        sums
    }
}

/// # Safety
/// As [`Isa`].
#[inline(always)]
unsafe fn dot<I: Isa, F: Format>(sum: I::Ints, codes: I::Ints, x: *const i8) -> I::Ints {
    // SAFETY: the caller's promise.
    unsafe {
        match F::WIDE_CODES {
            true => I::dot::<true>(sum, codes, x),
            false => I::dot::<false>(sum, codes, x),
        }
    }
}

/// One row of a group as floats.
pub(super) fn widen_row<F: Format>(group: &[u8], levels: Option<&Levels>, row: usize, target: &mut [f32]) {
    let row_scale = match F::SCALES {
        Scales::Row => {
            let scales = &group[group.len() - F::TAIL_BYTES..];
            f32::from_le_bytes(scales[4 * row..][..4].try_into().expect("four bytes"))
        }
        _ => 1.0,
    };
    for unit_at in 0..units::<F>(target.len()) {
        let unit = &group[unit_at * F::UNIT_BYTES..][..F::UNIT_BYTES];
        for inner in 0..F::UNIT {
            let start = (unit_at * F::UNIT + inner) * BLOCK;
            if start >= target.len() {
                break;
            }
            // SAFETY: plain loops run everywhere; the unit is whole.
            unsafe {
                let planes = unit.as_ptr().add(inner * F::CODE_BYTES);
                for part in 0..F::PARTS {
                    let scale = match F::SCALES {
                        Scales::Row => row_scale,
                        // Levels have one scale for all blocks of a unit.
                        _ => scales::<Plain, F>(unit.as_ptr().add(F::SCALES_AT), inner, part, false)[row],
                    };
                    let minimum = match F::MINIMUM {
                        0 => 0.0,
                        sign => {
                            let minima = unit.as_ptr().add(F::MINIMA_AT);
                            sign as f32 * scales::<Plain, F>(minima, inner, part, true)[row]
                        }
                    };
                    let len = BLOCK / F::PARTS;
                    for step in part * len / 4..(part + 1) * len / 4 {
                        let codes = codes::<Plain, F>(planes, step)[row].to_ne_bytes();
                        for (at, code) in codes.into_iter().enumerate() {
                            let Some(target) = target.get_mut(start + 4 * step + at) else { continue };
                            let whole = i32::from(code) - F::OFFSET;
                            *target = match (F::SCALES, levels) {
                                (Scales::Levels, Some(levels)) => levels.values[usize::from(code)] * scale,
                                (Scales::Row, _) => whole as f32 * scale * STEPS_A_SCALE,
                                _ => whole as f32 * scale + minimum,
                            };
                        }
                    }
                }
            }
        }
    }
}
