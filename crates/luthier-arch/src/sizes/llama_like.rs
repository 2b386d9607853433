//! The keys of Llama and most others.

use serde_json::{Map, Value, json};

use super::{LayerSizes, NewStack};
use crate::blocks::per_layer::common;
use crate::config::PER_LAYER;
use crate::{Error, Result};

/// Lists with an entry for every layer.
const BY_LAYER: [&str; 4] = ["layer_types", "mlp_layer_types", "no_rope_layers", "layers_block_type"];

/// Architectures whose reference opens only models whose heads divide the width.
const DIVIDED: [&str; 3] = ["llama", "gemma2", "t5_gemma_module"];

/// Rewrites the config of one stack.
pub(super) fn resize(config: &mut Map<String, Value>, new: &NewStack, notes: &mut Vec<String>) -> Result<()> {
    let before = config.clone();
    if before.get("hidden_size") != Some(&json!(new.width)) {
        set(config, "hidden_size", new.width);
        config.insert("rms_norm_eps".to_string(), json!(new.norm_eps));
    }
    let n_layers = before.get("num_hidden_layers").and_then(Value::as_u64).unwrap_or(0) as usize;
    keep_layers(config, n_layers, &new.kept);
    set_layers(config, &new.layers);
    keep_head_width(config, new);
    keep_experts(config, &new.layers)?;
    keep_windows(config, new)?;
    keep_openable(config, notes)
}

/// Sets a size that the config says otherwise.
fn set(config: &mut Map<String, Value>, key: &str, size: usize) {
    config.insert(key.to_string(), json!(size));
}

fn keep_layers(config: &mut Map<String, Value>, n_layers: usize, kept: &[usize]) {
    if kept.len() == n_layers {
        return;
    }
    set(config, "num_hidden_layers", kept.len());
    for key in BY_LAYER {
        if let Some(Value::Array(entries)) = config.get_mut(key)
            && entries.len() == n_layers
        {
            *entries = kept.iter().map(|layer| entries[*layer].clone()).collect();
        }
    }
    // Layers from this one on see a window, and keep doing so.
    if let Some(first) = config.get("max_window_layers").and_then(Value::as_u64) {
        let before = kept.iter().filter(|layer| (**layer as u64) < first).count();
        set(config, "max_window_layers", before);
    }
}

/// The sizes of most layers, and those of single layers where they differ.
fn set_layers(config: &mut Map<String, Value>, layers: &[LayerSizes]) {
    let heads = |of: fn(&super::HeadSizes) -> usize| {
        layers.iter().map(|layer| layer.heads.as_ref().map(of)).collect::<Vec<_>>()
    };
    let sizes: [(&str, Vec<Option<usize>>); 3] = [
        ("intermediate_size", layers.iter().map(|layer| layer.inner).collect()),
        ("num_attention_heads", heads(|heads| heads.query)),
        ("num_key_value_heads", heads(|heads| heads.kv)),
    ];
    let mut own: Vec<Map<String, Value>> = vec![Map::new(); layers.len()];
    for (key, sizes) in &sizes {
        let present: Vec<usize> = sizes.iter().copied().flatten().collect();
        if present.is_empty() {
            continue;
        }
        let base = common(&present);
        // A model with as many key heads as query heads may leave the former out.
        let implied = *key == "num_key_value_heads"
            && !config.contains_key(*key)
            && config.get("num_attention_heads") == Some(&json!(base));
        if !implied && config.get(*key) != Some(&json!(base)) {
            set(config, key, base);
        }
        for (layer, size) in own.iter_mut().zip(sizes) {
            if let Some(size) = size.filter(|size| *size != base) {
                layer.insert((*key).to_string(), json!(size));
            }
        }
    }
    for (object, layer) in own.iter_mut().zip(layers) {
        let skips =
            [(layer.heads.is_none(), "attention"), (layer.inner.is_none() && layer.experts.is_none(), "mlp")];
        let skips: Vec<&str> = skips.iter().filter(|(skipped, _)| *skipped).map(|(_, name)| *name).collect();
        if !skips.is_empty() {
            object.insert("skip".to_string(), json!(skips));
        }
    }
    let own = own.into_iter().enumerate().filter(|(_, object)| !object.is_empty());
    let own: Map<String, Value> =
        own.map(|(layer, object)| (layer.to_string(), Value::Object(object))).collect();
    if own.is_empty() {
        config.shift_remove(PER_LAYER);
    } else {
        config.insert(PER_LAYER.to_string(), Value::Object(own));
    }
}

