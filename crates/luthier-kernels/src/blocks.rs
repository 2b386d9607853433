//! The block types in which weights are stored: plain floats and ggml's quantised blocks.
//!
//! A row of a matrix is a whole number of blocks. Source: ggml-common.h and ggml-quants.c of llama.cpp.

/// How the values of a stored matrix are encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum BlockType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
}

impl BlockType {
    /// Values in one block.
    pub fn block_len(self) -> usize {
        use BlockType::*;
        match self {
            F32 | F16 | BF16 => 1,
            Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q8_0 => 32,
            Q2K | Q3K | Q4K | Q5K | Q6K => 256,
        }
    }

    /// Bytes of one block.
    pub fn block_bytes(self) -> usize {
        use BlockType::*;
        match self {
            F32 => 4,
            F16 | BF16 => 2,
            Q4_0 => 18,
            Q4_1 => 20,
            Q5_0 => 22,
            Q5_1 => 24,
            Q8_0 => 34,
            Q2K => 84,
            Q3K => 110,
            Q4K => 144,
            Q5K => 176,
            Q6K => 210,
        }
    }
}

/// Widens whole blocks to f32. `source` holds `target.len() / block_len` blocks.
pub fn dequantize(block_type: BlockType, source: &[u8], target: &mut [f32]) {
    assert_eq!(source.len() * block_type.block_len(), target.len() * block_type.block_bytes());
    match block_type {
        BlockType::F32 => {
            for (value, bytes) in target.iter_mut().zip(source.chunks_exact(4)) {
                *value = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            }
        }
        _ => unimplemented!("filled in by the block files"),
    }
}
