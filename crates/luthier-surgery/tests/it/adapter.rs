//! Models with a LoRA adapter: peft's values, however they are read, and refusals.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use luthier_checkpoint::adapter::Adapter;
use luthier_checkpoint::safetensors::{SafetensorsFile, SafetensorsWriter};
use luthier_checkpoint::{Checkpoint, TensorInfo, TensorSink, TensorSource};
use luthier_surgery::merge::run;
use luthier_surgery::{Input, fused};
use serde_json::{Value, json};

use crate::merge::{options, recipe, values_of};

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../golden/adapter")
}

fn base(name: &str) -> Input {
    let kind = if name.starts_with("conv") { "gpt2" } else { "llama" };
    Input::new(kind, Checkpoint::open_folder(&golden().join(kind)).unwrap())
}

fn with_adapter(name: &str) -> Input {
    let adapter = Adapter::open(&golden().join(name)).unwrap();
    fused(base(name), name, &format!("base+{name}"), adapter).unwrap()
}

#[test]
fn every_kind_of_adapter_gives_pefts_values() {
    let expected = SafetensorsFile::open(&golden().join("expected.safetensors")).unwrap();
    let mut seen = HashSet::new();
    for name in ["plain", "patterns", "dora", "embedding", "biases", "conv", "conv_dora", "conv_kept"] {
        let input = with_adapter(name);
        let tensors = &input.checkpoint.tensors;
        for info in tensors.infos() {
            let ours = values_of(tensors.as_ref(), &info.name);
            let key = format!("{name}/{}", info.name);
            if !expected.infos().iter().any(|info| info.name == key) {
                assert_eq!(ours, values_of(base(name).checkpoint.tensors.as_ref(), &info.name), "{key}");
                continue;
            }
            for (ours, theirs) in ours.iter().zip(values_of(&expected, &key)) {
                assert!((ours - theirs).abs() <= 1e-6, "{key}: {ours} and {theirs}");
            }
            let whole = tensors.read(&info.name).unwrap();
            for start in (0..whole.len()).step_by(28) {
                let part = start..whole.len().min(start + 28);
                assert_eq!(tensors.read_part(&info.name, part.clone()).unwrap()[..], whole[part], "{key}");
            }
            seen.insert(key);
        }
    }
    assert_eq!(seen.len(), expected.infos().len());
}

#[test]
fn an_adapter_is_merged_like_a_model_and_accounted_for() {
    let home = tempfile::tempdir().unwrap();
    let recipe = recipe(json!({"merge_method": "linear", "parameters": {"weight": 0.5, "normalize": true},
        "models": [{"model": "llama"}, {"model": "base+embedding"}]}));
    let out = home.path().join("out");
    let report = run(&recipe, &[base("embedding"), with_adapter("embedding")], &out, &options()).unwrap();
    let merged = Checkpoint::open_folder(&out).unwrap();
    let name = "model.embed_tokens.weight";
    let (plain, tuned) = (base("embedding"), with_adapter("embedding"));
    let (a, b) = (
        values_of(plain.checkpoint.tensors.as_ref(), name),
        values_of(tuned.checkpoint.tensors.as_ref(), name),
    );
    for (ours, (a, b)) in values_of(merged.tensors.as_ref(), name).iter().zip(a.iter().zip(&b)) {
        assert!((ours - (a + b) / 2.0).abs() < 1e-6);
    }
    // The base once and the adapter: no tensor of either is left out.
    let adapter = Adapter::open(&golden().join("embedding")).unwrap();
    let count = plain.checkpoint.tensors.infos().len() + adapter.tensors.infos().len();
    assert_eq!(report.ledger.input_tensors, count);
    assert!(
        report.ledger.changed.keys().any(|how| how.contains("with an adapter")),
        "{:?}",
        report.ledger.changed
    );
    let lineage = luthier_checkpoint::Lineage::read(&out).unwrap().unwrap();
    assert_eq!(lineage.parents.len(), 2);
}

/// An adapter written anew: other keys, and tensors as `change` makes them.
fn written(
    folder: &Path,
    keys: Value,
    change: impl Fn(&TensorInfo) -> Option<TensorInfo>,
) -> luthier_checkpoint::Result<Adapter> {
    let from = golden().join("plain");
    std::fs::create_dir_all(folder).unwrap();
    let config = std::fs::read(from.join("adapter_config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    std::fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
    let source = SafetensorsFile::open(&from.join("adapter_model.safetensors")).unwrap();
    let infos: Vec<TensorInfo> = source.infos().iter().filter_map(change).collect();
    let metadata = SafetensorsWriter::pt_metadata();
    let mut writer = SafetensorsWriter::create(folder, &infos, &metadata, None).unwrap();
    for info in &infos {
        let size = info.dtype.size_bytes(&info.shape).unwrap();
        writer.write(&info.name, &vec![0; size]).unwrap();
    }
    writer.finish().unwrap();
    let weights = folder.join("adapter_model.safetensors");
    std::fs::rename(folder.join("model.safetensors"), weights).unwrap();
    Adapter::open(folder)
}

#[test]
fn what_is_no_adapter_of_this_base_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let same = |info: &TensorInfo| Some(info.clone());
    let name = "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight";
    let renamed = |to: &'static str| {
        move |info: &TensorInfo| {
            let name = if info.name == name { to.to_string() } else { info.name.clone() };
            Some(TensorInfo { name, ..info.clone() })
        }
    };
    let check = |opened: luthier_checkpoint::Result<Adapter>, wanted: &str| {
        let came = opened.err().unwrap().to_string();
        assert!(came.contains(wanted), "wanted {wanted:?}, came {came:?}");
    };
    let at = |name: &str| home.path().join(name);
    check(written(&at("1"), json!({"peft_type": "IA3"}), same), "peft_type: wanted LORA, came IA3");
    let half = |info: &TensorInfo| (info.name != name).then(|| info.clone());
    check(written(&at("2"), json!({}), half), "model.layers.0.self_attn.q_proj has no B of LoRA");
    check(
        written(&at("3"), json!({}), renamed("layers.0.q_proj.lora_B.weight")),
        "begins with base_model.model.",
    );
    check(written(&at("4"), json!({}), renamed("base_model.model.x.lora_C.weight")), "it would be lost");
    check(written(&at("5"), json!({"r": 5}), same), "has rank 3, but adapter_config.json says 5");
    check(written(&at("6"), json!({"use_dora": true}), same), "use_dora is true");
    let narrow = |info: &TensorInfo| {
        let shape = if info.name == name { vec![12, 2] } else { info.shape.clone() };
        Some(TensorInfo { shape, ..info.clone() })
    };
    check(written(&at("7"), json!({}), narrow), "wanted [r, in] and [out, r]");
    let long = |info: &TensorInfo| {
        let shape = if info.name == name { vec![14, 3] } else { info.shape.clone() };
        Some(TensorInfo { shape, ..info.clone() })
    };
    let adapter = written(&at("8"), json!({}), long).unwrap();
    let came = fused(base("plain"), "a", "base+a", adapter).err().unwrap().to_string();
    assert!(came.contains("maps 12 values to 14") && came.contains("belongs to another base"), "{came}");
    let elsewhere = renamed("base_model.model.model.layers.7.self_attn.q_proj.lora_B.weight");
    check(written(&at("9"), json!({}), elsewhere), "its pair is not whole");
    let adapter = Adapter::open(&golden().join("plain")).unwrap();
    let came = fused(base("conv"), "a", "gpt2+a", adapter).err().unwrap().to_string();
    assert!(came.contains("which gpt2 does not have"), "{came}");
}
