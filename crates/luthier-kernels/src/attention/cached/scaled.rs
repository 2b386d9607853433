//! Rows of a cache that are whole numbers with scales: each 64 values of a head's row share one.

use std::ops::Range;

use super::Cached;
use crate::isa::{Element, ROWS};

/// Values of a row that share a scale.
pub(super) const SCALED_TOGETHER: usize = 64;

/// Scales of a row of `d` values; 0 where elements need none.
pub fn scales_of<E: Element>(d: usize) -> usize {
    if E::SCALED { d.div_ceil(SCALED_TOGETHER) } else { 0 }
}

/// Rounds a head's row. Each scale is its largest magnitude over 127; one that is not finite makes the scale NaN, so that
/// it shows in what is computed.
///
/// # Panics
/// Where there are not [`scales_of`] scales.
pub fn narrow_row<E: Element>(row: &[f32], target: &mut [E], scales: &mut [f32]) {
    if !E::SCALED {
        E::narrow(row, target);
        return;
    }
    assert_eq!(scales.len(), scales_of::<E>(row.len()), "scales");
    let parts = row.chunks(SCALED_TOGETHER).zip(target.chunks_mut(SCALED_TOGETHER));
    for ((row, target), scale) in parts.zip(scales) {
        // Magnitudes of floats are ordered as their bits are, those that are not finite last.
        let top = f32::from_bits(row.iter().fold(0, |top, value| top.max(value.to_bits() & 0x7fff_ffff)));
        *scale = if top.is_finite() { top / 127.0 } else { f32::NAN };
        // Of values too small for that, the scale is 0 or its reciprocal infinite.
        let factor = if *scale >= f32::MIN_POSITIVE { 127.0 / top } else { 0.0 };
        let mut whole = [0f32; SCALED_TOGETHER];
        whole.iter_mut().zip(row).for_each(|(whole, value)| *whole = value * factor);
        E::narrow(&whole[..row.len()], target);
    }
}

/// Some rows of a cache with their scales: of keys, blocks of 16 positions; of values, position by position.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a, E> {
    pub(super) values: &'a [E],
    pub(super) scales: &'a [f32],
}

impl<'a, E: Element> Cached<'a, E> {
    /// Keys of whole blocks of one head of one sequence.
    pub(super) fn keys_of(&self, place: usize, positions: Range<usize>) -> Rows<'a, E> {
        let (d, scales) = (self.head_dim, scales_of::<E>(self.head_dim));
        let (start, len) = (place * self.capacity + positions.start, positions.len());
        Rows {
            values: &self.keys[start * d..][..len * d],
            scales: &self.key_scales[start * scales..][..len * scales],
        }
    }

    /// Values of one head of one sequence.
    pub(super) fn values_of(&self, place: usize, positions: Range<usize>) -> Rows<'a, E> {
        let (width, scales) = (self.value_width(), scales_of::<E>(self.head_dim));
        let (start, len) = (place * self.capacity + positions.start, positions.len());
        Rows {
            values: &self.values[start * width..][..len * width],
            scales: &self.value_scales[start * scales..][..len * scales],
        }
    }
}

impl<E: Element> Rows<'_, E> {
    /// # Panics
    /// Where scales are fewer than these rows of `width` values want.
    #[inline(always)]
    pub(super) fn check_scales(&self, width: usize) {
        assert!(
            self.scales.len() >= self.values.len() / width.max(1) * scales_of::<E>(width),
            "scales of rows"
        );
    }

    /// Where the channels from `start` on that share a scale end.
    #[inline(always)]
    pub(super) fn scaled_together(&self, start: usize, width: usize) -> usize {
        if E::SCALED { width.min(start + SCALED_TOGETHER) } else { width }
    }

    /// A weight times the scale of the channels at `start` of a position, of rows with as many `scales`.
    ///
    /// # Safety
    /// The position is one of the rows, `start` one of their channels.
    #[inline(always)]
    pub(super) unsafe fn scaled(&self, weight: f32, position: usize, start: usize, scales: usize) -> f32 {
        match E::SCALED {
            // SAFETY: the caller's promise, and as many scales as [`Rows::check_scales`] compared.
            true => unsafe {
                weight * *self.scales.as_ptr().add(position * scales + start / SCALED_TOGETHER)
            },
            false => weight,
        }
    }
}

const _: () = assert!(SCALED_TOGETHER.is_multiple_of(ROWS));
