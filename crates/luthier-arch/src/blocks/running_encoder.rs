//! An encoder-only model that runs: embeddings, post-norm layers `norm(x + block(x))`, the head for masked tokens.

use std::sync::Arc;

use luthier_ops::activation::{Activation, plain};
use luthier_ops::cross_entropy::{Targets, biased_cross_entropy, biased_project};
use luthier_ops::embedding::embedding;
use luthier_ops::{Device, Tensor, Weight, recompute, residual};
use serde_json::{Map, Value};

use super::attention::Attention;
use super::encoder_only::EncoderOnlyShape;
use super::layer_norm::LayerNorm;
use super::linear::Linear;
use super::mlp::Mlp;
use super::names::in_layer;
use super::pass::{self, Pass};
use super::stack::Site;
use crate::model::{Cache, Encoded, Model, TokenBatch};
use crate::observer::{Observer, Tap};
use crate::weights::WeightSet;
use crate::{Error, Result};

// b batch, t tokens, m model width, v vocabulary

pub(super) struct RunningEncoderOnly {
    config: Map<String, Value>,
    shape: EncoderOnlyShape,
    /// Of tokens, places, token types.
    embeddings: [Weight; 3],
    embedding_norm: LayerNorm,
    layers: Vec<Arc<PostNormLayer>>,
    head: Option<MaskedTokenHead>,
    device: Device,
    tap: Tap,
    weights: Vec<Weight>,
    n_recomputed: usize,
}

struct PostNormLayer {
    attention: Attention,
    attention_norm: LayerNorm,
    feed_forward: Mlp,
    feed_forward_norm: LayerNorm,
}

impl PostNormLayer {
    /// x: [b, t, m] -> [b, t, m].
    fn forward(&self, x_btm: &Tensor, pass: &Pass) -> luthier_ops::Result<Tensor> {
        let attended = residual::add(x_btm, &self.attention.own(x_btm, pass, None)?)?;
        let x_btm = self.attention_norm.forward(&attended)?;
        self.feed_forward_norm.forward(&residual::add(&x_btm, &self.feed_forward.forward(&x_btm)?.0)?)
    }
}

/// `norm(act(dense(x))) E^T + b`.
struct MaskedTokenHead {
    dense: Linear,
    activation: Activation,
    norm: LayerNorm,
    projection: Weight,
    bias: Weight,
}

impl MaskedTokenHead {
    fn build(shape: &EncoderOnlyShape, weights: &WeightSet, embedding: &Weight) -> Result<Option<Self>> {
        let Some(bias) = shape.form.head_bias else { return Ok(None) };
        let [dense, norm, projection] = shape.names.head;
        let projection = match shape.tied_head {
            true => embedding.clone(),
            false => weights.get(&format!("{projection}.weight"))?,
        };
        Ok(Some(MaskedTokenHead {
            dense: Linear::build(weights, dense, true)?,
            activation: shape
                .layers
                .first()
                .map_or(Activation::Gelu, |layer| layer.feed_forward.activation()),
            norm: shape.norm().build(weights, norm)?,
            projection,
            bias: weights.get(shape.names.head_bias[bias])?,
        }))
    }

    /// x: [.., m] -> [.., m].
    fn transform(&self, x: &Tensor) -> luthier_ops::Result<Tensor> {
        self.norm.forward(&plain(&self.dense.forward(x)?, self.activation)?)
    }
}

impl RunningEncoderOnly {
    pub(super) fn build(
        shape: &EncoderOnlyShape,
        config: &Map<String, Value>,
        weights: WeightSet,
    ) -> Result<RunningEncoderOnly> {
        let (site, norm, names) = (shape.site(), shape.norm(), &shape.names);
        let [tokens, places, types] = names.embeddings.map(|name| weights.get(&site.name(name)));
        let embeddings = [tokens?, places?, types?];
        let layers = (0..shape.layers.len()).map(|at| layer(shape, &site, &weights, at).map(Arc::new));
        Ok(RunningEncoderOnly {
            config: config.clone(),
            embedding_norm: norm.build(&weights, &site.name(names.embedding_norm))?,
            layers: layers.collect::<Result<_>>()?,
            head: MaskedTokenHead::build(shape, &weights, &embeddings[0])?,
            embeddings,
            shape: shape.clone(),
            device: weights.device().clone(),
            tap: weights.tap().clone(),
            weights: weights.into_weights(),
            n_recomputed: 0,
        })
    }

