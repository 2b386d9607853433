//! The block types in which weights are stored: plain floats and ggml's quantised blocks.
//!
//! A row of a matrix is a whole number of blocks. Source: ggml-common.h and ggml-quants.c of llama.cpp.

mod fit;
mod floats;
mod k_quants;
mod k_stages;
mod legacy;
mod quantize;
mod quantize_k;
mod quantize_legacy;
mod ternary;

pub use floats::{narrow_bf16, narrow_f16};
pub use quantize::{Measured, Unfit, measure_error, quantize};

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
    TQ1_0,
    TQ2_0,
}

impl BlockType {
    /// Every type, in the order of ggml's ids.
    pub const ALL: [BlockType; 15] = {
        use BlockType::*;
        [F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2K, Q3K, Q4K, Q5K, Q6K, BF16, TQ1_0, TQ2_0]
    };

    /// The name as ggml prints it: `Q4_K`, `BF16`.
    pub fn name(self) -> &'static str {
        use BlockType::*;
        match self {
            F32 => "F32",
            F16 => "F16",
            BF16 => "BF16",
            Q4_0 => "Q4_0",
            Q4_1 => "Q4_1",
            Q5_0 => "Q5_0",
            Q5_1 => "Q5_1",
            Q8_0 => "Q8_0",
            Q2K => "Q2_K",
            Q3K => "Q3_K",
            Q4K => "Q4_K",
            Q5K => "Q5_K",
            Q6K => "Q6_K",
            TQ1_0 => "TQ1_0",
            TQ2_0 => "TQ2_0",
        }
    }

    /// The type of that name, in upper or lower case.
    pub fn from_name(name: &str) -> Option<BlockType> {
        BlockType::ALL.into_iter().find(|block_type| block_type.name().eq_ignore_ascii_case(name))
    }

    /// The number of this type in a GGUF file (`enum ggml_type`).
    pub fn ggml_id(self) -> u32 {
        use BlockType::*;
        match self {
            F32 => 0,
            F16 => 1,
            Q4_0 => 2,
            Q4_1 => 3,
            Q5_0 => 6,
            Q5_1 => 7,
            Q8_0 => 8,
            Q2K => 10,
            Q3K => 11,
            Q4K => 12,
            Q5K => 13,
            Q6K => 14,
            BF16 => 30,
            TQ1_0 => 34,
            TQ2_0 => 35,
        }
    }

    /// The type behind a number of a GGUF file; `None` for those that are not read.
    pub fn from_ggml_id(id: u32) -> Option<BlockType> {
        BlockType::ALL.into_iter().find(|block_type| block_type.ggml_id() == id)
    }

    /// Bytes of `values` values; `None` when they are no whole number of blocks, or too many to count.
    pub fn bytes_for(self, values: usize) -> Option<usize> {
        if !values.is_multiple_of(self.block_len()) {
            return None;
        }
        (values / self.block_len()).checked_mul(self.block_bytes())
    }

    /// Values in one block.
    pub fn block_len(self) -> usize {
        use BlockType::*;
        match self {
            F32 | F16 | BF16 => 1,
            Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q8_0 => 32,
            Q2K | Q3K | Q4K | Q5K | Q6K | TQ1_0 | TQ2_0 => 256,
        }
    }

    /// Where the f16 numbers of a quantised block stand: the first one's byte, and how many follow each other. Without
    /// them no value can be NaN or infinite. None for plain floats.
    pub fn scales(self) -> Option<(usize, usize)> {
        use BlockType::*;
        match self {
            F32 | F16 | BF16 => None,
            Q4_0 | Q5_0 | Q8_0 => Some((0, 1)),
            Q4_1 | Q5_1 | Q4K | Q5K => Some((0, 2)),
            Q2K => Some((80, 2)),
            Q3K => Some((108, 1)),
            Q6K => Some((208, 1)),
            TQ1_0 => Some((52, 1)),
            TQ2_0 => Some((64, 1)),
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
            TQ1_0 => 54,
            TQ2_0 => 66,
        }
    }
}

/// Widens whole blocks to f32, bit for bit as ggml does. `source` holds `target.len() / block_len` blocks.
///
/// # Panics
/// When the two lengths do not belong together.
pub fn dequantize(block_type: BlockType, source: &[u8], target: &mut [f32]) {
    assert_eq!(
        block_type.bytes_for(target.len()),
        Some(source.len()),
        "{} bytes are not {} values of {}",
        source.len(),
        target.len(),
        block_type.name()
    );
    #[cfg(target_arch = "x86_64")]
    if block_type == BlockType::F16 && std::arch::is_x86_feature_detected!("f16c") {
        // SAFETY: the processor has just been asked; what has F16C has AVX.
        return unsafe { floats::widen_f16_f16c(source, target) };
    }
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has just been asked.
        return unsafe { dequantize_avx2(block_type, source, target) };
    }
    dequantize_plain(block_type, source, target);
}

/// The same loops, compiled for 256-bit registers.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn dequantize_avx2(block_type: BlockType, source: &[u8], target: &mut [f32]) {
    dequantize_plain(block_type, source, target);
}

#[inline(always)]
fn dequantize_plain(block_type: BlockType, source: &[u8], target: &mut [f32]) {
    match block_type {
        BlockType::F32 => floats::widen_f32(source, target),
        BlockType::F16 => floats::widen_f16(source, target),
        BlockType::BF16 => floats::widen_bf16(source, target),
        BlockType::Q4_0 => legacy::widen_q4_0(source, target),
        BlockType::Q4_1 => legacy::widen_q4_1(source, target),
        BlockType::Q5_0 => legacy::widen_q5_0(source, target),
        BlockType::Q5_1 => legacy::widen_q5_1(source, target),
        BlockType::Q8_0 => legacy::widen_q8_0(source, target),
        BlockType::Q2K => k_quants::widen_q2_k(source, target),
        BlockType::Q3K => k_quants::widen_q3_k(source, target),
        BlockType::Q4K => k_quants::widen_q4_k(source, target),
        BlockType::Q5K => k_quants::widen_q5_k(source, target),
        BlockType::Q6K => k_quants::widen_q6_k(source, target),
        BlockType::TQ1_0 => ternary::widen_tq1_0(source, target),
        BlockType::TQ2_0 => ternary::widen_tq2_0(source, target),
    }
}

#[cfg(test)]
mod quantize_tests;
#[cfg(test)]
mod tests;
