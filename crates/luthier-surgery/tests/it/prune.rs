//! `prune`: what is left computes what a plain implementation computes; what carries nothing goes without a trace.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::Device;
use luthier_arch::{LoadOptions, TokenBatch, load};
use luthier_checkpoint::layout::{Layout, Part, Projection, Space, StackKind};
use luthier_checkpoint::safetensors::{SafetensorsFile, SafetensorsWriter};
use luthier_checkpoint::scores::{Aggregation, ScoreSettings, Scores, model_sha256};
use luthier_checkpoint::{Checkpoint, Dtype, TensorInfo, TensorSink, TensorSource, values};
use luthier_surgery::Input;
use luthier_surgery::prune::{Budget, Criterion, Options, Sparse, Sparsity, Targets, model, plan, run};
use serde_json::{Map, Value, json};
use tempfile::tempdir;

use crate::models::{config, open, write};

pub(crate) fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden")
}

pub(crate) fn tensor(file: &SafetensorsFile, name: &str) -> Vec<f32> {
    let info = file.infos().iter().find(|info| info.name == name).unwrap();
    let bytes = file.read(name).unwrap();
    match info.dtype.is_float() {
        true => values::to_f32(name, info.dtype, &bytes).unwrap(),
        false => bytes.chunks_exact(4).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]]) as f32).collect(),
    }
}

pub(crate) fn layout(input: &Input) -> Layout {
    luthier_arch::layout_of(&input.checkpoint).unwrap()
}

/// Writes these vectors as scores of a model.
pub(crate) fn scores(input: &Input, tensors: BTreeMap<String, Vec<f32>>, path: &Path) -> PathBuf {
    let settings = ScoreSettings {
        model_sha256: model_sha256(&layout(input), input.checkpoint.tensors.as_ref()).unwrap(),
        text_sha256: "0".repeat(64),
        tokens: 30,
        window: 10,
        sequence: Aggregation::Mean,
        batch: Aggregation::L2,
    };
    Scores { settings, tensors }.write(path, true, &[]).unwrap();
    path.to_path_buf()
}

/// Scores of everything, all different, channels of equal energy.
pub(crate) fn made_scores(input: &Input, path: &Path) -> PathBuf {
    let sizes = luthier_arch::sizes::sizes(&input.checkpoint.config).unwrap();
    let mut tensors = BTreeMap::new();
    let score =
        |n: usize, seed: usize| (0..n).map(|at| ((at * 7 + seed * 5) % (n + 3)) as f32 + 1.0).collect();
    for (seed, spec) in layout(input).tensors.iter().enumerate() {
        let columns = spec.shape.last().copied().unwrap();
        let name = &spec.name;
        match (&spec.spaces[..], spec.role.layer) {
            ([Space::Residual], _) => {
                tensors.insert(format!("channels.{name}"), score(columns, seed));
                tensors.insert(format!("energy.{name}"), vec![1.0 / columns as f32; columns]);
                tensors.insert(format!("shift.{name}"), vec![0.0; columns]);
            }
            ([Space::Experts, _], _) => {
                _ = tensors.insert(format!("experts.{name}"), score(spec.shape[0], seed))
            }
            ([_, Space::Ffn], _) => _ = tensors.insert(format!("neurons.{name}"), score(columns, seed)),
            ([_, Space::Heads], Some(layer)) => {
                let heads = sizes.stack(spec.role.stack).unwrap().layers[layer].heads.unwrap();
                tensors.insert(format!("heads.{name}"), score(heads.query, seed));
                tensors.insert(format!("groups.{name}"), score(heads.kv, seed));
            }
            _ => {}
        }
        tensors.insert(format!("inputs.{name}"), score(columns, seed));
    }
    for stack in &sizes.stacks {
        let name = if stack.kind == StackKind::Encoder { "encoder" } else { "decoder" };
        tensors.insert(format!("block_influence.{name}"), score(stack.layers.len(), 1));
    }
    scores(input, tensors, path)
}

