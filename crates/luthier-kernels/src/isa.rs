//! The few vector operations that packed products and cached attention need, for each kind of processor: 16 lanes.

/// Rows of a matrix that are multiplied side by side.
pub(crate) const ROWS: usize = 16;

/// Vectors of 16 lanes. All kinds give the same bits: sums of integers are exact, and every float operation is one that
/// they share.
///
/// # Safety
/// Methods are called only on processors that have the features of their kind; pointers are valid for what is read or
/// written there.
pub(crate) trait Isa: Copy {
    /// 64 bytes, or 16 whole numbers.
    type Ints: Copy;
    /// 16 floats.
    type Floats: Copy;
    /// Vectors of 16 lanes that the processor's registers hold.
    const REGISTERS: usize;

    unsafe fn load(from: *const u8) -> Self::Ints;
    /// The same way back.
    unsafe fn store(to: *mut u8, values: Self::Ints);
    /// Asks for the cache line at `from`, which is read soon. No more than a hint: any address will do.
    unsafe fn prefetch(_from: *const u8) {}
    /// Asks for the cache line at `to`, which is written soon, and takes it from other processors' caches.
    unsafe fn prefetch_to_write(_to: *const u8) {}
    /// 16 bytes, each as a whole number without sign.
    unsafe fn load_u8(from: *const u8) -> Self::Ints;
    /// 16 bytes, each as a whole number with its sign.
    unsafe fn load_i8(from: *const u8) -> Self::Ints;
    unsafe fn load_f16(from: *const u8) -> Self::Floats;
    unsafe fn load_bf16(from: *const u8) -> Self::Floats;
    unsafe fn load_floats(from: *const f32) -> Self::Floats;
    unsafe fn store_floats(to: *mut f32, values: Self::Floats);
    unsafe fn whole(value: i32) -> Self::Ints;
    unsafe fn float(value: f32) -> Self::Floats;
    /// The bits of `mask` of each byte after it is moved right.
    unsafe fn bits(bytes: Self::Ints, right: u32, mask: u8) -> Self::Ints;
    /// The bits of `mask` of each byte after it is moved right, then left, beside those of `low`.
    unsafe fn beside(low: Self::Ints, bytes: Self::Ints, right: u32, left: u32, mask: u8) -> Self::Ints;
    /// Sixteen bytes to look up.
    unsafe fn table(bytes: &[u8; 16]) -> Self::Ints;
    /// The byte of the table that each byte of `codes`, below 16, names.
    unsafe fn lookup(table: Self::Ints, codes: Self::Ints) -> Self::Ints;
    /// Each lane of `sum` and the four products of its bytes without sign in `codes` with the four signed bytes at `x`.
    /// `codes` of `WIDE` use all 8 bits, others at most 7.
    unsafe fn dot<const WIDE: bool>(sum: Self::Ints, codes: Self::Ints, x: *const i8) -> Self::Ints;
    /// `high * 256 + low`.
    unsafe fn join(high: Self::Ints, low: Self::Ints) -> Self::Ints;
    unsafe fn to_floats(values: Self::Ints) -> Self::Floats;
    /// The nearest whole number of each value of less than 2^21, halves to the even one; 0 for NaN.
    unsafe fn round(values: Self::Floats) -> Self::Ints;
    /// The low byte of each lane.
    unsafe fn store_bytes(to: *mut i8, values: Self::Ints);
    /// What is left of each lane without its signed low byte, over 256.
    unsafe fn high(values: Self::Ints) -> Self::Ints;
    /// The low 16 bits of each lane.
    unsafe fn store_words(to: *mut i16, values: Self::Ints);
    /// Lane r of vector c becomes lane c of vector r.
    unsafe fn transpose(vectors: [Self::Ints; ROWS]) -> [Self::Ints; ROWS];
    /// The f16 in the low and the one in the high half of each lane.
    unsafe fn f16_pairs(pairs: Self::Ints) -> [Self::Floats; 2];
    /// The bf16 in the low and the one in the high half of each lane.
    unsafe fn bf16_pairs(pairs: Self::Ints) -> [Self::Floats; 2];
    /// The larger of each 16 bits of `most` and the magnitude of the f16 or bf16 in `pairs`, as bits.
    unsafe fn larger_halves(most: Self::Ints, pairs: Self::Ints) -> Self::Ints;
    /// The low 16 bits of each lane of `low` and, above them, those of `high`.
    unsafe fn pair_words(low: Self::Ints, high: Self::Ints) -> Self::Ints;
    /// Each lane of `sum` and the two products of its 16-bit numbers in `codes` with the two at `x`.
    unsafe fn dot_words(sum: Self::Ints, codes: Self::Ints, x: *const i16) -> Self::Ints;
    unsafe fn add(a: Self::Ints, b: Self::Ints) -> Self::Ints;
    unsafe fn sum(values: Self::Ints) -> i32;
    /// The largest magnitude of both; NaN or infinity where there is one.
    unsafe fn largest(a: Self::Floats, b: Self::Floats) -> f32;
    unsafe fn mul(a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// `a * b + c`, rounded once where the processor does that.
    unsafe fn mul_add(a: Self::Floats, b: Self::Floats, c: Self::Floats) -> Self::Floats;
}

#[cfg(target_arch = "x86_64")]
mod avx2;
mod element;
#[cfg(target_arch = "x86_64")]
mod vnni;
pub use element::Element;
#[cfg(target_arch = "x86_64")]
pub(crate) use {avx2::Avx2, vnni::Vnni};

/// Plain loops, for every processor.
#[derive(Clone, Copy)]
pub(crate) struct Plain;

impl Isa for Plain {
    type Ints = [i32; ROWS];
    type Floats = [f32; ROWS];
    const REGISTERS: usize = 8;

