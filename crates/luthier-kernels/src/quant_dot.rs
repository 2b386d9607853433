//! Dot products with rows of 4- and 8-bit blocks, widened in registers.

use crate::blocks::BlockType;
use crate::simd::{LANES, mul_add, reduce};
use crate::widen::f16_to_f32;

/// Whether rows of this type are multiplied here.
pub(crate) fn covers(block_type: BlockType) -> bool {
    matches!(block_type, BlockType::Q4_0 | BlockType::Q4_1 | BlockType::Q8_0)
}

/// The dot product of x with one row of a type that [`covers`] names.
#[inline(always)]
pub(crate) fn dot_row<const FMA: bool>(block_type: BlockType, x: &[f32], row: &[u8]) -> f32 {
    match block_type {
        BlockType::Q4_0 => q4_0::<FMA>(x, row),
        BlockType::Q4_1 => q4_1::<FMA>(x, row),
        BlockType::Q8_0 => q8_0::<FMA>(x, row),
        _ => unreachable!("the caller asks `covers` first"),
    }
}

#[inline(always)]
fn half_at(block: &[u8], at: usize) -> f32 {
    f16_to_f32(u16::from_le_bytes([block[at], block[at + 1]]))
}

#[inline(always)]
fn q4_0<const FMA: bool>(x: &[f32], row: &[u8]) -> f32 {
    let mut sums = [[0f32; LANES]; 2];
    for (block, x) in row.chunks_exact(18).zip(x.chunks_exact(32)) {
        let scale = half_at(block, 0);
        let pairs = &block[2..18];
        for i in 0..LANES {
            let (low, high) = (i32::from(pairs[i] & 15) - 8, i32::from(pairs[i] >> 4) - 8);
            sums[0][i] = mul_add::<FMA>(low as f32 * scale, x[i], sums[0][i]);
            sums[1][i] = mul_add::<FMA>(high as f32 * scale, x[i + LANES], sums[1][i]);
        }
    }
    total(sums)
}

#[inline(always)]
fn q4_1<const FMA: bool>(x: &[f32], row: &[u8]) -> f32 {
    let mut sums = [[0f32; LANES]; 2];
    for (block, x) in row.chunks_exact(20).zip(x.chunks_exact(32)) {
        let (scale, minimum) = (half_at(block, 0), half_at(block, 2));
        let pairs = &block[4..20];
        for i in 0..LANES {
            let (low, high) = (i32::from(pairs[i] & 15) as f32, i32::from(pairs[i] >> 4) as f32);
            sums[0][i] = mul_add::<FMA>(mul_add::<FMA>(low, scale, minimum), x[i], sums[0][i]);
            sums[1][i] = mul_add::<FMA>(mul_add::<FMA>(high, scale, minimum), x[i + LANES], sums[1][i]);
        }
    }
    total(sums)
}

#[inline(always)]
fn q8_0<const FMA: bool>(x: &[f32], row: &[u8]) -> f32 {
    let mut sums = [[0f32; LANES]; 2];
    for (block, x) in row.chunks_exact(34).zip(x.chunks_exact(32)) {
        let scale = half_at(block, 0);
        let quants = &block[2..34];
        for i in 0..LANES {
            sums[0][i] = mul_add::<FMA>(f32::from(quants[i] as i8) * scale, x[i], sums[0][i]);
            let high = f32::from(quants[i + LANES] as i8) * scale;
            sums[1][i] = mul_add::<FMA>(high, x[i + LANES], sums[1][i]);
        }
    }
    total(sums)
}

#[inline(always)]
fn total(sums: [[f32; LANES]; 2]) -> f32 {
    let mut all = sums[0];
    for i in 0..LANES {
        all[i] += sums[1][i];
    }
    reduce(all)
}
