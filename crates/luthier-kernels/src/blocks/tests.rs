//! Every block type against golden/blocks, every f16 and a sweep of f32 against the crate `half`.

use half::{bf16, f16};
use proptest::prelude::*;

use super::*;

#[test]
fn quantised_blocks_widen_bit_for_bit_as_gguf_does() {
    use BlockType::*;
    for block_type in [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2K, Q3K, Q4K, Q5K, Q6K, TQ1_0, TQ2_0] {
        let path = format!("{}/../../golden/blocks/{}.bin", env!("CARGO_MANIFEST_DIR"), block_type.name());
        let file = std::fs::read(&path).unwrap();
        let n_blocks = u32::from_le_bytes(file[..4].try_into().unwrap()) as usize;
        let (blocks, wanted) = file[4..].split_at(n_blocks * block_type.block_bytes());
        assert_eq!(wanted.len(), n_blocks * block_type.block_len() * 4);
        let mut came = vec![0f32; n_blocks * block_type.block_len()];
        dequantize(block_type, blocks, &mut came);
        let mut plain = came.clone();
        dequantize_plain(block_type, blocks, &mut plain);
        for (i, wanted) in wanted.chunks_exact(4).enumerate() {
            let wanted = f32::from_le_bytes(wanted.try_into().unwrap());
            assert_eq!(
                came[i].to_bits(),
                wanted.to_bits(),
                "{block_type:?} value {i}: {} for {wanted}",
                came[i]
            );
            assert_eq!(came[i].to_bits(), plain[i].to_bits());
        }
    }
}

#[test]
fn every_f16_and_bf16_widens_as_half_does() {
    let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    let mut values = vec![0f32; 1 << 16];
    dequantize(BlockType::F16, &bytes, &mut values);
    for bits in 0..=u16::MAX {
        let (came, wanted) = (values[bits as usize], f16::from_bits(bits).to_f32());
        assert!(came.to_bits() == wanted.to_bits() || came.is_nan() && wanted.is_nan(), "{bits:#x}");
    }
    dequantize(BlockType::BF16, &bytes, &mut values);
    for bits in 0..=u16::MAX {
        assert_eq!(values[bits as usize].to_bits(), u32::from(bits) << 16);
    }
}

#[test]
fn narrowing_undoes_widening_for_every_half() {
    let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
    let mut values = vec![0f32; 1 << 16];
    let mut back = vec![0u8; bytes.len()];
    dequantize(BlockType::F16, &bytes, &mut values);
    narrow_f16(&values, &mut back);
    for bits in (0..=u16::MAX).filter(|&bits| !f16::from_bits(bits).is_nan()) {
        assert_eq!(back[2 * bits as usize..][..2], bits.to_le_bytes());
    }
    dequantize(BlockType::BF16, &bytes, &mut values);
    narrow_bf16(&values, &mut back);
    for bits in (0..=u16::MAX).filter(|&bits| !bf16::from_bits(bits).is_nan()) {
        assert_eq!(back[2 * bits as usize..][..2], bits.to_le_bytes());
    }
}

proptest! {
    #[test]
    fn narrowing_rounds_to_nearest_even_as_half_does(bits in proptest::collection::vec(any::<u32>(), 1..40)) {
        let values: Vec<f32> = bits.iter().map(|&bits| f32::from_bits(bits)).collect();
        let mut bytes = vec![0u8; values.len() * 2];
        narrow_f16(&values, &mut bytes);
        for (value, bytes) in values.iter().zip(bytes.chunks_exact(2)) {
            let (came, wanted) = (f16::from_le_bytes([bytes[0], bytes[1]]), f16::from_f32_const(*value));
            prop_assert!(came.to_bits() == wanted.to_bits() || came.is_nan() && wanted.is_nan());
        }
        narrow_bf16(&values, &mut bytes);
        for (value, bytes) in values.iter().zip(bytes.chunks_exact(2)) {
            let (came, wanted) = (bf16::from_le_bytes([bytes[0], bytes[1]]), bf16::from_f32(*value));
            prop_assert!(came.to_bits() == wanted.to_bits() || came.is_nan() && wanted.is_nan());
        }
    }
}

#[test]
fn names_and_ggml_ids_lead_back() {
    for block_type in BlockType::ALL {
        assert_eq!(BlockType::from_name(&block_type.name().to_lowercase()), Some(block_type));
        assert_eq!(BlockType::from_ggml_id(block_type.ggml_id()), Some(block_type));
    }
    assert_eq!(BlockType::from_name("IQ4_NL"), None);
    assert_eq!(BlockType::from_ggml_id(20), None);
    assert_eq!(BlockType::Q4K.bytes_for(512), Some(288));
    assert_eq!(BlockType::Q4K.bytes_for(576), None);
    assert_eq!(BlockType::F32.bytes_for(usize::MAX), None);
}