    #[inline(always)]
    unsafe fn load(from: *const u8) -> [i32; ROWS] {
        std::array::from_fn(|lane| unsafe { from.cast::<i32>().add(lane).read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(to: *mut u8, values: [i32; ROWS]) {
        values.iter().enumerate().for_each(|(lane, value)| unsafe {
            to.cast::<i32>().add(lane).write_unaligned(*value);
        });
    }
    #[inline(always)]
    unsafe fn load_u8(from: *const u8) -> [i32; ROWS] {
        std::array::from_fn(|lane| i32::from(unsafe { from.add(lane).read() }))
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const u8) -> [i32; ROWS] {
        std::array::from_fn(|lane| i32::from(unsafe { from.cast::<i8>().add(lane).read() }))
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> [f32; ROWS] {
        std::array::from_fn(|lane| unsafe {
            crate::widen::f16_to_f32(u16::from_le(from.cast::<u16>().add(lane).read_unaligned()))
        })
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> [f32; ROWS] {
        std::array::from_fn(|lane| unsafe {
            let bits = u16::from_le(from.cast::<u16>().add(lane).read_unaligned());
            f32::from_bits(u32::from(bits) << 16)
        })
    }
    #[inline(always)]
    unsafe fn load_floats(from: *const f32) -> [f32; ROWS] {
        std::array::from_fn(|lane| unsafe { from.add(lane).read() })
    }
    #[inline(always)]
    unsafe fn store_floats(to: *mut f32, values: [f32; ROWS]) {
        values.iter().enumerate().for_each(|(lane, value)| unsafe { to.add(lane).write(*value) });
    }
    #[inline(always)]
    unsafe fn whole(value: i32) -> [i32; ROWS] {
        [value; ROWS]
    }
    #[inline(always)]
    unsafe fn float(value: f32) -> [f32; ROWS] {
        [value; ROWS]
    }
    #[inline(always)]
    unsafe fn bits(bytes: [i32; ROWS], right: u32, mask: u8) -> [i32; ROWS] {
        bytes.map(|lane| i32::from_ne_bytes(lane.to_ne_bytes().map(|byte| (byte >> right) & mask)))
    }
    #[inline(always)]
    unsafe fn beside(low: [i32; ROWS], bytes: [i32; ROWS], right: u32, left: u32, mask: u8) -> [i32; ROWS] {
        let moved = |byte: u8| ((byte >> right) << left) & mask;
        std::array::from_fn(|lane| low[lane] | i32::from_ne_bytes(bytes[lane].to_ne_bytes().map(moved)))
    }
    #[inline(always)]
    unsafe fn table(bytes: &[u8; 16]) -> [i32; ROWS] {
        bytes.map(i32::from)
    }
    #[inline(always)]
    unsafe fn lookup(table: [i32; ROWS], codes: [i32; ROWS]) -> [i32; ROWS] {
        let found = |code: u8| table[usize::from(code % 16)] as u8;
        codes.map(|lane| i32::from_ne_bytes(lane.to_ne_bytes().map(found)))
    }
    #[inline(always)]
    unsafe fn dot<const WIDE: bool>(sum: [i32; ROWS], codes: [i32; ROWS], x: *const i8) -> [i32; ROWS] {
        let x: [i32; 4] = std::array::from_fn(|at| i32::from(unsafe { x.add(at).read() }));
        std::array::from_fn(|lane| {
            let codes = codes[lane].to_ne_bytes();
            (0..4).fold(sum[lane], |sum, at| sum + i32::from(codes[at]) * x[at])
        })
    }
    #[inline(always)]
    unsafe fn join(high: [i32; ROWS], low: [i32; ROWS]) -> [i32; ROWS] {
        std::array::from_fn(|lane| (high[lane] << 8) + low[lane])
    }
    #[inline(always)]
    unsafe fn to_floats(values: [i32; ROWS]) -> [f32; ROWS] {
        values.map(|value| value as f32)
    }
    #[inline(always)]
    unsafe fn round(values: [f32; ROWS]) -> [i32; ROWS] {
        // 1.5 * 2^23: what is added shifts the whole number to the end of the fraction.
        const SHIFT: f32 = 12_582_912.0;
        let whole = |value: f32| (value + SHIFT).to_bits() as i32 - SHIFT.to_bits() as i32;
        values.map(|value| if value.is_nan() { 0 } else { whole(value) })
    }
    #[inline(always)]
    unsafe fn store_bytes(to: *mut i8, values: [i32; ROWS]) {
        values.iter().enumerate().for_each(|(lane, value)| unsafe { to.add(lane).write(*value as i8) });
    }
    #[inline(always)]
    unsafe fn high(values: [i32; ROWS]) -> [i32; ROWS] {
        values.map(|value| (value - i32::from(value as i8)) >> 8)
    }
    #[inline(always)]
    unsafe fn store_words(to: *mut i16, values: [i32; ROWS]) {
        values.iter().enumerate().for_each(|(lane, value)| unsafe { to.add(lane).write(*value as i16) });
    }
    #[inline(always)]
    unsafe fn transpose(vectors: [[i32; ROWS]; ROWS]) -> [[i32; ROWS]; ROWS] {
        std::array::from_fn(|row| std::array::from_fn(|col| vectors[col][row]))
    }
    #[inline(always)]
    unsafe fn f16_pairs(pairs: [i32; ROWS]) -> [[f32; ROWS]; 2] {
        let halves = |right: u32| pairs.map(|pair| crate::widen::f16_to_f32((pair >> right) as u16));
        [halves(0), halves(16)]
    }
    #[inline(always)]
    unsafe fn bf16_pairs(pairs: [i32; ROWS]) -> [[f32; ROWS]; 2] {
        let halves = |left: u32| pairs.map(|pair| f32::from_bits(((pair as u32) << left) & 0xffff_0000));
        [halves(16), halves(0)]
    }
    #[inline(always)]
    unsafe fn larger_halves(most: [i32; ROWS], pairs: [i32; ROWS]) -> [i32; ROWS] {
        std::array::from_fn(|lane| {
            let (a, b) = (most[lane] as u32, pairs[lane] as u32 & 0x7fff_7fff);
            ((a & 0xffff).max(b & 0xffff) | (a & 0xffff_0000).max(b & 0xffff_0000)) as i32
        })
    }
    #[inline(always)]
    unsafe fn pair_words(low: [i32; ROWS], high: [i32; ROWS]) -> [i32; ROWS] {
        std::array::from_fn(|lane| (low[lane] & 0xffff) | (high[lane] << 16))
    }
    #[inline(always)]
    unsafe fn dot_words(sum: [i32; ROWS], codes: [i32; ROWS], x: *const i16) -> [i32; ROWS] {
        let x: [i32; 2] = std::array::from_fn(|at| i32::from(unsafe { x.add(at).read() }));
        let product = |code: i32| i32::from(code as i16) * x[0] + (code >> 16) * x[1];
        std::array::from_fn(|lane| sum[lane] + product(codes[lane]))
    }
    #[inline(always)]
    unsafe fn add(a: [i32; ROWS], b: [i32; ROWS]) -> [i32; ROWS] {
        std::array::from_fn(|lane| a[lane] + b[lane])
    }
    #[inline(always)]
    unsafe fn sum(values: [i32; ROWS]) -> i32 {
        values.iter().sum()
    }
    #[inline(always)]
    unsafe fn largest(a: [f32; ROWS], b: [f32; ROWS]) -> f32 {
        // Magnitudes of floats are ordered as their bits are, those that are not finite last.
        f32::from_bits(a.iter().chain(&b).fold(0, |most, value| most.max(value.to_bits() & 0x7fff_ffff)))
    }
    #[inline(always)]
    unsafe fn mul(a: [f32; ROWS], b: [f32; ROWS]) -> [f32; ROWS] {
        std::array::from_fn(|lane| a[lane] * b[lane])
    }
    #[inline(always)]
    unsafe fn mul_add(a: [f32; ROWS], b: [f32; ROWS], c: [f32; ROWS]) -> [f32; ROWS] {
        std::array::from_fn(|lane| {
            crate::simd::mul_add::<{ crate::simd::BASELINE_FMA }>(a[lane], b[lane], c[lane])
        })
    }
}

/// Defines a function that runs `body::<Isa, E>` compiled for the processor.
macro_rules! on_processor {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) = $body:ident) => {
        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) {
            $crate::isa::on_processor!(@run [$body] [] ($($arg: $ty),*));
        }
    };
    ($(#[$meta:meta])* $vis:vis fn $name:ident<$kind:ident: $bound:path>($($arg:ident: $ty:ty),* $(,)?) = $body:ident) => {
        $(#[$meta])*
        $vis fn $name<$kind: $bound>($($arg: $ty),*) {
            $crate::isa::on_processor!(@run [$body] [$kind: $bound] ($($arg: $ty),*));
        }
    };
    (@run [$body:ident] [$($kind:ident: $bound:path)?] ($($arg:ident: $ty:ty),*)) => {
        #[cfg(target_arch = "x86_64")]
        {
            use $crate::isa::{Avx2, Vnni};
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
            unsafe fn v4$(<$kind: $bound>)?($($arg: $ty),*) {
                // SAFETY: the caller's promise.
                unsafe { $body::<Vnni $(, $kind)?>($($arg),*) }
            }
            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn v3$(<$kind: $bound>)?($($arg: $ty),*) {
                // SAFETY: the caller's promise.
                unsafe { $body::<Avx2 $(, $kind)?>($($arg),*) }
            }
            match $crate::simd::level() {
                // SAFETY: the processor has these features.
                $crate::simd::Level::V4 if $crate::simd::has_vnni() => {
                    return unsafe { v4$(::<$kind>)?($($arg),*) };
                }
                // SAFETY: as above.
                $crate::simd::Level::V4 | $crate::simd::Level::V3 => {
                    return unsafe { v3$(::<$kind>)?($($arg),*) };
                }
                $crate::simd::Level::Baseline => {}
            }
        }
        // SAFETY: plain loops run everywhere.
        unsafe { $body::<$crate::isa::Plain $(, $kind)?>($($arg),*) }
    };
}
pub(crate) use on_processor;
