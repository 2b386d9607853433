//! Rounding against golden/quantize (llama.cpp's own bytes), the bounds of errors, and what is refused.

use proptest::prelude::*;

use super::*;

const COLS: usize = 512;
const TYPES: [BlockType; 12] = {
    use BlockType::*;
    [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2K, Q3K, Q4K, Q5K, Q6K, TQ1_0, TQ2_0]
};

fn golden(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/../../golden/quantize/{name}.bin", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.chunks_exact(4).map(|value| f32::from_le_bytes(value.try_into().unwrap())).collect()
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn rounded(to: BlockType, rows: &[u8], importance: Option<&[f32]>) -> Vec<u8> {
    let mut target = vec![0u8; to.bytes_for(rows.len() / 4).unwrap()];
    quantize((BlockType::F32, rows), to, COLS, importance, &mut target).unwrap();
    target
}

#[test]
fn rows_round_to_the_bytes_of_llama_cpp() {
    let rows = golden("rows");
    let importance = floats(&golden("importance"));
    for to in TYPES {
        let mut cases = vec![(to.name().to_string(), None)];
        if !matches!(to, BlockType::Q8_0 | BlockType::TQ1_0 | BlockType::TQ2_0) {
            cases.push((format!("{}-weighted", to.name()), Some(&importance[..])));
        }
        for (name, importance) in cases {
            let (came, wanted) = (rounded(to, &rows, importance), golden(&name));
            assert_eq!(came.len(), wanted.len());
            let size = to.block_bytes();
            for (at, (came, wanted)) in came.chunks(size).zip(wanted.chunks(size)).enumerate() {
                assert_eq!(came, wanted, "{name}, block {at} at value {}", at * to.block_len());
            }
            // Rows do not depend on their neighbours.
            let alone = rounded(to, &rows[..COLS * 4], importance);
            assert_eq!(alone, wanted[..alone.len()], "{name}, the first row alone");
        }
    }
}

#[test]
fn other_float_types_round_as_their_f32_does() {
    let rows = floats(&golden("rows"));
    for from in [BlockType::F16, BlockType::BF16, BlockType::Q8_0] {
        let mut source = vec![0u8; from.bytes_for(rows.len()).unwrap()];
        quantize((BlockType::F32, &bytes(&rows)), from, COLS, None, &mut source).unwrap();
        let mut widened = vec![0f32; rows.len()];
        dequantize(from, &source, &mut widened);
        for to in TYPES {
            let mut came = vec![0u8; to.bytes_for(rows.len()).unwrap()];
            quantize((from, &source), to, COLS, None, &mut came).unwrap();
            assert_eq!(came, rounded(to, &bytes(&widened), None), "{from:?} to {to:?}");
        }
    }
}

#[test]
fn what_does_not_fit_is_named() {
    let mut rows = vec![0.5f32; 3 * COLS];
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        rows[COLS + 3] = bad;
        for to in TYPES {
            let mut target = vec![0u8; to.bytes_for(rows.len()).unwrap()];
            let came = quantize((BlockType::F32, &bytes(&rows)), to, COLS, None, &mut target);
            assert_eq!(came, Err(Unfit::NotFinite(COLS + 3)));
        }
    }
    rows[COLS + 3] = -3e38;
    for to in TYPES.into_iter().chain([BlockType::F16]) {
        let mut target = vec![0u8; to.bytes_for(rows.len()).unwrap()];
        let came = quantize((BlockType::F32, &bytes(&rows)), to, COLS, None, &mut target);
        assert_eq!(came, Err(Unfit::TooLarge(COLS + 3)), "{to:?}");
        let came = measure_error((BlockType::F32, &bytes(&rows)), to, COLS, None);
        assert_eq!(came, Err(Unfit::TooLarge(COLS + 3)), "{to:?}");
    }
}

#[test]
fn the_measured_error_is_that_of_the_rounded_values() {
    let rows = golden("rows");
    let (values, importance) = (floats(&rows), floats(&golden("importance")));
    for to in TYPES {
        for importance in [None, Some(&importance[..])] {
            let measured = measure_error((BlockType::F32, &rows), to, COLS, importance).unwrap();
            let mut back = vec![0f32; values.len()];
            dequantize(to, &rounded(to, &rows, importance), &mut back);
            let mut wanted = 0f64;
            for (at, (value, back)) in values.iter().zip(&back).enumerate() {
                let weight = importance.map_or(1.0, |weights| weights[at % COLS]);
                wanted += f64::from(weight) * f64::from(value - back).powi(2);
            }
            assert!((measured.error - wanted).abs() <= 1e-9 * wanted, "{to:?}: {measured:?}, {wanted}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]
    #[test]
    fn errors_stay_within_half_a_step(seed in any::<u64>(), spread in 0.001f32..10.0) {
        let mut state = seed;
        let values: Vec<f32> = (0..COLS).map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * spread
        }).collect();
        // Steps of a block whose values lie between -1/2 and 1/2 of the spread; f16 scales and k-quants' shared ones add.
        use BlockType::*;
        for (to, levels) in [(Q8_0, 254.0), (Q6K, 63.0), (Q5K, 31.0), (Q5_1, 31.0), (Q5_0, 31.0), (Q4K, 15.0),
            (Q4_1, 15.0), (Q4_0, 15.0), (Q3K, 7.0), (Q2K, 3.0)] {
            let mut back = vec![0f32; COLS];
            dequantize(to, &rounded(to, &bytes(&values), None), &mut back);
            for (value, back) in values.iter().zip(&back) {
                prop_assert!((value - back).abs() <= spread / levels * 1.2, "{to:?}: {value} became {back}");
            }
        }
    }

    #[test]
    fn rounding_what_was_rounded_changes_nothing(seed in any::<u64>()) {
        let mut state = seed | 1;
        let values: Vec<f32> = (0..COLS).map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
        }).collect();
        for to in [BlockType::Q8_0, BlockType::TQ1_0, BlockType::TQ2_0] {
            let mut back = vec![0f32; COLS];
            dequantize(to, &rounded(to, &bytes(&values), None), &mut back);
            let mut again = vec![0f32; COLS];
            dequantize(to, &rounded(to, &bytes(&back), None), &mut again);
            // The scale is rounded to f16 twice, so that values agree to its 11 bits.
            for (a, b) in back.iter().zip(&again) {
                prop_assert!((a - b).abs() <= a.abs() / 1024.0, "{to:?}: {a} became {b}");
            }
        }
    }
}
