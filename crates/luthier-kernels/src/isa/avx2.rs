//! Processors of the x86-64 family with AVX2.

use std::arch::x86_64::*;

use super::{Isa, ROWS};

/// AVX2 with FMA and F16C.
#[derive(Clone, Copy)]
pub(crate) struct Avx2;

impl Isa for Avx2 {
    type Ints = [__m256i; 2];
    type Floats = [__m256; 2];
    const REGISTERS: usize = 8;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> Self::Ints {
        unsafe { [_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(32).cast())] }
    }
    #[inline(always)]
    unsafe fn store(to: *mut u8, values: Self::Ints) {
        unsafe {
            _mm256_storeu_si256(to.cast(), values[0]);
            _mm256_storeu_si256(to.add(32).cast(), values[1]);
        }
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
    unsafe fn load_u8(from: *const u8) -> Self::Ints {
        unsafe {
            [
                _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast())),
                _mm256_cvtepu8_epi32(_mm_loadl_epi64(from.add(8).cast())),
            ]
        }
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const u8) -> Self::Ints {
        unsafe {
            [
                _mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast())),
                _mm256_cvtepi8_epi32(_mm_loadl_epi64(from.add(8).cast())),
            ]
        }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> Self::Floats {
        unsafe {
            [
                _mm256_cvtph_ps(_mm_loadu_si128(from.cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(from.add(16).cast())),
            ]
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> Self::Floats {
        let half = |from: *const u8| unsafe {
            let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()));
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
        };
        unsafe { [half(from), half(from.add(16))] }
    }
    #[inline(always)]
    unsafe fn load_floats(from: *const f32) -> Self::Floats {
        unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))] }
    }
    #[inline(always)]
    unsafe fn store_floats(to: *mut f32, values: Self::Floats) {
        unsafe {
            _mm256_storeu_ps(to, values[0]);
            _mm256_storeu_ps(to.add(8), values[1]);
        }
    }
    #[inline(always)]
    unsafe fn whole(value: i32) -> Self::Ints {
        unsafe { [_mm256_set1_epi32(value); 2] }
    }
    #[inline(always)]
    unsafe fn float(value: f32) -> Self::Floats {
        unsafe { [_mm256_set1_ps(value); 2] }
    }
    #[inline(always)]
    unsafe fn bits(bytes: Self::Ints, right: u32, mask: u8) -> Self::Ints {
        let half = |half: __m256i| unsafe {
            let moved = _mm256_srl_epi16(half, _mm_cvtsi32_si128(right as i32));
            _mm256_and_si256(moved, _mm256_set1_epi8(mask as i8))
        };
        [half(bytes[0]), half(bytes[1])]
    }
    #[inline(always)]
    unsafe fn beside(low: Self::Ints, bytes: Self::Ints, right: u32, left: u32, mask: u8) -> Self::Ints {
        let half = |low: __m256i, half: __m256i| unsafe {
            let moved = match right > left {
                true => _mm256_srl_epi16(half, _mm_cvtsi32_si128((right - left) as i32)),
                false => _mm256_sll_epi16(half, _mm_cvtsi32_si128((left - right) as i32)),
            };
            _mm256_or_si256(low, _mm256_and_si256(moved, _mm256_set1_epi8(mask as i8)))
        };
        [half(low[0], bytes[0]), half(low[1], bytes[1])]
    }
    #[inline(always)]
    unsafe fn table(bytes: &[u8; 16]) -> Self::Ints {
        unsafe { [_mm256_broadcastsi128_si256(_mm_loadu_si128(bytes.as_ptr().cast())); 2] }
    }
    #[inline(always)]
    unsafe fn lookup(table: Self::Ints, codes: Self::Ints) -> Self::Ints {
        unsafe { [_mm256_shuffle_epi8(table[0], codes[0]), _mm256_shuffle_epi8(table[1], codes[1])] }
    }
    #[inline(always)]
    unsafe fn dot<const WIDE: bool>(sum: Self::Ints, codes: Self::Ints, x: *const i8) -> Self::Ints {
        let half = |sum: __m256i, codes: __m256i| unsafe {
            let x = _mm256_set1_epi32(x.cast::<i32>().read_unaligned());
            let ones = _mm256_set1_epi16(1);
            if WIDE {
                // Two products of a byte of 8 bits overflow 16 bits: the highest bit is multiplied on its own.
                let low = _mm256_and_si256(codes, _mm256_set1_epi8(127));
                let high = _mm256_and_si256(_mm256_srli_epi16::<7>(codes), _mm256_set1_epi8(1));
                let low = _mm256_madd_epi16(_mm256_maddubs_epi16(low, x), ones);
                let high = _mm256_madd_epi16(_mm256_maddubs_epi16(high, x), _mm256_set1_epi16(128));
                _mm256_add_epi32(sum, _mm256_add_epi32(low, high))
            } else {
                let products = _mm256_maddubs_epi16(codes, x);
                _mm256_add_epi32(sum, _mm256_madd_epi16(products, ones))
            }
        };
        [half(sum[0], codes[0]), half(sum[1], codes[1])]
    }
    #[inline(always)]
    unsafe fn join(high: Self::Ints, low: Self::Ints) -> Self::Ints {
        let half = |high, low| unsafe { _mm256_add_epi32(_mm256_slli_epi32::<8>(high), low) };
        [half(high[0], low[0]), half(high[1], low[1])]
    }
    #[inline(always)]
    unsafe fn to_floats(values: Self::Ints) -> Self::Floats {
        unsafe { [_mm256_cvtepi32_ps(values[0]), _mm256_cvtepi32_ps(values[1])] }
    }
    #[inline(always)]
    unsafe fn round(values: Self::Floats) -> Self::Ints {
        let half = |half: __m256| unsafe {
            let is_number = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_ORD_Q>(half, half));
            _mm256_and_si256(_mm256_cvtps_epi32(half), is_number)
        };
        [half(values[0]), half(values[1])]
    }
    #[inline(always)]
    unsafe fn store_bytes(to: *mut i8, values: Self::Ints) {
        let half = |half: __m256i| unsafe {
            let low = _mm256_set1_epi32(0x0c08_0400);
            let bytes = _mm256_shuffle_epi8(half, low);
            _mm_unpacklo_epi32(_mm256_castsi256_si128(bytes), _mm256_extracti128_si256::<1>(bytes))
        };
        unsafe { _mm_storeu_si128(to.cast(), _mm_unpacklo_epi64(half(values[0]), half(values[1]))) }
    }
    #[inline(always)]
    unsafe fn high(values: Self::Ints) -> Self::Ints {
        let half = |half: __m256i| unsafe {
            let low = _mm256_srai_epi32::<24>(_mm256_slli_epi32::<24>(half));
            _mm256_srai_epi32::<8>(_mm256_sub_epi32(half, low))
        };
        [half(values[0]), half(values[1])]
    }
    #[inline(always)]
    unsafe fn store_words(to: *mut i16, values: Self::Ints) {
        // Saturated, which words that fit never are.
        unsafe {
            let words = _mm256_packs_epi32(values[0], values[1]);
            _mm256_storeu_si256(to.cast(), _mm256_permute4x64_epi64::<0b1101_1000>(words));
        }
    }
    #[inline(always)]
    unsafe fn transpose(vectors: [Self::Ints; ROWS]) -> [Self::Ints; ROWS] {
        let mut result = vectors;
        for (of_rows, of_cols) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let rows: [__m256i; 8] = std::array::from_fn(|row| vectors[8 * of_rows + row][of_cols]);
            // As for 16 lanes, of halves in place of quarters.
            let mut mixed = rows;
            for first in [0, 4] {
                let [a, b, c, d] = std::array::from_fn(|at| rows[first + at]);
                unsafe {
                    let (low, high) = (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
                    let (low_2, high_2) = (_mm256_unpacklo_epi32(c, d), _mm256_unpackhi_epi32(c, d));
                    mixed[first] = _mm256_unpacklo_epi64(low, low_2);
                    mixed[first + 1] = _mm256_unpackhi_epi64(low, low_2);
                    mixed[first + 2] = _mm256_unpacklo_epi64(high, high_2);
                    mixed[first + 3] = _mm256_unpackhi_epi64(high, high_2);
                }
            }
            for at in 0..4 {
                let (a, b) = (mixed[at], mixed[4 + at]);
                unsafe {
                    result[8 * of_cols + at][of_rows] = _mm256_permute2x128_si256::<0x20>(a, b);
                    result[8 * of_cols + 4 + at][of_rows] = _mm256_permute2x128_si256::<0x31>(a, b);
                }
            }
        }
        result
    }
    #[inline(always)]
    unsafe fn f16_pairs(pairs: Self::Ints) -> [Self::Floats; 2] {
        let floats = |halves: __m256i| unsafe {
            let words = _mm256_packus_epi32(halves, halves);
            _mm256_cvtph_ps(_mm256_castsi256_si128(_mm256_permute4x64_epi64::<0b1000>(words)))
        };
        let low = |half: __m256i| unsafe { floats(_mm256_and_si256(half, _mm256_set1_epi32(0xffff))) };
        let high = |half: __m256i| unsafe { floats(_mm256_srli_epi32::<16>(half)) };
        [[low(pairs[0]), low(pairs[1])], [high(pairs[0]), high(pairs[1])]]
    }
    #[inline(always)]
    unsafe fn bf16_pairs(pairs: Self::Ints) -> [Self::Floats; 2] {
        let low = |half: __m256i| unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(half)) };
        let high = |half: __m256i| unsafe {
            _mm256_castsi256_ps(_mm256_and_si256(half, _mm256_set1_epi32(0xffff_0000_u32 as i32)))
        };
        [[low(pairs[0]), low(pairs[1])], [high(pairs[0]), high(pairs[1])]]
    }
    #[inline(always)]
    unsafe fn larger_halves(most: Self::Ints, pairs: Self::Ints) -> Self::Ints {
        let half = |most, half| unsafe {
            _mm256_max_epu16(most, _mm256_and_si256(half, _mm256_set1_epi16(i16::MAX)))
        };
        [half(most[0], pairs[0]), half(most[1], pairs[1])]
    }
    #[inline(always)]
    unsafe fn pair_words(low: Self::Ints, high: Self::Ints) -> Self::Ints {
        let half = |low, high| unsafe { _mm256_blend_epi16::<0xaa>(low, _mm256_slli_epi32::<16>(high)) };
        [half(low[0], high[0]), half(low[1], high[1])]
    }
    #[inline(always)]
    unsafe fn dot_words(sum: Self::Ints, codes: Self::Ints, x: *const i16) -> Self::Ints {
        let half = |sum, codes| unsafe {
            let x = _mm256_set1_epi32(x.cast::<i32>().read_unaligned());
            _mm256_add_epi32(sum, _mm256_madd_epi16(codes, x))
        };
        [half(sum[0], codes[0]), half(sum[1], codes[1])]
    }
    #[inline(always)]
    unsafe fn add(a: Self::Ints, b: Self::Ints) -> Self::Ints {
        unsafe { [_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn sum(values: Self::Ints) -> i32 {
        let mut lanes = [0i32; 8];
        unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), _mm256_add_epi32(values[0], values[1])) };
        lanes.iter().sum()
    }
    #[inline(always)]
    unsafe fn largest(a: Self::Floats, b: Self::Floats) -> f32 {
        let magnitude =
            |x: __m256| unsafe { _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(i32::MAX)) };
        let both = |x: Self::Floats| unsafe { _mm256_max_epi32(magnitude(x[0]), magnitude(x[1])) };
        let mut lanes = [0u32; 8];
        // Magnitudes of floats are ordered as their bits are, those that are not finite last.
        unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), _mm256_max_epi32(both(a), both(b))) };
        f32::from_bits(lanes.into_iter().fold(0, u32::max))
    }
    #[inline(always)]
    unsafe fn mul(a: Self::Floats, b: Self::Floats) -> Self::Floats {
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn mul_add(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats {
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }
}
