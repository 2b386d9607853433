//! The types of bitsandbytes: nf4 and fp4 (a level of a table for each value, a scale for 64), and int8 (a scale a row).
//!
//! Papers: QLoRA (arXiv:2305.14314), LLM.int8() (arXiv:2208.07339), 8-bit optimizers (arXiv:2110.02861) for the map that
//! rounds scales. Reference: the CPU path of bitsandbytes 0.50.2, whose bytes these are.

use std::sync::Mutex;

use half::f16;

use crate::blocks::{BlockType, Unfit, dequantize};
use crate::pool::{self, Shared};
use crate::simd::dispatch;

/// Values that share a scale.
pub const BLOCK_LEN: usize = 64;

/// Scales that share a scale of their own, where scales are rounded too.
pub const NESTED_BLOCK_LEN: usize = 256;

/// Values that one task handles: whole blocks.
const TASK_VALUES: usize = 256 * BLOCK_LEN;

/// Scales below are not divided by.
const SMALLEST_SCALE: f32 = 1e-38;

/// Sixteen levels between -1 and 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Levels {
    /// Quantiles of the normal distribution.
    Nf4,
    /// A sign, two bits of exponent, one of fraction, divided by 12.
    Fp4,
}

impl Levels {
    /// What each code stands for.
    pub fn values(self) -> [f32; 16] {
        match self {
            Levels::Nf4 => NF4,
            Levels::Fp4 => FP4.map(|level| level / 12.0),
        }
    }

    /// Codes in the order of their levels, 0 before -0.
    fn order(self) -> [u8; 16] {
        match self {
            Levels::Nf4 => std::array::from_fn(|code| code as u8),
            Levels::Fp4 => [11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3],
        }
    }
}

// QLoRA, appendix E.
const NF4: [f32; 16] = [
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
];

const FP4: [f32; 16] =
    [0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0, 0.0, -0.0625, -8.0, -12.0, -4.0, -6.0, -2.0, -3.0];

/// Rounds `source` [n] to codes, two a byte and the first in the upper half (`packed` [ceil(n / 2)]), and the largest
/// magnitude of every 64 values (`scales` [ceil(n / 64)]). Refuses the first value that is not finite.
///
/// # Panics
/// When lengths do not belong together.
pub fn quantize_4bit(
    levels: Levels,
    (from, source): (BlockType, &[u8]),
    packed: &mut [u8],
    scales: &mut [f32],
) -> Result<(), Unfit> {
    let n = source.len() / from.block_bytes() * from.block_len();
    assert_eq!((packed.len(), scales.len()), (n.div_ceil(2), n.div_ceil(BLOCK_LEN)), "{n} values");
    let (packed, scales) = (Shared::new(packed), Shared::new(scales));
    in_tasks(from, source, TASK_VALUES, &|start, values| {
        // SAFETY: tasks are whole blocks of different values.
        let (packed, scales) = unsafe {
            (
                packed.slice(start / 2, values.len().div_ceil(2)),
                scales.slice(start / BLOCK_LEN, values.len().div_ceil(BLOCK_LEN)),
            )
        };
        round_4bit(levels, values, packed, scales);
        None
    })
}

/// The scales alone that [`quantize_4bit`] finds.
pub fn scales_4bit((from, source): (BlockType, &[u8]), scales: &mut [f32]) -> Result<(), Unfit> {
    let scales = Shared::new(scales);
    in_tasks(from, source, TASK_VALUES, &|start, values| {
        // SAFETY: tasks are whole blocks of different values.
        let scales = unsafe { scales.slice(start / BLOCK_LEN, values.len().div_ceil(BLOCK_LEN)) };
        for (scale, block) in scales.iter_mut().zip(values.chunks(BLOCK_LEN)) {
            *scale = scale_of(block);
        }
        None
    })
}

/// The values [n] of codes and scales; `block_len` values share a scale.
///
/// # Panics
/// When lengths do not belong together.
pub fn dequantize_4bit(
    levels: &[f32; 16],
    packed: &[u8],
    scales: &[f32],
    block_len: usize,
    target: &mut [f32],
) {
    assert!(block_len > 0 && block_len.is_multiple_of(2), "blocks are whole bytes");
    let n = target.len();
    assert_eq!((packed.len(), scales.len()), (n.div_ceil(2), n.div_ceil(block_len)), "{n} values");
    for ((target, packed), scale) in
        target.chunks_mut(block_len).zip(packed.chunks(block_len / 2)).zip(scales)
    {
        for (pair, byte) in target.chunks_mut(2).zip(packed) {
            pair[0] = levels[usize::from(byte >> 4)] * scale;
            if let Some(second) = pair.get_mut(1) {
                *second = levels[usize::from(byte & 15)] * scale;
            }
        }
    }
}

