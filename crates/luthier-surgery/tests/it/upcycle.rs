//! Dense models get experts.

use std::path::Path;

use luthier_checkpoint::{Dtype, Gguf, Lineage, TensorSource, values};
use luthier_surgery::upcycle::{Options, plan, run};
use luthier_surgery::{Input, convert};
use serde_json::json;

use crate::models::{config, names, open, write};

pub(crate) const OPTIONS: Options = Options {
    experts: 4,
    top_k: 2,
    shared: None,
    granularity: 1,
    shuffle: false,
    noise: 0.0,
    drop: 0.0,
    router_std: 0.02,
    normalized: true,
    dtype: None,
    seed: 7,
    force: false,
};

fn parent(home: &Path, model_type: &str, dtype: Dtype) -> Input {
    open(&write(&home.join("parent"), &config(model_type, 20, 31), dtype, 1))
}

fn floats(input: &Input, name: &str) -> Vec<f32> {
    let tensors = &input.checkpoint.tensors;
    let info = tensors.infos().iter().find(|info| info.name == name).unwrap();
    values::to_f32(name, info.dtype, &tensors.read(name).unwrap()).unwrap()
}

#[test]
fn every_family_keeps_its_logits() {
    let slices = Options { granularity: 2, experts: 6, top_k: 2, shuffle: true, ..OPTIONS };
    let all = [
        OPTIONS,
        Options { experts: 1, top_k: 1, ..OPTIONS },
        Options { experts: 5, top_k: 5, router_std: 3.0, ..OPTIONS },
        Options { router_std: 3.0, shuffle: true, seed: 9, ..OPTIONS },
        slices.clone(),
        Options { top_k: 4, router_std: 2.0, dtype: Some(Dtype::BF16), ..slices },
    ];
    for model_type in ["llama", "mistral", "qwen2", "qwen3"] {
        for options in &all {
            let home = tempfile::tempdir().unwrap();
            let parent = parent(home.path(), model_type, Dtype::F32);
            let out = home.path().join("out");
            let report = run(&parent, &out, options).unwrap();
            assert!(
                report.keeps_function && report.max_abs_difference < 2e-6,
                "{model_type} {options:?} {report:?}"
            );
            let made = open(&out);
            let planned = plan(&parent, &out, options).unwrap();
            assert_eq!(planned.tensors.len(), made.checkpoint.tensors.infos().len());
            let lineage = Lineage::read(&out).unwrap().unwrap();
            assert_eq!((lineage.verb.as_str(), lineage.seed), ("upcycle", Some(options.seed)));
            assert!(lineage.ledger.dropped.is_empty());
            assert!(names(&out).contains(&"generation_config.json".to_string()));
            assert!(!names(&out).contains(&"README.md".to_string()));
        }
    }
}

#[test]
fn windows_and_defaults_survive_in_the_other_layout() {
    for (model_type, keys) in [
        ("llama", json!({"rope_theta": null, "num_key_value_heads": null})),
        ("mistral", json!({"sliding_window": 3, "rms_norm_eps": 0.001})),
        ("qwen2", json!({"use_sliding_window": true, "sliding_window": 3, "max_window_layers": 1})),
        ("qwen3", json!({"use_sliding_window": true, "sliding_window": 3, "max_window_layers": 0})),
        ("qwen3", json!({"attention_bias": true, "tie_word_embeddings": true})),
    ] {
        let home = tempfile::tempdir().unwrap();
        let mut config = config(model_type, 20, 31);
        for (key, value) in keys.as_object().unwrap() {
            match value.is_null() {
                true => _ = config.shift_remove(key),
                false => _ = config.insert(key.clone(), value.clone()),
            }
        }
        let parent = open(&write(&home.path().join("parent"), &config, Dtype::F32, 1));
        let report = run(&parent, &home.path().join("out"), &OPTIONS).unwrap();
        assert!(report.max_abs_difference < 2e-6, "{model_type} {keys}: {report:?}");
    }
}