    /// States [b, t, m] of `tokens`, all of them of the first token type.
    fn states(&self, tokens: &TokenBatch) -> Result<Tensor> {
        let t = pass::tokens_per_row(tokens, self.shape.vocab_size)?;
        let rows = tokens.rows;
        let places = match &tokens.segments {
            Some(documents) => pass::positions(documents, rows, t),
            None => (0..rows).flat_map(|_| 0..t as u32).collect(),
        };
        if let Some(place) = places.iter().find(|place| **place as usize >= self.shape.positions) {
            let what = format!(
                "a text reaches position {place}, but the model has embeddings for {} positions; give shorter texts",
                self.shape.positions
            );
            return Err(Error::Use(what));
        }
        let looked_up = |ids: &[u32], weight: &Weight| {
            embedding(&Tensor::from_slice(ids, (rows, t), &self.device)?, weight, 1.0)
        };
        let [token, place, token_type] = &self.embeddings;
        let types = vec![0u32; tokens.ids.len()];
        let x_btm = residual::add(&looked_up(&tokens.ids, token)?, &looked_up(&types, token_type)?)?;
        let x_btm = residual::add(&x_btm, &looked_up(&places, place)?)?;
        let mut x_btm = self.embedding_norm.forward(&x_btm)?;
        let pass = Pass {
            turns: None,
            bias: None,
            causal: false,
            query_offset: 0,
            segments: tokens.segments.as_ref().map(|all| (Arc::clone(all), Arc::clone(all))),
            encoded: None,
            cross_segments: None,
        };
        for (at, layer) in self.layers.iter().enumerate() {
            x_btm = match at < self.n_recomputed {
                true => {
                    let (layer, pass) = (Arc::clone(layer), pass.clone());
                    recompute(&x_btm, move |x| layer.forward(x, &pass))?
                }
                false => layer.forward(&x_btm, &pass)?,
            };
        }
        Ok(x_btm)
    }

    fn head(&self) -> Result<&MaskedTokenHead> {
        let dense = self.shape.names.head[0];
        self.head.as_ref().ok_or_else(|| {
            Error::Use(format!(
                "this {} checkpoint has no head for masked tokens ({dense}.weight and the tensors beside it), so it has no \
                 logits over the vocabulary; `luthier embed` gives its states",
                self.config.get("model_type").and_then(Value::as_str).unwrap_or("encoder-only")
            ))
        })
    }
}

fn layer(shape: &EncoderOnlyShape, site: &Site, weights: &WeightSet, at: usize) -> Result<PostNormLayer> {
    let (names, sizes) = (&shape.names, &shape.layers[at]);
    let norm = |name: &str| shape.norm().build(weights, &site.name(&in_layer(name, at)));
    Ok(PostNormLayer {
        attention: sizes.attention.build(site, weights, at, &names.attention)?,
        attention_norm: norm(names.attention.norms.0)?,
        feed_forward: sizes.feed_forward.build(site, weights, at, &names.feed_forward)?,
        feed_forward_norm: norm(names.feed_forward.norms.0)?,
    })
}

impl Model for RunningEncoderOnly {
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
        self.shape.vocab_size
    }

    fn context_length(&self) -> Option<usize> {
        Some(self.shape.positions)
    }

    fn decoder_start_token(&self) -> Option<u32> {
        None
    }

    fn is_encoder_decoder(&self) -> bool {
        false
    }

    fn is_encoder_only(&self) -> bool {
        true
    }

    fn encode(&self, tokens: &TokenBatch) -> Result<Encoded> {
        Ok(Encoded { states: self.states(tokens)?, segments: tokens.segments.clone() })
    }

    fn hidden(
        &self,
        tokens: &TokenBatch,
        encoded: Option<&Encoded>,
        cache: Option<&mut Cache>,
    ) -> Result<Tensor> {
        if encoded.is_some() || cache.is_some() {
            let what = "an encoder-only model sees all of a text at once: it reads no other encoder and keeps no cache";
            return Err(Error::Use(what.to_string()));
        }
        self.states(tokens)
    }

    fn logits(&self, states: &Tensor) -> Result<Tensor> {
        let head = self.head()?;
        Ok(biased_project(&head.transform(states)?, &head.projection, Some(&head.bias), None)?)
    }

    fn loss(&self, states: &Tensor, targets: &Targets) -> Result<Tensor> {
        let head = self.head()?;
        let states = head.transform(states)?;
        Ok(biased_cross_entropy(&states, &head.projection, Some(&head.bias), None, targets)?)
    }

    fn set_recomputed_layers(&mut self, n_layers: usize) {
        self.n_recomputed = n_layers.min(self.layers.len());
    }

    fn observe(&self, observer: Option<Arc<dyn Observer>>) -> Result<()> {
        self.tap.set(observer);
        Ok(())
    }

    fn n_layers(&self) -> usize {
        self.layers.len()
    }
}
