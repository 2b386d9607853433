//! Layers that differ from the rest of their stack: config.json's `per_layer_config`.
//!
//! `{"5": {"intermediate_size": 8192}, "11": {"num_key_value_heads": 4}, "23": {"skip": ["mlp"]}}`: by the number of the
//! layer, what it has instead of the stack's own value. Source: transformers, `integrations/heterogeneity`, which reads and
//! writes these records.

use super::layer::LayerShape;
use crate::config::{Keys, MAX_HEADS, MAX_WIDTH};
use crate::{Error, Result};

const KNOWN: [&str; 4] = ["intermediate_size", "num_attention_heads", "num_key_value_heads", "skip"];

/// The value that most of them are, the first such; 0 of none.
pub fn common(values: &[usize]) -> usize {
    let count = |value: usize| values.iter().filter(|other| **other == value).count();
    let most = values.iter().map(|value| count(*value)).max().unwrap_or(0);
    values.iter().copied().find(|value| count(*value) == most).unwrap_or(0)
}

/// Changes the layers that `per_layer_config` names.
pub fn apply(keys: &Keys, layers: &mut [LayerShape]) -> Result<()> {
    for (layer, keys) in keys.layer_objects(layers.len())? {
        if let Some(key) = keys.map().keys().find(|key| !KNOWN.contains(&key.as_str())) {
            let what = format!(
                "a layer of its own may set {}; remove the key if it does not matter",
                KNOWN.join(", ")
            );
            return Err(Error::config(keys.name(key), what));
        }
        let shape = &mut layers[layer];
        if let Some(inner) = keys.optional_size("intermediate_size", MAX_WIDTH)? {
            shape.feed_forward.set_inner(inner);
        }
        let attention = &mut shape.attention;
        if let Some(heads) = keys.optional_size("num_attention_heads", MAX_HEADS)? {
            attention.query_heads = heads;
        }
        if let Some(heads) = keys.optional_size("num_key_value_heads", MAX_HEADS)? {
            attention.kv_heads = heads;
        }
        let (query, kv, width) = (attention.query_heads, attention.kv_heads, attention.head_dim);
        if query % kv != 0 {
            let what = format!("{kv} key/value heads do not divide {query} query heads in layer {layer}");
            return Err(Error::config(keys.name("num_key_value_heads"), what));
        }
        if query * width > MAX_WIDTH {
            let what = format!("{query} heads of width {width} are more than {MAX_WIDTH} together");
            return Err(Error::config(keys.name("num_attention_heads"), what));
        }
        for part in keys.optional_texts("skip")?.unwrap_or_default() {
            match part {
                "attention" => shape.skips.attention = true,
                "mlp" => shape.skips.feed_forward = true,
                other => {
                    let what = format!("expected attention or mlp, found {other:?}");
                    return Err(Error::config(keys.name("skip"), what));
                }
            }
        }
    }
    Ok(())
}