/// Rounds a matrix of `row_len` columns to whole numbers up to 127 times a 127th of each row's largest magnitude, which
/// becomes its scale. Values pass through f16 first, as the reference casts them; those that it cannot hold are refused.
///
/// # Panics
/// When lengths do not belong together.
pub fn quantize_int8(
    (from, source): (BlockType, &[u8]),
    row_len: usize,
    codes: &mut [u8],
    scales: &mut [f32],
) -> Result<(), Unfit> {
    let n = source.len() / from.block_bytes() * from.block_len();
    assert_eq!((codes.len(), scales.len() * row_len), (n, n), "rows of {row_len}");
    let (codes, scales) = (Shared::new(codes), Shared::new(scales));
    let rows_a_task = (TASK_VALUES / row_len.max(1)).max(1);
    in_tasks(from, source, rows_a_task * row_len, &|start, values| {
        // SAFETY: tasks are whole rows, each its own.
        let (codes, scales) = unsafe {
            (codes.slice(start, values.len()), scales.slice(start / row_len, values.len() / row_len))
        };
        let mut halves = vec![0f32; row_len];
        for (row, values) in values.chunks_exact(row_len).enumerate() {
            for (half, value) in halves.iter_mut().zip(values) {
                *half = f16::from_f32(*value).to_f32();
            }
            if let Some(at) = halves.iter().position(|half| !half.is_finite()) {
                return Some(Unfit::TooLarge(row * row_len + at));
            }
            scales[row] = round_row(&halves, &mut codes[row * row_len..][..row_len]);
        }
        None
    })
}

/// The values of a row of int8 codes.
pub fn dequantize_int8(codes: &[u8], scale: f32, target: &mut [f32]) {
    for (target, code) in target.iter_mut().zip(codes) {
        *target = f32::from(*code as i8) * scale * (1.0 / 127.0);
    }
}

/// The 256 numbers to which scales are rounded: seven decades, each with twice the steps of the one below, both signs,
/// 0 and 1; sorted. 8-bit optimizers, section 2.1 (dynamic tree quantisation).
pub fn dynamic_map() -> [f32; 256] {
    let mut values = vec![0.0, 1.0];
    for decade in 0..7i32 {
        let steps = 1usize << decade;
        // Boundaries from both ends, as torch.linspace has them.
        let step = (1.0f32 - 0.1) / steps as f32;
        let boundary = |at: usize| match at < steps.div_ceil(2) {
            true => step.mul_add(at as f32, 0.1),
            false => (-step).mul_add((steps - at) as f32, 1.0),
        };
        let decade_scale = 10f64.powi(decade - 6) as f32;
        for at in 0..steps {
            let mean = decade_scale * ((boundary(at) + boundary(at + 1)) / 2.0);
            values.extend([mean, -mean]);
        }
    }
    values.sort_by(f32::total_cmp);
    values.try_into().expect("2 + 2 (1 + 2 + ... + 64) = 256")
}

/// Rounds scales to the nearest numbers of `map` times the largest magnitude of every 256.
///
/// # Panics
/// When lengths do not belong together.
pub fn quantize_nested(map: &[f32; 256], values: &[f32], codes: &mut [u8], scales: &mut [f32]) {
    assert_eq!((codes.len(), scales.len()), (values.len(), values.len().div_ceil(NESTED_BLOCK_LEN)));
    let bounds: [f32; 255] = std::array::from_fn(|at| (map[at] + map[at + 1]) / 2.0);
    let blocks = values.chunks(NESTED_BLOCK_LEN).zip(codes.chunks_mut(NESTED_BLOCK_LEN)).zip(scales);
    for ((values, codes), scale) in blocks {
        *scale = values.iter().fold(0f32, |largest, value| largest.max(value.abs()));
        let is_whole = values.len() == NESTED_BLOCK_LEN;
        if !is_whole {
            *scale = scale.max(SMALLEST_SCALE);
        }
        let inverse = 1.0 / scale.max(SMALLEST_SCALE);
        for (code, value) in codes.iter_mut().zip(values) {
            let scaled = if is_whole { value * inverse } else { value / *scale };
            let scaled = scaled.clamp(-1.0, 1.0);
            *code = bounds.partition_point(|bound| *bound < scaled) as u8;
        }
    }
}

