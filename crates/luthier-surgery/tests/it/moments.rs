//! An optimizer's state grows with its model: a first moment that is a gradient becomes the grown model's gradient.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Device;
use luthier_arch::{LoadOptions, TokenBatch};
use luthier_checkpoint::safetensors::{SafetensorsFile, SafetensorsWriter};
use luthier_checkpoint::{Dtype, TensorInfo, TensorSink, TensorSource, values};
use luthier_ops::cross_entropy::Targets;
use luthier_surgery::grow::{Axis, Operation, Options, run};

use crate::models::{GOLDEN, golden, names, open};

fn options(operation: Operation, axis: Axis) -> Options {
    Options { operation, axis, seed: 1, asymmetry: 0.0, dtype: None, force: false }
}

/// The gradients of a loss over fixed tokens, by weight.
fn gradients(folder: &Path) -> BTreeMap<String, Vec<f32>> {
    let checkpoint = luthier_arch::open(folder).unwrap();
    let model =
        luthier_arch::load(&checkpoint, &LoadOptions { trainable: true, device: Device::Cpu }).unwrap();
    let n_tokens = 9;
    let ids: Vec<u32> = (0..n_tokens).map(|at| (at * 7 + 3) % model.vocab_size() as u32).collect();
    let tokens = TokenBatch { ids: ids.clone(), rows: 1, segments: None };
    let encoded = model.is_encoder_decoder().then(|| model.encode(&tokens).unwrap());
    let states = model.hidden(&tokens, encoded.as_ref(), None).unwrap();
    let states = states.squeeze(0).unwrap();
    let targets = Targets {
        ids: ids.iter().map(|id| (id + 1) % model.vocab_size() as u32).collect(),
        weights: vec![1.0; n_tokens as usize],
        normalizer: n_tokens as f32,
        teacher: None,
    };
    let tape = model.loss(&states, &targets).unwrap().backward().unwrap();
    luthier_ops::weight::collect(model.weights(), &tape).unwrap();
    let gradient = |weight: &luthier_ops::Weight| (weight.name().to_string(), weight.grad().to_vec());
    model.weights().iter().map(gradient).collect()
}

/// A copy of a golden model with these moments beside it, as the trainer writes them.
fn checkpoint(place: &Path, name: &str, first: &BTreeMap<String, Vec<f32>>) {
    std::fs::create_dir_all(place).unwrap();
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(golden(name).join(file), place.join(file)).unwrap();
    }
    let vectors: Vec<(String, Vec<f32>)> = first
        .iter()
        .flat_map(|(name, first)| {
            let second = first.iter().map(|value| value * value).collect();
            [(format!("{name}.exp_avg"), first.clone()), (format!("{name}.exp_avg_sq"), second)]
        })
        .collect();
    write_vectors(&place.join("optimizer.safetensors"), &vectors);
    std::fs::write(place.join("trainer_state.json"), "{\"global_step\": 12}").unwrap();
}

fn write_vectors(path: &Path, vectors: &[(String, Vec<f32>)]) {
    let info = |(name, values): &(String, Vec<f32>)| TensorInfo {
        name: name.clone(),
        dtype: Dtype::F32,
        shape: vec![values.len()],
    };
    let infos: Vec<TensorInfo> = vectors.iter().map(info).collect();
    let mut writer = SafetensorsWriter::create_file(path, &infos, &SafetensorsWriter::pt_metadata()).unwrap();
    for (name, values) in vectors {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        writer.write(name, &bytes).unwrap();
    }
    writer.finish().unwrap();
}

/// The largest difference of the grown moments from the gradients of the grown model, over the largest of these, for
/// tensors that `counts`.
fn difference(grown: &Path, counts: &dyn Fn(&str) -> bool) -> f64 {
    let wanted = gradients(grown);
    let file = SafetensorsFile::open(&grown.join("optimizer.safetensors")).unwrap();
    assert!(file.metadata().contains(&("steps".to_string(), "12".to_string())));
    assert_eq!(file.infos().len(), 2 * wanted.len());
    let mut worst = 0.0f64;
    for (name, wanted) in wanted.iter().filter(|(name, _)| counts(name)) {
        let read = |end: &str| {
            let name = format!("{name}.{end}");
            values::to_f32(&name, Dtype::F32, &file.read(&name).unwrap()).unwrap()
        };
        let largest = wanted.iter().fold(1e-6f32, |largest, value| largest.max(value.abs()));
        for ((wanted, first), second) in wanted.iter().zip(read("exp_avg")).zip(read("exp_avg_sq")) {
            worst = worst.max(f64::from((wanted - first).abs() / largest));
            worst = worst.max(f64::from((wanted * wanted - second).abs() / (largest * largest)));
        }
    }
    worst
}

