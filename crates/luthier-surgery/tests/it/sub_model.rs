//! Sub-models of nested ones: first neurons, first layers, first coordinates.

use std::path::Path;

use luthier_checkpoint::safetensors::SafetensorsFile;
use luthier_checkpoint::{Dtype, Lineage, TensorSource, values};
use luthier_surgery::sub_model::{Options, plan, run};
use serde_json::{Value, json};

use crate::models::{GOLDEN, config, golden, names, open, write};

#[test]
fn full_sizes_give_the_same_bytes() {
    let home = tempfile::tempdir().unwrap();
    let folder = write(&home.path().join("parent"), &config("gemma2", 24, 31), Dtype::BF16, 3);
    let whole = [
        Options { ffn: Some(vec![22]), ..Options::default() },
        Options { ffn: Some(vec![22, 22, 22]), layers: Some(vec![3]), ..Options::default() },
    ];
    for (at, options) in whole.iter().enumerate() {
        let out = home.path().join(at.to_string());
        run(&open(&folder), &out, options).unwrap();
        for file in ["config.json", "model.safetensors", "README.md"] {
            let read = |folder: &Path| std::fs::read(folder.join(file)).unwrap();
            assert!(read(&folder) == read(&out), "{file}");
        }
    }
}

#[test]
fn the_first_neurons_stay_and_uneven_layers_are_written_out() {
    let home = tempfile::tempdir().unwrap();
    let parent = open(&write(&home.path().join("parent"), &config("llama", 24, 31), Dtype::F32, 3));
    let cut = |name: &str, ffn: &[usize], skipped: &[usize]| {
        let options = Options { ffn: Some(ffn.to_vec()), skipped: skipped.to_vec(), ..Options::default() };
        run(&parent, &home.path().join(name), &options).unwrap();
        open(&home.path().join(name))
    };
    let even = cut("even", &[8], &[]);
    assert_eq!(even.checkpoint.config["intermediate_size"], 8);
    assert!(!even.checkpoint.config.contains_key("per_layer_config"));
    let uneven = cut("uneven", &[8, 8, 16], &[]);
    assert_eq!(uneven.checkpoint.config["intermediate_size"], 8);
    assert_eq!(uneven.checkpoint.config["per_layer_config"], json!({"2": {"intermediate_size": 16}}));
    let read = |input: &luthier_surgery::Input, name: &str| {
        values::to_f32(name, Dtype::F32, &input.checkpoint.tensors.read(name).unwrap()).unwrap()
    };
    let (up, down) = ("model.layers.2.mlp.up_proj.weight", "model.layers.2.mlp.down_proj.weight");
    assert_eq!(read(&uneven, up), read(&parent, up)[..16 * 24]);
    let columns: Vec<f32> = read(&parent, down).chunks(22).flat_map(|row| row[..16].to_vec()).collect();
    assert_eq!(read(&uneven, down), columns);
    // A list for the layers that stay, or for all.
    for ffn in [&[8, 16][..], &[8, 4, 16]] {
        let skipping = cut(&format!("{ffn:?}"), ffn, &[1]);
        assert_eq!(skipping.checkpoint.config["num_hidden_layers"], 2);
        assert_eq!(read(&skipping, "model.layers.1.mlp.up_proj.weight"), read(&parent, up)[..16 * 24]);
        let lineage = Lineage::read(&skipping.checkpoint.place).unwrap().unwrap();
        assert!(lineage.ledger.dropped.iter().all(|dropped| dropped.reason.contains("sub-model")));
        assert_eq!(lineage.verb, "slice");
    }
}

#[test]
fn every_family_gives_a_model_that_runs() {
    for name in GOLDEN {
        let home = tempfile::tempdir().unwrap();
        let parent = open(&golden(name));
        let options = Options { ffn: Some(vec![12]), layers: Some(vec![1]), ..Options::default() };
        run(&parent, &home.path().join("out"), &options).unwrap();
        let made = open(&home.path().join("out"));
        let planned = plan(&parent, &home.path().join("b"), &options).unwrap();
        assert_eq!(planned.tensors.len(), made.checkpoint.tensors.infos().len(), "{name}");
        let load = luthier_arch::LoadOptions { trainable: false, device: candle_core::Device::Cpu };
        luthier_arch::load(&made.checkpoint, &load).unwrap();
    }
}

