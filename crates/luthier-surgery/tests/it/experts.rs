//! Models with experts go through the verbs.

use std::path::{Path, PathBuf};

use luthier_checkpoint::safetensors::SafetensorsWriter;
use luthier_checkpoint::{Dtype, Gguf, TensorInfo, TensorSink, TensorSource, values};
use luthier_surgery::{adapt, convert, diff, info, merge, quantize};
use serde_json::{Map, Value, json};

use crate::models::{config, names, open, write};

const CONVERT: convert::Options = convert::Options { dtype: None, force: false };

/// Sizes that are all different; `experts` experts, two a token.
pub(crate) fn with_experts(model_type: &str, experts: usize) -> Map<String, Value> {
    let mut config = config(model_type, 24, 31);
    let keys = json!({
        "num_local_experts": experts, "num_experts_per_tok": 2, "moe_intermediate_size": 10,
        "shared_expert_intermediate_size": 14, "norm_topk_prob": model_type == "qwen3_moe",
    });
    config.extend(keys.as_object().unwrap().clone());
    config
}

const ALL: [&str; 3] = ["mixtral", "qwen2_moe", "qwen3_moe"];

fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let names = names(folder).into_iter().filter(|name| name != "lineage.json");
    names.map(|name| (name.clone(), std::fs::read(folder.join(name)).unwrap())).collect()
}

/// The same model with some of its tensors in other types.
fn retyped(from: &Path, to: &Path, dtype: impl Fn(&str) -> Dtype) -> PathBuf {
    std::fs::create_dir_all(to).unwrap();
    let tensors = open(from).checkpoint.tensors;
    let infos: Vec<TensorInfo> =
        tensors.infos().iter().map(|info| TensorInfo { dtype: dtype(&info.name), ..info.clone() }).collect();
    let mut writer = SafetensorsWriter::create(to, &infos, &SafetensorsWriter::pt_metadata(), None).unwrap();
    for info in &infos {
        let bytes = tensors.read(&info.name).unwrap();
        writer.write(&info.name, &values::cast(&info.name, Dtype::F32, &bytes, info.dtype).unwrap()).unwrap();
    }
    writer.finish().unwrap();
    for name in names(from).iter().filter(|name| !name.ends_with("safetensors")) {
        std::fs::copy(from.join(name), to.join(name)).unwrap();
    }
    to.to_path_buf()
}

#[test]
fn a_folder_comes_back_from_gguf_byte_for_byte() {
    for model_type in ALL {
        for tied in [false, true] {
            let home = tempfile::tempdir().unwrap();
            let at = |name: &str| home.path().join(name);
            let mut config = with_experts(model_type, 5);
            config.insert("tie_word_embeddings".to_string(), json!(tied));
            config.insert("a_key_of_tomorrow".to_string(), json!({"kept": [1, 2.5]}));
            write(&at("f32"), &config, Dtype::F32, 1);
            // One expert of another type than the others, a shared router in bf16.
            let mixed = |name: &str| match name {
                _ if name.contains("experts.1") || name.contains("shared_expert_gate") => Dtype::BF16,
                _ if name.contains("experts.2") => Dtype::F16,
                _ => Dtype::F32,
            };
            retyped(&at("f32"), &at("mixed"), mixed);
            retyped(&at("f32"), &at("bf16"), |_| Dtype::BF16);
            for folder in ["f32", "mixed", "bf16"] {
                let (there, back) = (at(&format!("{folder}.gguf")), at(&format!("{folder}-back")));
                convert::run(&open(&at(folder)), &there, &CONVERT).unwrap();
                convert::run(&open(&there), &back, &CONVERT).unwrap();
                let (before, after) = (files(&at(folder)), files(&back));
                let changed: Vec<_> =
                    before.iter().zip(&after).filter(|(a, b)| a != b).map(|(a, _)| &a.0).collect();
                assert!(before == after, "{model_type} {folder}: {changed:?}");
                let difference = diff::run(&open(&at(folder)).checkpoint, &open(&there).checkpoint).unwrap();
                assert!(difference.changed.is_empty() && difference.only_in_a.is_empty());
                // A stack is of one type, and vectors are F32.
                assert_eq!(difference.identical, folder == "f32", "{model_type} {folder}");
            }
        }
    }
}