#[test]
fn copies_share_their_parents_gradient_in_every_family() {
    for name in GOLDEN {
        let home = tempfile::tempdir().unwrap();
        let parent = home.path().join("parent");
        checkpoint(&parent, name, &gradients(&golden(name)));
        for axis in [Axis::Width(2), Axis::Width(3)] {
            let out = home.path().join(format!("{axis:?}"));
            let report = run(&open(&parent), &out, &options(Operation::Split, axis)).unwrap();
            assert!(report.moments > 0 && report.notes.iter().any(|note| note.contains("initial_state")));
            let worst = difference(&out, &|_| true);
            assert!(worst < 2e-3, "{name} {axis:?}: {worst:e}");
        }
    }
}

#[test]
fn what_stays_keeps_its_gradient_and_what_is_silent_has_none() {
    let home = tempfile::tempdir().unwrap();
    let parent = home.path().join("parent");
    checkpoint(&parent, "gemma2", &gradients(&golden("gemma2")));
    let split = home.path().join("split");
    run(&open(&parent), &split, &options(Operation::Split, Axis::Depth(2))).unwrap();
    // A projection of zeros hears a gradient from the first step on, and begins without a moment all the same.
    let silent = |name: &str, silent_attention: usize| {
        let layer = name.split('.').nth(2).and_then(|layer| layer.parse::<usize>().ok());
        let of_attention =
            name.contains("o_proj") && layer.is_some_and(|layer| layer % 2 == silent_attention);
        let of_block = name.contains("down_proj") && layer.is_some_and(|layer| layer % 2 != silent_attention);
        of_attention || of_block
    };
    let worst = difference(&split, &|name| !silent(name, 1));
    assert!(worst < 2e-3, "{worst:e}");
    let zero = home.path().join("zero");
    run(&open(&parent), &zero, &options(Operation::Zero, Axis::Depth(2))).unwrap();
    let file = SafetensorsFile::open(&zero.join("optimizer.safetensors")).unwrap();
    for info in file.infos() {
        let is_new = (3..6).any(|layer| info.name.starts_with(&format!("model.layers.{layer}.")));
        let is_zero = file.read(&info.name).unwrap().iter().all(|byte| *byte == 0);
        assert!(is_zero == is_new, "{}", info.name);
    }
}

#[test]
fn old_places_keep_their_gradient_beside_zeros() {
    for name in ["llama", "gemma2", "qwen3", "t5", "t5-v1_1"] {
        let home = tempfile::tempdir().unwrap();
        let parent = home.path().join("parent");
        let before = gradients(&golden(name));
        checkpoint(&parent, name, &before);
        let out = home.path().join("out");
        run(&open(&parent), &out, &options(Operation::Zero, Axis::Width(2))).unwrap();
        let (after, made) = (gradients(&out), luthier_arch::open(&out).unwrap());
        let file = SafetensorsFile::open(&out.join("optimizer.safetensors")).unwrap();
        for info in made.tensors.infos().iter().filter(|info| after.contains_key(&info.name)) {
            let stored = format!("{}.exp_avg", info.name);
            let first = values::to_f32(&stored, Dtype::F32, &file.read(&stored).unwrap()).unwrap();
            let largest = after[&info.name].iter().fold(1e-6f32, |largest, value| largest.max(value.abs()));
            // What is not 0 is the gradient.
            let heard = first.iter().zip(&after[&info.name]).filter(|(first, _)| first.abs() > 0.0);
            for (first, wanted) in heard {
                assert!(
                    (first - wanted).abs() / largest < 2e-3,
                    "{name} {}: {first} for {wanted}",
                    info.name
                );
            }
            let n_heard = first.iter().filter(|value| value.abs() > 0.0).count();
            let n_before = before[&info.name].iter().filter(|value| value.abs() > 0.0).count();
            assert_eq!(n_heard, n_before, "{name} {}", info.name);
        }
    }
}

#[test]
fn moments_that_are_not_the_models_are_refused() {
    let home = tempfile::tempdir().unwrap();
    let parent = home.path().join("parent");
    let moments = gradients(&golden("llama"));
    let stack = options(Operation::Stack, Axis::Depth(2));
    let refusal = |moments: &[(String, Vec<f32>)]| {
        write_vectors(&parent.join("optimizer.safetensors"), moments);
        let before = names(home.path());
        let refused = run(&open(&parent), &home.path().join("out"), &stack).unwrap_err().to_string();
        assert_eq!(names(home.path()), before, "something is left behind");
        refused
    };
    checkpoint(&parent, "llama", &moments);
    let refused = refusal(&[("model.norm.weight.exp_avg".to_string(), vec![1.0; 3])]);
    assert!(refused.contains("another model") && refused.contains("3 values"), "{refused}");
    let refused = refusal(&[("model.norm.weight.momentum".to_string(), vec![1.0; 40])]);
    assert!(refused.contains("momentum") && refused.contains("exp_avg"), "{refused}");
    let refused = refusal(&[("model.norm.weight.exp_avg".to_string(), vec![f32::NAN; 40])]);
    assert!(refused.contains("NaN"), "{refused}");
    std::fs::remove_file(parent.join("trainer_state.json")).unwrap();
    let refused = refusal(&[("model.norm.weight.exp_avg".to_string(), vec![1.0; 40])]);
    assert!(refused.contains("trainer_state.json"), "{refused}");
}
