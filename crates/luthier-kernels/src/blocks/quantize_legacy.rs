//! Rounding to ggml's blocks of 32 values, byte for byte as its reference does without importance weights.
//!
//! `_0` types: the scale maps the value of largest magnitude to the lowest code. `_1` types: minimum and maximum are
//! mapped to the lowest and the highest code. Products and sums are rounded one by one (no fused multiply-add), as in
//! llama.cpp's builds for x86-64 and in the Python package gguf.

use half::f16;

use super::fit::{Affine, Lanes, Signed, whole};

const LEN: usize = 32;
/// Blocks whose scales are computed together.
const GROUP: usize = 16;

/// 1 / scale; 0 for a scale of 0. `None` where it is infinite: the scale is then so small that its f16 is 0, and the
/// reference stores zeros.
#[inline(always)]
pub(super) fn inverse(scale: f32) -> Option<f32> {
    let inverse = if scale != 0.0 { 1.0 / scale } else { 0.0 };
    inverse.is_finite().then_some(inverse)
}

/// Blocks of an f16 scale and codes. Scales of a group of blocks come first, so that no block waits for the divisions of the
/// one before. A macro, since closures would not be compiled for the processor that the caller is compiled for.
macro_rules! in_groups {
    ($source:ident, $target:ident, $block_bytes:literal, |$of:ident| $scale:expr, |$values:ident, $inverse:ident, $bytes:ident| $put:block) => {
        for (group, blocks) in $source.chunks(GROUP * LEN).zip($target.chunks_mut(GROUP * $block_bytes)) {
            let mut scales = [0f32; GROUP];
            for (scale, $of) in scales.iter_mut().zip(group.chunks_exact(LEN)) {
                *scale = $scale;
            }
            let inverses = scales.map(inverse);
            for (at, ($values, block)) in
                group.chunks_exact(LEN).zip(blocks.chunks_exact_mut($block_bytes)).enumerate()
            {
                put_half(&mut block[..2], scales[at]);
                let ($inverse, $bytes) = (inverses[at], &mut block[2..]);
                $put
            }
        }
    };
}

#[inline(always)]
pub(super) fn quantize_q4_0(source: &[f32], target: &mut [u8]) {
    in_groups!(source, target, 18, |values| first_largest(values) / -8.0, |values, inverse, bytes| {
        put_pairs(bytes, &codes(values, 0.0, inverse, 8.5, 15));
    });
}

#[inline(always)]
pub(super) fn quantize_q4_1(source: &[f32], target: &mut [u8]) {
    for (values, block) in source.chunks_exact(LEN).zip(target.chunks_exact_mut(20)) {
        let (minimum, maximum) = range(values);
        let scale = (maximum - minimum) / 15.0;
        put_half(&mut block[..2], scale);
        put_half(&mut block[2..4], minimum);
        let codes = codes(values, minimum, inverse(scale), 0.5, 15);
        put_pairs(&mut block[4..], &codes);
    }
}

#[inline(always)]
pub(super) fn quantize_q5_0(source: &[f32], target: &mut [u8]) {
    in_groups!(source, target, 22, |values| first_largest(values) / -16.0, |values, inverse, bytes| {
        let codes = codes(values, 0.0, inverse, 16.5, 31);
        put_fifths(&mut bytes[..4], &codes);
        put_pairs(&mut bytes[4..], &codes);
    });
}

#[inline(always)]
pub(super) fn quantize_q5_1(source: &[f32], target: &mut [u8]) {
    for (values, block) in source.chunks_exact(LEN).zip(target.chunks_exact_mut(24)) {
        let (minimum, maximum) = range(values);
        let scale = (maximum - minimum) / 31.0;
        put_half(&mut block[..2], scale);
        put_half(&mut block[2..4], minimum);
        let codes = codes(values, minimum, inverse(scale), 0.5, 31);
        put_fifths(&mut block[4..8], &codes);
        put_pairs(&mut block[8..], &codes);
    }
}

#[inline(always)]
pub(super) fn quantize_q8_0(source: &[f32], target: &mut [u8]) {
    // Halves go away from zero: the largest number below a half is added, which never reaches the next whole number wrongly.
    const BELOW_HALF: f32 = 0.49999997;
    in_groups!(source, target, 34, |values| largest(values) / 127.0, |values, inverse, bytes| {
        let inverse = inverse.unwrap_or(0.0);
        for (code, value) in bytes.iter_mut().zip(values) {
            let scaled = value * inverse;
            *code = whole(scaled + BELOW_HALF.copysign(scaled)) as u8;
        }
    });
}

/// The largest magnitude.
#[inline(always)]
fn largest(values: &[f32]) -> f32 {
    let mut largest = [0f32; 16];
    for half in values.chunks_exact(16) {
        for lane in 0..16 {
            let magnitude = half[lane].abs();
            largest[lane] = if magnitude > largest[lane] { magnitude } else { largest[lane] };
        }
    }
    fold(largest, |a, b| if a > b { a } else { b })
}

