//! Configs that GGUF files cannot say, and files that contradict themselves.

use luthier_arch::gguf::beside::{BESIDE_KEY, TENSOR_KEY};
use luthier_arch::gguf::{CONFIG_KEY, plan};
use luthier_arch::open;
use luthier_checkpoint::gguf::{GgufArray, GgufValue, GgufWriter};
use luthier_checkpoint::{TensorInfo, TensorSink};
use serde_json::json;

use super::{F32, golden, write_edited};
use crate::source::golden_config;

#[test]
fn tensors_beside_the_file_are_checked() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("beside.gguf");
    let check = |text: &str, bytes: usize, wanted: &str| {
        write_edited(&path, &golden("bert-plain"), |metadata| {
            metadata.push((BESIDE_KEY.to_string(), GgufValue::String(text.to_string())));
            let key = format!("{TENSOR_KEY}pooler.dense.bias");
            metadata.push((key, GgufValue::Array(GgufArray::U8(vec![0; bytes]))));
        });
        let error = open(&path).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
        std::fs::remove_file(&path).unwrap();
    };
    check("[", 0, "config key luthier.beside: expected a JSON object");
    check(r#"{"pooler.dense.bias": {}}"#, 0, "expected a dtype and a shape");
    check(r#"{"pooler.dense.bias": {"dtype": "F32", "shape": [32]}}"#, 5, "expected Some(128) bytes");
    check(r#"{"a": {"same_as": "b"}}"#, 0, "tensor a: is b once more, which is not in the file");
    check(
        r#"{"embeddings.LayerNorm.bias": {"same_as": "embeddings.LayerNorm.weight"}}"#,
        0,
        "stands in the file and",
    );
}

#[test]
fn what_llama_cpp_has_not_in_an_encoder_or_t5_is_refused() {
    for (name, key, value, wanted) in [
        ("bert", "hidden_act", json!("relu"), "GGUF files assume gelu, found Relu"),
        ("t5", "relative_attention_max_distance", json!(7), "GGUF files assume 128, found 7"),
        ("t5", "feed_forward_proj", json!("gelu"), "GGUF files assume relu"),
        ("mt5", "feed_forward_proj", json!("gated-silu"), "GGUF files assume gated-gelu"),
    ] {
        let mut config = golden(name).config;
        config[key] = value;
        let error = plan(&config).err().unwrap().to_string();
        assert!(error.contains(key) && error.contains(wanted), "{error}");
    }
}

#[test]
fn experts_that_llama_cpp_would_compute_otherwise_are_refused() {
    for (name, changes, wanted) in [
        (
            "qwen2_moe",
            json!({"norm_topk_prob": true}),
            "norm_topk_prob: GGUF files of this architecture assume false",
        ),
        (
            "qwen2_moe",
            json!({"head_dim": 6}),
            "head_dim: GGUF files of this architecture assume heads as wide",
        ),
        (
            "qwen3_moe",
            json!({"norm_topk_prob": false}),
            "norm_topk_prob: GGUF files of this architecture assume true",
        ),
        (
            "qwen3_moe",
            json!({}),
            "decoder_sparse_step: GGUF files of this architecture have experts in every layer",
        ),
        ("qwen3_moe", json!({"mlp_only_layers": []}), "attention_bias"),
        ("mixtral", json!({"hidden_act": "gelu"}), "hidden_act: GGUF files assume Silu"),
    ] {
        let mut config = golden_config(name);
        config.extend(changes.as_object().unwrap().clone());
        let error = plan(&config).err().unwrap().to_string();
        assert!(error.contains(wanted) && error.contains("llama.cpp"), "{name}: {error}");
    }
}

/// Neither the key nor the carried config is believed over the other.
#[test]
fn an_edited_key_contradicts_the_carried_config() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("edited.gguf");
    let set = |key: &str, value: Option<GgufValue>, name: &str| {
        let parent = golden(name);
        let edit = |metadata: &mut Vec<(String, GgufValue)>| {
            metadata.retain(|(known, _)| known != key);
            metadata.extend(value.clone().map(|value| (key.to_string(), value)));
        };
        write_edited(&path, &parent, edit);
        let opened = open(&path).map(|_| ()).map_err(|error| error.to_string());
        std::fs::remove_file(&path).unwrap();
        opened
    };
    for (name, key, value) in [
        ("llama", "llama.rope.freq_base", GgufValue::F32(123.0)),
        ("llama", "llama.attention.layer_norm_rms_epsilon", GgufValue::F32(0.125)),
        ("llama", "llama.context_length", GgufValue::U32(7)),
        ("llama", "llama.block_count", GgufValue::U32(1)),
        ("llama", "llama.expert_count", GgufValue::U32(8)),
        ("llama", "llama.rope.scaling.type", GgufValue::String("linear".to_string())),
        ("llama", "general.architecture", GgufValue::String("qwen2".to_string())),
        ("gemma2", "gemma2.final_logit_softcapping", GgufValue::F32(6.0)),
        ("gemma2", "gemma2.attention.sliding_window", GgufValue::U32(3)),
        ("t5gemma", "general.architecture", GgufValue::String("t5".to_string())),
    ] {
        let error = set(key, Some(value), name).unwrap_err();
        assert!(error.contains(key) && error.contains("luthier.config amounts to"), "{key}: {error}");
    }
    let error = set("gemma2.final_logit_softcapping", None, "gemma2").unwrap_err();
    assert!(error.contains("the file says nothing"), "{error}");
    let error = set("llama.rope.freq_base", Some(GgufValue::F32(123.0)), "llama").unwrap_err();
    assert!(error.contains("says 123, ") && error.contains("remove luthier.config"), "{error}");
    // What does not belong to the config, or is the same number in another type, is no contradiction.
    set("general.name", Some(GgufValue::String("mine".to_string())), "llama").unwrap();
    let heads = golden("llama").config["num_attention_heads"].as_u64().unwrap();
    set("llama.attention.head_count", Some(GgufValue::U64(heads)), "llama").unwrap();
    // Without the carried config the ordinary keys are all there is.
    let parent = golden("llama");
    write_edited(&path, &parent, |metadata| {
        metadata.retain(|(key, _)| key != CONFIG_KEY && key != "llama.rope.freq_base");
        metadata.push(("llama.rope.freq_base".to_string(), GgufValue::F32(123.0)));
    });
    assert_eq!(open(&path).unwrap().config["rope_parameters"]["rope_theta"], json!(123.0));
}

/// NaN, types that a key cannot have, and sizes that the weights contradict are named, not taken for absent keys.
#[test]
fn metadata_that_makes_no_sense_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("odd.gguf");
    let parent = golden("llama");
    for (key, value, wanted) in [
        ("llama.rope.freq_base", GgufValue::F32(f32::NAN), "a finite number, found NaN"),
        ("llama.rope.freq_base", GgufValue::F64(f64::INFINITY), "a finite number, found inf"),
        ("llama.attention.layer_norm_rms_epsilon", GgufValue::F32(f32::NAN), "a finite number"),
        ("llama.block_count", GgufValue::I32(-2), "a whole number from 0 on, found -2"),
        ("llama.block_count", GgufValue::String("2".to_string()), "found \"2\""),
        ("llama.context_length", GgufValue::F32(1.5), "a whole number"),
        ("llama.vocab_size", GgufValue::U32(5), "rows; they must be equal"),
    ] {
        write_edited(&path, &parent, |metadata| {
            metadata.retain(|(known, _)| known != key && known != CONFIG_KEY);
            metadata.push((key.to_string(), value.clone()));
        });
        let error = open(&path).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(key) && error.contains(wanted), "{key}: {error}");
        std::fs::remove_file(&path).unwrap();
    }
}

