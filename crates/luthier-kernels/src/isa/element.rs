//! What cached keys and values are stored as.

use std::convert::identity;

use half::slice::HalfFloatSliceExt;

use super::Isa;

/// A float in the form in which it is stored.
pub trait Element: Copy + Send + Sync + Default + std::fmt::Debug + 'static {
    /// Whether values are whole numbers of -127 to 127, which mean something only with the scale of their row.
    const SCALED: bool;
    /// As f32.
    fn to_f32(self) -> f32;
    /// Rounds to it.
    fn from_f32(value: f32) -> Self {
        let mut rounded = [Self::default()];
        Self::narrow(&[value], &mut rounded);
        rounded[0]
    }
    /// All of `source` as f32.
    fn widen(source: &[Self], target: &mut [f32]);
    /// All of `source` rounded.
    fn narrow(source: &[f32], target: &mut [Self]);
    /// Puts the bytes of all of `source`, little-endian, behind `target`.
    fn write_bytes(source: &[Self], target: &mut Vec<u8>);
    /// The values whose little-endian bytes those are; what is left of a last one is dropped.
    fn read_bytes(bytes: &[u8]) -> Vec<Self>;
    /// 16 of them.
    ///
    /// # Safety
    /// As [`Isa`].
    #[doc(hidden)]
    #[allow(private_bounds, private_interfaces)]
    unsafe fn load<I: Isa>(from: *const Self) -> I::Floats;
}

macro_rules! element {
    ($type:ty, $scaled:literal, $to:expr, $widen:expr, $narrow:expr, $($load:ident).+) => {
        impl Element for $type {
            const SCALED: bool = $scaled;
            #[inline(always)]
            fn to_f32(self) -> f32 {
                $to(self)
            }
            fn widen(source: &[$type], target: &mut [f32]) {
                $widen(source, target)
            }
            fn narrow(source: &[f32], target: &mut [$type]) {
                $narrow(target, source)
            }
            fn write_bytes(source: &[$type], target: &mut Vec<u8>) {
                target.reserve(size_of_val(source));
                source.iter().for_each(|value| target.extend_from_slice(&value.to_le_bytes()));
            }
            fn read_bytes(bytes: &[u8]) -> Vec<$type> {
                let (values, _) = bytes.as_chunks::<{ size_of::<$type>() }>();
                values.iter().map(|bytes| <$type>::from_le_bytes(*bytes)).collect()
            }
            #[inline(always)]
            #[allow(private_bounds, private_interfaces)]
            unsafe fn load<I: Isa>(from: *const $type) -> I::Floats {
                // SAFETY: the caller's promise.
                unsafe { element!(@load I from $($load).+) }
            }
        }
    };
    (@load $isa:ident $from:ident $load:ident) => { $isa::$load($from.cast()) };
    (@load $isa:ident $from:ident $load:ident.$convert:ident) => { $isa::$convert($isa::$load($from.cast())) };
}
element!(i8, true, f32::from, widen_i8, narrow_i8, load_i8.to_floats);
element!(f32, false, identity, copy, <[f32]>::copy_from_slice, load_floats);
element!(
    half::f16,
    false,
    half::f16::to_f32,
    HalfFloatSliceExt::convert_to_f32_slice,
    HalfFloatSliceExt::convert_from_f32_slice,
    load_f16
);
element!(
    half::bf16,
    false,
    half::bf16::to_f32,
    HalfFloatSliceExt::convert_to_f32_slice,
    HalfFloatSliceExt::convert_from_f32_slice,
    load_bf16
);

fn copy(source: &[f32], target: &mut [f32]) {
    target.copy_from_slice(source);
}

fn widen_i8(source: &[i8], target: &mut [f32]) {
    assert_eq!(source.len(), target.len(), "values");
    target.iter_mut().zip(source).for_each(|(target, value)| *target = f32::from(*value));
}

/// The nearest whole numbers, halves to the even one; of -127 to 127, 0 for NaN.
fn narrow_i8(target: &mut [i8], source: &[f32]) {
    // 1.5 * 2^23: what is added shifts the whole number to the end of the fraction.
    const SHIFT: f32 = 12_582_912.0;
    assert_eq!(source.len(), target.len(), "values");
    for (target, value) in target.iter_mut().zip(source) {
        let value = if value.is_nan() { 0.0 } else { value.clamp(-127.0, 127.0) };
        *target = (value + SHIFT).to_bits().wrapping_sub(SHIFT.to_bits()) as i8;
    }
}
