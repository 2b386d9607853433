//! Adapters extracted from two models: what comes back, what is left out and listed, what is refused.

use std::path::{Path, PathBuf};

use luthier_checkpoint::adapter::Adapter;
use luthier_checkpoint::safetensors::{SafetensorsFile, SafetensorsWriter};
use luthier_checkpoint::{Checkpoint, Dtype, Lineage, TensorInfo, TensorSink, TensorSource, values};
use luthier_surgery::extract::{Embeddings, Options, Report, Size, plan, run};
use luthier_surgery::{Input, fused};
use serde_json::{Map, Value, json};

use crate::merge::values_of;
use crate::models::{config, names, open, write};

/// All that an adapter can hold, at full rank.
pub(crate) fn everything() -> Options {
    Options {
        size: Size::Energy(1.0),
        targets: Vec::new(),
        exclude: Vec::new(),
        embeddings: Some(Embeddings::Auto),
        norms: true,
        biases: true,
        dtype: Dtype::F32,
        text: None,
        force: false,
    }
}

/// A folder of `from` in which `change` made other values of every tensor that it is told of; other shapes by leaving values out.
pub(crate) fn changed(from: &Path, to: &Path, change: impl Fn(&str, &mut Vec<f32>)) -> PathBuf {
    std::fs::create_dir_all(to).unwrap();
    let source = SafetensorsFile::open(&from.join("model.safetensors")).unwrap();
    let mut tensors: Vec<(TensorInfo, Vec<u8>)> = Vec::new();
    for info in source.infos() {
        let mut wide = values_of(&source, &info.name);
        let len = wide.len();
        change(&info.name, &mut wide);
        let mut info = info.clone();
        if wide.len() != len {
            info.shape[0] = info.shape[0] * wide.len() / len;
        }
        let bytes: Vec<u8> = wide.iter().flat_map(|value| value.to_le_bytes()).collect();
        tensors.push((info.clone(), values::cast(&info.name, Dtype::F32, &bytes, info.dtype).unwrap()));
    }
    let infos: Vec<TensorInfo> = tensors.iter().map(|(info, _)| info.clone()).collect();
    let mut writer = SafetensorsWriter::create(to, &infos, &SafetensorsWriter::pt_metadata(), None).unwrap();
    tensors.iter().for_each(|(info, bytes)| writer.write(&info.name, bytes).unwrap());
    writer.finish().unwrap();
    std::fs::copy(from.join("config.json"), to.join("config.json")).unwrap();
    to.to_path_buf()
}

fn extract(base: &Input, tuned: &Input, out: &Path, options: &Options) -> luthier_surgery::Result<Report> {
    run(base, tuned, out, options, |_| Ok(Map::new()))
}

/// The base with the adapter at that place.
fn refused_or(base: &Input, adapter: &Path) -> Input {
    fused(base.clone(), "adapter", "base+adapter", Adapter::open(adapter).unwrap()).unwrap()
}

fn assert_near(came: &dyn TensorSource, wanted: &dyn TensorSource, bound: f32) {
    for info in wanted.infos() {
        for (came, wanted) in values_of(came, &info.name).iter().zip(values_of(wanted, &info.name)) {
            assert!((came - wanted).abs() <= bound, "{}: {came} for {wanted}", info.name);
        }
    }
}

