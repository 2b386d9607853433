//! How many values a training pass keeps of a layer until its backward pass: what the operations of the layer read and made.

use super::attention::AttentionShape;
use super::layer::LayerShape;
use super::mlp::MlpShape;
use super::stack::{Positions, Site, StackShape};

/// Values a token, as f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeptValues {
    /// Of a layer whose activations are kept.
    pub whole: usize,
    /// Of one that is computed again: what goes into it.
    pub recomputed: usize,
    /// What its backward pass needs beside them for a while.
    pub backward: usize,
}

impl StackShape {
    /// Of each layer.
    pub fn kept_values(&self, site: &Site) -> Vec<KeptValues> {
        let is_rotary = matches!(self.positions, Positions::Rotary(_));
        let post = |norms: (&str, Option<&str>)| usize::from(norms.1.is_some());
        self.layers
            .iter()
            .map(|layer| {
                let m = layer.attention.width;
                let mut whole = 0;
                if !layer.skips.attention {
                    whole += attention(&layer.attention, is_rotary) + post(self.names.own.norms) * m;
                }
                if let Some(width) = site.encoder_width {
                    let cross = layer.attention.cross(width);
                    whole += attention(&cross, false) + post(self.names.cross.norms) * m;
                }
                if !layer.skips.feed_forward {
                    whole += feed_forward(layer) + post(self.names.feed_forward.norms) * m;
                }
                KeptValues {
                    whole,
                    recomputed: m + site.encoder_width.unwrap_or(0),
                    backward: backward(layer),
                }
            })
            .collect()
    }
}

/// Input, its norm, queries, keys and values before and after norms and turning, what attention gives, its projection.
fn attention(shape: &AttentionShape, is_rotary: bool) -> usize {
    let (m, queries) = (shape.width, shape.query_heads * shape.head_dim);
    let keys = shape.kv_heads * shape.head_dim;
    let changes = usize::from(is_rotary) + usize::from(shape.head_norm.is_some());
    3 * m + (2 + changes) * queries + (2 + changes) * keys + shape.query_heads
}

/// Input, its norm, what the projections give, the activation, what comes out; of experts for each that a token asks.
fn feed_forward(layer: &LayerShape) -> usize {
    let m = layer.attention.width;
    match &layer.feed_forward {
        MlpShape::Dense(shape) => 3 * m + (2 + usize::from(shape.gated)) * shape.inner,
        MlpShape::Experts(shape) => {
            let asked = shape.top_k * (3 * shape.inner + 2 * m);
            let shared = shape.shared.map_or(0, |inner| 3 * inner + 2 * m);
            4 * m + asked + shared + 3 * shape.count
        }
    }
}

/// The gradients that stand together while one block of the layer is gone back through.
fn backward(layer: &LayerShape) -> usize {
    let (m, shape) = (layer.attention.width, &layer.attention);
    let heads = (shape.query_heads + 2 * shape.kv_heads) * shape.head_dim;
    let inner = match &layer.feed_forward {
        MlpShape::Dense(shape) => 3 * shape.inner,
        MlpShape::Experts(shape) => {
            (shape.top_k * 3 * shape.inner).max(shape.shared.map_or(0, |inner| 3 * inner))
        }
    };
    4 * m + inner.max(2 * heads)
}
