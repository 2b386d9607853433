//! Packs matrices of bitsandbytes' int8: signed codes, a scale for each row.

use super::codes::BLOCK;
use super::format::{Format, Int8, put_codes};

/// What a row's scale is divided by.
pub(super) const STEPS_A_SCALE: f32 = 1.0 / 127.0;

/// Packs up to 16 rows, `codes` [rows, cols] and `scales` [rows], into a group; rows and columns that are missing become zeros.
pub(super) fn pack_group(codes: &[u8], scales: &[f32], cols: usize, group: &mut [u8]) {
    group.fill(0);
    let tail = group.len() - Int8::TAIL_BYTES;
    let (units, row_scales) = group.split_at_mut(tail);
    for (row, (codes, scale)) in codes.chunks_exact(cols.max(1)).zip(scales).enumerate() {
        for (at, codes) in codes.chunks(BLOCK).enumerate() {
            // A signed byte plus 128; inputs of missing columns are zero.
            let mut whole = [0u8; BLOCK];
            whole.iter_mut().zip(codes).for_each(|(code, byte)| *code = byte ^ 0x80);
            let start = at / Int8::UNIT * Int8::UNIT_BYTES + at % Int8::UNIT * Int8::CODE_BYTES;
            put_codes::<Int8>(&mut units[start..][..Int8::CODE_BYTES], row, &whole);
        }
        row_scales[row * 4..][..4].copy_from_slice(&scale.to_le_bytes());
    }
}
