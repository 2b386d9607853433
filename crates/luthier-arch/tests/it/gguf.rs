//! Models written as GGUF files and read back compute the same.

use std::path::Path;

use candle_core::Device;
use luthier_arch::gguf::{CONFIG_KEY, GgufOrigin, Transform, plan};
use luthier_arch::{LoadOptions, Model, TokenBatch, load, open};
use luthier_checkpoint::gguf::{GgufValue, GgufWriter};
use luthier_checkpoint::{Checkpoint, Dtype, TensorInfo, TensorSink};
use luthier_kernels::blocks::BlockType;
use luthier_kernels::bytes::SharedBytes;
use serde_json::{Map, Value, json};

use crate::golden::{assert_close, values};
use crate::source::{checkpoint, golden_config, golden_tensors};

const F32: Dtype = Dtype::Weights(BlockType::F32);

fn write(path: &Path, checkpoint: &Checkpoint, with_config: bool) {
    write_edited(path, checkpoint, |metadata| metadata.retain(|(key, _)| with_config || key != CONFIG_KEY));
}

fn write_edited(path: &Path, checkpoint: &Checkpoint, edit: impl FnOnce(&mut Vec<(String, GgufValue)>)) {
    let mut form = plan(&checkpoint.config).unwrap();
    edit(&mut form.metadata);
    let (mut infos, mut contents) = (Vec::new(), Vec::new());
    for tensor in form.tensors {
        let info = TensorInfo { name: tensor.name, dtype: F32, shape: tensor.shape };
        contents.push(match tensor.origin {
            GgufOrigin::Made(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            GgufOrigin::Tensor { name, transform } => {
                let source = checkpoint.tensors.infos().iter().find(|info| info.name == name).unwrap();
                let bytes = checkpoint.tensors.read(&name).unwrap();
                transform.apply(source, bytes).unwrap().1.to_vec()
            }
        });
        infos.push(info);
    }
    let mut writer = GgufWriter::create(path, &form.metadata, &infos).unwrap();
    for (info, bytes) in infos.iter().zip(contents) {
        writer.write(&info.name, &bytes).unwrap();
    }
    writer.finish().unwrap();
}

fn golden(name: &str) -> Checkpoint {
    let mut config = golden_config(name);
    if name == "gemma2" {
        // What GGUF files assume.
        config["query_pre_attn_scalar"] = json!(12);
    }
    checkpoint(&config, &golden_tensors(name, "model.safetensors"))
}

fn run(checkpoint: &Checkpoint) -> Vec<f32> {
    let model = load(checkpoint, &LoadOptions { trainable: false, device: Device::Cpu }).unwrap();
    let tokens = |ids: &[u32]| TokenBatch { ids: ids.to_vec(), rows: 1, segments: None };
    let encoded = model.is_encoder_decoder().then(|| model.encode(&tokens(&[9, 60, 3, 14])).unwrap());
    let states = model.hidden(&tokens(&[4, 8, 15, 16, 23, 42, 7]), encoded.as_ref(), None).unwrap();
    values(&model.logits(&states).unwrap())
}

#[test]
fn written_and_read_back_computes_the_same() {
    let folder = tempfile::tempdir().unwrap();
    for name in
        ["llama", "llama-tied", "mistral", "qwen2", "qwen3", "gemma2", "t5gemma", "encoder-decoder", "uneven"]
    {
        let parent = golden(name);
        let path = folder.path().join(format!("{name}.gguf"));
        write(&path, &parent, true);
        let back = open(&path).unwrap();
        assert_eq!(back.config, parent.config, "{name}");
        assert_close(name, &run(&back), &run(&parent));
    }
}

/// Files of other programs hold no config.json.
#[test]
fn metadata_alone_is_enough() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["llama", "llama-tied", "qwen3", "gemma2", "uneven"] {
        let parent = golden(name);
        let path = folder.path().join(format!("{name}.gguf"));
        write(&path, &parent, false);
        let back = open(&path).unwrap();
        assert_eq!(back.config["model_type"], parent.config["model_type"]);
        assert_close(name, &run(&back), &run(&parent));
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
fn llama3_scaling_comes_back_by_name() {
    let mut config = golden_config("llama-tied");
    config["head_dim"] = json!(64);
    config["rope_parameters"] = json!({
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 32.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
    });
    let model = luthier_arch::init(&config, 1, false, &Device::Cpu).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    write(&path, &of_model(&config, model.as_ref()), false);
    let back = open(&path).unwrap();
    assert_eq!(back.config["rope_parameters"], config["rope_parameters"]);
}

fn of_model(config: &Map<String, Value>, model: &dyn Model) -> Checkpoint {
    let named = model.weights().iter().map(|weight| {
        let values = values(&weight.to_tensor(&Device::Cpu).unwrap());
        (weight.name().to_string(), weight.shape().to_vec(), values)
    });
    checkpoint(config, &named.collect::<Vec<_>>())
}

#[test]
fn transforms_undo_themselves_on_quantised_rows_too() {
    let dtype = Dtype::Weights(BlockType::Q8_0);
    let bytes: Vec<u8> = (0..24 * 2 * 34).map(|at| (at * 7 % 251) as u8).collect();
    let info = TensorInfo { name: "q".to_string(), dtype, shape: vec![24, 64] };
    for heads in [1, 3, 4] {
        let transform = Transform::Interleave { heads };
        let (_, there) = transform.apply(&info, SharedBytes::from_vec(bytes.clone())).unwrap();
        assert_ne!(there[..], bytes[..]);
        // Row 1 of each head is the first value of the second half.
        let (row, half) = (68, 24 / heads / 2);
        assert_eq!(there[row..2 * row], bytes[half * row..(half + 1) * row]);
        let (_, back) = transform.undo(&info, there).unwrap();
        assert_eq!(back[..], bytes[..]);
    }
    let error = Transform::Interleave { heads: 5 }.apply(&info, SharedBytes::from_vec(bytes)).unwrap_err();
    assert_eq!(error.to_string(), "tensor q: shape [24, 64] is not 5 heads of an even width");
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
        "no architecture is called \"rwkv7\"; known: gemma2, llama, qwen2, qwen3",
    );
    check("llama.block_count", None, "config key llama.block_count: missing");
    check(
        "llama.attention.head_count",
        Some(GgufValue::U32(0)),
        "num_attention_heads: expected a whole number from 1",
    );
    check("llama.attention.value_length", Some(GgufValue::U32(6)), "they must be equal");
    check("llama.expert_count", Some(GgufValue::U32(8)), "experts are not supported");
    check("llama.rope.dimension_count", Some(GgufValue::U32(2)), "partly turned heads");
    check(
        "llama.block_count",
        Some(GgufValue::U32(u32::MAX)),
        "num_hidden_layers: expected a whole number from 1",
    );
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
