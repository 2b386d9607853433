//! A model that runs: stacks of layers, the token batches they read, the caches they keep.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use luthier_ops::Weight;
use luthier_ops::attention::{CacheType, KvCache, SavedCache};
use luthier_ops::cross_entropy::Targets;
use serde_json::{Map, Value};

use crate::blocks::kept::KeptValues;
use crate::observer::Observer;
use crate::{Error, Result};

// b batch, t tokens, m width, v vocabulary

/// Token ids of several rows of equal length.
#[derive(Clone, Debug)]
pub struct TokenBatch {
    /// `[b * t]`, row-major.
    pub ids: Vec<u32>,
    /// b.
    pub rows: usize,
    /// Document number of each token (`[b * t]`); tokens attend within their document, positions restart with it.
    /// `u32::MAX` is padding. None: each row is one document.
    pub segments: Option<Arc<Vec<u32>>>,
}

/// What the encoder made of its input.
#[derive(Clone, Debug)]
pub struct Encoded {
    /// [b, s, m].
    pub states: Tensor,
    /// Document numbers, as in [`TokenBatch`]; a decoder row's document reads the encoder's document of that number.
    pub segments: Option<Arc<Vec<u32>>>,
}

/// Keys and values of one sequence batch, per layer.
#[derive(Clone, Debug, Default)]
pub struct Cache {
    /// Self-attention, one per layer.
    pub layers: Vec<KvCache>,
    /// Cross-attention, one per layer, filled by the first decoder step.
    pub cross: Vec<KvCache>,
    /// Document numbers `[b * s]` of the cached tokens; none while every row is one document.
    pub segments: Option<Arc<Vec<u32>>>,
    /// What new layers round to.
    kind: CacheType,
    /// Tokens that new layers of self-attention make room for at once.
    expected: usize,
}

impl Cache {
    /// An empty cache.
    pub fn new() -> Cache {
        Cache::default()
    }

    /// An empty cache that rounds to `kind`.
    pub fn of(kind: CacheType) -> Cache {
        Cache { kind, ..Cache::default() }
    }

    /// The same cache, which makes room for that many tokens of each row at once.
    pub fn expecting(self, tokens: usize) -> Cache {
        Cache { expected: tokens, ..self }
    }

    /// Makes room for that many layers of self-attention and of cross-attention.
    pub(crate) fn fit(&mut self, n_layers: usize, n_cross: usize) {
        let new = || KvCache::of(self.kind);
        self.layers.resize_with(n_layers, || new().expecting(self.expected));
        self.cross.resize_with(n_cross, new);
    }

    /// What the layers hold, in their order; none of a layer without attention.
    pub fn save(&self) -> Vec<Option<SavedCache>> {
        self.layers.iter().map(KvCache::save).collect()
    }

    /// Holds what was saved of one sequence of a decoder-only model; for an empty cache.
    ///
    /// # Errors
    /// Layers that were not saved from such a cache.
    pub fn fill(&mut self, layers: &[Option<SavedCache>]) -> Result<()> {
        self.fit(layers.len(), 0);
        for (layer, saved) in self.layers.iter_mut().zip(layers) {
            if let Some(saved) = saved {
                layer.fill(saved)?;
            }
        }
        Ok(())
    }

    /// What new layers round to.
    pub fn kind(&self) -> CacheType {
        self.kind
    }

    /// Cached tokens of each row, s.
    pub fn len(&self) -> usize {
        // A layer without attention holds nothing.
        self.layers.iter().map(KvCache::len).max().unwrap_or(0)
    }

    /// Whether nothing is cached yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets all but the first `len` tokens of each row; what the encoder said stays.
    pub fn truncate(&mut self, len: usize) -> Result<()> {
        let s = self.len();
        for layer in &mut self.layers {
            layer.truncate(len)?;
        }
        if let Some(segments) = &self.segments
            && len < s
        {
            let kept = segments.chunks_exact(s).flat_map(|row| row[..len].iter().copied()).collect();
            self.segments = Some(Arc::new(kept));
        }
        Ok(())
    }

