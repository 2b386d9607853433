//! A whole model that runs: a causal stack under an output projection, and the encoder that it reads where there is one.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use luthier_ops::cross_entropy::{Targets, project, projected_cross_entropy};
use luthier_ops::router::load_balance;
use luthier_ops::{Weight, profile};
use serde_json::{Map, Value};

use super::experts::ExpertsShape;
use super::kept::KeptValues;
use super::pass::PADDING;
use super::stack::Stack;
use crate::model::{Cache, Encoded, Model, TokenBatch};
use crate::observer::{Observer, Tap};
use crate::{Error, Result};

pub(super) struct RunningModel {
    pub(super) config: Map<String, Value>,
    pub(super) encoder: Option<RunningEncoder>,
    pub(super) decoder: Stack,
    pub(super) head: Weight,
    /// On the states before the head.
    pub(super) state_scale: Option<f64>,
    pub(super) device: Device,
    pub(super) weights: Vec<Weight>,
    pub(super) tap: Tap,
}

pub(super) struct RunningEncoder {
    pub(super) stack: Stack,
    pub(super) decoder_start_token: u32,
}

impl RunningModel {
    fn n_encoder_layers(&self) -> usize {
        self.encoder.as_ref().map_or(0, |encoder| encoder.stack.shape().layers.len())
    }

    /// Those of the first layer that has some.
    fn experts(&self) -> Option<&ExpertsShape> {
        let mut layers = self.decoder.shape().layers.iter().filter(|layer| !layer.skips.feed_forward);
        layers.find_map(|layer| layer.feed_forward.experts())
    }
}

impl Model for RunningModel {
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
        self.decoder.shape().vocab_size
    }

    fn context_length(&self) -> Option<usize> {
        self.decoder.shape().context_length
    }

    fn decoder_start_token(&self) -> Option<u32> {
        self.encoder.as_ref().map(|encoder| encoder.decoder_start_token)
    }

    fn is_encoder_decoder(&self) -> bool {
        self.encoder.is_some()
    }

    fn encode(&self, tokens: &TokenBatch) -> Result<Encoded> {
        let missing = || Error::Use("a decoder-only model has no encoder".to_string());
        let encoder = self.encoder.as_ref().ok_or_else(missing)?;
        let _span = profile::part("encoder");
        let states = encoder.stack.forward(tokens, None, None)?;
        Ok(Encoded { states, segments: tokens.segments.clone() })
    }

    fn hidden(
        &self,
        tokens: &TokenBatch,
        encoded: Option<&Encoded>,
        cache: Option<&mut Cache>,
    ) -> Result<Tensor> {
        let what = match (&self.encoder, encoded) {
            (Some(_), None) => {
                "the decoder of an encoder-decoder needs the encoder's states: encode the input first"
            }
            (None, Some(_)) => "a decoder-only model reads no encoder",
            _ => {
                let states = self.decoder.forward(tokens, encoded, cache)?;
                return match self.state_scale {
                    Some(scale) => Ok((states * scale)?),
                    None => Ok(states),
                };
            }
        };
        Err(Error::Use(what.to_string()))
    }

    fn has_experts(&self) -> bool {
        self.experts().is_some()
    }

    fn balance_coefficient(&self) -> Option<f64> {
        self.experts()?.balance
    }

    fn hidden_balanced(
        &self,
        tokens: &TokenBatch,
        encoded: Option<&Encoded>,
    ) -> Result<(Tensor, Option<Tensor>)> {
        let (Some(top_k), None, None) = (self.experts().map(|experts| experts.top_k), encoded, &self.encoder)
        else {
            return Ok((self.hidden(tokens, encoded, None)?, None));
        };
        let (states, routers) = self.decoder.forward_routed(tokens, None, None)?;
        let counted: Option<Vec<bool>> =
            tokens.segments.as_ref().map(|all| all.iter().map(|segment| *segment != PADDING).collect());
        let balance = load_balance(&routers, top_k, counted.as_deref())?;
        let states = match self.state_scale {
            Some(scale) => (states * scale)?,
            None => states,
        };
        Ok((states, Some(balance)))
    }

    fn logits(&self, states: &Tensor) -> Result<Tensor> {
        Ok(project(states, &self.head, self.decoder.shape().logit_softcap)?)
    }

    fn loss(&self, states: &Tensor, targets: &Targets) -> Result<Tensor> {
        Ok(projected_cross_entropy(states, &self.head, self.decoder.shape().logit_softcap, targets)?)
    }

    fn kept_values(&self) -> Vec<KeptValues> {
        let encoder = self.encoder.iter().flat_map(|encoder| encoder.stack.kept_values());
        encoder.chain(self.decoder.kept_values()).collect()
    }

    fn set_recomputed_layers(&mut self, n_layers: usize) {
        let n_encoder = self.n_encoder_layers();
        if let Some(encoder) = &mut self.encoder {
            encoder.stack.set_recomputed_layers(n_layers);
        }
        self.decoder.set_recomputed_layers(n_layers.saturating_sub(n_encoder));
    }

    fn observe(&self, observer: Option<Arc<dyn Observer>>) -> Result<()> {
        self.tap.set(observer);
        Ok(())
    }

    fn n_layers(&self) -> usize {
        self.n_encoder_layers() + self.decoder.shape().layers.len()
    }
}
