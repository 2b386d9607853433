//! Sizes of single layers that make no sense are refused by their keys.

use luthier_arch::layout;
use serde_json::json;

use crate::refusals::config_error;
use crate::source::golden_config;

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
        (
            "mixtral",
            json!({"1": {"intermediate_size": 8}}),
            "config key per_layer_config.1.intermediate_size: layer 1 has experts",
        ),
        (
            "qwen2_moe",
            json!({"0": {"intermediate_size": 8}, "1": {"intermediate_size": 8}}),
            "intermediate_size: layer",
        ),
        ("llama", json!([]), "config key per_layer_config: expected an object"),
        ("t5", json!({"0": {"d_ff": 4}}), "config key per_layer_config: changes the computation"),
        ("encoder-decoder", json!({"0": {}}), "config key per_layer_config: changes the computation"),
    ] {
        let error = config_error(name, "per_layer_config", own);
        assert!(error.contains(wanted), "{error}");
    }
    assert!(layout(&golden_config("uneven")).is_ok());
}
