//! What does not fit is refused with the key or tensor that is at fault.

use candle_core::Device;
use luthier_arch::{LoadOptions, layout, load};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use crate::source::{Named, checkpoint, golden_config, golden_tensors};

fn load_error(config: &Map<String, Value>, tensors: &[Named]) -> String {
    let options = LoadOptions { trainable: false, device: Device::Cpu };
    load(&checkpoint(config, tensors), &options).map(|_| ()).unwrap_err().to_string()
}

fn config_error(name: &str, key: &str, value: Value) -> String {
    let mut config = golden_config(name);
    match key.split_once('.') {
        Some((outer, inner)) => config[outer][inner] = value,
        None => drop(config.insert(key.to_string(), value)),
    }
    layout(&config).unwrap_err().to_string()
}

#[test]
fn config_values_that_make_no_sense_are_named() {
    for (name, key, value, wanted) in [
        (
            "llama",
            "hidden_size",
            json!(0),
            "config key hidden_size: expected a whole number from 1 to 4194304, found 0",
        ),
        (
            "llama",
            "hidden_size",
            json!("40"),
            "config key hidden_size: expected a whole number from 1 to 4194304, found \"40\"",
        ),
        (
            "llama",
            "hidden_size",
            json!(-40),
            "config key hidden_size: expected a whole number from 1 to 4194304, found -40",
        ),
        (
            "llama",
            "hidden_size",
            json!(1u64 << 60),
            "config key hidden_size: expected a whole number from 1 to 4194304, found 1152921504606846976",
        ),
        (
            "llama",
            "hidden_size",
            json!(null),
            "config key hidden_size: missing; expected a whole number from 1 to 4194304",
        ),
        (
            "llama",
            "num_hidden_layers",
            json!(1_000_000),
            "config key num_hidden_layers: expected a whole number from 1 to 4096, found 1000000",
        ),
        (
            "llama",
            "num_key_value_heads",
            json!(2),
            "config key num_key_value_heads: 2 does not divide num_attention_heads=5",
        ),
        (
            "llama",
            "num_key_value_heads",
            json!(10),
            "config key num_key_value_heads: 10 does not divide num_attention_heads=5",
        ),
        (
            "llama",
            "head_dim",
            json!(7),
            "config key head_dim: expected an even width, which rotary positions need, found 7",
        ),
        (
            "llama-tied",
            "head_dim",
            json!(1 << 20),
            "config key num_attention_heads: 9 heads of width 1048576 are more than 4194304 together",
        ),
        (
            "llama",
            "hidden_act",
            json!("gelu_10"),
            "config key hidden_act: expected silu, gelu_pytorch_tanh, gelu or relu, found \"gelu_10\"",
        ),
        (
            "llama",
            "rms_norm_eps",
            json!(-1.0),
            "config key rms_norm_eps: expected a number from 0 on, found -1.0",
        ),
        (
            "llama",
            "tie_word_embeddings",
            json!(1),
            "config key tie_word_embeddings: expected true or false, found 1",
        ),
        (
            "llama",
            "rope_parameters.rope_type",
            json!("dynamic"),
            "config key rope_parameters.rope_type: expected default, linear, llama3, yarn or longrope, found \"dynamic\"",
        ),
        (
            "llama",
            "rope_parameters.factor",
            json!(0),
            "config key rope_parameters.factor: expected a number above 0, found 0",
        ),
        (
            "llama",
            "rope_parameters.high_freq_factor",
            json!(1.0),
            "config key rope_parameters.high_freq_factor: expected more than low_freq_factor=1, found 1",
        ),
        (
            "llama",
            "partial_rotary_factor",
            json!(0.5),
            "config key partial_rotary_factor: expected 1, whole heads turn, found 0.5",
        ),
        (
            "llama",
            "model_type",
            json!("gpt-j"),
            "config key model_type: no architecture is called \"gpt-j\"; known: gemma2, llama, luthier_encoder_decoder, mistral, mt5, qwen2, qwen3, t5, t5gemma",
        ),
        (
            "llama",
            "model_type",
            json!(null),
            "config key model_type: missing; expected one of gemma2, llama, luthier_encoder_decoder, mistral, mt5, qwen2, qwen3, t5, t5gemma",
        ),
        (
            "llama",
            "quantization_config",
            json!({"bits": 4}),
            "config key quantization_config: changes the computation in a way that is not supported; remove it if it does not matter",
        ),
        (
            "gemma2",
            "layer_types",
            json!(["full_attention"]),
            "config key layer_types: expected num_hidden_layers=3 entries, found 1",
        ),
        (
            "gemma2",
            "layer_types",
            json!(["full_attention", "chunked", "full_attention"]),
            "config key layer_types: expected full_attention or sliding_attention, found \"chunked\"",
        ),
        (
            "gemma2",
            "use_bidirectional_attention",
            json!(true),
            "config key use_bidirectional_attention: true, but this architecture is read as a causal decoder only",
        ),
        (
            "qwen2",
            "use_sliding_window",
            json!(false),
            "config key layer_types: lists sliding_attention, but use_sliding_window is false",
        ),
        ("t5gemma", "decoder", json!(null), "config key decoder: missing; expected the config of this stack"),
        (
            "t5gemma",
            "decoder.hidden_size",
            json!(0),
            "config key decoder.hidden_size: expected a whole number from 1 to 4194304, found 0",
        ),
        (
            "t5gemma",
            "decoder.cross_attention_hidden_size",
            json!(99),
            "config key decoder.cross_attention_hidden_size: expected encoder.hidden_size=32, found 99",
        ),
        (
            "t5gemma",
            "tie_encoder_embeddings",
            json!(true),
            "config key tie_encoder_embeddings: true, but the encoder's embedding is [61, 32] and the decoder's [61, 40]",
        ),
        (
            "encoder-decoder",
            "decoder_start_token_id",
            json!(61),
            "config key decoder_start_token_id: token 61 is outside the decoder's vocabulary of 61",
        ),
        (
            "encoder-decoder",
            "encoder.model_type",
            json!("t5gemma"),
            "config key encoder.model_type: t5gemma is not a decoder-only model",
        ),
        (
            "encoder-decoder",
            "encoder.model_type",
            json!("luthier_encoder_decoder"),
            "config key encoder.model_type: luthier_encoder_decoder is not a decoder-only model",
        ),
    ] {
        assert_eq!(config_error(name, key, value), wanted);
    }
}

