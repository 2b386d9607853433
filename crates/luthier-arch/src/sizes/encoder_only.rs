//! The keys of BERT: one size of each kind for all layers, and heads that share out the width.

use serde_json::{Map, Value, json};

use super::{LayerSizes, NewStack};
use crate::{Error, Result};

/// Rewrites the config.
pub(super) fn resize(config: &mut Map<String, Value>, new: &NewStack) -> Result<()> {
    let same = |key: &str, of: fn(&LayerSizes) -> Option<usize>| {
        let first = new.layers.first().and_then(of);
        let is_same = new.layers.iter().all(|layer| of(layer) == first);
        first.filter(|_| is_same).ok_or_else(|| {
            Error::config(key, "has one value for all layers; these differ, take the same size for all")
        })
    };
    let inner = same("intermediate_size", |layer| layer.inner)?;
    let heads = same("num_attention_heads", |layer| layer.heads.map(|heads| heads.query))?;
    let head_width = same("num_attention_heads", |layer| layer.heads.map(|heads| heads.width))?;
    if heads * head_width != new.width {
        let what = format!(
            "{heads} heads of width {head_width} need hidden_size={}, and that would be {}; this architecture's heads share \
             out the width, take both together",
            heads * head_width,
            new.width
        );
        return Err(Error::config("num_attention_heads", what));
    }
    if config.get("hidden_size") != Some(&json!(new.width)) {
        config.insert("layer_norm_eps".to_string(), json!(new.norm_eps));
    }
    let sizes = [
        ("hidden_size", new.width),
        ("num_hidden_layers", new.layers.len()),
        ("num_attention_heads", heads),
        ("intermediate_size", inner),
    ];
    for (key, size) in sizes {
        config.insert(key.to_string(), json!(size));
    }
    Ok(())
}
