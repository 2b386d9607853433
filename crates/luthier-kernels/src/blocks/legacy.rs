//! ggml's blocks of 32 values: one f16 scale, for `_1` types an f16 minimum too, and 4, 5 or 8 bits a value.
//!
//! In the 4-bit part byte `i` holds value `i` below and value `i + 16` above; in the 5-bit types bit `i` of a 32-bit
//! word is the fifth bit of value `i`.

use super::floats::f16_at;

const LEN: usize = 32;

/// The 32 four-bit numbers of a block, from its 16 bytes of pairs.
#[inline(always)]
fn four_bit(pairs: &[u8]) -> [i32; LEN] {
    let mut quants = [0i32; LEN];
    for i in 0..16 {
        quants[i] = i32::from(pairs[i] & 15);
        quants[i + 16] = i32::from(pairs[i] >> 4);
    }
    quants
}

#[inline(always)]
pub(super) fn widen_q4_0(source: &[u8], target: &mut [f32]) {
    for (block, values) in source.chunks_exact(18).zip(target.chunks_exact_mut(LEN)) {
        let scale = f16_at(block, 0);
        for (value, quant) in values.iter_mut().zip(four_bit(&block[2..18])) {
            *value = (quant - 8) as f32 * scale;
        }
    }
}

#[inline(always)]
pub(super) fn widen_q4_1(source: &[u8], target: &mut [f32]) {
    for (block, values) in source.chunks_exact(20).zip(target.chunks_exact_mut(LEN)) {
        let (scale, minimum) = (f16_at(block, 0), f16_at(block, 2));
        for (value, quant) in values.iter_mut().zip(four_bit(&block[4..20])) {
            *value = quant as f32 * scale + minimum;
        }
    }
}

/// The 32 five-bit numbers of a block, from its word of fifth bits and its 16 bytes of pairs.
#[inline(always)]
fn five_bit(block: &[u8], fifth_at: usize) -> [i32; LEN] {
    let fifth =
        u32::from_le_bytes([block[fifth_at], block[fifth_at + 1], block[fifth_at + 2], block[fifth_at + 3]]);
    let pairs = &block[fifth_at + 4..fifth_at + 20];
    let mut quants = [0i32; LEN];
    for i in 0..16 {
        quants[i] = (u32::from(pairs[i] & 15) | ((fifth >> i) & 1) << 4) as i32;
        quants[i + 16] = (u32::from(pairs[i] >> 4) | ((fifth >> (i + 16)) & 1) << 4) as i32;
    }
    quants
}

#[inline(always)]
pub(super) fn widen_q5_0(source: &[u8], target: &mut [f32]) {
    for (block, values) in source.chunks_exact(22).zip(target.chunks_exact_mut(LEN)) {
        let scale = f16_at(block, 0);
        for (value, quant) in values.iter_mut().zip(five_bit(block, 2)) {
            *value = (quant - 16) as f32 * scale;
        }
    }
}

#[inline(always)]
pub(super) fn widen_q5_1(source: &[u8], target: &mut [f32]) {
    for (block, values) in source.chunks_exact(24).zip(target.chunks_exact_mut(LEN)) {
        let (scale, minimum) = (f16_at(block, 0), f16_at(block, 2));
        for (value, quant) in values.iter_mut().zip(five_bit(block, 4)) {
            *value = quant as f32 * scale + minimum;
        }
    }
}

#[inline(always)]
pub(super) fn widen_q8_0(source: &[u8], target: &mut [f32]) {
    for (block, values) in source.chunks_exact(34).zip(target.chunks_exact_mut(LEN)) {
        let scale = f16_at(block, 0);
        for (value, &quant) in values.iter_mut().zip(&block[2..34]) {
            *value = f32::from(quant as i8) * scale;
        }
    }
}