#[test]
fn what_llama_cpp_would_compute_otherwise_is_refused() {
    let mut config = golden_config("gemma2");
    config["query_pre_attn_scalar"] = json!(13);
    let error = plan(&config).err().unwrap().to_string();
    assert!(error.starts_with("config key query_pre_attn_scalar: GGUF files assume 12, found 13"), "{error}");
}

#[test]
fn metadata_that_lies_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lies.gguf");
    let mut base = plan(&golden_config("llama-tied")).unwrap().metadata;
    // The embedding below is a short one.
    base.retain(|(key, _)| key != "llama.vocab_size");
    let check = |key: &str, value: Option<GgufValue>, wanted: &str| {
        let mut metadata = base.clone();
        metadata.retain(|(name, _)| name != key && name != CONFIG_KEY);
        metadata.extend(value.map(|value| (key.to_string(), value)));
        let infos = [TensorInfo { name: "token_embd.weight".to_string(), dtype: F32, shape: vec![2, 36] }];
        let mut writer = GgufWriter::create(&path, &metadata, &infos).unwrap();
        writer.write("token_embd.weight", &[0; 2 * 36 * 4]).unwrap();
        writer.finish().unwrap();
        let error = open(&path).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(wanted), "{key}: {error}");
        std::fs::remove_file(&path).unwrap();
    };
    check("general.architecture", None, "config key general.architecture: missing");
    let other = GgufValue::String("rwkv7".to_string());
    check(
        "general.architecture",
        Some(other),
        "no architecture is called \"rwkv7\"; known: bert, gemma2, llama, qwen2, qwen2moe, qwen3, qwen3moe, t5",
    );
    check("llama.block_count", None, "config key llama.block_count: missing");
    check(
        "llama.attention.head_count",
        Some(GgufValue::U32(0)),
        "num_attention_heads: expected a whole number from 1",
    );
    check("llama.attention.value_length", Some(GgufValue::U32(6)), "they must be equal");
    check("llama.expert_count", Some(GgufValue::U32(8)), "llama.expert_used_count: missing");
    check("llama.rope.dimension_count", Some(GgufValue::U32(2)), "partly turned heads");
    check("llama.block_count", Some(GgufValue::U32(u32::MAX)), "llama.block_count: expected 1 to 4096");
    check(
        CONFIG_KEY,
        Some(GgufValue::String("{".to_string())),
        "config key luthier.config: expected a JSON object",
    );
}