#[test]
fn tensors_that_contradict_the_config_are_named() {
    let (config, tensors) = (golden_config("llama"), golden_tensors("llama", "model.safetensors"));
    let without = |name: &str| tensors.iter().filter(|tensor| tensor.0 != name).cloned().collect::<Vec<_>>();
    assert_eq!(
        load_error(&config, &without("model.layers.1.self_attn.k_proj.bias")),
        "tensor model.layers.1.self_attn.k_proj.bias: missing from memory; the config asks for shape [12]"
    );
    let mut more = tensors.clone();
    more.push(("model.layers.2.mlp.up_proj.weight".to_string(), vec![2], vec![0.0; 2]));
    assert_eq!(
        load_error(&config, &more),
        "tensor model.layers.2.mlp.up_proj.weight: shape [2]: a model of this config.json has no such tensor; does \
         model_type or a size fit?"
    );
    let mut other = config.clone();
    other["intermediate_size"] = json!(51);
    assert_eq!(
        load_error(&other, &tensors),
        "tensor model.layers.0.mlp.gate_proj.weight: expected shape [51, 40] from the config, found [52, 40]"
    );
}

#[test]
fn known_leftovers_are_passed_over() {
    let mut tensors = golden_tensors("llama", "model.safetensors");
    tensors.push(("model.layers.0.self_attn.rotary_emb.inv_freq".to_string(), vec![6], vec![1.0; 6]));
    let options = LoadOptions { trainable: false, device: Device::Cpu };
    assert!(load(&checkpoint(&golden_config("llama"), &tensors), &options).is_ok());
}

#[test]
fn tied_weights_may_be_there_twice_but_equal() {
    let (config, mut tensors) = (golden_config("qwen3"), golden_tensors("qwen3", "model.safetensors"));
    let (_, shape, values) =
        tensors.iter().find(|tensor| tensor.0 == "model.embed_tokens.weight").cloned().unwrap();
    tensors.push(("lm_head.weight".to_string(), shape, values));
    let options = LoadOptions { trainable: true, device: Device::Cpu };
    let model = load(&checkpoint(&config, &tensors), &options).unwrap();
    assert!(model.weights().iter().all(|weight| weight.name() != "lm_head.weight"));
    tensors.last_mut().unwrap().2[5] += 1e-6;
    assert_eq!(
        load_error(&config, &tensors),
        "tensor lm_head.weight: differs from model.embed_tokens.weight, but the config ties them; set \
         tie_word_embeddings to false to keep both"
    );
}