/// The first value of the largest magnitude, with its sign; 0 where all are 0.
#[inline(always)]
fn first_largest(values: &[f32]) -> f32 {
    let (mut lowest, mut highest) = ([0f32; 16], [0f32; 16]);
    for half in values.chunks_exact(16) {
        for lane in 0..16 {
            lowest[lane] = if half[lane] < lowest[lane] { half[lane] } else { lowest[lane] };
            highest[lane] = if half[lane] > highest[lane] { half[lane] } else { highest[lane] };
        }
    }
    let lowest = fold(lowest, |a, b| if b < a { b } else { a });
    let highest = fold(highest, |a, b| if b > a { b } else { a });
    if -lowest != highest {
        return if -lowest > highest { lowest } else { highest };
    }
    values.iter().copied().find(|value| value.abs() == highest && highest > 0.0).unwrap_or(0.0)
}

#[inline(always)]
fn range(values: &[f32]) -> (f32, f32) {
    let (mut minimum, mut maximum) = ([f32::MAX; 16], [-f32::MAX; 16]);
    for half in values.chunks_exact(16) {
        for lane in 0..16 {
            minimum[lane] = if half[lane] < minimum[lane] { half[lane] } else { minimum[lane] };
            maximum[lane] = if half[lane] > maximum[lane] { half[lane] } else { maximum[lane] };
        }
    }
    let maximum = fold(maximum, |a, b| if a > b { a } else { b });
    let minimum = fold(minimum, |a, b| if b < a { b } else { a });
    if minimum != 0.0 {
        return (minimum, maximum);
    }
    // Of zeros of both signs the first one's sign is stored.
    let minimum = values.iter().copied().find(|value| *value == 0.0).unwrap_or(minimum);
    (minimum, if maximum == 0.0 { minimum } else { maximum })
}

#[inline(always)]
fn fold(lanes: [f32; 16], pick: impl Fn(f32, f32) -> f32) -> f32 {
    let eight: [f32; 8] = std::array::from_fn(|lane| pick(lanes[lane], lanes[lane + 8]));
    let four: [f32; 4] = std::array::from_fn(|lane| pick(eight[lane], eight[lane + 4]));
    pick(pick(four[0], four[2]), pick(four[1], four[3]))
}

/// `trunc((value - minimum) * inverse + offset)`, at most `limit`.
#[inline(always)]
fn codes(values: &[f32], minimum: f32, inverse: Option<f32>, offset: f32, limit: i32) -> [u8; LEN] {
    let mut codes = [0u8; LEN];
    let Some(inverse) = inverse else { return codes };
    for (code, value) in codes.iter_mut().zip(values) {
        *code = whole((value - minimum) * inverse + offset).min(limit) as u8;
    }
    codes
}

#[inline(always)]
pub(super) fn put_half(bytes: &mut [u8], value: f32) {
    bytes.copy_from_slice(&f16::from_f32(value).to_le_bytes());
}

/// The four lower bits: value i below, value i + 16 above.
#[inline(always)]
pub(super) fn put_pairs(bytes: &mut [u8], codes: &[u8; LEN]) {
    for i in 0..16 {
        bytes[i] = (codes[i] & 15) | codes[i + 16] << 4;
    }
}

/// The fifth bits as a word.
#[inline(always)]
pub(super) fn put_fifths(bytes: &mut [u8], codes: &[u8; LEN]) {
    let mut word = 0u32;
    for (at, code) in codes.iter().enumerate() {
        word |= u32::from(code >> 4 & 1) << at;
    }
    bytes.copy_from_slice(&word.to_le_bytes());
}

/// Blocks that were fitted side by side.
#[inline(always)]
pub(super) fn put_signed(found: &Signed<32>, bytes: &mut [u8], block_bytes: usize) {
    for (lane, block) in bytes.chunks_exact_mut(block_bytes).enumerate() {
        put_half(&mut block[..2], found.scale[lane]);
        put_found(&found.codes, lane, &mut block[2..]);
    }
}

#[inline(always)]
pub(super) fn put_affine(found: &Affine<32>, bytes: &mut [u8], block_bytes: usize) {
    for (lane, block) in bytes.chunks_exact_mut(block_bytes).enumerate() {
        put_half(&mut block[..2], found.scale[lane]);
        put_half(&mut block[2..4], -found.below[lane]);
        put_found(&found.codes, lane, &mut block[4..]);
    }
}

/// Codes of four bits are 16 bytes; those of five are 20, the fifth bits first.
#[inline(always)]
fn put_found(codes: &[Lanes; 32], lane: usize, bytes: &mut [u8]) {
    let codes = codes.map(|codes| whole(codes[lane]) as u8);
    let fifths_len = bytes.len() - 16;
    if fifths_len > 0 {
        put_fifths(&mut bytes[..fifths_len], &codes);
    }
    put_pairs(&mut bytes[fifths_len..], &codes);
}
