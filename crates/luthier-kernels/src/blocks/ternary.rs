//! ggml's ternary blocks of 256 values: one f16 scale, and -1, 0 or 1 a value in 1.69 (TQ1_0) or 2.06 bits (TQ2_0).
//!
//! TQ1_0 keeps five ternary digits in a byte as the fraction q / 243, rounded up to 256ths, so that a digit is read by a
//! multiplication: digit n is the whole part of 3 * frac(q * 3^n / 256).

use half::f16;

use super::floats::f16_at;
use super::quantize_legacy::inverse;

const LEN: usize = 256;
const POWERS: [u8; 5] = [1, 3, 9, 27, 81];

/// Runs of a TQ1_0 block: first byte, bytes, digits in each byte. Digit n of byte i is value `n * bytes + i` of the run.
const RUNS: [(usize, usize, usize); 3] = [(0, 32, 5), (32, 16, 5), (48, 4, 4)];

/// `[32 bytes of 5 digits][16 bytes of 5 digits][4 bytes of 4 digits][scale f16]`
#[inline(always)]
pub(super) fn widen_tq1_0(source: &[u8], target: &mut [f32]) {
    for (block, values) in source.chunks_exact(54).zip(target.chunks_exact_mut(LEN)) {
        let scale = f16_at(block, 52);
        let mut at = 0;
        for (start, n_bytes, n_digits) in RUNS {
            for power in &POWERS[..n_digits] {
                for (value, &byte) in values[at..at + n_bytes].iter_mut().zip(&block[start..]) {
                    let digit = (u16::from(byte.wrapping_mul(*power)) * 3) >> 8;
                    *value = f32::from(digit as i16 - 1) * scale;
                }
                at += n_bytes;
            }
        }
    }
}

/// `[64 bytes of 4 pairs of bits][scale f16]`; pair n of byte i of a half is value `32 n + i`.
#[inline(always)]
pub(super) fn widen_tq2_0(source: &[u8], target: &mut [f32]) {
    for (block, values) in source.chunks_exact(66).zip(target.chunks_exact_mut(LEN)) {
        let scale = f16_at(block, 64);
        for (part, values) in values.chunks_exact_mut(32).enumerate() {
            let (half, shift) = (part / 4, part % 4 * 2);
            for (value, &byte) in values.iter_mut().zip(&block[half * 32..]) {
                *value = f32::from(((byte >> shift) & 3) as i8 - 1) * scale;
            }
        }
    }
}

/// The scale is the largest magnitude; every value goes to the nearest of -1, 0, 1 times it, halves away from zero.
#[inline(always)]
pub(super) fn quantize_tq1_0(source: &[f32], target: &mut [u8]) {
    for (values, block) in source.chunks_exact(LEN).zip(target.chunks_exact_mut(54)) {
        let digits = digits(values, &mut block[52..]);
        let mut at = 0;
        for (start, n_bytes, n_digits) in RUNS {
            for i in 0..n_bytes {
                let mut number = 0u16;
                for n in 0..5 {
                    number =
                        number * 3 + if n < n_digits { u16::from(digits[at + n * n_bytes + i]) } else { 0 };
                }
                block[start + i] = (number * 256).div_ceil(243) as u8;
            }
            at += n_bytes * n_digits;
        }
    }
}

/// As [`quantize_tq1_0`].
#[inline(always)]
pub(super) fn quantize_tq2_0(source: &[f32], target: &mut [u8]) {
    for (values, block) in source.chunks_exact(LEN).zip(target.chunks_exact_mut(66)) {
        let digits = digits(values, &mut block[64..]);
        for half in 0..2 {
            for i in 0..32 {
                let pair = |n: usize| digits[half * 128 + n * 32 + i] << (2 * n);
                block[half * 32 + i] = pair(0) | pair(1) | pair(2) | pair(3);
            }
        }
    }
}

/// 0, 1 or 2 for each value of a block; writes its scale.
#[inline(always)]
fn digits(values: &[f32], scale_bytes: &mut [u8]) -> [u8; LEN] {
    let mut largest = [0f32; 16];
    for values in values.chunks_exact(16) {
        for lane in 0..16 {
            let magnitude = values[lane].abs();
            largest[lane] = if magnitude > largest[lane] { magnitude } else { largest[lane] };
        }
    }
    let scale = largest.into_iter().fold(0f32, f32::max);
    let inverse = inverse(scale).unwrap_or(0.0);
    scale_bytes.copy_from_slice(&f16::from_f32(scale).to_le_bytes());
    let mut digits = [0u8; LEN];
    for (digit, value) in digits.iter_mut().zip(values) {
        let scaled = value * inverse;
        *digit = 1 + u8::from(scaled >= 0.5) - u8::from(scaled <= -0.5);
    }
    digits
}
