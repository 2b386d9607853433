//! Finds infinite and undefined weights before a model computes with them.

use luthier_kernels::blocks::BlockType;

use crate::{Error, Result};

/// An error that names the tensor and the place of its first value that is not finite. For quantised blocks the scales
/// are looked at, without which no value can be bad.
pub(crate) fn check(name: &str, block_type: BlockType, bytes: &[u8]) -> Result<()> {
    let Some(block) = first_bad_block(block_type, bytes) else { return Ok(()) };
    let value = block * block_type.block_len();
    let what = if block_type.block_len() == 1 {
        format!("value {value} is NaN or infinite")
    } else {
        format!("the scale of the {block_type:?} block at value {value} is NaN or infinite")
    };
    Err(Error::tensor(name, format!("{what}; the file is damaged or its training went wrong")))
}

fn first_bad_block(block_type: BlockType, bytes: &[u8]) -> Option<usize> {
    use BlockType::*;
    // An exponent of all ones is NaN or infinite.
    let f32_bad = |b: &[u8]| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) & 0x7f80_0000 == 0x7f80_0000;
    let bf16_bad = |b: &[u8]| u16::from_le_bytes([b[0], b[1]]) & 0x7f80 == 0x7f80;
    match block_type {
        F32 => bytes.chunks_exact(4).position(f32_bad),
        BF16 => bytes.chunks_exact(2).position(bf16_bad),
        F16 => bytes.chunks_exact(2).position(f16_bad),
        _ => {
            let (at, count) = block_type.scales().expect("quantised blocks have scales");
            scales(bytes, block_type, at, count)
        }
    }
}

/// Looks at `count` f16 scales from byte `at` of each block.
fn scales(bytes: &[u8], block_type: BlockType, at: usize, count: usize) -> Option<usize> {
    let blocks = bytes.chunks_exact(block_type.block_bytes());
    blocks.map(|block| &block[at..at + 2 * count]).position(|scales| scales.chunks_exact(2).any(f16_bad))
}

fn f16_bad(b: &[u8]) -> bool {
    u16::from_le_bytes([b[0], b[1]]) & 0x7c00 == 0x7c00
}
