//! Casts and the search for values that are not finite.

use luthier_checkpoint::Dtype;
use luthier_checkpoint::values::{cast, check_finite, to_f32};

fn f32_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

#[test]
fn exact_values_survive_every_chain_of_casts() {
    let values: Vec<f32> =
        (0..9001).map(|i| ((i % 401) as f32 - 200.0) / 64.0 * if i % 2 == 0 { 1.0 } else { 0.5 }).collect();
    let original = f32_bytes(&values);
    for through in [Dtype::F32, Dtype::F64] {
        let there = cast("w", Dtype::F32, &original, through).unwrap();
        assert_eq!(cast("w", through, &there, Dtype::F32).unwrap(), original);
    }
    let half = cast("w", Dtype::F32, &original, Dtype::F16).unwrap();
    assert_eq!(to_f32("w", Dtype::F16, &half).unwrap(), values);
    let wide = cast("w", Dtype::F32, &original, Dtype::F64).unwrap();
    let narrowed = cast("w", Dtype::F32, &original, Dtype::BF16).unwrap();
    assert_eq!(cast("w", Dtype::F64, &wide, Dtype::BF16).unwrap(), narrowed);
}

#[test]
fn a_cast_makes_no_infinity_but_keeps_one() {
    let mut values = vec![0f32; 5000];
    values[4500] = 65520.0;
    let error = cast("big", Dtype::F32, &f32_bytes(&values), Dtype::F16).unwrap_err().to_string();
    assert_eq!(error, "tensor big: value 4500 is 65520, too large for F16; use bf16 or f32");
    values[4500] = 65519.0;
    cast("big", Dtype::F32, &f32_bytes(&values), Dtype::F16).unwrap();
    let top = f32_bytes(&[f32::MAX]);
    assert!(cast("top", Dtype::F32, &top, Dtype::BF16).is_err());
    let double = 1e300f64.to_le_bytes();
    assert!(cast("top", Dtype::F64, &double, Dtype::F32).is_err());
    cast("inf", Dtype::F32, &f32_bytes(&[f32::INFINITY]), Dtype::F16).unwrap();
}

#[test]
fn casts_refuse_integers_and_quantised_targets() {
    assert!(cast("i", Dtype::I32, &[0; 4], Dtype::F32).is_err());
    assert!(cast("q", Dtype::F32, &[0; 128], Dtype::from_name("Q4_0").unwrap()).is_err());
    assert!(cast("odd", Dtype::F32, &[0; 3], Dtype::F16).is_err());
    assert_eq!(cast("same", Dtype::I32, &[1, 2, 3, 4], Dtype::I32).unwrap(), [1, 2, 3, 4]);
}

#[test]
fn the_first_bad_value_is_named_in_every_type() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut values = vec![1f32; 10_000];
        check_finite("w", Dtype::F32, &f32_bytes(&values)).unwrap();
        values[9000] = bad;
        for dtype in [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::F64] {
            let bytes = cast("w", Dtype::F32, &f32_bytes(&values), dtype).unwrap();
            let error = check_finite("w", dtype, &bytes).unwrap_err().to_string();
            assert!(error.contains("tensor w: value 9000 is NaN or infinite"), "{dtype}: {error}");
        }
    }
    check_finite("i", Dtype::I32, &[0xff; 8]).unwrap();
    let q8_0 = Dtype::from_name("Q8_0").unwrap();
    let mut blocks = vec![1u8; 34 * 200];
    check_finite("q", q8_0, &blocks).unwrap();
    // The scale of block 150 becomes infinite.
    blocks[150 * 34..150 * 34 + 2].copy_from_slice(&0x7c00u16.to_le_bytes());
    let error = check_finite("q", q8_0, &blocks).unwrap_err().to_string();
    assert!(error.contains("value 4800"), "{error}");
    assert!(check_finite("f8", Dtype::F8E5M2, &[0, 0x7c]).is_err());
    assert!(check_finite("f8", Dtype::F8E4M3, &[0, 0xff]).is_err());
}
