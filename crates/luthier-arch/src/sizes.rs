//! The sizes of a model that surgery may change, and the config of the same model in other sizes.
//!
//! Configs are written in the spelling that they have: Llama's and most others' (`hidden_size`), T5's (`d_model`), BERT's, or
//! two of the first under `encoder` and `decoder`. Sizes of single layers go into `per_layer_config`, which uniform models lack.

mod encoder_only;
mod llama_like;
mod t5;

use luthier_checkpoint::layout::StackKind;
use serde_json::{Map, Value};

use crate::blocks::layer::LayerShape;
use crate::blocks::stack::StackShape;
use crate::table::{self, ModelShape};
use crate::{Error, Result};

/// The sizes of one layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerSizes {
    /// Inner width of the feed-forward block; none where the layer has no such block, or experts.
    pub inner: Option<usize>,
    /// Routed experts, where the layer has some; their inner widths stay as they are.
    pub experts: Option<usize>,
    /// Self-attention; none where the layer has none.
    pub heads: Option<HeadSizes>,
    /// Tokens that self-attention sees, where that is a window.
    pub window: Option<usize>,
}

/// The heads of one attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadSizes {
    /// Query heads.
    pub query: usize,
    /// Key/value heads.
    pub kv: usize,
    /// Width of a head.
    pub width: usize,
}

/// The sizes of one stack.
#[derive(Clone, Debug, PartialEq)]
pub struct StackSizes {
    /// Encoder or decoder.
    pub kind: StackKind,
    /// Width of the residual stream.
    pub width: usize,
    /// On the embedding's rows; it may follow from the width.
    pub embedding_scale: f64,
    /// Under the root of the norms.
    pub norm_eps: f64,
    /// Added to the stored weights of norms.
    pub norm_offset: f64,
    /// Whether the heads of a layer are as wide together as the residual stream, as the config takes for granted: then one
    /// cannot change without the other.
    pub heads_fill_width: bool,
    /// From the first to the last.
    pub layers: Vec<LayerSizes>,
}

/// The sizes of a model: the encoder's where there is one, then the decoder's.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSizes {
    /// One or two stacks.
    pub stacks: Vec<StackSizes>,
    /// On the decoder's states before the head; it may follow from the width.
    pub state_scale: f64,
}

impl ModelSizes {
    /// The sizes of that stack.
    pub fn stack(&self, kind: StackKind) -> Option<&StackSizes> {
        self.stacks.iter().find(|stack| stack.kind == kind)
    }
}

/// The sizes of a model of this config.
pub fn sizes(config: &Map<String, Value>) -> Result<ModelSizes> {
    Ok(match table::shape(config)? {
        ModelShape::DecoderOnly { stack, .. } => {
            ModelSizes { stacks: vec![of_stack(StackKind::Decoder, &stack)], state_scale: 1.0 }
        }
        ModelShape::EncoderOnly(shape) => {
            let stack = StackSizes {
                kind: StackKind::Encoder,
                width: shape.width,
                embedding_scale: 1.0,
                norm_eps: shape.norm_eps,
                norm_offset: 0.0,
                heads_fill_width: true,
                layers: shape.layers.iter().map(of_layer).collect(),
            };
            ModelSizes { stacks: vec![stack], state_scale: 1.0 }
        }
        ModelShape::EncoderDecoder(shape) => ModelSizes {
            stacks: vec![
                of_stack(StackKind::Encoder, &shape.encoder),
                of_stack(StackKind::Decoder, &shape.decoder),
            ],
            state_scale: shape.state_scale.unwrap_or(1.0),
        },
    })
}

fn of_layer(layer: &LayerShape) -> LayerSizes {
    let attention = &layer.attention;
    let (query, kv, width) = (attention.query_heads, attention.kv_heads, attention.head_dim);
    let there = Some(&layer.feed_forward).filter(|_| !layer.skips.feed_forward);
    LayerSizes {
        inner: there.and_then(|block| block.dense()).map(|block| block.inner),
        experts: there.and_then(|block| block.experts()).map(|experts| experts.count),
        heads: (!layer.skips.attention).then_some(HeadSizes { query, kv, width }),
        window: attention.window,
    }
}

fn of_stack(kind: StackKind, shape: &StackShape) -> StackSizes {
    StackSizes {
        kind,
        width: shape.width,
        embedding_scale: shape.embedding_scale,
        norm_eps: shape.norm.eps,
        norm_offset: shape.norm.offset,
        heads_fill_width: false,
        layers: shape.layers.iter().map(of_layer).collect(),
    }
}

/// The new sizes of one stack.
#[derive(Clone, Debug, PartialEq)]
pub struct NewStack {
    /// Width of the residual stream.
    pub width: usize,
    /// Under the root of the norms.
    pub norm_eps: f64,
    /// Numbers that the layers had, in order.
    pub kept: Vec<usize>,
    /// Their sizes, windows included.
    pub layers: Vec<LayerSizes>,
}

/// The config of a model like this one with stacks of other sizes, in the order of [`sizes`], and what to know about it.
/// An error names the key that cannot say them.
pub fn resized(
    config: &Map<String, Value>,
    stacks: &[NewStack],
) -> Result<(Map<String, Value>, Vec<String>)> {
    let mut resized = config.clone();
    let mut notes = Vec::new();
    let nested = |config: &Map<String, Value>, key: &str| config.get(key).and_then(Value::as_object).cloned();
    match (nested(config, "encoder"), nested(config, "decoder"), stacks) {
        (Some(mut encoder), Some(mut decoder), [new_encoder, new_decoder]) => {
            llama_like::resize(&mut encoder, new_encoder, &mut notes)?;
            llama_like::resize(&mut decoder, new_decoder, &mut notes)?;
            if decoder.contains_key("cross_attention_hidden_size") {
                decoder.insert("cross_attention_hidden_size".to_string(), Value::from(new_encoder.width));
            }
            resized.insert("encoder".to_string(), Value::Object(encoder));
            resized.insert("decoder".to_string(), Value::Object(decoder));
        }
        (None, None, [stack]) if table::is_encoder_only(config)? => {
            encoder_only::resize(&mut resized, stack)?
        }
        (None, None, [stack]) if config.contains_key("hidden_size") => {
            llama_like::resize(&mut resized, stack, &mut notes)?;
        }
        (None, None, [encoder, decoder]) if config.contains_key("d_model") => {
            t5::resize(&mut resized, encoder, decoder)?;
        }
        _ => {
            let what = "this kind of config cannot be written in other sizes";
            return Err(Error::config("model_type", what));
        }
    }
    check(&resized, stacks)?;
    Ok((resized, notes))
}

/// Asserts that the config says what it should.
fn check(config: &Map<String, Value>, wanted: &[NewStack]) -> Result<()> {
    let came = sizes(config)?;
    for (came, wanted) in came.stacks.iter().zip(wanted) {
        if came.width != wanted.width || came.layers.len() != wanted.layers.len() {
            let what = format!(
                "wanted {} layers of width {}, the config would say {} of {}",
                wanted.layers.len(),
                wanted.width,
                came.layers.len(),
                came.width
            );
            return Err(Error::config("hidden_size", what));
        }
        for (layer, (came, wanted)) in came.layers.iter().zip(&wanted.layers).enumerate() {
            if came != wanted {
                let what = format!("wanted {wanted:?} in layer {layer}, the config would say {came:?}");
                return Err(Error::config("num_hidden_layers", what));
            }
        }
    }
    Ok(())
}
