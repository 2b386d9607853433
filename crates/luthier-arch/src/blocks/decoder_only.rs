//! A decoder-only model: one causal stack under an output projection.

use luthier_checkpoint::layout::{Layout, Part, Role, Space, StackKind, TensorSpec, Tie};
use serde_json::{Map, Value};

use super::running_model::RunningModel;
use super::stack::{Site, StackShape};
use crate::Result;
use crate::model::Model;
use crate::weights::WeightSet;

const HEAD: &str = "lm_head.weight";
const EMBEDDING: &str = "model.embed_tokens.weight";

/// All weights: the stack's, and a head unless it is the embedding.
pub fn layout(shape: &StackShape, tied: bool) -> Layout {
    let mut tensors = shape.specs(&Site::decoder_only());
    let mut ties = Vec::new();
    if tied {
        ties.push(Tie { name: HEAD.to_string(), target: EMBEDDING.to_string(), written: false });
    } else {
        tensors.push(head_spec(HEAD, shape));
    }
    Layout { tensors, ties }
}

/// The output projection [v, m], where it is a weight of its own.
pub fn head_spec(name: &str, shape: &StackShape) -> TensorSpec {
    TensorSpec {
        name: name.to_string(),
        shape: vec![shape.vocab_size, shape.width],
        spaces: vec![Space::Vocab, Space::Residual],
        role: Role { stack: StackKind::Decoder, layer: None, part: Part::Head },
    }
}

/// The model that runs.
pub fn build(
    config: &Map<String, Value>,
    shape: &StackShape,
    tied: bool,
    weights: WeightSet,
) -> Result<Box<dyn Model>> {
    let stack = shape.build(&Site::decoder_only(), &weights, None)?;
    let head = if tied { stack.embedding().clone() } else { weights.get(HEAD)? };
    Ok(Box::new(RunningModel {
        config: config.clone(),
        encoder: None,
        decoder: stack,
        head,
        state_scale: None,
        device: weights.device().clone(),
        tap: weights.tap().clone(),
        weights: weights.into_weights(),
    }))
}