#[test]
fn fused_folders_are_the_same_models() {
    for model_type in ALL {
        let home = tempfile::tempdir().unwrap();
        let at = |name: &str| home.path().join(name);
        let config = with_experts(model_type, 3);
        let input = open(&write(&at("each"), &config, Dtype::BF16, 1));
        fuse(&at("each"), &at("fused"), model_type);
        let fused = open(&at("fused"));
        let same = diff::run(&input.checkpoint, &fused.checkpoint).unwrap();
        assert!(same.identical, "{model_type}: {same:?}");
        convert::run(&fused, &at("back"), &CONVERT).unwrap();
        let read = |name: &str| open(&at(name)).checkpoint;
        for info in read("each").tensors.infos() {
            let (a, b) = (read("each").tensors.read(&info.name), read("back").tensors.read(&info.name));
            assert_eq!(a.unwrap()[..], b.unwrap()[..], "{}", info.name);
        }
        let mut wrong = config.clone();
        wrong.insert("num_local_experts".to_string(), json!(4));
        std::fs::write(at("fused").join("config.json"), luthier_checkpoint::json::to_text(&wrong)).unwrap();
        let refused = luthier_arch::open(&at("fused")).map(|_| ()).unwrap_err().to_string();
        assert!(refused.contains("mlp.experts.") && refused.contains("expected shape [4"), "{refused}");
    }
}

/// As transformers 5 writes it with `save_original_format=False`.
fn fuse(from: &Path, to: &Path, model_type: &str) {
    std::fs::create_dir_all(to).unwrap();
    let tensors = open(from).checkpoint.tensors;
    let [gate, up, down] = match model_type {
        "mixtral" => ["w1", "w3", "w2"],
        _ => ["gate_proj", "up_proj", "down_proj"],
    };
    let (mut infos, mut contents) = (Vec::new(), Vec::new());
    let mut add = |name: String, dtype, shape: Vec<usize>, bytes: Vec<u8>| {
        infos.push(TensorInfo { name, dtype, shape });
        contents.push(bytes);
    };
    for info in tensors.infos() {
        let own = |name: &str| {
            info.name.replace("block_sparse_moe", "mlp").replace(&format!("0.{gate}.weight"), name)
        };
        let read = |expert: usize, projection: &str| {
            let name =
                info.name.replace(&format!("experts.0.{gate}"), &format!("experts.{expert}.{projection}"));
            tensors.read(&name).unwrap().to_vec()
        };
        if info.name.ends_with(&format!("experts.0.{gate}.weight")) {
            let (f, m) = (info.shape[0], info.shape[1]);
            let both = |expert: usize| [read(expert, gate), read(expert, up)].concat();
            let bytes = (0..3).flat_map(both).collect();
            add(own("gate_up_proj"), info.dtype, vec![3, 2 * f, m], bytes);
            let bytes = (0..3).flat_map(|expert| read(expert, down)).collect();
            add(own("down_proj"), info.dtype, vec![3, m, f], bytes);
        } else if !info.name.contains(".experts.") {
            add(own(""), info.dtype, info.shape.clone(), tensors.read(&info.name).unwrap().to_vec());
        }
    }
    let mut writer = SafetensorsWriter::create(to, &infos, &SafetensorsWriter::pt_metadata(), None).unwrap();
    for (info, bytes) in infos.iter().zip(&contents) {
        writer.write(&info.name, bytes).unwrap();
    }
    writer.finish().unwrap();
    for name in names(from).iter().filter(|name| !name.ends_with("safetensors")) {
        std::fs::copy(from.join(name), to.join(name)).unwrap();
    }
}