#[test]
fn plain_copies_are_the_parents_bytes() {
    let home = tempfile::tempdir().unwrap();
    let parent = parent(home.path(), "llama", Dtype::BF16);
    let report = run(&parent, &home.path().join("out"), &OPTIONS).unwrap();
    let out = open(&home.path().join("out"));
    let read = |input: &Input, name: &str| input.checkpoint.tensors.read(name).unwrap().to_vec();
    for (own, of_parent) in [("w1", "gate_proj"), ("w3", "up_proj"), ("w2", "down_proj")] {
        let wanted = read(&parent, &format!("model.layers.2.mlp.{of_parent}.weight"));
        assert_eq!(read(&out, &format!("model.layers.2.block_sparse_moe.experts.3.{own}.weight")), wanted);
    }
    let ledger = Lineage::read(&home.path().join("out")).unwrap().unwrap().ledger;
    // Routers alone are new.
    assert_eq!(ledger.copied + 3, ledger.output_tensors);
    assert_eq!(out.checkpoint.config["torch_dtype"], "bfloat16");
    // 2 of 4 experts sleep.
    assert_eq!(report.parameters - report.active_parameters, 3 * 2 * 3 * 20 * 22);
    assert_eq!(report.parent_parameters + 3 * (3 * 3 * 20 * 22 + 4 * 20), report.parameters);
    // All rows of a virtual group are one.
    run(&parent, &home.path().join("sliced"), &Options { granularity: 2, ..OPTIONS }).unwrap();
    let router = floats(&open(&home.path().join("sliced")), "model.layers.0.block_sparse_moe.gate.weight");
    assert_eq!(router[..20], router[20..40]);
    assert_ne!(router[..20], router[40..60]);
}

#[test]
fn the_seed_decides_all_that_is_random() {
    let home = tempfile::tempdir().unwrap();
    let parent = parent(home.path(), "qwen2", Dtype::F32);
    let options = Options { noise: 0.01, drop: 0.5, shuffle: true, ..OPTIONS };
    for (name, seed) in [("a", 7), ("b", 7), ("c", 8)] {
        run(&parent, &home.path().join(name), &Options { seed, ..options.clone() }).unwrap();
    }
    let bytes = |name: &str| std::fs::read(home.path().join(name).join("model.safetensors")).unwrap();
    assert_eq!(bytes("a"), bytes("b"));
    assert_ne!(bytes("a"), bytes("c"));
}

#[test]
fn dropping_renews_whole_inner_dimensions_of_routed_experts() {
    let home = tempfile::tempdir().unwrap();
    let parent = parent(home.path(), "qwen2", Dtype::F32);
    let report = run(&parent, &home.path().join("out"), &Options { drop: 0.5, ..OPTIONS }).unwrap();
    assert!(!report.keeps_function && report.max_abs_difference > 1e-4, "{report:?}");
    let out = open(&home.path().join("out"));
    let changed = |expert: usize, projection: &str| -> Vec<usize> {
        let own = floats(&out, &format!("model.layers.1.mlp.experts.{expert}.{projection}.weight"));
        let before = floats(&parent, &format!("model.layers.1.mlp.{projection}.weight"));
        let scale = if projection == "down_proj" { 0.5 } else { 1.0 };
        let dimension = |at: usize| if projection == "down_proj" { at % 22 } else { at / 20 };
        let differs = (0..own.len()).filter(|&at| own[at] != before[at] * scale);
        let mut dimensions: Vec<usize> = differs.map(dimension).collect();
        dimensions.sort_unstable();
        dimensions.dedup();
        dimensions
    };
    let of_gate = changed(0, "gate_proj");
    assert_eq!(of_gate.len(), 11);
    assert_eq!((changed(0, "up_proj"), changed(0, "down_proj")), (of_gate.clone(), of_gate.clone()));
    assert_ne!(changed(1, "gate_proj"), of_gate);
    // The shared expert is whole, and counts by half: sigmoid(0).
    let shared = floats(&out, "model.layers.1.mlp.shared_expert.gate_proj.weight");
    assert_eq!(shared, floats(&parent, "model.layers.1.mlp.gate_proj.weight"));
    assert!(floats(&out, "model.layers.1.mlp.shared_expert_gate.weight").iter().all(|value| *value == 0.0));
}

