//! ggml's blocks of 256 values: an f16 scale of scales, a small scale for every 16 or 32 values, 2 to 6 bits a value.
//!
//! The products are taken in ggml's order (scale of scales times small scale first), which makes the results equal bit
//! for bit.

use super::floats::f16_at;

const LEN: usize = 256;

/// `[16 scale|minimum nibbles][64 pairs of pairs][scale f16][minimum f16]`
#[inline(always)]
pub(super) fn widen_q2_k(source: &[u8], target: &mut [f32]) {
    for (block, values) in source.chunks_exact(84).zip(target.chunks_exact_mut(LEN)) {
        let (scale, minimum) = (f16_at(block, 80), f16_at(block, 82));
        for (group, values) in values.chunks_exact_mut(16).enumerate() {
            let small = block[group];
            let group_scale = scale * f32::from(small & 15);
            let group_minimum = minimum * f32::from(small >> 4);
            // A half of 128 values shares 32 bytes; each quarter of it is two more bits up.
            let (half, shift, side) = (group / 8, group % 8 / 2 * 2, group % 2);
            let quants = &block[16 + half * 32 + side * 16..][..16];
            for (value, &quant) in values.iter_mut().zip(quants) {
                *value = group_scale * f32::from((quant >> shift) & 3) - group_minimum;
            }
        }
    }
}

/// The 16 six-bit scales of a Q3_K block, minus 32: low nibbles in 8 bytes, upper pairs of bits in 4.
#[inline(always)]
fn q3_k_scales(packed: &[u8]) -> [i32; 16] {
    let mut scales = [0i32; 16];
    for (i, scale) in scales.iter_mut().enumerate() {
        let low = if i < 8 { packed[i] & 15 } else { packed[i - 8] >> 4 };
        let high = (packed[8 + i % 4] >> (i / 4 * 2)) & 3;
        *scale = i32::from(low | high << 4) - 32;
    }
    scales
}

/// `[32 bytes of third bits][64 pairs of pairs][12 packed scales][scale f16]`
#[inline(always)]
pub(super) fn widen_q3_k(source: &[u8], target: &mut [f32]) {
    for (block, values) in source.chunks_exact(110).zip(target.chunks_exact_mut(LEN)) {
        let scale = f16_at(block, 108);
        let scales = q3_k_scales(&block[96..108]);
        for (group, values) in values.chunks_exact_mut(16).enumerate() {
            let group_scale = scale * scales[group] as f32;
            let (half, quarter, side) = (group / 8, group % 8 / 2, group % 2);
            let quants = &block[32 + half * 32 + side * 16..][..16];
            let thirds = &block[side * 16..][..16];
            for ((value, &quant), &third) in values.iter_mut().zip(quants).zip(thirds) {
                let low = i32::from((quant >> (quarter * 2)) & 3);
                let high = i32::from((third >> (half * 4 + quarter)) & 1) * 4;
                *value = group_scale * (low + high - 4) as f32;
            }
        }
    }
}

/// Small scale and minimum of group `i` (of 8) in the 12 bytes that Q4_K and Q5_K share: six bits each.
#[inline(always)]
fn scale_and_minimum(packed: &[u8], i: usize) -> (f32, f32) {
    if i < 4 {
        (f32::from(packed[i] & 63), f32::from(packed[i + 4] & 63))
    } else {
        let low = packed[i + 4];
        let (scale_high, minimum_high) = (packed[i - 4] >> 6, packed[i] >> 6);
        (f32::from(low & 15 | scale_high << 4), f32::from(low >> 4 | minimum_high << 4))
    }
}

/// `[scale f16][minimum f16][12 packed scales][128 pairs]`
#[inline(always)]
pub(super) fn widen_q4_k(source: &[u8], target: &mut [f32]) {
    for (block, values) in source.chunks_exact(144).zip(target.chunks_exact_mut(LEN)) {
        let (scale, minimum) = (f16_at(block, 0), f16_at(block, 2));
        for (group, values) in values.chunks_exact_mut(32).enumerate() {
            let (small_scale, small_minimum) = scale_and_minimum(&block[4..16], group);
            let (group_scale, group_minimum) = (scale * small_scale, minimum * small_minimum);
            let shift = group % 2 * 4;
            let quants = &block[16 + group / 2 * 32..][..32];
            for (value, &quant) in values.iter_mut().zip(quants) {
                *value = group_scale * f32::from((quant >> shift) & 15) - group_minimum;
            }
        }
    }
}

/// `[scale f16][minimum f16][12 packed scales][32 bytes of fifth bits][128 pairs]`
#[inline(always)]
pub(super) fn widen_q5_k(source: &[u8], target: &mut [f32]) {
    for (block, values) in source.chunks_exact(176).zip(target.chunks_exact_mut(LEN)) {
        let (scale, minimum) = (f16_at(block, 0), f16_at(block, 2));
        for (group, values) in values.chunks_exact_mut(32).enumerate() {
            let (small_scale, small_minimum) = scale_and_minimum(&block[4..16], group);
            let (group_scale, group_minimum) = (scale * small_scale, minimum * small_minimum);
            let shift = group % 2 * 4;
            let quants = &block[48 + group / 2 * 32..][..32];
            let fifths = &block[16..48];
            for ((value, &quant), &fifth) in values.iter_mut().zip(quants).zip(fifths) {
                let quant = (quant >> shift) & 15 | ((fifth >> group) & 1) << 4;
                *value = group_scale * f32::from(quant) - group_minimum;
            }
        }
    }
}

/// `[128 pairs][64 pairs of upper bits][16 scales i8][scale f16]`
#[inline(always)]
pub(super) fn widen_q6_k(source: &[u8], target: &mut [f32]) {
    for (block, values) in source.chunks_exact(210).zip(target.chunks_exact_mut(LEN)) {
        let scale = f16_at(block, 208);
        for (group, values) in values.chunks_exact_mut(16).enumerate() {
            let group_scale = scale * f32::from(block[192 + group] as i8);
            let (half, quarter, side) = (group / 8, group % 8 / 2, group % 2);
            let lows = &block[half * 64 + quarter % 2 * 32 + side * 16..][..16];
            let highs = &block[128 + half * 32 + side * 16..][..16];
            for ((value, &low), &high) in values.iter_mut().zip(lows).zip(highs) {
                let low = (low >> (quarter / 2 * 4)) & 15;
                let high = (high >> (quarter * 2)) & 3;
                *value = group_scale * (i32::from(low | high << 4) - 32) as f32;
            }
        }
    }
}