/// llama.cpp builds layers one by one for deci alone, and not all that a config can say.
#[test]
fn uneven_layers_are_written_as_deci_or_refused() {
    let config = golden_config("uneven");
    let metadata = plan(&config).unwrap().metadata;
    let get = |key: &str| &metadata.iter().find(|(name, _)| name == key).unwrap().1;
    assert_eq!(get("general.architecture").as_str(), Some("deci"));
    assert_eq!(get("deci.feed_forward_length").as_numbers().unwrap(), [40.0, 28.0, 40.0, 40.0, 12.0]);
    assert_eq!(get("deci.attention.head_count").as_numbers().unwrap(), [6.0, 6.0, 3.0, 0.0, 6.0]);
    assert_eq!(get("deci.attention.head_count_kv").as_numbers().unwrap(), [2.0, 2.0, 1.0, 0.0, 3.0]);
    for (model_type, own, wanted) in [
        ("llama", json!({"0": {"skip": ["attention"]}}), "first layer has attention"),
        ("llama", json!({"4": {"skip": ["mlp", "attention"]}}), "last one a feed-forward block"),
        ("llama", json!({"1": {"skip": ["mlp"]}}), "cannot skip mlp alone"),
        ("qwen3", json!({"1": {"intermediate_size": 8}}), "all layers are alike"),
    ] {
        let mut config = config.clone();
        config["model_type"] = json!(model_type);
        config["per_layer_config"] = own;
        let error = plan(&config).err().unwrap().to_string();
        assert!(error.contains(wanted), "{error}");
    }
}
