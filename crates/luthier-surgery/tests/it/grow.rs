//! Growing: what keeps its function keeps it in every family, what is copied is copied, what cannot be is refused.

use std::path::Path;

use luthier_checkpoint::{Dtype, Lineage};
use luthier_surgery::Input;
use luthier_surgery::diff::ValueDifference;
use luthier_surgery::grow::{Axis, Operation, Options, plan, run};
use serde_json::json;

use crate::models::{GOLDEN, config, golden, names, open, write};

fn options(operation: Operation, axis: Axis) -> Options {
    Options { operation, axis, seed: 1, asymmetry: 0.0, dtype: None, force: false }
}

#[test]
fn zero_and_split_keep_the_function_in_every_family() {
    for name in GOLDEN {
        let parent = open(&golden(name));
        for operation in [Operation::Zero, Operation::Split] {
            for axis in [Axis::Depth(2), Axis::Depth(3), Axis::Width(2), Axis::Width(3)] {
                let home = tempfile::tempdir().unwrap();
                let out = home.path().join("out");
                let report = run(&parent, &out, &options(operation, axis))
                    .unwrap_or_else(|error| panic!("{name} {operation:?} {axis:?}: {error}"));
                let difference = report.logits_difference.relative;
                assert!(difference <= 1e-5, "{name} {operation:?} {axis:?}: {difference:e}");
                assert!(report.keeps_function && report.parameters.1 > report.parameters.0);
                let made = luthier_arch::open(&out).unwrap();
                let planned = plan(&parent, &home.path().join("b"), &options(operation, axis)).unwrap();
                assert_eq!(planned.tensors.len(), made.tensors.infos().len(), "{name}");
            }
        }
    }
}

#[test]
fn one_time_changes_nothing() {
    let home = tempfile::tempdir().unwrap();
    for (at, model_type) in ["llama", "gemma2", "qwen3"].iter().enumerate() {
        let folder = write(&home.path().join(model_type), &config(model_type, 24, 31), Dtype::BF16, 3);
        let parent = open(&folder);
        for operation in Operation::ALL {
            for axis in [Axis::Depth(1), Axis::Width(1)] {
                if (operation, axis) == (Operation::Stack, Axis::Width(1)) {
                    continue;
                }
                let out = home.path().join(format!("{at}-{operation:?}-{axis:?}"));
                let report = run(&parent, &out, &options(operation, axis)).unwrap();
                assert_eq!(report.copied_tensors, report.tensors);
                assert!(report.logits_difference.max_abs <= 0.0);
                for file in ["config.json", "model.safetensors", "generation_config.json"] {
                    let read = |folder: &Path| std::fs::read(folder.join(file)).unwrap();
                    assert!(read(&folder) == read(&out), "{model_type} {operation:?} {axis:?} {file}");
                }
            }
        }
    }
}

#[test]
fn stacked_layers_are_copies_and_the_config_says_which_slide() {
    let home = tempfile::tempdir().unwrap();
    let mut gemma = config("gemma2", 24, 31);
    gemma.shift_remove("layer_types");
    let parent = open(&write(&home.path().join("parent"), &gemma, Dtype::BF16, 3));
    let out = home.path().join("out");
    let report = run(&parent, &out, &options(Operation::Stack, Axis::Depth(2))).unwrap();
    assert_eq!(report.copied_tensors, report.tensors);
    assert!(!report.keeps_function && report.logits_difference.relative > 0.0);
    let made = luthier_arch::open(&out).unwrap();
    assert_eq!(made.config["num_hidden_layers"], 6);
    // Layers 0 and 2 of three slide, and so do 3 and 5.
    let sliding: Vec<bool> = made.config["layer_types"]
        .as_array()
        .unwrap()
        .iter()
        .map(|name| name == "sliding_attention")
        .collect();
    assert_eq!(sliding, [true, false, true, true, false, true]);
    for layer in 0..6 {
        let name = |layer: usize| format!("model.layers.{layer}.mlp.down_proj.weight");
        let (came, wanted) =
            (made.tensors.read(&name(layer)), parent.checkpoint.tensors.read(&name(layer % 3)));
        assert!(came.unwrap()[..] == wanted.unwrap()[..], "{layer}");
    }
    let lineage = Lineage::read(&out).unwrap().unwrap();
    assert_eq!((lineage.verb.as_str(), lineage.ledger.copied), ("grow", lineage.ledger.output_tensors));
    assert_eq!(lineage.recipe["op"], "stack");
    assert_eq!(lineage.recipe["depth"], 2);
    assert!(lineage.measurements["logits_relative_difference"].as_f64().unwrap() > 0.0);
}

