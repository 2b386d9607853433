//! Models written as GGUF files and read back compute the same.

mod refusals;

use std::path::Path;

use candle_core::Device;
use luthier_arch::gguf::{CONFIG_KEY, GgufOrigin, Transform, plan, plan_with};
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
    let mut form = plan_with(&checkpoint.config, checkpoint.tensors.infos()).unwrap();
    edit(&mut form.metadata);
    let (mut infos, mut contents) = (Vec::new(), Vec::new());
    for tensor in form.tensors {
        let info = TensorInfo { name: tensor.name, dtype: F32, shape: tensor.shape };
        contents.push(match tensor.origin {
            GgufOrigin::Stacked { names } => {
                names.iter().flat_map(|name| checkpoint.tensors.read(name).unwrap().to_vec()).collect()
            }
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
    if config["model_type"].as_str().is_some_and(|name| name.ends_with("t5")) {
        config["relative_attention_max_distance"] = json!(128);
    }
    if name == "bert-plain" {
        config["hidden_act"] = json!("gelu");
    }
    if name == "mt5" {
        config["feed_forward_proj"] = json!("gated-gelu");
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
    for name in [
        "llama",
        "llama-tied",
        "mistral",
        "mixtral",
        "qwen2",
        "qwen2_moe",
        "qwen3",
        "gemma2",
        "t5gemma",
        "encoder-decoder",
        "t5",
        "t5-v1_1",
        "mt5",
        "uneven",
    ] {
        let parent = golden(name);
        let path = folder.path().join(format!("{name}.gguf"));
        write(&path, &parent, true);
        let back = open(&path).unwrap();
        assert_eq!(back.config, parent.config, "{name}");
        if plan(&parent.config).unwrap().tensors.iter().any(|tensor| tensor.name == "token_embd.weight") {
            let names = |checkpoint: &Checkpoint| -> Vec<String> {
                checkpoint.tensors.infos().iter().map(|info| info.name.clone()).collect()
            };
            assert_eq!(names(&back), names(&parent), "{name}: in the folder's order");
        }
        assert_close(name, &run(&back), &run(&parent));
    }
}

/// Files of other programs hold no config.json.
#[test]
fn metadata_alone_is_enough() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["llama", "llama-tied", "qwen3", "gemma2", "t5", "t5-v1_1", "mt5", "uneven"] {
        let parent = golden(name);
        let path = folder.path().join(format!("{name}.gguf"));
        write(&path, &parent, false);
        let back = open(&path).unwrap();
        // The last are one architecture there.
        let wanted = if name == "mt5" { json!("t5") } else { parent.config["model_type"].clone() };
        assert_eq!(back.config["model_type"], wanted);
        assert_close(name, &run(&back), &run(&parent));
    }
}

/// The stack alone, under the names of its folder or, without the keys that tell them, of the plain model.
#[test]
fn an_encoder_is_written_without_its_heads() {
    let folder = tempfile::tempdir().unwrap();
    let states = |checkpoint: &Checkpoint| {
        let model = load(checkpoint, &LoadOptions { trainable: false, device: Device::Cpu }).unwrap();
        let tokens = TokenBatch { ids: vec![4, 8, 15, 16, 23, 42, 7], rows: 1, segments: None };
        values(&model.encode(&tokens).unwrap().states)
    };
    for (name, prefix) in [("bert", "bert."), ("bert-plain", "")] {
        let parent = golden(name);
        for with_config in [true, false] {
            let path = folder.path().join(format!("{name}-{with_config}.gguf"));
            write_edited(&path, &parent, |metadata| {
                metadata.retain(|(key, _)| with_config || !key.starts_with("luthier."));
            });
            let gguf = luthier_checkpoint::Gguf::open(&path).unwrap();
            assert_eq!(gguf.get("bert.attention.causal").and_then(GgufValue::as_bool), Some(false));
            let back = open(&path).unwrap();
            assert_close(name, &states(&back), &states(&parent));
            let prefix = if with_config { prefix } else { "" };
            let name = format!("{prefix}encoder.layer.1.attention.output.LayerNorm.bias");
            assert!(back.tensors.infos().iter().any(|info| info.name == name), "{name}");
        }
    }
}

#[test]
fn a_pooling_type_becomes_the_files_of_sentence_transformers() {
    use luthier_checkpoint::sentence::{Pooling, SentenceModules};
    let folder = tempfile::tempdir().unwrap();
    for (kind, wanted) in [(1, Pooling::Mean), (2, Pooling::First), (3, Pooling::Last)] {
        let path = folder.path().join(format!("{kind}.gguf"));
        write_edited(&path, &golden("bert-plain"), |metadata| {
            metadata.push(("bert.pooling_type".to_string(), GgufValue::U32(kind)));
        });
        let modules = SentenceModules::read(&open(&path).unwrap().side_files).unwrap().unwrap();
        assert_eq!((modules.pooling, modules.normalizes), (wanted, false));
    }
}

/// Experts lie in one tensor; what is tied, shared or normalised follows from names and the architecture.
#[test]
fn metadata_of_experts_alone_is_enough() {
    let folder = tempfile::tempdir().unwrap();
    for (name, changes) in [
        ("mixtral", json!({"sliding_window": null})),
        ("mixtral", json!({"sliding_window": null, "tie_word_embeddings": true})),
        ("qwen2_moe", json!({"use_sliding_window": false, "layer_types": null, "qkv_bias": false})),
        ("qwen2_moe", json!({"use_sliding_window": false, "layer_types": null, "tie_word_embeddings": true})),
        ("qwen3_moe", json!({"use_sliding_window": false, "mlp_only_layers": [], "attention_bias": false})),
    ] {
        let mut config = golden_config(name);
        config.extend(changes.as_object().unwrap().clone());
        let model = luthier_arch::init(&config, 1, false, &Device::Cpu).unwrap();
        let parent = of_model(&config, model.as_ref());
        for with_config in [true, false] {
            let path = folder.path().join(format!("{name}-{with_config}.gguf"));
            write(&path, &parent, with_config);
            let back = open(&path).unwrap();
            assert_eq!(back.config["model_type"], parent.config["model_type"]);
            assert_eq!(back.config == parent.config, with_config, "{name}");
            assert_close(name, &run(&back), &run(&parent));
        }
    }
    let mut config = golden_config("mixtral");
    config["sliding_window"] = Value::Null;
    let parent = checkpoint(&config, &golden_tensors("mixtral", "model.safetensors"));
    let path = folder.path().join("wrong.gguf");
    for (key, value, wanted) in [
        ("llama.expert_count", 4, "blk.0.ffn_gate_exps.weight: expected shape [4, 14, 20]"),
        ("llama.expert_used_count", 6, "num_experts_per_tok: 6, but there are only 5"),
    ] {
        write_edited(&path, &parent, |metadata| {
            metadata.retain(|(known, _)| known != key && known != CONFIG_KEY);
            metadata.push((key.to_string(), GgufValue::U32(value)));
        });
        let error = open(&path).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
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