    /// Notes the documents of `t` tokens a row that are about to follow the `cached` ones, and gives those of all.
    /// Tokens without document numbers go on with the last document of their row.
    pub(crate) fn extend_segments(
        &mut self,
        tokens: &TokenBatch,
        t: usize,
        cached: usize,
    ) -> Result<Option<Arc<Vec<u32>>>> {
        let rows = tokens.rows;
        if cached == 0 {
            self.segments = None;
        }
        let held = match (&self.segments, &tokens.segments) {
            (None, None) => return Ok(None),
            (Some(held), _) => Arc::clone(held),
            (None, Some(_)) => Arc::new(vec![0; rows * cached]),
        };
        if held.len() != rows * cached {
            return Err(Error::Use(format!(
                "{rows} rows continue a cache of {} rows",
                held.len() / cached.max(1)
            )));
        }
        let mut all = Vec::with_capacity(rows * (cached + t));
        for row in 0..rows {
            let before = &held[row * cached..(row + 1) * cached];
            all.extend_from_slice(before);
            match &tokens.segments {
                Some(segments) => all.extend_from_slice(&segments[row * t..(row + 1) * t]),
                None => all.extend(std::iter::repeat_n(before.last().copied().unwrap_or(0), t)),
            }
        }
        self.segments = Some(Arc::new(all));
        Ok(self.segments.clone())
    }
}

/// A decoder-only, encoder-decoder or encoder-only model.
pub trait Model: Send + Sync {
    /// Its config.json.
    fn config(&self) -> &Map<String, Value>;
    /// Its weights in layout order, tied ones once.
    fn weights(&self) -> &[Weight];
    /// Where it computes.
    fn device(&self) -> &Device;
    /// v.
    fn vocab_size(&self) -> usize;
    /// Tokens that its positions reach, where the config says so.
    fn context_length(&self) -> Option<usize>;
    /// The first decoder token of an encoder-decoder; none for a decoder-only model.
    fn decoder_start_token(&self) -> Option<u32>;
    /// Whether it has an encoder and a decoder that reads it.
    fn is_encoder_decoder(&self) -> bool;
    /// Whether it is an encoder alone: it sees a text whole, and its logits are those of masked tokens, not of next ones.
    fn is_encoder_only(&self) -> bool {
        false
    }
    /// Runs the encoder. An error for a decoder-only model.
    fn encode(&self, tokens: &TokenBatch) -> Result<Encoded>;
    /// Runs the (decoder) stack, or an encoder-only model: final-normed states [b, t, m] of `tokens`, which continue what the cache holds.
    fn hidden(
        &self,
        tokens: &TokenBatch,
        encoded: Option<&Encoded>,
        cache: Option<&mut Cache>,
    ) -> Result<Tensor>;
    /// Whether some of its layers have experts.
    fn has_experts(&self) -> bool {
        false
    }
    /// How much the loss that keeps experts evenly busy counts in training by the config; none: not at all.
    fn balance_coefficient(&self) -> Option<f64> {
        None
    }
    /// As `hidden` without a cache, and that loss where the model has experts. Padding does not count.
    fn hidden_balanced(
        &self,
        tokens: &TokenBatch,
        encoded: Option<&Encoded>,
    ) -> Result<(Tensor, Option<Tensor>)> {
        Ok((self.hidden(tokens, encoded, None)?, None))
    }
    /// states: [.., m] -> logits [.., v].
    fn logits(&self, states: &Tensor) -> Result<Tensor>;
    /// states: [n, m] -> weighted mean cross-entropy, without the logits standing whole in memory.
    fn loss(&self, states: &Tensor, targets: &Targets) -> Result<Tensor>;
    /// Lets an observer see what flows through from now on; none: nobody. An error where the model shows nothing.
    fn observe(&self, observer: Option<Arc<dyn Observer>>) -> Result<()> {
        match observer {
            Some(_) => Err(Error::Use("this architecture shows no activations".to_string())),
            None => Ok(()),
        }
    }
    /// What a training pass keeps of each layer that `set_recomputed_layers` counts; empty where that is not known.
    fn kept_values(&self) -> Vec<KeptValues> {
        Vec::new()
    }
    /// How many layers, from the first on, drop their activations and recompute them in the backward pass.
    fn set_recomputed_layers(&mut self, n_layers: usize);
    /// Number of layers that `set_recomputed_layers` counts.
    fn n_layers(&self) -> usize;
}

/// An error for a model that does not predict next tokens, which `purpose` needs.
pub fn check_predicts_next(model: &dyn Model, purpose: &str) -> Result<()> {
    if !model.is_encoder_only() {
        return Ok(());
    }
    let model_type = model.config().get("model_type").and_then(Value::as_str).unwrap_or("this model");
    Err(Error::Use(format!(
        "{purpose} needs a model that predicts next tokens, but {model_type} is an encoder, which sees a text whole: \
         `logits` gives what it makes of masked tokens, `embed` its states"
    )))
}
