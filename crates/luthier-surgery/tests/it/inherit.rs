//! Inheriting: the outer layers and the largest neurons stay.

use std::path::Path;

use luthier_checkpoint::{Dtype, Lineage, Scores, values};
use luthier_surgery::Input;
use luthier_surgery::inherit::{Options, plan, run};
use serde_json::json;

use crate::models::{GOLDEN, config, golden, names, open, write};

fn options(layers: Option<&str>, ffn: Option<&str>, hidden: Option<&str>) -> Options {
    let amounts = |text: Option<&str>| text.map(|text| text.parse().unwrap());
    Options { layers: amounts(layers), ffn: amounts(ffn), hidden: amounts(hidden), ..Options::default() }
}

fn read(input: &Input, name: &str) -> Vec<f32> {
    let tensors = &input.checkpoint.tensors;
    values::to_f32(name, Dtype::F32, &tensors.read(name).unwrap()).unwrap()
}

#[test]
fn all_of_it_is_the_same() {
    let home = tempfile::tempdir().unwrap();
    let folder = write(&home.path().join("parent"), &config("llama", 24, 31), Dtype::BF16, 3);
    run(&open(&folder), &home.path().join("out"), &options(Some("3"), Some("22"), Some("24"))).unwrap();
    for file in ["config.json", "model.safetensors"] {
        let read = |folder: &Path| std::fs::read(folder.join(file)).unwrap();
        assert!(read(&folder) == read(&home.path().join("out")), "{file}");
    }
}

#[test]
fn the_first_and_the_last_layers_and_the_largest_neurons_stay() {
    let home = tempfile::tempdir().unwrap();
    let mut llama = config("llama", 24, 31);
    llama.insert("num_hidden_layers".to_string(), json!(5));
    let parent = open(&write(&home.path().join("parent"), &llama, Dtype::F32, 3));
    let out = home.path().join("out");
    let report = run(&parent, &out, &options(Some("3"), Some("7"), None)).unwrap();
    assert_eq!(report.shape[0].dropped_layers, [2, 3]);
    assert_eq!(report.shape[0].ffn, [7, 7, 7]);
    let made = open(&out);
    assert_eq!(made.checkpoint.config["num_hidden_layers"], 3);
    assert_eq!(made.checkpoint.config["intermediate_size"], 7);
    // Layer 2 was layer 4; its neurons by hand.
    let part = |name: &str| read(&parent, &format!("model.layers.4.mlp.{name}_proj.weight"));
    let (gate, up, down) = (part("gate"), part("up"), part("down"));
    let norm = |neuron: usize| -> f32 {
        let row =
            |matrix: &[f32]| -> f32 { matrix[neuron * 24..(neuron + 1) * 24].iter().map(|w| w.abs()).sum() };
        row(&gate) + row(&up) + (0..24).map(|channel| down[channel * 22 + neuron].abs()).sum::<f32>()
    };
    let mut order: Vec<usize> = (0..22).collect();
    order.sort_by(|a, b| norm(*b).total_cmp(&norm(*a)));
    order.truncate(7);
    order.sort_unstable();
    let wanted: Vec<f32> =
        order.iter().flat_map(|neuron| gate[neuron * 24..(neuron + 1) * 24].to_vec()).collect();
    assert_eq!(read(&made, "model.layers.2.mlp.gate_proj.weight"), wanted);
    let lineage = Lineage::read(&out).unwrap().unwrap();
    assert_eq!(lineage.verb, "inherit");
    assert!(lineage.ledger.dropped.iter().all(|dropped| dropped.reason.contains("middle")), "{lineage:?}");
}

#[test]
fn every_family_gives_a_model_that_runs() {
    for name in GOLDEN {
        let home = tempfile::tempdir().unwrap();
        let parent = open(&golden(name));
        // The width of experts is kept; of models that have nothing else half the layers go.
        let has_dense = !name.contains("moe") && name != "mixtral";
        let half =
            if has_dense { options(None, Some("0.5"), None) } else { options(Some("0.5"), None, None) };
        let report = run(&parent, &home.path().join("out"), &half).unwrap();
        assert!(report.parameters.1 < report.parameters.0, "{name}");
        let planned = plan(&parent, &home.path().join("b"), &half).unwrap();
        let made = open(&home.path().join("out"));
        assert_eq!(planned.tensors.len(), made.checkpoint.tensors.infos().len(), "{name}");
        let load = luthier_arch::LoadOptions { trainable: false, device: candle_core::Device::Cpu };
        luthier_arch::load(&made.checkpoint, &load).unwrap();
    }
}

#[test]
fn channels_are_chosen_by_weights_with_a_word_about_it() {
    let home = tempfile::tempdir().unwrap();
    let parent = open(&write(&home.path().join("parent"), &config("llama", 24, 31), Dtype::F32, 3));
    let report = run(&parent, &home.path().join("out"), &options(None, None, Some("16"))).unwrap();
    assert_eq!(report.shape[0].hidden, (24, 16));
    assert!(report.notes.iter().any(|note| note.contains("--scores")), "{report:?}");
    let file = home.path().join("out.gguf");
    run(&parent, &file, &options(None, None, Some("16"))).unwrap();
    let (a, b) = (open(&file), open(&home.path().join("out")));
    let difference = luthier_surgery::diff::run(&a.checkpoint, &b.checkpoint).unwrap();
    assert!(difference.changed.is_empty() && difference.shapes.is_empty(), "{difference:?}");
}

#[test]
fn what_cannot_be_inherited_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let parent = open(&write(&home.path().join("parent"), &config("llama", 24, 31), Dtype::F32, 3));
    let refusal = |options: &Options| {
        let before = names(home.path());
        let refused = run(&parent, &home.path().join("out"), options).unwrap_err().to_string();
        assert_eq!(names(home.path()), before, "something is left behind");
        refused
    };
    assert!(refusal(&options(Some("4"), None, None)).contains("at most the 3"));
    assert!(refusal(&options(None, Some("23"), None)).contains("at most the 22"));
    assert!(refusal(&options(Some("2,2"), None, None)).contains("one stack"));
    // Scores of another model.
    let scores = Scores {
        settings: luthier_checkpoint::scores::ScoreSettings {
            model_sha256: "aa".to_string(),
            text_sha256: "bb".to_string(),
            tokens: 1,
            window: 1,
            sequence: luthier_checkpoint::scores::Aggregation::Mean,
            batch: luthier_checkpoint::scores::Aggregation::Mean,
        },
        tensors: std::collections::BTreeMap::new(),
    };
    scores.write(&home.path().join("scores.safetensors"), false, &[]).unwrap();
    let with_scores =
        Options { scores: Some(home.path().join("scores.safetensors")), ..options(None, Some("8"), None) };
    assert!(refusal(&with_scores).contains("score this model"));
}