#[test]
fn weights_that_are_not_finite_are_named() {
    for (at, bad) in [(0, f32::NAN), (77, f32::INFINITY), (103, f32::NEG_INFINITY)] {
        let (config, mut tensors) = (golden_config("gemma2"), golden_tensors("gemma2", "model.safetensors"));
        let name = "model.layers.1.mlp.down_proj.weight";
        tensors.iter_mut().find(|tensor| tensor.0 == name).unwrap().2[at] = bad;
        let wanted = format!(
            "tensor {name}: value {at} is NaN or infinite; the file is damaged or its training went wrong"
        );
        assert_eq!(load_error(&config, &tensors), wanted);
    }
}

#[test]
fn models_larger_than_the_machine_are_refused() {
    let mut config = golden_config("llama");
    config["hidden_size"] = json!(1 << 20);
    config["intermediate_size"] = json!(1 << 22);
    config["num_hidden_layers"] = json!(4096);
    let error = luthier_arch::init(&config, 1, false, &Device::Cpu).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("but this machine has"), "{error}");
}

/// Any JSON value, mostly small ones.
fn any_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(|flag| json!(flag)),
        any::<i64>().prop_map(|number| json!(number)),
        (-3i64..70).prop_map(|number| json!(number)),
        any::<f64>().prop_map(|number| json!(number)),
        "[a-z_]{0,8}".prop_map(|text| json!(text)),
        Just(json!([])),
        Just(json!({})),
        Just(json!([1, "full_attention", {}])),
        Just(json!({"rope_type": "yarn", "factor": 1e-300, "original_max_position_embeddings": 1})),
        Just(
            json!({"rope_type": "llama3", "factor": 1e300, "low_freq_factor": 1e-300, "high_freq_factor": 1e300})
        ),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn no_config_makes_the_reader_panic(
        name in prop::sample::select(vec!["llama", "mistral", "qwen2", "qwen3", "gemma2", "t5gemma", "encoder-decoder"]),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any_value()), 1..4),
    ) {
        let mut config = golden_config(name);
        for (at, value) in changes {
            let len = config.len();
            let (_, slot) = config.iter_mut().nth(at.index(len)).unwrap();
            match slot {
                Value::Object(nested) if !nested.is_empty() => {
                    let at = at.index(nested.len());
                    *nested.iter_mut().nth(at).unwrap().1 = value;
                }
                slot => *slot = value,
            }
        }
        if let Ok(layout) = layout(&config) {
            prop_assert!(layout.parameters() > 0);
            let _ = luthier_arch::unknown_keys(&config).unwrap();
            let _ = luthier_arch::gguf::plan(&config);
        }
    }
}

#[test]
fn sizes_of_single_layers_that_make_no_sense_are_named() {
    for (name, own, wanted) in [
        (
            "llama",
            json!({"2": {}}),
            "config key per_layer_config.2: expected the number of a layer from 0 to 1",
        ),
        ("llama", json!({"-1": {}}), "expected the number of a layer"),
        ("llama", json!({"1": {}, "01": {}}), "layer 1 stands there twice"),
        ("llama", json!({"1": 4}), "config key per_layer_config.1: expected an object, found 4"),
        (
            "llama",
            json!({"1": {"head_dim": 4}}),
            "config key per_layer_config.1.head_dim: a layer of its own may set",
        ),
        (
            "llama",
            json!({"1": {"intermediate_size": 0}}),
            "config key per_layer_config.1.intermediate_size: expected",
        ),
        (
            "llama",
            json!({"1": {"num_key_value_heads": 2}}),
            "2 key/value heads do not divide 5 query heads in layer 1",
        ),
        ("llama", json!({"1": {"skip": ["norm"]}}), "expected attention or mlp, found \"norm\""),
        ("llama", json!([]), "config key per_layer_config: expected an object"),
        ("t5", json!({"0": {"d_ff": 4}}), "config key per_layer_config: changes the computation"),
        ("encoder-decoder", json!({"0": {}}), "config key per_layer_config: changes the computation"),
    ] {
        let error = config_error(name, "per_layer_config", own);
        assert!(error.contains(wanted), "{error}");
    }
    assert!(layout(&golden_config("uneven")).is_ok());
}
