//! Which layers see a sliding window only.

use super::stack::Site;
use crate::config::{Keys, MAX_POSITIONS};
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

/// The window of each layer where `use_sliding_window` switches it on, from layer `max_window_layers` on unless
/// `layer_types` says otherwise.
pub fn optional_windows(keys: &Keys, site: &Site, n_layers: usize) -> Result<Vec<Option<usize>>> {
    let window = keys.size_or("sliding_window", MAX_POSITIONS, 4096)?;
    let first = keys.optional_count("max_window_layers")?.unwrap_or(28);
    let slides = keys.flag_or("use_sliding_window", false)?;
    let types = layer_types(keys, n_layers, |layer| LayerType::sliding_if(slides && layer >= first))?;
    if !slides && types.contains(&LayerType::Sliding) {
        let what = "lists sliding_attention, but use_sliding_window is false";
        return Err(Error::config(keys.name("layer_types"), what));
    }
    Ok(types.iter().map(|layer_type| layer_type.window(site, window)).collect())
}

/// The window of every second layer from the first on, as Gemma 2 has it unless `layer_types` says otherwise.
pub fn alternating_windows(keys: &Keys, site: &Site, n_layers: usize) -> Result<Vec<Option<usize>>> {
    let window = keys.size_or("sliding_window", MAX_POSITIONS, 4096)?;
    let types = layer_types(keys, n_layers, |layer| LayerType::sliding_if(layer % 2 == 0))?;
    Ok(types.iter().map(|layer_type| layer_type.window(site, window)).collect())
}
