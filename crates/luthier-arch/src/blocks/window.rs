//! Which layers see a sliding window only.

use super::stack::Site;
use crate::config::Keys;
use crate::{Error, Result};

/// An entry of `layer_types`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerType {
    /// Sees everything (`full_attention`).
    Full,
    /// Sees a window (`sliding_attention`).
    Sliding,
}

impl LayerType {
    /// Sliding where `sliding`.
    pub fn sliding_if(sliding: bool) -> LayerType {
        if sliding { LayerType::Sliding } else { LayerType::Full }
    }

    /// The window of such a layer at `site`.
    pub fn window(self, site: &Site, window: usize) -> Option<usize> {
        (self == LayerType::Sliding).then(|| site.window(window))
    }
}

/// Reads `layer_types`, or asks `default` for each layer.
pub fn layer_types(
    keys: &Keys,
    n_layers: usize,
    default: impl Fn(usize) -> LayerType,
) -> Result<Vec<LayerType>> {
    const KEY: &str = "layer_types";
    let Some(names) = keys.optional_texts(KEY)? else {
        return Ok((0..n_layers).map(default).collect());
    };
    if names.len() != n_layers {
        let what = format!("expected num_hidden_layers={n_layers} entries, found {}", names.len());
        return Err(Error::config(keys.name(KEY), what));
    }
    let read = |name: &&str| match *name {
        "full_attention" => Ok(LayerType::Full),
        "sliding_attention" => Ok(LayerType::Sliding),
        other => {
            let what = format!("expected full_attention or sliding_attention, found {other:?}");
            Err(Error::config(keys.name(KEY), what))
        }
    };
    names.iter().map(read).collect()
}