#[test]
fn windows_by_number_and_layers_of_their_own_are_written_out() {
    let home = tempfile::tempdir().unwrap();
    let mut qwen = config("qwen2", 24, 31);
    for (key, value) in [
        ("use_sliding_window", json!(true)),
        ("sliding_window", json!(5)),
        ("max_window_layers", json!(1)),
        ("per_layer_config", json!({"1": {"intermediate_size": 10}, "2": {"skip": ["mlp"]}})),
    ] {
        qwen.insert(key.to_string(), value);
    }
    let parent = open(&write(&home.path().join("parent"), &qwen, Dtype::F32, 3));
    for (operation, axis) in [
        (Operation::Stack, Axis::Depth(2)),
        (Operation::Zero, Axis::Depth(2)),
        (Operation::Split, Axis::Depth(2)),
        (Operation::Split, Axis::Width(2)),
        (Operation::Zero, Axis::Width(2)),
    ] {
        let out = home.path().join(format!("{operation:?}-{axis:?}"));
        run(&parent, &out, &options(operation, axis)).unwrap();
        let made = luthier_arch::open(&out).unwrap();
        let sizes = luthier_arch::sizes::sizes(&made.config).unwrap();
        let inner: Vec<Option<usize>> = sizes.stacks[0].layers.iter().map(|layer| layer.inner).collect();
        let slides: Vec<bool> = sizes.stacks[0].layers.iter().map(|layer| layer.window.is_some()).collect();
        let (wanted_inner, wanted_slides) = match (operation, axis) {
            (_, Axis::Width(_)) => (vec![Some(44), Some(20), None], vec![false, true, true]),
            (Operation::Split, _) => (
                vec![Some(22), Some(22), Some(10), Some(10), None, None],
                vec![false, false, true, true, true, true],
            ),
            _ => (
                vec![Some(22), Some(10), None, Some(22), Some(10), None],
                vec![false, true, true, false, true, true],
            ),
        };
        assert_eq!((inner, slides), (wanted_inner, wanted_slides), "{operation:?} {axis:?}");
    }
}

#[test]
fn fresh_parts_depend_on_the_seed_and_leave_the_old_ones() {
    let home = tempfile::tempdir().unwrap();
    let parent = open(&write(&home.path().join("parent"), &config("llama", 24, 31), Dtype::F32, 3));
    let name = "model.layers.1.self_attn.q_proj.weight";
    let old = parent.checkpoint.tensors.read(name).unwrap();
    for axis in [Axis::Depth(2), Axis::Width(2)] {
        let grown = |place: &str, seed: u64| {
            let out = home.path().join(format!("{place}-{axis:?}"));
            let report = run(&parent, &out, &Options { seed, ..options(Operation::Random, axis) }).unwrap();
            assert!(!report.keeps_function);
            std::fs::read(out.join("model.safetensors")).unwrap()
        };
        let (a, b, c) = (grown("a", 1), grown("b", 1), grown("c", 2));
        assert!(a == b && a != c, "{axis:?}");
        let made = luthier_arch::open(&home.path().join(format!("a-{axis:?}"))).unwrap();
        let came = made.tensors.read(name).unwrap();
        // The old rows begin with the old values.
        let row = 24 * 4;
        let wide = came.len() / made.tensors.infos().iter().find(|info| info.name == name).unwrap().shape[0];
        for (at, old) in old.chunks(row).enumerate() {
            assert_eq!(came[at * wide..at * wide + row], old[..], "{axis:?} row {at}");
        }
    }
}

#[test]
fn unequal_shares_tell_copies_apart_and_keep_the_function() {
    let home = tempfile::tempdir().unwrap();
    let parent = open(&golden("llama"));
    let out = home.path().join("out");
    let asymmetric = Options { asymmetry: 0.5, ..options(Operation::Split, Axis::Width(2)) };
    let report = run(&parent, &out, &asymmetric).unwrap();
    assert!(report.logits_difference.relative <= 1e-5, "{report:?}");
    let made = luthier_arch::open(&out).unwrap();
    let down = made.tensors.read("model.layers.0.mlp.down_proj.weight").unwrap();
    // 52 neurons twice: the first row's copies differ.
    assert_ne!(down[..52 * 4], down[52 * 4..104 * 4]);
    let report = run(&parent, &home.path().join("even"), &options(Operation::Split, Axis::Width(2))).unwrap();
    assert!(report.notes.iter().any(|note| note.contains("--asymmetry")), "{report:?}");
}

#[test]
fn sixteen_bits_are_reported_and_powers_of_two_exact() {
    let home = tempfile::tempdir().unwrap();
    let parent = open(&write(&home.path().join("parent"), &config("llama", 24, 31), Dtype::BF16, 3));
    let split = run(&parent, &home.path().join("a"), &options(Operation::Split, Axis::Width(2))).unwrap();
    assert!(split.logits_difference.relative <= 1e-5, "{split:?}");
    let zero = run(&parent, &home.path().join("b"), &options(Operation::Zero, Axis::Width(2))).unwrap();
    assert!((1e-5..0.05).contains(&zero.logits_difference.relative), "{zero:?}");
    let cast = Options { dtype: Some(Dtype::F32), ..options(Operation::Zero, Axis::Width(2)) };
    let cast = run(&parent, &home.path().join("c"), &cast).unwrap();
    assert!(cast.logits_difference.relative <= 1e-5, "{cast:?}");
    let made = luthier_arch::open(&home.path().join("c")).unwrap();
    assert_eq!(made.config["torch_dtype"], "float32");
}

