//! Plain floats: f32, f16 and bf16 to f32 and back, to the nearest value and to even on a tie.

use half::f16;
use half::slice::HalfFloatSliceExt;

#[inline(always)]
pub(super) fn widen_f32(source: &[u8], target: &mut [f32]) {
    for (value, bytes) in target.iter_mut().zip(source.chunks_exact(4)) {
        *value = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
}

#[inline(always)]
pub(super) fn widen_f16(source: &[u8], target: &mut [f32]) {
    for (value, bytes) in target.iter_mut().zip(source.chunks_exact(2)) {
        *value = f16_at(bytes, 0);
    }
}

/// As [`widen_f16`], by the processor's own conversion: the same values, NaN's payloads aside.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx,f16c")]
pub(super) fn widen_f16_f16c(source: &[u8], target: &mut [f32]) {
    use std::arch::x86_64::{_mm_loadu_si128, _mm256_cvtph_ps, _mm256_storeu_ps};
    assert_eq!(source.len(), target.len() * 2);
    let (sources, targets) = (source.chunks_exact(16), target.chunks_exact_mut(8));
    let source_rest = sources.remainder();
    let n_whole = targets.len() * 8;
    for (source, target) in sources.zip(targets) {
        // SAFETY: the pieces have 16 bytes and 8 values.
        unsafe {
            _mm256_storeu_ps(target.as_mut_ptr(), _mm256_cvtph_ps(_mm_loadu_si128(source.as_ptr().cast())));
        }
    }
    widen_f16(source_rest, &mut target[n_whole..]);
}

#[inline(always)]
pub(super) fn widen_bf16(source: &[u8], target: &mut [f32]) {
    for (value, bytes) in target.iter_mut().zip(source.chunks_exact(2)) {
        *value = f32::from_bits(u32::from(u16::from_le_bytes([bytes[0], bytes[1]])) << 16);
    }
}

/// The f16 at `offset`, widened without a branch, so that a loop over it becomes vector instructions.
#[inline(always)]
pub(super) fn f16_at(bytes: &[u8], offset: usize) -> f32 {
    const EXPONENT_ALL_ONES: u32 = 31 << 23;
    // 2^112 moves f16's exponent bias (15) to f32's (127); exact for normal and subnormal values alike.
    const BIAS: f32 = f32::from_bits((127 + 112) << 23);
    let half = u32::from(u16::from_le_bytes([bytes[offset], bytes[offset + 1]]));
    let sign = (half & 0x8000) << 16;
    let shifted = (half & 0x7fff) << 13;
    let finite = (f32::from_bits(shifted) * BIAS).to_bits();
    let not_finite = shifted | 0x7f80_0000;
    f32::from_bits(sign | if shifted >= EXPONENT_ALL_ONES { not_finite } else { finite })
}

/// Rounds to f16 (nearest, ties to even; too large becomes infinite). `target` has two bytes a value.
pub fn narrow_f16(source: &[f32], target: &mut [u8]) {
    assert_eq!(source.len() * 2, target.len());
    let mut halves = [f16::ZERO; 512];
    for (values, bytes) in source.chunks(512).zip(target.chunks_mut(1024)) {
        let halves = &mut halves[..values.len()];
        halves.convert_from_f32_slice(values);
        for (half, bytes) in halves.iter().zip(bytes.chunks_exact_mut(2)) {
            bytes.copy_from_slice(&half.to_le_bytes());
        }
    }
}

/// Rounds to bf16 (nearest, ties to even; NaN stays NaN). `target` has two bytes a value.
pub fn narrow_bf16(source: &[f32], target: &mut [u8]) {
    assert_eq!(source.len() * 2, target.len());
    for (value, bytes) in source.iter().zip(target.chunks_exact_mut(2)) {
        let bits = value.to_bits();
        let rounded = (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16;
        let quiet_nan = (bits >> 16) as u16 | 0x40;
        let half = if bits & 0x7fff_ffff > 0x7f80_0000 { quiet_nan } else { rounded };
        bytes.copy_from_slice(&half.to_le_bytes());
    }
}
