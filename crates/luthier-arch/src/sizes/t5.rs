//! The keys of T5 and its relatives: one set of widths for both stacks.

use serde_json::{Map, Value, json};

use super::{LayerSizes, NewStack};
use crate::{Error, Result};

/// Rewrites the config.
pub(super) fn resize(config: &mut Map<String, Value>, encoder: &NewStack, decoder: &NewStack) -> Result<()> {
    let refuse = |key: &str, what: String| Err(Error::config(key, what));
    if encoder.width != decoder.width {
        let (a, b) = (encoder.width, decoder.width);
        return refuse("d_model", format!("one width for both stacks: wanted equal ones, came {a} and {b}"));
    }
    let layers = || encoder.layers.iter().chain(&decoder.layers);
    let same = |of: fn(&LayerSizes) -> Option<usize>| {
        let first = layers().next().and_then(of);
        let alike = layers().all(|layer| of(layer) == first);
        first.filter(|_| alike)
    };
    let all = "has one value for all layers of both stacks; these differ, take the same size for all";
    let Some(inner) = same(|layer| layer.inner) else { return refuse("d_ff", all.to_string()) };
    let heads =
        |layer: &LayerSizes| layer.heads.filter(|heads| heads.query == heads.kv).map(|heads| heads.query);
    let Some(heads) = same(heads) else { return refuse("num_heads", all.to_string()) };
    if config.get("d_model") != Some(&json!(encoder.width)) {
        config.insert("layer_norm_epsilon".to_string(), json!(encoder.norm_eps));
    }
    let said = config.get("num_decoder_layers").is_some_and(|said| !said.is_null());
    let mut sizes = vec![
        ("d_model", encoder.width),
        ("d_ff", inner),
        ("num_heads", heads),
        ("num_layers", encoder.layers.len()),
    ];
    if said || encoder.layers.len() != decoder.layers.len() {
        sizes.push(("num_decoder_layers", decoder.layers.len()));
    }
    for (key, size) in sizes {
        config.insert(key.to_string(), json!(size));
    }
    Ok(())
}