#[test]
fn gguf_files_grow_into_folders_and_back() {
    let home = tempfile::tempdir().unwrap();
    for model_type in ["llama", "gemma2"] {
        let mut even = config(model_type, 24, 31);
        even.insert("num_hidden_layers".to_string(), json!(2));
        let parent = open(&write(&home.path().join(model_type), &even, Dtype::F32, 3));
        let (file, folder) = (home.path().join(format!("{model_type}.gguf")), home.path().join("folder"));
        for (operation, axis) in [(Operation::Stack, Axis::Depth(2)), (Operation::Split, Axis::Width(2))] {
            let options = Options { force: true, ..options(operation, axis) };
            run(&parent, &file, &options).unwrap();
            run(&parent, &folder, &options).unwrap();
            let (a, b) = (luthier_arch::open(&file).unwrap(), luthier_arch::open(&folder).unwrap());
            let difference = luthier_surgery::diff::run(&a, &b).unwrap();
            // 1 is added to Gemma's norms in the file, which rounds.
            let is_rounding = |one: &ValueDifference| one.relative_l2.is_some_and(|relative| relative < 1e-6);
            let is_close = difference.changed.iter().all(is_rounding);
            assert!(is_close && difference.shapes.is_empty(), "{difference:?}");
            let planned = plan(&parent, &file, &options).unwrap();
            assert!(planned.memory_bytes > planned.size_bytes);
        }
        let from_file = run(
            &open(&file),
            &home.path().join("again"),
            &Options { force: true, ..options(Operation::Zero, Axis::Depth(2)) },
        );
        assert!(from_file.unwrap().logits_difference.relative <= 1e-6);
    }
}

fn refusal(home: &Path, parent: &Input, options: &Options) -> String {
    let before = names(home);
    let refused = run(parent, &home.join("out"), options).unwrap_err().to_string();
    assert_eq!(names(home), before, "something is left behind");
    refused
}

#[test]
fn what_cannot_grow_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let folder = write(&home.path().join("parent"), &config("llama", 24, 31), Dtype::F32, 3);
    let parent = open(&folder);
    let refused = refusal(home.path(), &parent, &options(Operation::Stack, Axis::Width(2)));
    assert!(refused.contains("--op split"), "{refused}");
    let refused = refusal(home.path(), &parent, &options(Operation::Stack, Axis::Depth(0)));
    assert!(refused.contains("1 time or more"), "{refused}");
    let asymmetric = Options { asymmetry: 0.1, ..options(Operation::Zero, Axis::Width(2)) };
    assert!(refusal(home.path(), &parent, &asymmetric).contains("split in width"));
    let refused = refusal(home.path(), &parent, &options(Operation::Stack, Axis::Depth(2000)));
    assert!(refused.contains("num_hidden_layers"), "{refused}");
    let path = folder.join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    let refused = refusal(home.path(), &open(&folder), &options(Operation::Stack, Axis::Depth(2)));
    assert!(refused.starts_with("tensor ") && refused.contains("NaN"), "{refused}");
    let mut strange = parent.clone();
    strange.checkpoint.config.insert("model_type".to_string(), "sphinx".into());
    assert!(refusal(home.path(), &strange, &options(Operation::Zero, Axis::Depth(2))).contains("sphinx"));
}

#[test]
fn a_function_that_is_not_kept_is_not_written() {
    let home = tempfile::tempdir().unwrap();
    // Without an eps a post-norm divides the zeros of a silent block by 0.
    let mut gemma = config("gemma2", 24, 31);
    gemma.insert("rms_norm_eps".to_string(), json!(0.0));
    let parent = open(&write(&home.path().join("parent"), &gemma, Dtype::F32, 3));
    let refused = refusal(home.path(), &parent, &options(Operation::Zero, Axis::Depth(2)));
    assert!(refused.contains("take another --op"), "{refused}");
}

#[test]
fn windows_that_a_gguf_file_cannot_say_are_refused() {
    let home = tempfile::tempdir().unwrap();
    // Three layers, of which the first and the last slide: stacked they no longer alternate.
    let parent = open(&write(&home.path().join("parent"), &config("gemma2", 24, 31), Dtype::F32, 3));
    let stack = options(Operation::Stack, Axis::Depth(2));
    let refused = run(&parent, &home.path().join("out.gguf"), &stack).unwrap_err().to_string();
    assert!(refused.contains("layer_types"), "{refused}");
    assert_eq!(names(home.path()), ["parent"]);
}
