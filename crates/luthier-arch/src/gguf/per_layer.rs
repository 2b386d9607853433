//! Layers that differ, in GGUF files: arrays under the keys of the sizes, 0 for a block that a layer goes without.
//!
//! llama.cpp reads such arrays for every architecture but builds most from the first entry; the one of Llama's kind that it
//! builds layer by layer is `deci` (arXiv:2411.19146).

use luthier_checkpoint::gguf::{GgufArray, GgufValue};
use serde_json::{Map, Value, json};

use super::GgufDialect;
use super::metadata::Metadata;
use crate::blocks::layer::LayerShape;
use crate::blocks::per_layer::common;
use crate::blocks::stack::StackShape;
use crate::config::PER_LAYER;
use crate::{Error, Result};

const UNEVEN_LLAMA: &str = "deci";

/// A key, its config key, and the size of a layer.
type Size = (&'static str, &'static str, fn(&LayerShape) -> usize);

/// The sizes that files hold.
pub(super) const SIZES: [Size; 3] = [
    ("feed_forward_length", "intermediate_size", |layer| {
        if layer.skips.feed_forward { 0 } else { layer.feed_forward.inner }
    }),
    ("attention.head_count", "num_attention_heads", |layer| {
        if layer.skips.attention { 0 } else { layer.attention.query_heads }
    }),
    ("attention.head_count_kv", "num_key_value_heads", |layer| {
        if layer.skips.attention { 0 } else { layer.attention.kv_heads }
    }),
];

/// The number that all layers have, or the list of them.
pub(super) fn value(key: &str, stack: &StackShape, of: fn(&LayerShape) -> usize) -> Result<GgufValue> {
    let sizes = stack.layers.iter().map(|layer| {
        let size = of(layer);
        u32::try_from(size).map_err(|_| Error::config(key, format!("{size} does not fit a GGUF file")))
    });
    let sizes: Vec<u32> = sizes.collect::<Result<_>>()?;
    match sizes.iter().all(|size| *size == sizes[0]) {
        true => Ok(GgufValue::U32(sizes[0])),
        false => Ok(GgufValue::Array(GgufArray::U32(sizes))),
    }
}

fn is_uneven(stack: &StackShape) -> bool {
    SIZES.iter().any(|(_, _, of)| {
        stack.layers.iter().any(|layer| of(layer) != of(&stack.layers[0]) || of(layer) == 0)
    })
}

/// `general.architecture` of a model whose layers may differ. Refuses layers that llama.cpp would compute otherwise.
pub(super) fn architecture(dialect: &GgufDialect, stack: &StackShape) -> Result<&'static str> {
    if !is_uneven(stack) {
        return Ok(dialect.architecture);
    }
    let refuse = |what: &str| {
        let what = format!("{what}; llama.cpp would compute something else, keep this model as a folder");
        Err(Error::config(PER_LAYER, what))
    };
    if dialect.architecture != "llama" {
        let what = format!("in GGUF files of {} all layers are alike", dialect.architecture);
        return refuse(&what);
    }
    let [first, .., last] = &stack.layers[..] else {
        return refuse("in a GGUF file the only layer has both its blocks");
    };
    if first.skips.attention || last.skips.feed_forward {
        return refuse("in GGUF files the first layer has attention and the last one a feed-forward block");
    }
    match stack.layers.iter().position(|layer| layer.skips.feed_forward && !layer.skips.attention) {
        Some(layer) => refuse(&format!("in GGUF files layer {layer} cannot skip mlp alone")),
        None => Ok(UNEVEN_LLAMA),
    }
}

/// The dialect that a file of this architecture is in.
pub(super) fn dialect_name(architecture: &str) -> &str {
    if architecture == UNEVEN_LLAMA { "llama" } else { architecture }
}

/// The sizes of a file of n layers for its config: those of most layers, and what single layers have instead.
pub(super) fn read(metadata: &Metadata, n_layers: usize) -> Result<Vec<(&'static str, Value)>> {
    let sizes = SIZES.map(|(key, ..)| metadata.sizes(key, n_layers));
    let [inner, heads, kv_heads] = sizes;
    let (inner, heads) = (inner?, heads?);
    let kv_heads = if metadata.get(SIZES[2].0).is_some() { kv_heads? } else { heads.clone() };
    let mut layers: Vec<Map<String, Value>> = vec![Map::new(); n_layers];
    let mut config = Vec::new();
    for ((_, key, _), sizes) in SIZES.iter().zip([&inner, &heads, &kv_heads]) {
        let present: Vec<usize> = sizes.iter().copied().filter(|size| *size > 0).collect();
        let base = common(&present);
        config.push((*key, json!(base)));
        for (layer, size) in layers.iter_mut().zip(sizes.iter()) {
            if *size != base && *size > 0 {
                layer.insert((*key).to_string(), json!(size));
            }
        }
    }
    for (layer, object) in layers.iter_mut().enumerate() {
        let skips: Vec<&str> = [(heads[layer], "attention"), (inner[layer], "mlp")]
            .iter()
            .filter(|(size, _)| *size == 0)
            .map(|(_, name)| *name)
            .collect();
        if heads[layer] > 0 && kv_heads[layer] == 0 {
            let what = format!("layer {layer} has no key/value heads: linear attention is not supported");
            return Err(Error::config(metadata.name(SIZES[2].0), what));
        }
        if !skips.is_empty() {
            object.insert("skip".to_string(), json!(skips));
        }
    }
    let own: Map<String, Value> = layers
        .into_iter()
        .enumerate()
        .filter(|(_, object)| !object.is_empty())
        .map(|(layer, object)| (layer.to_string(), Value::Object(object)))
        .collect();
    if !own.is_empty() {
        config.push((PER_LAYER, Value::Object(own)));
    }
    Ok(config)
}