#[test]
fn fewer_coordinates_stand_behind_the_pooling() {
    let home = tempfile::tempdir().unwrap();
    let folder = write(&home.path().join("parent"), &config("llama", 24, 31), Dtype::F32, 3);
    std::fs::write(
        folder.join("modules.json"),
        "[{\"type\": \"sentence_transformers.models.Transformer\", \"path\": \"\"}, \
          {\"type\": \"sentence_transformers.models.Pooling\", \"path\": \"1_Pooling\"}, \
          {\"type\": \"sentence_transformers.models.Normalize\", \"path\": \"2_Normalize\"}]",
    )
    .unwrap();
    std::fs::create_dir(folder.join("1_Pooling")).unwrap();
    std::fs::write(folder.join("1_Pooling/config.json"), "{\"pooling_mode_cls_token\": true}").unwrap();
    std::fs::write(folder.join("sentence_bert_config.json"), "{\"max_seq_length\": 33}").unwrap();
    let out = home.path().join("out");
    let options = Options { layers: Some(vec![2]), dims: Some(10), ..Options::default() };
    run(&open(&folder), &out, &options).unwrap();
    let parsed =
        |name: &str| -> Value { serde_json::from_slice(&std::fs::read(out.join(name)).unwrap()).unwrap() };
    let kinds: Vec<String> = parsed("modules.json")
        .as_array()
        .unwrap()
        .iter()
        .map(|module| module["type"].as_str().unwrap().rsplit('.').next().unwrap().to_string())
        .collect();
    assert_eq!(kinds, ["Transformer", "Pooling", "Dense", "Normalize"]);
    assert_eq!(parsed("1_Pooling/config.json"), json!({"pooling_mode_cls_token": true}));
    assert_eq!(parsed("sentence_bert_config.json")["max_seq_length"], 33);
    let dense = parsed("2_Dense/config.json");
    assert_eq!(
        (&dense["in_features"], &dense["out_features"], &dense["bias"]),
        (&json!(24), &json!(10), &json!(false))
    );
    let file = SafetensorsFile::open(&out.join("2_Dense/model.safetensors")).unwrap();
    assert_eq!(file.infos()[0].shape, [10, 24]);
    let weight = values::to_f32("w", Dtype::F32, &file.read("linear.weight").unwrap()).unwrap();
    let states: Vec<f32> = (0..24).map(|at| at as f32 - 7.5).collect();
    let came: Vec<f32> =
        weight.chunks(24).map(|row| row.iter().zip(&states).map(|(w, x)| w * x).sum()).collect();
    assert_eq!(came, states[..10]);
    assert_eq!(open(&out).checkpoint.config["hidden_size"], 24);
    // What is cut already is not cut again.
    let refused = run(&open(&out), &home.path().join("again"), &options).unwrap_err().to_string();
    assert!(refused.contains("Dense") && refused.contains("parent"), "{refused}");
}

#[test]
fn what_cannot_be_sliced_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let parent = open(&write(&home.path().join("parent"), &config("llama", 24, 31), Dtype::F32, 3));
    let whole = Options::default();
    for (out, options, wanted) in [
        ("out", Options { ffn: Some(vec![23]), ..whole.clone() }, "22 neurons"),
        ("out", Options { ffn: Some(vec![8, 8]), ..whole.clone() }, "each of the 3 layers"),
        ("out", Options { ffn: Some(vec![8, 8, 0]), ..whole.clone() }, "from 1 to"),
        ("out", Options { layers: Some(vec![4]), ..whole.clone() }, "to the 3"),
        ("out", Options { layers: Some(vec![0]), ..whole.clone() }, "from 1"),
        ("out", Options { layers: Some(vec![1, 1]), ..whole.clone() }, "1 stacks"),
        ("out", Options { skipped: vec![3], ..whole.clone() }, "layers 0 to 2"),
        ("out", Options { skipped: vec![0, 1, 2], ..whole.clone() }, "1 or more"),
        ("out", Options { n_layers: Some(2), ..whole.clone() }, "another model"),
        ("out", Options { dims: Some(25), ..whole.clone() }, "the 24 coordinates"),
        ("out.gguf", Options { dims: Some(8), ..whole.clone() }, "write a folder"),
    ] {
        let before = names(home.path());
        let refused = run(&parent, &home.path().join(out), &options).unwrap_err().to_string();
        assert!(refused.contains(wanted), "{refused}");
        assert_eq!(names(home.path()), before, "something is left behind");
    }
    let t5 = open(&golden("t5"));
    let options = Options { ffn: Some(vec![8, 8, 12]), ..whole };
    let refused = run(&t5, &home.path().join("out"), &options).unwrap_err().to_string();
    assert!(refused.contains("d_ff"), "{refused}");
}