#[test]
fn shared_experts_and_unequal_weights_are_scaled_to_the_blocks_sum() {
    let home = tempfile::tempdir().unwrap();
    let parent = parent(home.path(), "qwen2", Dtype::F32);
    let at = |name: &str| home.path().join(name);
    let report = run(&parent, &at("three"), &Options { shared: Some(3), ..OPTIONS }).unwrap();
    assert!(report.keeps_function && report.max_abs_difference < 2e-6, "{report:?}");
    assert_eq!(open(&at("three")).checkpoint.config["shared_expert_intermediate_size"], 66);
    let unequal = Options { normalized: false, ..OPTIONS };
    let report = run(&parent, &at("equal"), &Options { router_std: 0.0, ..unequal.clone() }).unwrap();
    assert!(report.keeps_function && report.max_abs_difference < 2e-6, "{report:?}");
    let report = run(&parent, &at("all"), &Options { top_k: 4, router_std: 1.0, ..unequal.clone() }).unwrap();
    assert!(report.keeps_function && report.max_abs_difference < 2e-6, "{report:?}");
    let report = run(&parent, &at("near"), &Options { router_std: 1.0, ..unequal }).unwrap();
    assert!(!report.keeps_function && report.max_abs_difference > 2e-6, "{report:?}");
    assert!(report.notes.iter().any(|note| note.contains("--router-std 0")), "{report:?}");
    // 3 copies a token of 4 times 2 thirds: no power of two, which bf16 rounds.
    let thirds =
        Options { normalized: false, router_std: 0.0, top_k: 3, dtype: Some(Dtype::BF16), ..OPTIONS };
    let report = run(&parent, &at("thirds"), &thirds).unwrap();
    assert!(
        !report.keeps_function && report.notes.iter().any(|note| note.contains("power of two")),
        "{report:?}"
    );
}

#[test]
fn gguf_files_become_gguf_files_with_the_same_weights() {
    let home = tempfile::tempdir().unwrap();
    let at = |name: &str| home.path().join(name);
    for (model_type, architecture) in [("llama", "llama"), ("qwen3", "qwen3moe"), ("qwen2", "qwen2moe")] {
        let mut config = config(model_type, 24, 31);
        config.insert("tie_word_embeddings".to_string(), json!(model_type == "qwen2"));
        let parent = open(&write(&at(&format!("{model_type}-parent")), &config, Dtype::F32, 1));
        let options = match model_type {
            "qwen2" => Options { normalized: false, router_std: 0.0, ..OPTIONS },
            _ => OPTIONS,
        };
        let dense = at(&format!("{model_type}.gguf"));
        convert::run(&parent, &dense, &convert::Options { dtype: None, force: false }).unwrap();
        run(&parent, &at(&format!("{model_type}-folder")), &options).unwrap();
        let out = at(&format!("{model_type}-experts.gguf"));
        let report = run(&open(&dense), &out, &options).unwrap();
        assert!(report.max_abs_difference < 2e-6, "{model_type}: {report:?}");
        let (folder, file) = (open(&at(&format!("{model_type}-folder"))), open(&out));
        assert_eq!(folder.checkpoint.tensors.infos().len(), file.checkpoint.tensors.infos().len());
        for info in folder.checkpoint.tensors.infos() {
            assert_eq!(floats(&folder, &info.name), floats(&file, &info.name), "{}", info.name);
        }
        let gguf = Gguf::open(&out).unwrap();
        let number = |key: &str| gguf.get(&format!("{architecture}.{key}")).and_then(|value| value.as_u64());
        assert_eq!((number("expert_count"), number("expert_used_count")), (Some(4), Some(2)));
        let stacked = gguf.infos().iter().find(|info| info.name == "blk.0.ffn_down_exps.weight").unwrap();
        assert_eq!(stacked.shape, [4, 24, 22]);
        assert!(gguf.infos().iter().any(|info| info.name == "output.weight"));
        let label = gguf.get("general.size_label").and_then(|value| value.as_str()).unwrap();
        assert!(label.starts_with("4x") && label.ends_with('K'), "{label}");
        let planned = plan(&parent, &at("x.gguf"), &options).unwrap();
        assert_eq!(planned.tensors.len(), gguf.infos().len());
    }
}

