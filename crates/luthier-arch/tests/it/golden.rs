//! Logits, loss and every gradient equal the reference's (tools/golden/models.py).

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Device, Tensor};
use luthier_arch::blocks::rope::Rope;
use luthier_arch::config::Keys;
use luthier_arch::{Encoded, LoadOptions, Model, TokenBatch, load};
use luthier_ops::cross_entropy::Targets;
use luthier_ops::tape::with_reference;
use luthier_ops::weight::collect;
use serde_json::{Map, Value};

use crate::source::{Named, checkpoint, golden_config, golden_tensors};

/// f32 sums in another order, where the largest values are up to 5; in proportion where they are larger.
const TOLERANCE: f32 = 2e-5;

pub(crate) fn model(name: &str, trainable: bool) -> Box<dyn Model> {
    let checkpoint = checkpoint(&golden_config(name), &golden_tensors(name, "model.safetensors"));
    load(&checkpoint, &LoadOptions { trainable, device: Device::Cpu }).unwrap()
}

pub(crate) fn batch(tensors: &BTreeMap<String, Named>, name: &str) -> TokenBatch {
    let (_, shape, values) = &tensors[name];
    TokenBatch { ids: values.iter().map(|id| *id as u32).collect(), rows: shape[0], segments: None }
}

pub(crate) fn by_name(tensors: Vec<Named>) -> BTreeMap<String, Named> {
    tensors.into_iter().map(|tensor| (tensor.0.clone(), tensor)).collect()
}

pub(crate) fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

pub(crate) fn assert_close(what: &str, got: &[f32], wanted: &[f32]) {
    assert_eq!(got.len(), wanted.len(), "{what}");
    let worst = got.iter().zip(wanted).map(|(a, b)| (a - b).abs()).fold(0f32, |worst, difference| {
        if difference.is_nan() { f32::INFINITY } else { worst.max(difference) }
    });
    let largest = wanted.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    let tolerance = TOLERANCE * (largest / 5.0).max(1.0);
    assert!(worst < tolerance, "{what}: off by {worst}, values up to {largest}");
}

fn encode(model: &dyn Model, golden: &BTreeMap<String, Named>) -> Option<Encoded> {
    golden.contains_key("encoder_ids").then(|| {
        let mut tokens = batch(golden, "encoder_ids");
        let segments = golden["encoder_mask"].2.iter().map(|seen| if *seen == 1.0 { 0 } else { u32::MAX });
        tokens.segments = Some(Arc::new(segments.collect()));
        model.encode(&tokens).unwrap()
    })
}

fn check(name: &str) {
    check_gradients(name);
    with_reference(|| check_gradients(name));

    let golden = by_name(golden_tensors(name, "golden.safetensors"));
    let frozen = model(name, false);
    let encoded = encode(frozen.as_ref(), &golden);
    let states = frozen.hidden(&batch(&golden, "ids"), encoded.as_ref(), None).unwrap();
    assert_close("frozen logits", &values(&frozen.logits(&states).unwrap()), &golden["logits"].2);
}

fn check_gradients(name: &str) {
    let golden = by_name(golden_tensors(name, "golden.safetensors"));
    let model = model(name, true);
    let encoded = encode(model.as_ref(), &golden);
    let states = model.hidden(&batch(&golden, "ids"), encoded.as_ref(), None).unwrap();
    assert_close("logits", &values(&model.logits(&states).unwrap()), &golden["logits"].2);

    let wanted = &golden["targets"].2;
    let targets = Targets {
        ids: wanted.iter().map(|id| id.max(0.0) as u32).collect(),
        weights: wanted.iter().map(|id| if *id < 0.0 { 0.0 } else { 1.0 }).collect(),
        normalizer: wanted.iter().filter(|id| **id >= 0.0).count() as f32,
        teacher: None,
    };
    let width = states.dims()[2];
    let loss = model.loss(&states.reshape((targets.ids.len(), width)).unwrap(), &targets).unwrap();
    assert_close("loss", &[loss.to_scalar().unwrap()], &golden["loss"].2);

    collect(model.weights(), &loss.backward().unwrap()).unwrap();
    let mut checked = 0;
    for weight in model.weights() {
        assert_close(weight.name(), &weight.grad(), &golden[&format!("grad.{}", weight.name())].2);
        checked += 1;
    }
    let wanted = golden.keys().filter(|key| key.starts_with("grad.")).count();
    assert_eq!(checked, wanted);
}

#[test]
fn llama_equals_reference() {
    check("llama");
}

#[test]
fn llama_with_tied_head_equals_reference() {
    check("llama-tied");
}

#[test]
fn gemma2_equals_reference() {
    check("gemma2");
}

#[test]
fn mistral_equals_reference() {
    check("mistral");
}

#[test]
fn qwen2_equals_reference() {
    check("qwen2");
}

#[test]
fn qwen3_equals_reference() {
    check("qwen3");
}

#[test]
fn llama_of_uneven_layers_equals_reference() {
    check("uneven");
}

#[test]
fn t5_equals_reference() {
    check("t5");
    check("t5-v1_1");
    check("mt5");
}

#[test]
fn t5gemma_equals_reference() {
    check("t5gemma");
}

#[test]
fn joined_llama_and_qwen3_equals_reference() {
    check("encoder-decoder");
}

#[test]
fn t5gemma_encoder_hides_padding_tokens() {
    let golden = by_name(golden_tensors("t5gemma", "golden.safetensors"));
    let model = model("t5gemma", false);
    let encoded = model.encode(&batch(&golden, "pad_encoder_ids")).unwrap();
    let states = model.hidden(&batch(&golden, "ids"), Some(&encoded), None).unwrap();
    assert_close("logits", &values(&model.logits(&states).unwrap()), &golden["pad_logits"].2);
}

#[test]
fn rotary_scalings_equal_reference() {
    let cases = std::fs::read(crate::source::golden_path("", "rope.json")).unwrap();
    let cases: Vec<Map<String, Value>> = serde_json::from_slice(&cases).unwrap();
    assert_eq!(cases.len(), 7);
    for case in cases {
        let config = Map::from_iter([("rope_parameters".to_string(), case["rope_parameters"].clone())]);
        let rope = Rope::read(&Keys::new(&config).unwrap(), 64, Some(131_072), 10_000.0).unwrap();
        let wanted = case["inv_freq"].as_array().unwrap();
        assert_eq!(wanted.len(), rope.inverse_frequencies().len());
        for (got, wanted) in rope.inverse_frequencies().iter().zip(wanted) {
            let wanted = wanted.as_f64().unwrap() as f32;
            assert!((got - wanted).abs() <= 3e-7 * wanted, "{config:?}: {got} {wanted}");
        }
        let (cos, _) = rope.tables(&[0], 1, &Device::Cpu).unwrap();
        assert!((values(&cos)[0] - case["attention_factor"].as_f64().unwrap() as f32).abs() < 1e-6);
    }
}
