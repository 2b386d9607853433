//! Types of tensors on disk: safetensors' and GGUF's, under one name each.

use luthier_kernels::blocks::BlockType;

/// How the values of a tensor are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Dtype {
    /// Floats and quantised blocks that models compute with.
    Weights(BlockType),
    F64,
    I64,
    I32,
    I16,
    I8,
    U64,
    U32,
    U16,
    U8,
    Bool,
    F8E4M3,
    F8E5M2,
}

/// Plain types with their safetensors name and, where GGUF has them, their `enum ggml_type`.
const PLAIN: [(Dtype, &str, Option<u32>); 15] = [
    (Dtype::Weights(BlockType::F32), "F32", Some(0)),
    (Dtype::Weights(BlockType::F16), "F16", Some(1)),
    (Dtype::Weights(BlockType::BF16), "BF16", Some(30)),
    (Dtype::F64, "F64", Some(28)),
    (Dtype::I64, "I64", Some(27)),
    (Dtype::I32, "I32", Some(26)),
    (Dtype::I16, "I16", Some(25)),
    (Dtype::I8, "I8", Some(24)),
    (Dtype::U64, "U64", None),
    (Dtype::U32, "U32", None),
    (Dtype::U16, "U16", None),
    (Dtype::U8, "U8", None),
    (Dtype::Bool, "BOOL", None),
    (Dtype::F8E4M3, "F8_E4M3", None),
    (Dtype::F8E5M2, "F8_E5M2", None),
];

impl Dtype {
    /// 32-bit floats.
    pub const F32: Dtype = Dtype::Weights(BlockType::F32);
    /// 16-bit floats of IEEE 754.
    pub const F16: Dtype = Dtype::Weights(BlockType::F16);
    /// 16-bit floats with the exponent of F32.
    pub const BF16: Dtype = Dtype::Weights(BlockType::BF16);

    /// The name that people read: `F32`, `BF16`, `Q4_K`, `I64`.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::Weights(block_type) => block_type.name(),
            plain => plain.safetensors_name().expect("all but quantised blocks have a name in safetensors"),
        }
    }

    /// The type of a name in upper or lower case, safetensors' and ggml's alike.
    pub fn from_name(name: &str) -> Option<Dtype> {
        let plain = PLAIN.iter().find(|(_, plain, _)| plain.eq_ignore_ascii_case(name)).map(|row| row.0);
        plain.or_else(|| BlockType::from_name(name).map(Dtype::Weights))
    }

    /// The name in a safetensors header; `None` for quantised blocks, which that format does not hold.
    pub fn safetensors_name(self) -> Option<&'static str> {
        PLAIN.iter().find(|row| row.0 == self).map(|row| row.1)
    }

    /// The type that a safetensors header names so.
    pub fn from_safetensors_name(name: &str) -> Option<Dtype> {
        PLAIN.iter().find(|row| row.1 == name).map(|row| row.0)
    }

    /// The number in a GGUF file; `None` for types which that format does not hold.
    pub fn ggml_id(self) -> Option<u32> {
        match self {
            Dtype::Weights(block_type) => Some(block_type.ggml_id()),
            plain => PLAIN.iter().find(|row| row.0 == plain).and_then(|row| row.2),
        }
    }

    /// The type behind a number of a GGUF file; `None` for those that are not read.
    pub fn from_ggml_id(id: u32) -> Option<Dtype> {
        let plain = PLAIN.iter().find(|row| row.2 == Some(id)).map(|row| row.0);
        plain.or_else(|| BlockType::from_ggml_id(id).map(Dtype::Weights))
    }

    /// Values in one block (1 but for quantised types) and its bytes.
    pub fn block(self) -> (usize, usize) {
        match self {
            Dtype::Weights(block_type) => (block_type.block_len(), block_type.block_bytes()),
            Dtype::F64 | Dtype::I64 | Dtype::U64 => (1, 8),
            Dtype::I32 | Dtype::U32 => (1, 4),
            Dtype::I16 | Dtype::U16 => (1, 2),
            Dtype::I8 | Dtype::U8 | Dtype::Bool | Dtype::F8E4M3 | Dtype::F8E5M2 => (1, 1),
        }
    }

    /// Bytes of a tensor of that shape; `None` when they do not fit a `usize`, or a row is no whole number of blocks.
    pub fn size_bytes(self, shape: &[usize]) -> Option<usize> {
        let (block_len, block_bytes) = self.block();
        if block_len > 1 && !shape.last().is_some_and(|cols| cols.is_multiple_of(block_len)) {
            return None;
        }
        let values = shape.iter().try_fold(1usize, |product, &axis| product.checked_mul(axis))?;
        (values / block_len).checked_mul(block_bytes)
    }

    /// Whether the values are floats, quantised ones included.
    pub fn is_float(self) -> bool {
        matches!(self, Dtype::Weights(_) | Dtype::F64 | Dtype::F8E4M3 | Dtype::F8E5M2)
    }
}

impl std::fmt::Display for Dtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_and_id_leads_back() {
        for (dtype, name, id) in PLAIN {
            assert_eq!(Dtype::from_safetensors_name(name), Some(dtype));
            assert_eq!(Dtype::from_name(dtype.name()), Some(dtype));
            assert_eq!(dtype.ggml_id(), id);
            assert_eq!(id.and_then(Dtype::from_ggml_id), id.map(|_| dtype));
        }
        for block_type in BlockType::ALL {
            let dtype = Dtype::Weights(block_type);
            assert_eq!(dtype.ggml_id().and_then(Dtype::from_ggml_id), Some(dtype));
            assert_eq!(Dtype::from_name(dtype.name()), Some(dtype));
        }
        assert_eq!(Dtype::Weights(BlockType::Q4K).safetensors_name(), None);
    }

    #[test]
    fn sizes_refuse_overflow_and_broken_blocks() {
        assert_eq!(Dtype::F32.size_bytes(&[]), Some(4));
        assert_eq!(Dtype::F32.size_bytes(&[0, 7]), Some(0));
        assert_eq!(Dtype::Weights(BlockType::Q4_1).size_bytes(&[3, 64]), Some(120));
        assert_eq!(Dtype::Weights(BlockType::Q4_1).size_bytes(&[64, 3]), None);
        assert_eq!(Dtype::I8.size_bytes(&[usize::MAX, 2]), None);
        assert_eq!(Dtype::F64.size_bytes(&[usize::MAX / 4]), None);
    }
}
