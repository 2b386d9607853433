//! A decoder-only model: one causal stack under an output projection.

use candle_core::{Device, Tensor};
use luthier_checkpoint::layout::{Layout, Part, Role, Space, StackKind, TensorSpec, Tie};
use luthier_ops::Weight;
use luthier_ops::cross_entropy::{Targets, project, projected_cross_entropy};
use serde_json::{Map, Value};

use super::stack::{Site, Stack, StackShape};
use crate::model::{Cache, Encoded, Model, TokenBatch};
use crate::weights::WeightSet;
use crate::{Error, Result};

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
    let device = weights.device().clone();
    Ok(Box::new(DecoderOnly { config: config.clone(), stack, head, device, weights: weights.into_weights() }))
}

struct DecoderOnly {
    config: Map<String, Value>,
    stack: Stack,
    head: Weight,
    device: Device,
    weights: Vec<Weight>,
}

impl Model for DecoderOnly {
    fn config(&self) -> &Map<String, Value> {
        &self.config
    }

    fn weights(&self) -> &[Weight] {
        &self.weights
    }

    fn device(&self) -> &Device {
        &self.device
    }

    fn vocab_size(&self) -> usize {
        self.stack.shape().vocab_size
    }

    fn context_length(&self) -> Option<usize> {
        self.stack.shape().context_length
    }

    fn decoder_start_token(&self) -> Option<u32> {
        None
    }

    fn is_encoder_decoder(&self) -> bool {
        false
    }

    fn encode(&self, _tokens: &TokenBatch) -> Result<Encoded> {
        Err(Error::Use("a decoder-only model has no encoder".to_string()))
    }

    fn hidden(
        &self,
        tokens: &TokenBatch,
        encoded: Option<&Encoded>,
        cache: Option<&mut Cache>,
    ) -> Result<Tensor> {
        if encoded.is_some() {
            return Err(Error::Use("a decoder-only model reads no encoder".to_string()));
        }
        self.stack.forward(tokens, None, cache)
    }

    fn logits(&self, states: &Tensor) -> Result<Tensor> {
        Ok(project(states, &self.head, self.stack.shape().logit_softcap)?)
    }

    fn loss(&self, states: &Tensor, targets: &Targets) -> Result<Tensor> {
        Ok(projected_cross_entropy(states, &self.head, self.stack.shape().logit_softcap, targets)?)
    }

    fn set_recomputed_layers(&mut self, n_layers: usize) {
        self.stack.set_recomputed_layers(n_layers);
    }

    fn n_layers(&self) -> usize {
        self.stack.shape().layers.len()
    }
}