#[test]
fn what_cannot_get_experts_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let parent = parent(home.path(), "llama", Dtype::F32);
    let out = home.path().join("out");
    let refused = |input: &Input, options: &Options| {
        let before = names(home.path());
        let planned = plan(input, &out, options).map(|_| ()).map_err(|error| error.to_string());
        let refused = run(input, &out, options).unwrap_err().to_string();
        assert_eq!(names(home.path()), before, "something is left behind");
        if let Err(planned) = planned {
            assert_eq!(planned, refused);
        }
        refused
    };
    for (options, wanted) in [
        (Options { top_k: 5, ..OPTIONS }, "--top-k 5: a token cannot go through more than the 4 experts"),
        (Options { experts: 0, ..OPTIONS }, "--experts 0"),
        (Options { top_k: 0, ..OPTIONS }, "--top-k 0"),
        (Options { granularity: 0, ..OPTIONS }, "--granularity 0"),
        (Options { granularity: 4, top_k: 4, ..OPTIONS }, "does not divide the 22 inner dimensions"),
        (Options { granularity: 2, top_k: 1, ..OPTIONS }, "--top-k 1: wanted a multiple of --granularity 2"),
        (Options { granularity: 2, experts: 5, ..OPTIONS }, "--experts 5: wanted a multiple"),
        (Options { noise: f64::NAN, ..OPTIONS }, "--noise NaN"),
        (Options { drop: 1.5, ..OPTIONS }, "--drop 1.5: wanted 0 to 1"),
        (Options { router_std: -1.0, ..OPTIONS }, "--router-std -1"),
        (Options { shared: Some(2), ..OPTIONS }, "--shared 2: a model of this family has no shared expert"),
        (Options { normalized: false, ..OPTIONS }, "norm_topk_prob"),
        (Options { experts: 5000, ..OPTIONS }, "4096"),
    ] {
        let refusal = refused(&parent, &options);
        assert!(refusal.contains(wanted), "{refusal}");
    }
    run(&parent, &home.path().join("first"), &OPTIONS).unwrap();
    assert!(refused(&open(&home.path().join("first")), &OPTIONS).contains("has experts already"));
    let existing = run(&parent, &home.path().join("first"), &OPTIONS).unwrap_err().to_string();
    assert!(existing.contains("--force"), "{existing}");

    let other = |name: &str, model_type: &str, keys: serde_json::Value| {
        let mut config = config(model_type, 20, 31);
        config.extend(keys.as_object().unwrap().clone());
        open(&write(&home.path().join(name), &config, Dtype::F32, 1))
    };
    let gemma = other("gemma", "gemma2", json!({}));
    assert!(refused(&gemma, &OPTIONS).contains("no layout with experts for gemma2"));
    let adapt = luthier_surgery::adapt::Options { dtype: None, seed: 1, force: false };
    luthier_surgery::adapt::run(&gemma, &gemma, &home.path().join("adapted"), &adapt).unwrap();
    assert!(refused(&open(&home.path().join("adapted")), &OPTIONS).contains("no decoder-only model"));
    let biased = other("biased", "llama", json!({"attention_bias": true}));
    assert!(
        refused(&biased, &OPTIONS).contains("attention_bias: true, but a mixtral model has no such biases")
    );
    let biased = other("mlp", "llama", json!({"mlp_bias": true}));
    assert!(refused(&biased, &OPTIONS).contains("mlp_bias"));
    let mixed = json!({"sliding_window": 3, "use_sliding_window": true, "max_window_layers": 1});
    assert!(refused(&other("mixed", "qwen3", mixed), &OPTIONS).contains("layer_types"));
    let qwen2 = other("qwen2", "qwen2", json!({}));
    assert!(refused(&qwen2, &Options { shared: Some(0), ..OPTIONS }).contains("--shared 0"));
    let gguf = run(&qwen2, &home.path().join("out.gguf"), &OPTIONS).unwrap_err().to_string();
    assert!(gguf.contains("norm_topk_prob") && gguf.contains("llama.cpp"), "{gguf}");

    let path = home.path().join("parent/model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&path, bytes).unwrap();
    let refusal = refused(&open(&home.path().join("parent")), &OPTIONS);
    assert!(refusal.starts_with("tensor ") && refusal.contains("NaN"), "{refusal}");
}
