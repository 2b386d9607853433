//! Processors of the x86-64 family.

use std::arch::x86_64::*;

use super::Isa;

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