/// How many experts there are, and which layers have them where their places no longer say so.
fn keep_experts(config: &mut Map<String, Value>, layers: &[LayerSizes]) -> Result<()> {
    const KEYS: [&str; 2] = ["num_experts", "num_local_experts"];
    let Some(count) = layers.iter().find_map(|layer| layer.experts) else { return Ok(()) };
    let is_said = |key: &&str| config.get(*key).is_some_and(|said| !said.is_null());
    let mut keys: Vec<&str> = KEYS.into_iter().filter(is_said).collect();
    if keys.is_empty() {
        keys.push(if config.get("model_type") == Some(&json!("mixtral")) { KEYS[1] } else { KEYS[0] });
    }
    if layers.iter().filter_map(|layer| layer.experts).any(|other| other != count) {
        return Err(Error::config(keys[0], "all layers of a model that have experts have as many"));
    }
    let stack = |config: &Map<String, Value>| -> Result<Vec<LayerSizes>> {
        Ok(super::sizes(config)?.stacks.into_iter().next().map(|stack| stack.layers).unwrap_or_default())
    };
    if stack(config)?.iter().filter_map(|layer| layer.experts).any(|came| came != count) {
        keys.iter().for_each(|key| set(config, key, count));
    }
    let places =
        |layers: &[LayerSizes]| -> Vec<bool> { layers.iter().map(|layer| layer.experts.is_some()).collect() };
    if places(&stack(config)?) != places(layers) {
        let dense = layers.iter().enumerate().filter(|(_, layer)| layer.experts.is_none());
        let dense: Vec<usize> = dense.map(|(layer, _)| layer).collect();
        config.insert("decoder_sparse_step".to_string(), json!(1));
        config.insert("mlp_only_layers".to_string(), json!(dense));
    }
    Ok(())
}

/// `head_dim` where it would otherwise follow from sizes that have changed.
fn keep_head_width(config: &mut Map<String, Value>, new: &NewStack) {
    let Some(width) = new.layers.iter().find_map(|layer| layer.heads).map(|heads| heads.width) else {
        return;
    };
    let is_said = config.get("head_dim").is_some_and(|said| !said.is_null());
    let heads = config.get("num_attention_heads").and_then(Value::as_u64).unwrap_or(0) as usize;
    if !is_said && heads * width != new.width {
        set(config, "head_dim", width);
    }
}

/// `layer_types` where the layers' places no longer say which see a window.
fn keep_windows(config: &mut Map<String, Value>, new: &NewStack) -> Result<()> {
    let Some(model_type) = stand_alone(config) else { return Ok(()) };
    let windows = |sizes: &[LayerSizes]| sizes.iter().map(|layer| layer.window.is_some()).collect::<Vec<_>>();
    let wanted = windows(&new.layers);
    let came = super::sizes(&model_type)?;
    let came = came.stacks.first().map(|stack| windows(&stack.layers)).unwrap_or_default();
    if came != wanted && !config.contains_key("layer_types") {
        let names = wanted.iter().map(|slides| if *slides { "sliding_attention" } else { "full_attention" });
        config.insert("layer_types".to_string(), json!(names.collect::<Vec<_>>()));
    }
    Ok(())
}

/// The config as that of a model of its own: T5Gemma's stacks are Gemma 2's.
fn stand_alone(config: &Map<String, Value>) -> Option<Map<String, Value>> {
    let mut config = config.clone();
    match config.get("model_type").and_then(Value::as_str) {
        None | Some("t5_gemma_module") => {
            config.insert("model_type".to_string(), json!("gemma2"));
        }
        Some(_) => {}
    }
    Some(config)
}

/// transformers opens no Llama and no Gemma 2 whose heads do not divide the width, though it could compute them. A Llama
/// without biases is a Mistral without a window, which it does open.
fn keep_openable(config: &mut Map<String, Value>, notes: &mut Vec<String>) -> Result<()> {
    let size = |key: &str| config.get(key).and_then(Value::as_u64).unwrap_or(1).max(1);
    let (width, heads) = (size("hidden_size"), size("num_attention_heads"));
    let model_type =
        config.get("model_type").and_then(Value::as_str).unwrap_or("t5_gemma_module").to_string();
    if width % heads == 0 || !DIVIDED.contains(&model_type.as_str()) {
        return Ok(());
    }
    let has = |key: &str| config.get(key).and_then(Value::as_bool).unwrap_or(false);
    if model_type != "llama" || has("attention_bias") || has("mlp_bias") {
        let (below, above) = (width / heads * heads, width.div_ceil(heads) * heads);
        let what = format!(
            "{width} is not a multiple of num_attention_heads={heads}, and transformers opens no {model_type} of such \
             sizes; {below} or {above} would do"
        );
        return Err(Error::config("hidden_size", what));
    }
    config.insert("model_type".to_string(), json!("mistral"));
    config.insert("architectures".to_string(), json!(["MistralForCausalLM"]));
    config.insert("sliding_window".to_string(), Value::Null);
    for key in ["attention_bias", "mlp_bias"] {
        config.shift_remove(key);
    }
    // The references' defaults differ.
    for (key, default) in [("num_key_value_heads", json!(heads)), ("hidden_act", json!("silu"))] {
        if config.get(key).is_none_or(Value::is_null) {
            config.insert(key.to_string(), default);
        }
    }
    notes.push(format!(
        "config key model_type: mistral in place of llama, which computes the same; transformers opens no llama whose \
         {heads} heads do not divide hidden_size={width}"
    ));
    Ok(())
}
