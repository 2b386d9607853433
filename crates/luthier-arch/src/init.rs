//! Fresh weights, as the reference initialises them, the same for the same seed on every machine and thread count.

use candle_core::{Device, Tensor};
use luthier_checkpoint::layout::{Part, Projection, StackKind, TensorSpec};
use luthier_ops::Weight;
use serde_json::{Map, Value};

use crate::blocks::stack::StackShape;
use crate::model::Model;
use crate::random::Stream;
use crate::table::{self, ModelShape};
use crate::weights::WeightSet;
use crate::{Result, memory};

/// A model of this config with random weights: matrices normal with deviation `initializer_range`, biases 0, norms
/// neutral, the padding token's embedding 0. Depends on `seed` and each tensor's name only.
pub fn init(
    config: &Map<String, Value>,
    seed: u64,
    trainable: bool,
    device: &Device,
) -> Result<Box<dyn Model>> {
    let shape = table::shape(config)?;
    let layout = shape.layout();
    memory::check_parameters(layout.parameters())?;
    let mut weights = Vec::with_capacity(layout.tensors.len());
    for spec in &layout.tensors {
        let values = fresh_values(spec, &shape, seed);
        let values = Tensor::from_vec(values, spec.shape.as_slice(), device)?;
        weights.push(Weight::dense(&spec.name, &values, trainable)?);
    }
    shape.build(config, WeightSet::new(&layout, weights, device)?)
}

/// A model of this config on given weights, one for each tensor of its layout.
pub fn from_weights(
    config: &Map<String, Value>,
    weights: Vec<Weight>,
    device: &Device,
) -> Result<Box<dyn Model>> {
    let shape = table::shape(config)?;
    shape.build(config, WeightSet::new(&shape.layout(), weights, device)?)
}

/// The fresh values of one tensor of a model of this config, row-major; those that `init` gives it.
pub fn fresh(config: &Map<String, Value>, spec: &TensorSpec, seed: u64) -> Result<Vec<f32>> {
    Ok(fresh_values(spec, &table::shape(config)?, seed))
}

fn fresh_values(spec: &TensorSpec, shape: &ModelShape, seed: u64) -> Vec<f32> {
    use Part::*;
    let stack = stack_of(spec, shape);
    let deviation = match (stack, shape) {
        (Some(StackShape { t5_factor: Some(factor), .. }), _) => factor * t5_deviation(spec, stack),
        (_, ModelShape::DecoderOnly { stack, .. }) => stack.initializer_range,
        (_, ModelShape::EncoderDecoder(shape)) => shape.initializer_range,
        (_, ModelShape::EncoderOnly(shape)) => shape.initializer_range,
    };
    let (norm_offset, pad_token) = match (stack, shape) {
        (Some(stack), _) => (stack.norm.offset, stack.pad_token),
        (None, ModelShape::EncoderOnly(shape)) => (0.0, shape.pad_token),
        (None, _) => (0.0, None),
    };
    let len = spec.shape.iter().product();
    match spec.role.part {
        FinalNorm
        | EmbeddingNorm
        | HeadNorm
        | SelfAttentionSumNorm
        | FeedForwardSumNorm
        | SelfAttentionHeadNorm(_)
        | CrossAttentionHeadNorm(_)
        | SelfAttentionNorm
        | SelfAttentionPostNorm
        | CrossAttentionNorm
        | CrossAttentionPostNorm
        | FeedForwardNorm
        | FeedForwardPostNorm => vec![(1.0 - norm_offset) as f32; len],
        EmbeddingNormBias
        | HeadBias
        | HeadTransformBias
        | HeadNormBias
        | PoolerBias
        | SentencePairHeadBias
        | ClassifierBias
        | SelfAttentionSumNormBias
        | FeedForwardSumNormBias
        | SelfAttentionBias(_)
        | CrossAttentionBias(_)
        | GateBias
        | UpBias
        | DownBias => vec![0.0; len],
        Embedding => {
            let mut values = normal(&spec.name, seed, deviation, len);
            if let (Some(pad), Some(width)) = (pad_token, spec.shape.last()) {
                let row = pad as usize * width;
                if let Some(row) = values.get_mut(row..row + width) {
                    row.fill(0.0);
                }
            }
            values
        }
        PositionEmbedding | TokenTypeEmbedding | HeadTransform | Pooler | SentencePairHead | Classifier => {
            normal(&spec.name, seed, deviation, len)
        }
        Head | RelativeBias | SelfAttention(_) | CrossAttention(_) | Gate | Up | Down | Router
        | ExpertGate(_) | ExpertUp(_) | ExpertDown(_) | SharedRouter | SharedGate | SharedUp | SharedDown => {
            normal(&spec.name, seed, deviation, len)
        }
    }
}

/// T5's deviations follow the widths (arXiv:1910.10683; `_init_weights` of the reference).
fn t5_deviation(spec: &TensorSpec, stack: Option<&StackShape>) -> f64 {
    use Part::*;
    let root = |width: usize| (width as f64).powf(-0.5);
    match spec.role.part {
        Embedding | Head => 1.0,
        RelativeBias => root(stack.map_or(1, |stack| stack.width)),
        SelfAttention(Projection::Query) | CrossAttention(Projection::Query) => {
            let layer = stack.and_then(|stack| stack.layers.first());
            root(layer.map_or(1, |layer| layer.attention.width * layer.attention.head_dim))
        }
        // All other matrices by the width that they read.
        _ => root(spec.shape.last().copied().unwrap_or(1)),
    }
}

/// None for an encoder-only model, whose stack is of another kind.
fn stack_of<'a>(spec: &TensorSpec, shape: &'a ModelShape) -> Option<&'a StackShape> {
    match (shape, spec.role.stack) {
        (ModelShape::DecoderOnly { stack, .. }, _) => Some(stack),
        (ModelShape::EncoderDecoder(shape), StackKind::Encoder) => Some(&shape.encoder),
        (ModelShape::EncoderDecoder(shape), StackKind::Decoder) => Some(&shape.decoder),
        (ModelShape::EncoderOnly(_), _) => None,
    }
}

/// Draws by Box-Muller from a SplitMix64 stream of this name and seed.
pub fn normal(name: &str, seed: u64, deviation: f64, len: usize) -> Vec<f32> {
    let mut stream = Stream::named(name, seed);
    let mut values = Vec::with_capacity(len + 1);
    while values.len() < len {
        let (radius, angle) = stream.polar();
        let radius = radius * deviation;
        values.push((radius * angle.cos()) as f32);
        values.push((radius * angle.sin()) as f32);
    }
    values.truncate(len);
    values
}