#[test]
fn every_embedding_of_an_encoder_is_a_pair_of_peft_s_kind_for_embeddings() {
    let home = tempfile::tempdir().unwrap();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/bert-plain/config.json");
    let config: Map<String, Value> = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let base = write(&home.path().join("base"), &config, Dtype::F32, 2);
    let tuned = changed(&base, &home.path().join("tuned"), |_, values| {
        values.iter_mut().enumerate().for_each(|(i, value)| *value += ((i % 7) as f32 - 3.0) / 100.0);
    });
    let [base, tuned] = [base, tuned].map(|place| open(&place));
    let adapter = home.path().join("adapter");
    extract(&base, &tuned, &adapter, &everything()).unwrap();
    let file = SafetensorsFile::open(&adapter.join("adapter_model.safetensors")).unwrap();
    for name in ["word_embeddings", "position_embeddings", "token_type_embeddings"] {
        let wanted = ["lora_embedding_A", "lora_embedding_B"]
            .map(|half| format!("base_model.model.embeddings.{name}.{half}"));
        let part = format!(".{name}.");
        let mut held: Vec<&str> = file.infos().iter().map(|info| &info.name[..]).collect();
        held.retain(|name| name.contains(&part));
        held.sort();
        assert_eq!(held, wanted);
    }
    let fused = refused_or(&base, &adapter);
    assert_near(&*fused.checkpoint.tensors, &*tuned.checkpoint.tensors, 1e-5);
}

#[test]
fn everything_comes_back_at_full_rank() {
    for model_type in ["llama", "qwen2", "gemma2", "mistral", "qwen3"] {
        let home = tempfile::tempdir().unwrap();
        let config = config(model_type, 20, 33);
        let base = open(&write(&home.path().join("base"), &config, Dtype::F32, 1));
        let tuned = open(&write(&home.path().join("tuned"), &config, Dtype::F32, 2));
        let out = home.path().join("out");
        let report = extract(&base, &tuned, &out, &everything()).unwrap();
        let fused = refused_or(&base, &out);
        assert_near(fused.checkpoint.tensors.as_ref(), tuned.checkpoint.tensors.as_ref(), 1e-5);
        assert!(report.relative_error < 1e-6, "{model_type}: {}", report.relative_error);
        let n_inputs = 2 * base.checkpoint.tensors.infos().len();
        assert_eq!(report.ledger.input_tensors, n_inputs, "{model_type}");
        let keys: Value =
            serde_json::from_slice(&std::fs::read(out.join("adapter_config.json")).unwrap()).unwrap();
        assert_eq!(keys["ensure_weight_tying"], model_type == "gemma2", "{model_type}");
        assert_eq!(keys["task_type"], Value::Null, "the class is called X");
        assert_eq!(
            names(&out),
            ["README.md", "adapter_config.json", "adapter_model.safetensors", "lineage.json"]
        );
        let planned = plan(&base, &tuned, &everything()).unwrap();
        assert!(planned.size_bytes >= report.size_bytes, "{model_type}");
    }
}

/// A base and a fine-tune of it in which a product of rank 2 was added to some weights.
fn two(home: &Path, is_tuned: impl Fn(&str) -> bool) -> [Input; 2] {
    let base = write(&home.join("base"), &config("llama", 20, 33), Dtype::F32, 3);
    let tuned = changed(&base, &home.join("tuned"), |name, values| {
        let cols = if name.contains("down_proj") { 22 } else { 20 };
        if is_tuned(name) {
            for (at, value) in values.iter_mut().enumerate() {
                let (row, col) = ((at / cols) as f32, (at % cols) as f32);
                *value += 0.02 * (row * 0.7).sin() * (col * 0.3).cos()
                    + 0.01 * (row * 0.2).cos() * (col * 1.1).sin();
            }
        }
    });
    [open(&base), open(&tuned)]
}

