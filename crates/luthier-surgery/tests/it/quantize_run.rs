//! Models of bitsandbytes' types compute from their codes as from the floats that these stand for.

use candle_core::Device;
use luthier_arch::{LoadOptions, Model, Precision, TokenBatch};
use luthier_checkpoint::Dtype;
use luthier_ops::weight::Values;
use luthier_surgery::quantize::{Options, Target, run};
use serde_json::json;

use crate::models::{config, open, write};

fn logits(model: &dyn Model) -> Vec<f32> {
    let tokens = TokenBatch { ids: (0..30).map(|at| at * 7 % 40).collect(), rows: 2, segments: None };
    let states = model.hidden(&tokens, None, None).unwrap();
    model.logits(&states).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn rounded_matrices_are_multiplied_as_their_values_are() {
    for (to, double) in [("nf4", false), ("nf4", true), ("fp4", false), ("int8", false)] {
        let home = tempfile::tempdir().unwrap();
        let mut config = config("llama", 256, 40);
        config.insert("intermediate_size".to_string(), json!(288));
        let input = open(&write(&home.path().join("folder"), &config, Dtype::F32, 7));
        let out = home.path().join("out");
        let options = Options {
            target: Target::parse(to, double).unwrap(),
            imatrix: None,
            requantize: false,
            force: false,
        };
        run(&input, &out, &options).unwrap();
        let checkpoint = open(&out).checkpoint;
        let packed = luthier_arch::load_packed(&checkpoint, Precision::Precise).unwrap();
        for weight in packed.weights() {
            // Rows of 288 and of 24 values are no whole blocks of 64: their 4 bits are read as floats.
            let is_whole = to == "int8" || weight.shape().last().is_some_and(|cols| cols % 64 == 0);
            let is_rounded = weight.name().contains("_proj") && is_whole;
            assert_eq!(matches!(weight.values(), Values::Packed(_)), is_rounded, "{to}: {}", weight.name());
        }
        let plain = LoadOptions { trainable: false, device: Device::Cpu };
        let plain = luthier_arch::load(&checkpoint, &plain).unwrap();
        let (own, wanted) = (logits(packed.as_ref()), logits(plain.as_ref()));
        let largest = wanted.iter().fold(0f32, |largest, value| largest.max(value.abs()));
        for (own, wanted) in own.iter().zip(&wanted) {
            // Inputs and levels are rounded to 16 bits.
            assert!((own - wanted).abs() <= 5e-4 * largest, "{to}: {own} {wanted}");
        }
    }
}
