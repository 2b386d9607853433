//! Processors of the x86-64 family with AVX-512.

use std::arch::x86_64::*;

use super::{Isa, ROWS};

/// AVX-512 with VNNI.
#[derive(Clone, Copy)]
pub(crate) struct Vnni;

impl Isa for Vnni {
    type Ints = __m512i;
    type Floats = __m512;
    const REGISTERS: usize = 32;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> __m512i {
        unsafe { _mm512_loadu_si512(from.cast()) }
    }
    #[inline(always)]
    unsafe fn store(to: *mut u8, values: __m512i) {
        unsafe { _mm512_storeu_si512(to.cast(), values) }
    }
    #[inline(always)]
    unsafe fn prefetch(from: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(from.cast()) }
    }
    #[inline(always)]
    unsafe fn prefetch_to_write(to: *const u8) {
        // Without effect on registers and memory; processors without it pass over it.
        unsafe { std::arch::asm!("prefetchw [{}]", in(reg) to, options(nostack, preserves_flags)) }
    }
    #[inline(always)]
    unsafe fn load_u8(from: *const u8) -> __m512i {
        unsafe { _mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast())) }
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const u8) -> __m512i {
        unsafe { _mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast())) }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> __m512 {
        unsafe {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
    }
    #[inline(always)]
    unsafe fn load_floats(from: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(from) }
    }
    #[inline(always)]
    unsafe fn store_floats(to: *mut f32, values: __m512) {
        unsafe { _mm512_storeu_ps(to, values) }
    }
    #[inline(always)]
    unsafe fn whole(value: i32) -> __m512i {
        unsafe { _mm512_set1_epi32(value) }
    }
    #[inline(always)]
    unsafe fn float(value: f32) -> __m512 {
        unsafe { _mm512_set1_ps(value) }
    }
    #[inline(always)]
    unsafe fn bits(bytes: __m512i, right: u32, mask: u8) -> __m512i {
        unsafe {
            // Counts are known once loops are unrolled, and become those of immediate shifts.
            let moved = _mm512_srl_epi16(bytes, _mm_cvtsi32_si128(right as i32));
            _mm512_and_si512(moved, _mm512_set1_epi8(mask as i8))
        }
    }
    #[inline(always)]
    unsafe fn beside(low: __m512i, bytes: __m512i, right: u32, left: u32, mask: u8) -> __m512i {
        unsafe {
            let moved = match right > left {
                true => _mm512_srl_epi16(bytes, _mm_cvtsi32_si128((right - left) as i32)),
                false => _mm512_sll_epi16(bytes, _mm_cvtsi32_si128((left - right) as i32)),
            };
            // low | (moved & mask)
            _mm512_ternarylogic_epi32::<0xf8>(low, moved, _mm512_set1_epi8(mask as i8))
        }
    }
    #[inline(always)]
    unsafe fn table(bytes: &[u8; 16]) -> __m512i {
        unsafe { _mm512_broadcast_i32x4(_mm_loadu_si128(bytes.as_ptr().cast())) }
    }
    #[inline(always)]
    unsafe fn lookup(table: __m512i, codes: __m512i) -> __m512i {
        unsafe { _mm512_shuffle_epi8(table, codes) }
    }
    #[inline(always)]
    unsafe fn dot<const WIDE: bool>(sum: __m512i, codes: __m512i, x: *const i8) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(sum, codes, _mm512_set1_epi32(x.cast::<i32>().read_unaligned())) }
    }
    #[inline(always)]
    unsafe fn join(high: __m512i, low: __m512i) -> __m512i {
        unsafe { _mm512_add_epi32(_mm512_slli_epi32::<8>(high), low) }
    }
    #[inline(always)]
    unsafe fn to_floats(values: __m512i) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(values) }
    }
    #[inline(always)]
    unsafe fn round(values: __m512) -> __m512i {
        unsafe { _mm512_maskz_cvtps_epi32(_mm512_cmp_ps_mask::<_CMP_ORD_Q>(values, values), values) }
    }
    #[inline(always)]
    unsafe fn store_bytes(to: *mut i8, values: __m512i) {
        unsafe { _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(values)) }
    }
    #[inline(always)]
    unsafe fn high(values: __m512i) -> __m512i {
        unsafe {
            let low = _mm512_srai_epi32::<24>(_mm512_slli_epi32::<24>(values));
            _mm512_srai_epi32::<8>(_mm512_sub_epi32(values, low))
        }
    }
    #[inline(always)]
    unsafe fn store_words(to: *mut i16, values: __m512i) {
        unsafe { _mm256_storeu_si256(to.cast(), _mm512_cvtepi32_epi16(values)) }
    }
    #[inline(always)]
    unsafe fn transpose(vectors: [__m512i; ROWS]) -> [__m512i; ROWS] {
        let mut result = vectors;
        // First inside of quarters, four rows each, then quarters of the rows that belong together.
        for first in (0..ROWS).step_by(4) {
            let [a, b, c, d] = std::array::from_fn(|at| vectors[first + at]);
            unsafe {
                let (low, high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
                let (low_2, high_2) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
                result[first] = _mm512_unpacklo_epi64(low, low_2);
                result[first + 1] = _mm512_unpackhi_epi64(low, low_2);
                result[first + 2] = _mm512_unpacklo_epi64(high, high_2);
                result[first + 3] = _mm512_unpackhi_epi64(high, high_2);
            }
        }
        for at in 0..4 {
            let [a, b, c, d] = std::array::from_fn(|quarter| result[4 * quarter + at]);
            unsafe {
                let (even, odd) = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xdd>(a, b));
                let (even_2, odd_2) =
                    (_mm512_shuffle_i32x4::<0x88>(c, d), _mm512_shuffle_i32x4::<0xdd>(c, d));
                result[at] = _mm512_shuffle_i32x4::<0x88>(even, even_2);
                result[4 + at] = _mm512_shuffle_i32x4::<0x88>(odd, odd_2);
                result[8 + at] = _mm512_shuffle_i32x4::<0xdd>(even, even_2);
                result[12 + at] = _mm512_shuffle_i32x4::<0xdd>(odd, odd_2);
            }
        }
        result
    }
    #[inline(always)]
    unsafe fn f16_pairs(pairs: __m512i) -> [__m512; 2] {
        unsafe {
            let high = _mm512_srli_epi32::<16>(pairs);
            [pairs, high].map(|halves| _mm512_cvtph_ps(_mm512_cvtepi32_epi16(halves)))
        }
    }
    #[inline(always)]
    unsafe fn bf16_pairs(pairs: __m512i) -> [__m512; 2] {
        unsafe {
            let high = _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff_0000_u32 as i32));
            [_mm512_slli_epi32::<16>(pairs), high].map(|bits| _mm512_castsi512_ps(bits))
        }
    }
    #[inline(always)]
    unsafe fn larger_halves(most: __m512i, pairs: __m512i) -> __m512i {
        unsafe { _mm512_max_epu16(most, _mm512_and_si512(pairs, _mm512_set1_epi16(i16::MAX))) }
    }
    #[inline(always)]
    unsafe fn pair_words(low: __m512i, high: __m512i) -> __m512i {
        unsafe { _mm512_mask_blend_epi16(0xaaaa_aaaa, low, _mm512_slli_epi32::<16>(high)) }
    }
    #[inline(always)]
    unsafe fn dot_words(sum: __m512i, codes: __m512i, x: *const i16) -> __m512i {
        unsafe { _mm512_dpwssd_epi32(sum, codes, _mm512_set1_epi32(x.cast::<i32>().read_unaligned())) }
    }
    #[inline(always)]
    unsafe fn add(a: __m512i, b: __m512i) -> __m512i {
        unsafe { _mm512_add_epi32(a, b) }
    }
    #[inline(always)]
    unsafe fn sum(values: __m512i) -> i32 {
        unsafe { _mm512_reduce_add_epi32(values) }
    }
    #[inline(always)]
    unsafe fn largest(a: __m512, b: __m512) -> f32 {
        unsafe {
            let magnitude = |x: __m512| _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(i32::MAX));
            // Magnitudes of floats are ordered as their bits are, those that are not finite last.
            f32::from_bits(_mm512_reduce_max_epi32(_mm512_max_epi32(magnitude(a), magnitude(b))) as u32)
        }
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
}