#[test]
fn pairs_have_the_rank_that_the_change_has_and_the_rest_is_listed() {
    let home = tempfile::tempdir().unwrap();
    let [base, tuned] =
        two(home.path(), |name| name.contains("q_proj") || name == "model.layers.1.mlp.down_proj.weight");
    let by = |size: Size, name: &str| {
        let options = Options { size, ..everything() };
        let out = home.path().join(name);
        (extract(&base, &tuned, &out, &options).unwrap(), out)
    };
    let (report, out) = by(Size::Rank(2), "two");
    assert!(report.relative_error < 1e-5, "{}", report.relative_error);
    assert_near(refused_or(&base, &out).checkpoint.tensors.as_ref(), tuned.checkpoint.tensors.as_ref(), 1e-6);
    assert_eq!(report.ranks.len(), 4);
    assert!(report.unchanged.contains(&"model.layers.0.mlp.down_proj.weight".to_string()));
    let keys: Value =
        serde_json::from_slice(&std::fs::read(out.join("adapter_config.json")).unwrap()).unwrap();
    assert_eq!(keys["target_modules"], json!(["model.layers.1.mlp.down_proj", "q_proj"]));
    assert_eq!((&keys["r"], &keys["lora_alpha"]), (&json!(2), &json!(2)));
    let (report, _) = by(Size::Rank(1), "one");
    assert!(report.relative_error > 0.05 && report.relative_error < 0.9);
    assert_eq!(
        report.groups.iter().map(|group| group.name.as_str()).collect::<Vec<_>>(),
        ["down_proj", "q_proj"]
    );
    let (report, _) = by(Size::Energy(0.999_999), "energy");
    assert!(report.ranks.values().all(|rank| *rank == 2), "{:?}", report.ranks);
    let lineage = Lineage::read(&home.path().join("energy")).unwrap().unwrap();
    assert_eq!(lineage.recipe["rank"], Value::Null);
    assert_eq!(lineage.recipe["energy"], 0.999_999);
    assert_eq!(lineage.parents.len(), 2);
}

#[test]
fn targets_leave_the_rest_out_and_say_so() {
    let home = tempfile::tempdir().unwrap();
    let [base, tuned] = two(home.path(), |name| name.contains("_proj"));
    let options = Options { targets: vec!["layers.0".to_string()], size: Size::Rank(3), ..everything() };
    let report = extract(&base, &tuned, &home.path().join("out"), &options).unwrap();
    assert_eq!((report.ranks.len(), report.untargeted.len()), (7, 14));
    let dropped = report.ledger.dropped.iter().filter(|dropped| dropped.reason.contains("--target-modules"));
    assert_eq!(dropped.count(), 28);
    let options = Options { targets: vec!["proj".to_string()], ..options };
    let came = extract(&base, &tuned, &home.path().join("x"), &options).unwrap_err().to_string();
    assert!(came.contains("--target-modules proj: fits no tensor"), "{came}");
}

#[test]
fn a_fine_tune_in_another_type_and_another_prefix_is_one() {
    let home = tempfile::tempdir().unwrap();
    let [base, tuned] = two(home.path(), |name| name.contains("v_proj"));
    // A model of no known kind, whose names lack the first part.
    let folder = home.path().join("bare");
    std::fs::create_dir_all(&folder).unwrap();
    let infos: Vec<TensorInfo> = tuned.checkpoint.tensors.infos().to_vec();
    let bare = |name: &str| name.strip_prefix("model.").unwrap_or(name).to_string();
    let renamed: Vec<TensorInfo> =
        infos.iter().map(|info| TensorInfo { name: bare(&info.name), ..info.clone() }).collect();
    let mut writer =
        SafetensorsWriter::create(&folder, &renamed, &SafetensorsWriter::pt_metadata(), None).unwrap();
    for info in &infos {
        writer.write(&bare(&info.name), &tuned.checkpoint.tensors.read(&info.name).unwrap()).unwrap();
    }
    writer.finish().unwrap();
    std::fs::write(folder.join("config.json"), "{}").unwrap();
    let bare = Input::new("bare", Checkpoint::open_folder(&folder).unwrap());
    let out = home.path().join("out");
    let report = extract(&base, &bare, &out, &Options { size: Size::Rank(2), ..everything() }).unwrap();
    assert_eq!(report.ranks.len(), 3);
    assert!(report.ranks.contains_key("model.layers.0.self_attn.v_proj"));
    assert!(report.notes.iter().any(|note| note.contains("prefix model. added")), "{:?}", report.notes);
}

