//! Adapters as users extract, fuse, convert and look at them.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;
use tempfile::tempdir;

use crate::{json, luthier, refusal};

/// The built-in model in f32 as `base`, and `tuned`, which differs everywhere.
fn two(at: &Path) {
    json(at, &["convert", "builtin", "base", "--dtype", "f32"]);
    let recipe = "merge_method: linear\nmodels:\n  - {model: base, parameters: {weight: 1.02}}\nparameters: {normalize: false}\n";
    std::fs::write(at.join("more.yaml"), recipe).unwrap();
    json(at, &["merge", "more.yaml", "tuned"]);
    std::fs::write(at.join("text.txt"), "It was a bright cold day in April. ".repeat(12)).unwrap();
}

const FROM: [&str; 5] = ["extract-adapter", "--base", "base", "--tuned", "tuned"];

#[test]
fn a_fine_tune_becomes_an_adapter_and_a_model_again() {
    let at = tempdir().unwrap();
    let at = at.path();
    two(at);
    let all = ["--embeddings", "--norms", "--biases", "--energy", "1", "--text", "text.txt"];
    let report = json(at, &[&FROM[..], &["adapter"], &all].concat());
    assert!(report["relative_error"].as_f64().unwrap() < 1e-6);
    assert!(report["divergence"]["kl_mean_nats"].as_f64().unwrap() < 1e-6, "{}", report["divergence"]);
    assert_eq!(report["divergence"]["greedy_agreement"], 1.0);
    json(at, &["fuse-adapter", "base", "adapter", "fused"]);
    let difference = json(at, &["diff", "tuned", "fused"]);
    for one in difference["changed"].as_array().unwrap() {
        assert!(one["max_abs"].as_f64().unwrap() < 1e-5, "{one}");
    }
    let lineage = json(at, &["lineage", "adapter"]);
    let keys: Vec<&str> = lineage["recipe"].as_object().unwrap().keys().map(String::as_str).collect();
    let wanted = "base tuned rank energy target_modules exclude embeddings norms biases dtype text";
    assert_eq!(keys.join(" "), wanted);
    assert_eq!(
        (&lineage["recipe"]["rank"], &lineage["recipe"]["dtype"]),
        (&Value::Null, &Value::from("f32"))
    );
    let keys =
        json(at, &["lineage", "fused"])["recipe"].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys.join(" "), "base adapter then scale dtype requantize text");
    let facts = json(at, &["info", "adapter"]);
    assert_eq!(facts["base_model"], "base");
    assert!(luthier(at, &["info", "adapter"]).status.success());
    assert!(refusal(at, &[&FROM[..], &["adapter"], &all].concat()).contains("--force"));
    assert!(refusal(at, &[&FROM[..], &["small"]].concat()).contains("--norms stores them"));
    json(at, &[&FROM[..], &["adapter", "--force", "--plan"], &all].concat());
    json(at, &["fuse-adapter", "base", "adapter", "twice", "--then", "adapter", "--scale", "0.5"]);
    let difference = json(at, &["diff", "tuned", "twice"]);
    for one in difference["changed"].as_array().unwrap() {
        // A replaced weight goes half the way and then half of what is left; a sum goes the whole way.
        assert!(one["relative_l2"].as_f64().unwrap() < 0.01, "{one}");
    }
}

#[test]
fn a_quantised_base_is_rounded_again_and_compared() {
    let at = tempdir().unwrap();
    let at = at.path();
    two(at);
    json(
        at,
        &[&FROM[..], &["adapter", "--exclude", "embed_tokens,norm,input_layernorm,post_attention_layernorm,pre_feedforward_layernorm,post_feedforward_layernorm"]]
            .concat(),
    );
    json(at, &["quantize", "base", "base.gguf", "--to", "Q8_0"]);
    let planned = json(at, &["fuse-adapter", "base.gguf", "adapter", "fused.gguf", "--plan"]);
    let report = json(at, &["fuse-adapter", "base.gguf", "adapter", "fused.gguf"]);
    assert_eq!(planned["tensors"].as_array().unwrap().len() as u64, report["tensors"].as_u64().unwrap());
    assert!(report["divergence"]["greedy_agreement"].as_f64().unwrap() > 0.9, "{}", report["divergence"]);
    assert!(report["divergence"]["kl_mean_nats"].as_f64().unwrap() > 0.0);
    let lineage = json(at, &["lineage", "fused.gguf"]);
    assert_eq!(lineage["measurements"]["compared_tokens"], report["divergence"]["tokens"]);
    json(at, &["quantize", "base", "small", "--to", "nf4"]);
    let report = json(at, &["fuse-adapter", "small", "adapter", "fused", "--text", "text.txt"]);
    assert!(report["divergence"]["tokens"].as_u64().unwrap() > 50);
    let report = json(at, &["fuse-adapter", "small", "adapter", "wide", "--dtype", "f16"]);
    assert_eq!(report["divergence"], Value::Null);
    assert!(
        refusal(at, &["fuse-adapter", "base", "adapter", "x", "--requantise"]).contains("is not quantised")
    );
    assert!(refusal(at, &["fuse-adapter", "base", "tuned", "x"]).contains("adapter_config.json"));
}

/// The adapter's tensors by name: what the header says of each but its place, and its bytes.
fn tensors(adapter: &Path) -> BTreeMap<String, (Value, Value, Vec<u8>)> {
    let file = std::fs::read(adapter.join("adapter_model.safetensors")).unwrap();
    let start = 8 + u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
    let header: BTreeMap<String, Value> = serde_json::from_slice(&file[8..start]).unwrap();
    let tensors = header.into_iter().filter(|(name, _)| name != "__metadata__");
    let read = tensors.map(|(name, tensor)| {
        let at = |n: usize| start + tensor["data_offsets"][n].as_u64().unwrap() as usize;
        (name, (tensor["dtype"].clone(), tensor["shape"].clone(), file[at(0)..at(1)].to_vec()))
    });
    read.collect()
}

#[test]
fn an_adapter_is_converted_to_llama_cpps_form() {
    let at = tempdir().unwrap();
    let at = at.path();
    two(at);
    let out = [
        "adapter",
        "--rank",
        "4",
        "--exclude",
        "embed_tokens,norm,input_layernorm,post_attention_layernorm,pre_feedforward_layernorm,post_feedforward_layernorm",
    ];
    json(at, &[&FROM[..], &out].concat());
    json(at, &["convert", "adapter", "adapter.gguf"]);
    json(at, &["convert", "adapter.gguf", "back", "--base", "base"]);
    assert!(refusal(at, &["convert", "adapter.gguf", "x"]).contains("give --base"));
    assert!(refusal(at, &["convert", "base", "x", "--base", "base"]).contains("only adapters have a base"));
    assert_eq!(tensors(&at.join("adapter")), tensors(&at.join("back")));
}

#[test]
fn options_that_say_nothing_together_are_wrong_use() {
    let at = tempdir().unwrap();
    for wrong in [
        &[&FROM[..], &["x", "--rank", "4", "--energy", "0.5"]].concat()[..],
        &[&FROM[..], &["x", "--energy", "0"]].concat(),
        &[&FROM[..], &["x", "--energy", "1.5"]].concat(),
        &[&FROM[..], &["x", "--rank", "0"]].concat(),
        &["fuse-adapter", "a", "b", "x", "--scale", "nan"],
        &["fuse-adapter", "a", "b", "x", "--requantize", "--dtype", "f16"],
    ] {
        assert_eq!(luthier(at.path(), wrong).status.code(), Some(2), "{wrong:?}");
    }
}
