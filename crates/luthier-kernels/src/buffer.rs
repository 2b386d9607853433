//! Buffers that a kernel fills.

/// A vector of `len` values whose content is whatever the memory held.
///
/// For targets of kernels that write every value before anything reads it: filling such a buffer with zeros first
/// would cost as much as a small operation itself.
pub fn unfilled(len: usize) -> Vec<f32> {
    let mut values: Vec<f32> = Vec::with_capacity(len);
    // SAFETY: the capacity is there, any bit pattern is an f32, and callers overwrite before they read.
    #[allow(clippy::uninit_vec)]
    unsafe {
        values.set_len(len);
    }
    values
}