/// The scales that nested codes stand for: `map[code]` times the scale of its 256, plus `offset`.
pub fn dequantize_nested(
    map: &[f32],
    codes: &[u8],
    scales: &[f32],
    block_len: usize,
    offset: f32,
) -> Vec<f32> {
    let value = |(at, code): (usize, &u8)| map[usize::from(*code)] * scales[at / block_len] + offset;
    codes.iter().enumerate().map(value).collect()
}

/// Calls `work(first value, values)` for pieces of `task_values` finite values; the first fault of all.
fn in_tasks(
    from: BlockType,
    source: &[u8],
    task_values: usize,
    work: &(dyn Fn(usize, &[f32]) -> Option<Unfit> + Sync),
) -> Result<(), Unfit> {
    let task_values = task_values.max(1).next_multiple_of(from.block_len());
    let task_bytes = from.bytes_for(task_values).expect("a task is whole blocks");
    let fault: Mutex<Option<(usize, Unfit)>> = Mutex::new(None);
    pool::run(source.len().div_ceil(task_bytes), &|task| {
        let bytes = &source[task * task_bytes..source.len().min((task + 1) * task_bytes)];
        let mut values = vec![0f32; bytes.len() / from.block_bytes() * from.block_len()];
        dequantize(from, bytes, &mut values);
        let start = task * task_values;
        let bad = values.iter().position(|value| !value.is_finite());
        let found = match bad {
            Some(at) => Some((start + at, Unfit::NotFinite(start + at))),
            None => work(start, &values).map(|unfit| match unfit {
                Unfit::NotFinite(at) => (start + at, Unfit::NotFinite(start + at)),
                Unfit::TooLarge(at) => (start + at, Unfit::TooLarge(start + at)),
            }),
        };
        if let Some(found) = found {
            let mut fault = fault.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            if fault.is_none_or(|fault| found.0 < fault.0) {
                *fault = Some(found);
            }
        }
    });
    match fault.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
        Some((_, unfit)) => Err(unfit),
        None => Ok(()),
    }
}

/// The largest magnitude of a block; one that is cut short has a smallest scale.
fn scale_of(block: &[f32]) -> f32 {
    let largest = block.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    if block.len() < BLOCK_LEN { largest.max(SMALLEST_SCALE) } else { largest }
}

dispatch! {
    fn round_4bit(levels: Levels, values: &[f32], packed: &mut [u8], scales: &mut [f32]) = round_4bit_body
}

#[inline(always)]
fn round_4bit_body<const FMA: bool>(levels: Levels, values: &[f32], packed: &mut [u8], scales: &mut [f32]) {
    let (table, order) = (levels.values(), levels.order());
    let bounds: [f32; 15] =
        std::array::from_fn(|at| (table[usize::from(order[at])] + table[usize::from(order[at + 1])]) / 2.0);
    let mut scaled = [0f32; BLOCK_LEN];
    let mut codes = [0u8; BLOCK_LEN];
    let blocks = values.chunks(BLOCK_LEN).zip(packed.chunks_mut(BLOCK_LEN / 2)).zip(scales);
    for ((block, packed), scale) in blocks {
        *scale = scale_of(block);
        let inverse = 1.0 / scale.max(SMALLEST_SCALE);
        scaled.fill(0.0);
        for (scaled, value) in scaled.iter_mut().zip(block) {
            // A block that is cut short is divided, the others are multiplied: the last bit may differ.
            let ratio = if block.len() < BLOCK_LEN { value / *scale } else { value * inverse };
            *scaled = ratio.clamp(-1.0, 1.0);
        }
        for at in 0..BLOCK_LEN {
            let mut rank = 0u32;
            for bound in bounds {
                rank += u32::from(bound < scaled[at]);
            }
            codes[at] = rank as u8;
        }
        for (byte, pair) in packed.iter_mut().zip(codes.chunks_exact(2)) {
            *byte = order[usize::from(pair[0])] << 4 | order[usize::from(pair[1])];
        }
    }
}

dispatch! {
    fn round_row(values: &[f32], codes: &mut [u8]) -> f32 = round_row_body
}

#[inline(always)]
fn round_row_body<const FMA: bool>(values: &[f32], codes: &mut [u8]) -> f32 {
    let largest =
        values.iter().fold(0f32, |largest, value| if value.abs() > largest { value.abs() } else { largest });
    // A row of zeros has no inverse, and codes of 0. The reference rounds 1 / largest first.
    let inverse = if largest > 0.0 { 127.0 * (1.0 / largest) } else { 0.0 };
    for (code, value) in codes.iter_mut().zip(values) {
        *code = (value * inverse).round_ties_even() as i32 as u8;
    }
    largest
}

#[cfg(test)]
mod tests;
