//! How cached keys and values lie in memory.

use super::scaled::scales_of;
use crate::isa::{Element, ROWS};

/// Keys and values of `len` tokens with room for `capacity`, a multiple of 16.
#[derive(Clone, Copy, Debug)]
pub struct Cached<'a, E> {
    /// [b, k, capacity / 16, d, 16].
    pub keys: &'a [E],
    /// [b, k, capacity, d up to a multiple of 16].
    pub values: &'a [E],
    /// Of elements that have scales, [`scales_of`] of them a row: [b, k, capacity / 16, scales, 16].
    pub key_scales: &'a [f32],
    /// The same, [b, k, capacity, scales].
    pub value_scales: &'a [f32],
    /// b.
    pub batch: usize,
    /// k.
    pub kv_heads: usize,
    /// d.
    pub head_dim: usize,
    /// Room in tokens.
    pub capacity: usize,
    /// Tokens that are there.
    pub len: usize,
}

/// Positions of a block of keys.
pub const KEY_BLOCK: usize = ROWS;

impl<E: Element> Cached<'_, E> {
    pub(super) fn value_width(&self) -> usize {
        self.head_dim.next_multiple_of(ROWS)
    }

    pub(super) fn check(&self, heads: usize) {
        let Cached { batch, kv_heads, head_dim, capacity, len, .. } = *self;
        assert!(
            kv_heads > 0 && heads.is_multiple_of(kv_heads) && capacity.is_multiple_of(ROWS),
            "{heads} heads over {kv_heads}"
        );
        assert_eq!(self.keys.len(), batch * kv_heads * capacity * head_dim, "values of keys");
        assert_eq!(self.values.len(), batch * kv_heads * capacity * self.value_width(), "values of values");
        let scales = batch * kv_heads * capacity * scales_of::<E>(head_dim);
        assert_eq!((self.key_scales.len(), self.value_scales.len()), (scales, scales), "scales");
        assert!(len <= capacity, "{len} of {capacity} tokens");
    }
}
