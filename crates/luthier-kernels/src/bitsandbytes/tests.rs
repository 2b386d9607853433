//! Rounding against golden/bitsandbytes, and what is refused.

use super::*;
use crate::simd::BASELINE_FMA;

fn golden(name: &str) -> Vec<u8> {
    let path = format!("{}/../../golden/bitsandbytes/{name}.bin", env!("CARGO_MANIFEST_DIR"));
    std::fs::read(path).unwrap()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|value| f32::from_le_bytes(value.try_into().unwrap())).collect()
}

#[test]
fn four_bits_are_those_of_bitsandbytes() {
    for values in ["rows", "odd"] {
        let source = golden(values);
        let n = source.len() / 4;
        for (levels, name) in [(Levels::Nf4, "nf4"), (Levels::Fp4, "fp4")] {
            let (mut packed, mut scales) = (vec![0u8; n.div_ceil(2)], vec![0f32; n.div_ceil(64)]);
            quantize_4bit(levels, (BlockType::F32, &source), &mut packed, &mut scales).unwrap();
            assert!(packed == golden(&format!("{values}-{name}")), "{values} {name}");
            assert_eq!(scales, floats(&golden(&format!("{values}-absmax"))));
            let mut alone = vec![0f32; scales.len()];
            scales_4bit((BlockType::F32, &source), &mut alone).unwrap();
            assert_eq!(alone, scales);
            let (mut plain, mut plain_scales) = (vec![0u8; packed.len()], vec![0f32; scales.len()]);
            round_4bit_body::<BASELINE_FMA>(levels, &floats(&source), &mut plain, &mut plain_scales);
            assert!(plain == packed && plain_scales == scales, "the baseline's path");
            let mut back = vec![0f32; n];
            dequantize_4bit(&levels.values(), &packed, &scales, BLOCK_LEN, &mut back);
            assert!(back == floats(&golden(&format!("{values}-{name}-back"))));
        }
    }
}

#[test]
fn int8_rows_are_those_of_bitsandbytes() {
    let source = golden("rows");
    let n = source.len() / 4;
    let (mut codes, mut scales) = (vec![0u8; n], vec![0f32; n / 96]);
    quantize_int8((BlockType::F32, &source), 96, &mut codes, &mut scales).unwrap();
    assert!(codes == golden("rows-int8"));
    assert_eq!(scales, floats(&golden("rows-scb")));
    let mut back = vec![0f32; 96];
    dequantize_int8(&codes[..96], scales[0], &mut back);
    for (value, back) in floats(&source).iter().zip(&back) {
        assert!((value - back).abs() <= scales[0] * 0.51 / 127.0, "{value} became {back}");
    }
}

#[test]
fn scales_are_rounded_as_bitsandbytes_rounds_them() {
    let map = dynamic_map();
    assert!(map[..] == floats(&golden("dynamic-map")));
    let values = floats(&golden("nested"));
    let (mut codes, mut scales) = (vec![0u8; values.len()], vec![0f32; values.len().div_ceil(256)]);
    quantize_nested(&map, &values, &mut codes, &mut scales);
    assert_eq!(scales, floats(&golden("nested-absmax")));
    assert!(codes == golden("nested-codes"));
}

#[test]
fn what_does_not_fit_is_named() {
    let mut values = vec![0.25f32; 3 * TASK_VALUES];
    let bytes = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    values[TASK_VALUES + 5] = 1e6;
    let mut codes = vec![0u8; values.len()];
    let mut scales = vec![0f32; values.len() / 64];
    let came = quantize_int8((BlockType::F32, &bytes(&values)), 64, &mut codes, &mut scales);
    assert_eq!(came, Err(Unfit::TooLarge(TASK_VALUES + 5)));
    values[TASK_VALUES + 4] = f32::NAN;
    let mut packed = vec![0u8; values.len() / 2];
    let came = quantize_4bit(Levels::Nf4, (BlockType::F32, &bytes(&values)), &mut packed, &mut scales);
    assert_eq!(came, Err(Unfit::NotFinite(TASK_VALUES + 4)));
}