#[test]
fn a_model_merged_with_itself_is_itself_and_is_described() {
    for model_type in ALL {
        let home = tempfile::tempdir().unwrap();
        let at = |name: &str| home.path().join(name);
        let input = open(&write(&at("a"), &with_experts(model_type, 3), Dtype::F32, 1));
        let recipe: merge::Recipe = serde_json::from_value(json!({
            "merge_method": "linear", "models": [{"model": "a", "parameters": {"weight": 1.0}}, {"model": "b", "parameters": {"weight": 1.0}}],
        }))
        .unwrap();
        let options = merge::Options {
            verb: "merge",
            record: serde_json::Value::Null,
            measurements: Map::new(),
            seed: 1,
            force: false,
            text: "a recipe".to_string(),
        };
        let mut other = input.clone();
        other.label = "b".to_string();
        merge::run(&recipe, &[input.clone(), other], &at("merged"), &options).unwrap();
        let merged = open(&at("merged"));
        let itself = diff::run(&input.checkpoint, &merged.checkpoint).unwrap();
        assert!(itself.changed.is_empty() && itself.only_in_a.is_empty(), "{model_type}: {itself:?}");
        let info = info::run(&input.checkpoint).unwrap();
        assert!(info.known_architecture && info.layers == Some(3), "{info:?}");
        let inert = [
            "num_local_experts",
            "moe_intermediate_size",
            "shared_expert_intermediate_size",
            "norm_topk_prob",
        ];
        let unknown: Vec<_> =
            info.unknown_config_keys.iter().filter(|key| !inert.contains(&key.as_str())).collect();
        assert!(unknown.is_empty(), "{model_type}: {unknown:?}");
        let adapted = adapt::Options { dtype: None, seed: 1, force: false };
        let report = adapt::run(&input, &input, &at("adapted"), &adapted).unwrap();
        assert!(report.silenced_max_abs_difference <= 1e-5, "{model_type}: {report:?}");
    }
}

#[test]
fn stacked_experts_are_quantised_by_llama_quantizes_rules() {
    let home = tempfile::tempdir().unwrap();
    let at = |name: &str| home.path().join(name);
    for (experts, to, wanted) in [
        (4, "Q8_0", ["F32", "Q8_0", "Q8_0", "Q8_0", "Q8_0"]),
        (4, "Q4_K_M", ["F32", "Q4_K", "Q6_K", "Q6_K", "Q4_K"]),
        // The rules for eight experts.
        (8, "Q4_K_M", ["F32", "Q4_K", "Q6_K", "Q8_0", "Q5_K"]),
        (8, "Q2_K", ["F32", "Q2_K", "Q3_K", "Q8_0", "Q5_K"]),
    ] {
        let mut config = with_experts("mixtral", experts);
        for key in ["hidden_size", "intermediate_size"] {
            config.insert(key.to_string(), json!(256));
        }
        config.insert("head_dim".to_string(), json!(64));
        let folder = write(&at(&format!("{experts}{to}")), &config, Dtype::F32, 1);
        let out = at(&format!("{experts}-{to}.gguf"));
        let options = quantize::Options {
            target: quantize::Target::parse(to, false).unwrap(),
            imatrix: None,
            requantize: false,
            force: false,
        };
        let planned = quantize::plan(&open(&folder), &out, &options).unwrap();
        quantize::run(&open(&folder), &out, &options).unwrap();
        let gguf = Gguf::open(&out).unwrap();
        let names = ["ffn_gate_inp", "ffn_gate_exps", "ffn_down_exps", "attn_v", "attn_output"];
        let types = names.map(|name| {
            let name = format!("blk.2.{name}.weight");
            gguf.infos().iter().find(|info| info.name == name).unwrap().dtype.name()
        });
        assert_eq!(types, wanted, "{experts} {to}");
        assert_eq!(planned.tensors.len(), gguf.infos().len());
        // Each expert is the expert that it was, rounded.
        let (before, after) = (open(&folder).checkpoint, open(&out).checkpoint);
        let name = format!("model.layers.1.block_sparse_moe.experts.{}.w2.weight", experts - 1);
        let values = |checkpoint: &luthier_checkpoint::Checkpoint| {
            let info = checkpoint.tensors.infos().iter().find(|info| info.name == name).unwrap().clone();
            values::to_f32(&name, info.dtype, &checkpoint.tensors.read(&name).unwrap()).unwrap()
        };
        let (before, after) = (values(&before), values(&after));
        assert!(before.iter().zip(&after).all(|(a, b)| (a - b).abs() < 0.08), "{to}");
    }
}
