//! Little-endian f32, f16 and bf16 bytes to f32 values, and rounding of f32 to bf16.

use crate::simd::dispatch;

dispatch! {
    /// `target.len() * 4` bytes.
    pub fn f32_bytes(source: &[u8], target: &mut [f32]) = f32_body
}

dispatch! {
    /// `target.len() * 2` bytes.
    pub fn f16_bytes(source: &[u8], target: &mut [f32]) = f16_body
}

dispatch! {
    /// `target.len() * 2` bytes.
    pub fn bf16_bytes(source: &[u8], target: &mut [f32]) = bf16_body
}

#[inline(always)]
fn f32_body<const FMA: bool>(source: &[u8], target: &mut [f32]) {
    assert_eq!(source.len(), target.len() * 4);
    for (value, bytes) in target.iter_mut().zip(source.chunks_exact(4)) {
        *value = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
}

#[inline(always)]
fn f16_body<const FMA: bool>(source: &[u8], target: &mut [f32]) {
    assert_eq!(source.len(), target.len() * 2);
    for (value, bytes) in target.iter_mut().zip(source.chunks_exact(2)) {
        *value = f16_to_f32(u16::from_le_bytes([bytes[0], bytes[1]]));
    }
}

#[inline(always)]
fn bf16_body<const FMA: bool>(source: &[u8], target: &mut [f32]) {
    assert_eq!(source.len(), target.len() * 2);
    for (value, bytes) in target.iter_mut().zip(source.chunks_exact(2)) {
        *value = f32::from_bits(u32::from(u16::from_le_bytes([bytes[0], bytes[1]])) << 16);
    }
}

/// Without branches, so that loops over it become vector code. Exponents are moved by a product with 2^112, which
/// also normalises subnormal values; infinities and NaN get their exponent filled.
#[inline(always)]
pub(crate) fn f16_to_f32(bits: u16) -> f32 {
    let magnitude = u32::from(bits & 0x7fff) << 13;
    let moved = (f32::from_bits(magnitude) * f32::from_bits(0x7780_0000)).to_bits();
    let moved = if magnitude >= 0x0f80_0000 { magnitude | 0x7f80_0000 } else { moved };
    f32::from_bits(moved | (u32::from(bits & 0x8000) << 16))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_f16_and_bf16_widens_exactly() {
        let all: Vec<u16> = (0..=u16::MAX).collect();
        let bytes: Vec<u8> = all.iter().flat_map(|bits| bits.to_le_bytes()).collect();
        let mut widened = vec![0f32; all.len()];
        f16_bytes(&bytes, &mut widened);
        for (&bits, &value) in all.iter().zip(&widened) {
            let expected = half::f16::from_bits(bits).to_f32();
            assert!(
                value.to_bits() == expected.to_bits() || (value.is_nan() && expected.is_nan()),
                "{bits:#x}"
            );
        }
        bf16_bytes(&bytes, &mut widened);
        for (&bits, &value) in all.iter().zip(&widened) {
            assert_eq!(value.to_bits(), u32::from(bits) << 16);
        }
    }
}