#[test]
fn weights_stored_the_other_way_round_are_told_by_their_biases() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/adapter/gpt2");
    let home = tempfile::tempdir().unwrap();
    let tuned = changed(&golden, &home.path().join("tuned"), |name, values| {
        if name.ends_with("c_attn.weight") || name.ends_with("c_proj.weight") {
            values.iter_mut().enumerate().for_each(|(at, value)| *value += 0.01 * (at as f32 * 0.9).sin());
        }
    });
    let base = Input::new("gpt2", Checkpoint::open_folder(&golden).unwrap());
    let tuned = Input::new("tuned", Checkpoint::open_folder(&tuned).unwrap());
    let out = home.path().join("out");
    extract(&base, &tuned, &out, &everything()).unwrap();
    let keys: Value =
        serde_json::from_slice(&std::fs::read(out.join("adapter_config.json")).unwrap()).unwrap();
    assert_eq!(keys["fan_in_fan_out"], true);
    assert_near(refused_or(&base, &out).checkpoint.tensors.as_ref(), tuned.checkpoint.tensors.as_ref(), 1e-5);
}

#[test]
fn what_an_adapter_would_lose_or_does_not_fit_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let check = |base: &Input, tuned: &Input, options: Options, wanted: &str| {
        let out = home.path().join("never");
        let came = extract(base, tuned, &out, &options).unwrap_err().to_string();
        assert!(came.contains(wanted), "wanted {wanted:?}, came {came:?}");
        assert!(!out.exists());
    };
    let bare = || Options { embeddings: None, norms: false, biases: false, ..everything() };
    let [base, tuned] = two(home.path(), |name| name.contains("q_proj"));
    check(&base, &base, everything(), "the same weights: there is no adapter");
    let other = Options { targets: vec!["k_proj".to_string()], ..everything() };
    check(&base, &tuned, other, "no matrix that --target-modules names changed");
    let at = |name: &str| home.path().join(name);
    let changed = |name: &str, change: &dyn Fn(&str, &mut Vec<f32>)| {
        open(&changed(&at("base"), &at(name), |name, values| change(name, values)))
    };
    let norms = changed("norms", &|name, values| {
        if name.ends_with("norm.weight") || name.contains("embed") || name.contains("lm_head") {
            values[0] += 1.0;
        }
    });
    check(&base, &norms, bare(), "7 norms (--norms stores them): model.layers.0.input_layernorm.weight");
    check(&base, &norms, bare(), "1 embeddings (--embeddings stores them): model.embed_tokens.weight");
    check(
        &base,
        &norms,
        Options { norms: true, ..bare() },
        "1 heads (--embeddings stores them): lm_head.weight",
    );
    let broken = changed("broken", &|name, values| {
        if name.ends_with("layers.1.mlp.up_proj.weight") {
            values[5] = f32::NAN;
        }
    });
    check(&base, &broken, everything(), "model.layers.1.mlp.up_proj.weight: value 5 is NaN or infinite");
    let wide = open(&write(&at("wide"), &config("llama", 24, 33), Dtype::F32, 4));
    check(&base, &wide, everything(), "has shape [33, 20] in parent and [33, 24] in parent");
    let qwen = open(&write(&at("qwen"), &config("qwen2", 20, 33), Dtype::F32, 4));
    check(
        &base,
        &qwen,
        everything(),
        "has 9 tensors that parent has not: model.layers.0.self_attn.q_proj.bias",
    );
    check(&qwen, &base, everything(), "leave them out with --exclude");
    let excluded =
        Options { exclude: ["q_proj", "k_proj", "v_proj"].map(String::from).to_vec(), ..everything() };
    extract(&base, &qwen, &at("excluded"), &excluded).unwrap();
    let unknown = Options { exclude: vec!["nothing".to_string()], ..everything() };
    check(&base, &tuned, unknown, "--exclude nothing: fits no tensor");
    let gemma = [5, 6]
        .map(|seed| open(&write(&at(&format!("g{seed}")), &config("gemma2", 20, 33), Dtype::F32, seed)));
    let pairs = Options { embeddings: Some(Embeddings::Pairs), ..everything() };
    check(&gemma[0], &gemma[1], pairs, "ties its head to its embedding");
}