pub(crate) fn logits(checkpoint: &Checkpoint, ids: &[u32], encoder_ids: Option<&[u32]>) -> Vec<f32> {
    let model = load(checkpoint, &LoadOptions { trainable: false, device: Device::Cpu }).unwrap();
    let tokens = |ids: &[u32]| TokenBatch { ids: ids.to_vec(), rows: 1, segments: None };
    let encoded = encoder_ids.map(|ids| model.encode(&tokens(ids)).unwrap());
    let states = model.hidden(&tokens(ids), encoded.as_ref(), None).unwrap();
    model.logits(&states).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

pub(crate) fn assert_close(what: &str, came: &[f32], wanted: &[f32]) {
    assert_eq!(came.len(), wanted.len(), "{what}");
    let off = came.iter().zip(wanted).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
    let largest = wanted.iter().fold(1f32, |largest, value| largest.max(value.abs()));
    assert!(off < 2e-5 * largest, "{what}: off by {off}, values up to {largest}");
}

fn targets(shape: &Value) -> Targets {
    let amounts = |key: &str| {
        let sizes: Vec<String> = shape[key].as_array().unwrap().iter().map(Value::to_string).collect();
        Some(sizes.join(",").parse().unwrap())
    };
    Targets {
        layers: amounts("layers"),
        hidden: amounts("hidden"),
        ffn: amounts("ffn"),
        heads: amounts("heads"),
        kv_groups: amounts("groups"),
        experts: None,
    }
}

#[test]
fn pruned_models_equal_reference() {
    let at = tempdir().unwrap();
    let shapes = std::fs::read(golden().join("prune/shapes.json")).unwrap();
    let shapes: Map<String, Value> = serde_json::from_slice(&shapes).unwrap();
    for (name, shape) in &shapes {
        let input = Input::new(name, luthier_arch::open(&golden().join(name)).unwrap());
        let file = SafetensorsFile::open(&golden().join(format!("prune/{name}.safetensors"))).unwrap();
        let is_score = |name: &str| !name.contains("ids") && name != "pruned_logits";
        let known = file.infos().iter().filter(|info| is_score(&info.name));
        let known = known.map(|info| (info.name.clone(), tensor(&file, &info.name))).collect();
        let path = scores(&input, known, &at.path().join(name));
        let options = Options { targets: targets(shape), scores: Some(path), ..Options::default() };
        let ids = |name: &str| tensor(&file, name).iter().map(|id| *id as u32).collect::<Vec<_>>();
        let encoder_ids = file.infos().iter().any(|info| info.name == "pruned_encoder_ids");
        let encoder_ids = encoder_ids.then(|| ids("pruned_encoder_ids"));
        let wanted = tensor(&file, "pruned_logits");
        let pruned = model(&input, &options).unwrap();
        assert_close(name, &logits(&pruned, &ids("pruned_ids"), encoder_ids.as_deref()), &wanted);
        let out = at.path().join(format!("{name}-out"));
        let report = run(&input, &out, &options).unwrap();
        assert_eq!(report.parameters.1, layout(&open(&out)).parameters());
        assert_close(
            name,
            &logits(&open(&out).checkpoint, &ids("pruned_ids"), encoder_ids.as_deref()),
            &wanted,
        );
    }
}

#[test]
fn sizes_as_they_are_give_the_same_bytes() {
    let at = tempdir().unwrap();
    for name in ["llama", "gemma2", "t5", "t5gemma", "encoder-decoder", "uneven", "qwen2"] {
        let input = Input::new(name, luthier_arch::open(&golden().join(name)).unwrap());
        let path = made_scores(&input, &at.path().join("scores"));
        let out = at.path().join(name);
        let keep_all = |text: &str| Some(text.parse().unwrap());
        let targets = Targets { layers: keep_all("0.9999"), ffn: keep_all("0.9999"), ..Targets::default() };
        let options = Options {
            targets,
            scores: Some(path),
            budget: Some(Budget::Parameters(usize::MAX)),
            ..Options::default()
        };
        let report = run(&input, &out, &options).unwrap();
        assert_eq!(
            (report.tensors, report.parameters.0),
            (report.copied_tensors, report.parameters.1),
            "{name}"
        );
        for info in input.checkpoint.tensors.infos() {
            let (before, after) =
                (input.checkpoint.tensors.read(&info.name), open(&out).checkpoint.tensors.read(&info.name));
            assert_eq!(before.unwrap()[..], after.unwrap()[..], "{name} {}", info.name);
        }
        assert_eq!(open(&out).checkpoint.config, input.checkpoint.config, "{name}");
    }
}

/// Sets what `is_dead` says of a tensor's value at these places to 0.
fn with_zeros(input: &Input, folder: &Path, is_dead: impl Fn(&Layout, usize, &[usize]) -> bool) -> Input {
    let layout = layout(input);
    let tensors = &input.checkpoint.tensors;
    let infos: Vec<TensorInfo> = layout
        .tensors
        .iter()
        .map(|spec| TensorInfo { name: spec.name.clone(), dtype: Dtype::F32, shape: spec.shape.clone() })
        .collect();
    std::fs::create_dir_all(folder).unwrap();
    let mut writer =
        SafetensorsWriter::create(folder, &infos, &SafetensorsWriter::pt_metadata(), None).unwrap();
    for (at, info) in infos.iter().enumerate() {
        let mut numbers = values::to_f32(&info.name, Dtype::F32, &tensors.read(&info.name).unwrap()).unwrap();
        let columns = info.shape.last().copied().unwrap();
        for (place, number) in numbers.iter_mut().enumerate() {
            let places = [place / columns, place % columns];
            let places = if info.shape.len() == 1 { &places[1..] } else { &places[..] };
            if is_dead(&layout, at, places) {
                *number = 0.0;
            }
        }
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        writer.write(&info.name, &bytes).unwrap();
    }
    writer.finish().unwrap();
    std::fs::write(folder.join("config.json"), luthier_checkpoint::json::to_text(&input.checkpoint.config))
        .unwrap();
    open(folder)
}

const IDS: &[u32] = &[4, 8, 15, 16, 23, 42, 7];

/// Channels that nothing writes to: energy 0 and score 0.
#[test]
fn dead_channels_and_neurons_and_layers_go_without_a_trace() {
    let at = tempdir().unwrap();
    let dead = [1usize, 5, 8, 11, 14, 17, 20, 23];
    for name in ["llama-tied", "qwen3", "gemma2"] {
        let whole = Input::new(name, luthier_arch::open(&golden().join(name)).unwrap());
        let input = with_zeros(&whole, &at.path().join(name), |layout, tensor, places| {
            let spec = &layout.tensors[tensor];
            let last = Some(1);
            match spec.role.part {
                Part::Embedding | Part::Head => dead.contains(&places[1]),
                Part::SelfAttention(Projection::Output) => {
                    dead.contains(&places[0]) || spec.role.layer == last
                }
                Part::SelfAttentionBias(Projection::Output) | Part::DownBias => true,
                Part::Down => {
                    dead.contains(&places[0]) || dead.contains(&places[1]) || spec.role.layer == last
                }
                _ => false,
            }
        });
        let path = made_scores(&input, &at.path().join("scores"));
        let mut known = Scores::read(&path).unwrap().tensors;
        for (key, scores) in &mut known {
            if key.starts_with("channels.") || key.starts_with("neurons.") || key.starts_with("energy.") {
                let left = (scores.len() - dead.len()) as f32;
                dead.iter().for_each(|at| scores[*at] = 0.0);
                if key.starts_with("energy.") {
                    scores.iter_mut().filter(|score| **score > 0.0).for_each(|score| *score = 1.0 / left);
                }
            }
        }
        known.get_mut("block_influence.decoder").unwrap()[1] = 0.0;
        let path = scores(&input, known, &path);
        let sizes = luthier_arch::sizes::sizes(&input.checkpoint.config).unwrap().stacks.remove(0);
        let cut = |size: usize, less: usize| Some((size - less).to_string().parse().unwrap());
        let targets = Targets {
            // Heads have to divide a Gemma's width.
            hidden: cut(sizes.width, if name == "llama-tied" { 0 } else { 5 }),
            ffn: cut(sizes.layers[0].inner.unwrap(), dead.len()),
            layers: cut(sizes.layers.len(), 1),
            ..Targets::default()
        };
        let options = Options { targets, scores: Some(path), ..Options::default() };
        let pruned = model(&input, &options).unwrap();
        assert_close(name, &logits(&pruned, IDS, None), &logits(&input.checkpoint, IDS, None));
    }
}

#[test]
fn layers_may_end_uneven_and_the_config_says_so() {
    let at = tempdir().unwrap();
    let config = config("llama", 24, 50);
    let input = open(&write(&at.path().join("a"), &config, Dtype::BF16, 3));
    let path = made_scores(&input, &at.path().join("scores"));
    let targets = Targets {
        ffn: Some("0.5".parse().unwrap()),
        kv_groups: Some("1".parse().unwrap()),
        ..Targets::default()
    };
    let options = Options { targets, scores: Some(path), uneven: true, ..Options::default() };
    let out = at.path().join("out");
    let report = run(&input, &out, &options).unwrap();
    let shape = &report.shape[0];
    assert_eq!((shape.ffn.iter().sum::<usize>(), shape.kv_groups.iter().sum::<usize>()), (33, 3));
    let written = open(&out);
    let sizes = luthier_arch::sizes::sizes(&written.checkpoint.config).unwrap();
    let inner: Vec<usize> = sizes.stacks[0].layers.iter().map(|layer| layer.inner.unwrap()).collect();
    assert_eq!(inner, shape.ffn);
    assert!(logits(&written.checkpoint, IDS, None).iter().all(|logit| logit.is_finite()));
    // A GGUF file of it computes the same.
    let gguf = at.path().join("out.gguf");
    run(&input, &gguf, &options).unwrap();
    assert_close(
        "gguf",
        &logits(&open(&gguf).checkpoint, IDS, None),
        &logits(&written.checkpoint, IDS, None),
    );
}

#[test]
fn a_budget_is_kept_and_explained() {
    let at = tempdir().unwrap();
    let config = config("qwen3", 32, 50);
    let input = open(&write(&at.path().join("a"), &config, Dtype::F32, 3));
    let path = made_scores(&input, &at.path().join("scores"));
    let before = layout(&input).parameters();
    for budget in [Budget::Parameters(before * 3 / 4), Budget::Memory(before * 3)] {
        let options = Options { budget: Some(budget), scores: Some(path.clone()), ..Options::default() };
        let report = run(&input, &at.path().join(format!("{budget:?}")), &options).unwrap();
        let chosen = &report.candidates[0];
        assert!(report.parameters.1 <= before * 3 / 4 && report.parameters.1 > before / 2, "{report:?}");
        assert_eq!((chosen.parameters, chosen.size_bytes), (report.parameters.1, 4 * report.parameters.1));
        assert!(report.notes.iter().any(|note| note.starts_with("chosen: ")));
    }
    let options = Options { budget: Some(Budget::Parameters(100)), scores: Some(path), ..Options::default() };
    let error = run(&input, &at.path().join("none"), &options).unwrap_err().to_string();
    assert!(error.contains("no shape of this model is that small"), "{error}");
}

#[test]
fn weights_go_by_magnitude_or_wanda() {
    let at = tempdir().unwrap();
    let mut config = config("llama", 24, 50);
    config.insert("intermediate_size".to_string(), json!(20));
    let input = open(&write(&at.path().join("a"), &config, Dtype::F32, 3));
    let path = made_scores(&input, &at.path().join("scores"));
    let zeros = |checkpoint: &Checkpoint, name: &str| {
        let numbers = values::to_f32(name, Dtype::F32, &checkpoint.tensors.read(name).unwrap()).unwrap();
        numbers.iter().map(|number| *number == 0.0).collect::<Vec<_>>()
    };
    let name = "model.layers.1.mlp.up_proj.weight";
    for (amount, by) in [
        (Sparse::Share(0.5), Criterion::Magnitude),
        (Sparse::Share(0.25), Criterion::Wanda),
        ("2:4".parse().unwrap(), Criterion::Wanda),
        ("1:4".parse().unwrap(), Criterion::Magnitude),
    ] {
        let options = Options {
            scores: Some(path.clone()),
            sparsity: Some(Sparsity { amount, by }),
            ..Options::default()
        };
        let pruned = model(&input, &options).unwrap();
        let gone = zeros(&pruned, name);
        match amount {
            Sparse::Share(share) => {
                assert_eq!(gone.iter().filter(|gone| **gone).count(), (gone.len() as f64 * share) as usize);
            }
            Sparse::Pattern { kept, of } => {
                assert!(gone.chunks(of).all(|part| part.iter().filter(|gone| !**gone).count() == kept));
            }
        }
        assert!(zeros(&pruned, "model.embed_tokens.weight").iter().all(|gone| !gone));
    }
}

/// Four heads do not divide 18 channels: transformers opens such a Mistral, but no such Llama.
#[test]
fn a_llama_whose_heads_do_not_divide_the_width_becomes_a_mistral() {
    let at = tempdir().unwrap();
    let input = open(&write(&at.path().join("a"), &config("llama", 24, 50), Dtype::F32, 3));
    let path = made_scores(&input, &at.path().join("scores"));
    let targets = Targets { hidden: Some("18".parse().unwrap()), ..Targets::default() };
    let options = Options { targets, scores: Some(path), ..Options::default() };
    let pruned = model(&input, &options).unwrap();
    assert_eq!(pruned.config["model_type"], "mistral");
    assert_eq!((&pruned.config["sliding_window"], &pruned.config["head_dim"]), (&Value::Null, &json!(6)));
    assert!(
        plan(&input, Path::new("out"), &options).unwrap().notes.iter().any(|note| note.contains("mistral"))
    );
}
