//! Stored blocks taken apart: whole numbers and what they are multiplied with, all in their own bits.

use crate::blocks::BlockType;

/// Values that are taken apart together.
pub(super) const BLOCK: usize = 32;

/// A block of a file as whole numbers. `value = codes * scale [* small scale] + minimum [* small minimum]`, after the
/// offset of its type is taken from the codes.
pub(super) struct Taken {
    /// One for each value, without sign.
    pub(super) codes: [u8; 256],
    /// f16, of all values.
    pub(super) scale: [u8; 2],
    /// f16, of all values, where the type has one.
    pub(super) minimum: [u8; 2],
    /// Of each 16 or 32 values, where the type has some.
    pub(super) small_scales: [u8; 16],
    pub(super) small_minima: [u8; 16],
}

impl Taken {
    pub(super) fn new() -> Taken {
        Taken {
            codes: [0; 256],
            scale: [0; 2],
            minimum: [0; 2],
            small_scales: [0; 16],
            small_minima: [0; 16],
        }
    }
}

/// Takes one block of a quantised type apart; `taken` is that of other blocks of the type.
#[inline(always)]
pub(super) fn take(block_type: BlockType, block: &[u8], taken: &mut Taken) {
    if let Some((at, count)) = block_type.scales() {
        taken.scale.copy_from_slice(&block[at..at + 2]);
        if count == 2 {
            taken.minimum.copy_from_slice(&block[at + 2..at + 4]);
        }
    }
    match block_type {
        BlockType::Q4_0 => nibbles(&block[2..18], &mut taken.codes),
        BlockType::Q4_1 => nibbles(&block[4..20], &mut taken.codes),
        BlockType::Q5_0 => fifths(&block[2..22], &mut taken.codes),
        BlockType::Q5_1 => fifths(&block[4..24], &mut taken.codes),
        BlockType::Q8_0 => {
            // A signed byte plus 128.
            taken.codes.iter_mut().zip(&block[2..34]).for_each(|(code, byte)| *code = byte ^ 0x80);
        }
        BlockType::Q2K => q2_k(block, taken),
        BlockType::Q3K => q3_k(block, taken),
        BlockType::Q4K => q4_k(block, taken),
        BlockType::Q5K => {
            q4_k_scales(&block[4..16], taken);
            for (at, code) in taken.codes.iter_mut().enumerate() {
                let (group, i) = (at / 32, at % 32);
                *code = (block[48 + group / 2 * 32 + i] >> (group % 2 * 4)) & 15
                    | ((block[16 + i] >> group) & 1) << 4;
            }
        }
        BlockType::Q6K => q6_k(block, taken),
        BlockType::TQ1_0 => tq1_0(block, &mut taken.codes),
        BlockType::TQ2_0 => {
            for (at, code) in taken.codes.iter_mut().enumerate() {
                *code = (block[at / 128 * 32 + at % 32] >> (at % 128 / 32 * 2)) & 3;
            }
        }
        BlockType::F32 | BlockType::F16 | BlockType::BF16 => unreachable!("floats have no codes"),
    }
}

#[inline(always)]
fn nibbles(pairs: &[u8], codes: &mut [u8]) {
    for (at, pair) in pairs.iter().enumerate() {
        codes[at] = pair & 15;
        codes[at + 16] = pair >> 4;
    }
}

#[inline(always)]
fn fifths(bytes: &[u8], codes: &mut [u8]) {
    nibbles(&bytes[4..], codes);
    for (at, code) in codes[..32].iter_mut().enumerate() {
        *code |= (bytes[at / 8] >> (at % 8) & 1) << 4;
    }
}

#[inline(always)]
fn q2_k(block: &[u8], taken: &mut Taken) {
    for (group, small) in block[..16].iter().enumerate() {
        taken.small_scales[group] = small & 15;
        taken.small_minima[group] = small >> 4;
    }
    for (at, code) in taken.codes.iter_mut().enumerate() {
        *code = (block[16 + at / 128 * 32 + at % 32] >> (at % 128 / 32 * 2)) & 3;
    }
}

#[inline(always)]
fn q3_k(block: &[u8], taken: &mut Taken) {
    let packed = &block[96..108];
    for (at, scale) in taken.small_scales.iter_mut().enumerate() {
        let low = if at < 8 { packed[at] & 15 } else { packed[at - 8] >> 4 };
        let high = (packed[8 + at % 4] >> (at / 4 * 2)) & 3;
        // Signed: less 32.
        *scale = (low | high << 4).wrapping_sub(32);
    }
    for (at, code) in taken.codes.iter_mut().enumerate() {
        let (half, quarter, i) = (at / 128, at % 128 / 32, at % 32);
        *code =
            (block[32 + half * 32 + i] >> (quarter * 2)) & 3 | ((block[i] >> (half * 4 + quarter)) & 1) << 2;
    }
}

#[inline(always)]
fn q4_k_scales(packed: &[u8], taken: &mut Taken) {
    for at in 0..8 {
        (taken.small_scales[at], taken.small_minima[at]) = if at < 4 {
            (packed[at] & 63, packed[at + 4] & 63)
        } else {
            let low = packed[at + 4];
            (low & 15 | (packed[at - 4] >> 6) << 4, low >> 4 | (packed[at] >> 6) << 4)
        };
    }
}

#[inline(always)]
fn q4_k(block: &[u8], taken: &mut Taken) {
    q4_k_scales(&block[4..16], taken);
    for (at, code) in taken.codes.iter_mut().enumerate() {
        let (group, i) = (at / 32, at % 32);
        *code = (block[16 + group / 2 * 32 + i] >> (group % 2 * 4)) & 15;
    }
}

#[inline(always)]
fn q6_k(block: &[u8], taken: &mut Taken) {
    taken.small_scales.copy_from_slice(&block[192..208]);
    for (at, code) in taken.codes.iter_mut().enumerate() {
        let (half, quarter, i) = (at / 128, at % 128 / 32, at % 32);
        let low = block[half * 64 + quarter % 2 * 32 + i] >> (quarter / 2 * 4) & 15;
        let high = (block[128 + half * 32 + i] >> (quarter * 2)) & 3;
        *code = low | high << 4;
    }
}

#[inline(always)]
fn tq1_0(block: &[u8], codes: &mut [u8]) {
    let mut at = 0;
    for (start, n_bytes, n_digits) in [(0, 32, 5), (32, 16, 5), (48, 4, 4)] {
        for power in [1u8, 3, 9, 27, 81].into_iter().take(n_digits) {
            for byte in &block[start..start + n_bytes] {
                codes[at] = ((u16::from(byte.wrapping_mul(power)) * 3) >> 8) as u8;
                at += 1;
            }
        }
    }
}
