//! A small model with made-up weights: one attention layer (and one cross-attention with an encoder), learned positions.

use candle_core::{DType, Device, Tensor};
use luthier_arch::model::{Cache, Encoded, Model, TokenBatch};
use luthier_arch::{Error, Result};
use luthier_generate::random::Random;
use luthier_ops::Weight;
use luthier_ops::attention::{AttentionSpec, KvCache, attention, attention_cached};
use luthier_ops::cross_entropy::{Targets, projected_cross_entropy};
use serde_json::{Map, Value};

// b batch, t tokens, m width, v vocabulary

/// Width of the model.
const WIDTH: usize = 8;
/// Heads, of width `WIDTH / HEADS`.
const HEADS: usize = 2;

/// Decoder-only, or with an encoder that is a table of embeddings.
pub(crate) struct Tiny {
    config: Map<String, Value>,
    embedding_vm: Tensor,
    positions_tm: Tensor,
    query_mm: Tensor,
    key_mm: Tensor,
    value_mm: Tensor,
    head: Weight,
    vocab_size: usize,
    context_length: usize,
    encoder_decoder: bool,
}

impl Tiny {
    /// Weights drawn from `seed`.
    pub(crate) fn new(seed: u64, vocab_size: usize, context_length: usize, encoder_decoder: bool) -> Tiny {
        let mut random = Random::new(seed);
        let mut draw = |rows: usize, cols: usize, scale: f64| {
            let values: Vec<f32> =
                (0..rows * cols).map(|_| ((random.next_f64() - 0.5) * scale) as f32).collect();
            Tensor::from_vec(values, (rows, cols), &Device::Cpu).unwrap()
        };
        let mut config = Map::new();
        config.insert("model_type".into(), "tiny".into());
        Tiny {
            config,
            embedding_vm: draw(vocab_size, WIDTH, 2.0),
            positions_tm: draw(context_length, WIDTH, 2.0),
            query_mm: draw(WIDTH, WIDTH, 2.0),
            key_mm: draw(WIDTH, WIDTH, 2.0),
            value_mm: draw(WIDTH, WIDTH, 2.0),
            head: Weight::dense("head", &draw(vocab_size, WIDTH, 4.0), false).unwrap(),
            vocab_size,
            context_length,
            encoder_decoder,
        }
    }

    /// The same model with NaN in the head.
    pub(crate) fn with_nan_head(mut self) -> Tiny {
        let nan = Tensor::full(f32::NAN, (self.vocab_size, WIDTH), &Device::Cpu).unwrap();
        self.head = Weight::dense("head", &nan, false).unwrap();
        self
    }

    fn embed(&self, tokens: &TokenBatch, offset: usize) -> Result<Tensor> {
        let t = tokens.ids.len() / tokens.rows;
        let ids = Tensor::from_slice(&tokens.ids, tokens.ids.len(), &Device::Cpu)?;
        let words = self.embedding_vm.index_select(&ids, 0)?.reshape((tokens.rows, t, WIDTH))?;
        Ok(words.broadcast_add(&self.positions_tm.narrow(0, offset, t)?)?)
    }

    fn heads(&self, x_btm: &Tensor, weight_mm: &Tensor) -> Result<Tensor> {
        let (b, t, m) = x_btm.dims3()?;
        Ok(x_btm.reshape((b * t, m))?.matmul(weight_mm)?.reshape((b, t, HEADS, m / HEADS))?)
    }
}

impl Model for Tiny {
    fn config(&self) -> &Map<String, Value> {
        &self.config
    }

    fn weights(&self) -> &[Weight] {
        std::slice::from_ref(&self.head)
    }

    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn context_length(&self) -> Option<usize> {
        Some(self.context_length)
    }

    fn decoder_start_token(&self) -> Option<u32> {
        self.encoder_decoder.then_some(2)
    }

    fn is_encoder_decoder(&self) -> bool {
        self.encoder_decoder
    }

    fn encode(&self, tokens: &TokenBatch) -> Result<Encoded> {
        if !self.encoder_decoder {
            return Err(Error::Use("no encoder".into()));
        }
        Ok(Encoded { states: self.embed(tokens, 0)?, segments: None })
    }

    fn hidden(
        &self,
        tokens: &TokenBatch,
        encoded: Option<&Encoded>,
        cache: Option<&mut Cache>,
    ) -> Result<Tensor> {
        let mut fresh = Cache::default();
        let cache = cache.unwrap_or(&mut fresh);
        let kind = cache.kind();
        cache.layers.resize_with(1, || KvCache::of(kind));
        let past = cache.layers[0].len();
        let mut x = self.embed(tokens, past)?;
        let (b, t, m) = x.dims3()?;
        let spec = |causal, query_offset| AttentionSpec {
            scale: 0.5,
            softcap: None,
            causal,
            window: None,
            query_offset,
            segments: None,
            bias: None,
        };
        cache.layers[0].append(&self.heads(&x, &self.key_mm)?, &self.heads(&x, &self.value_mm)?)?;
        let q = self.heads(&x, &self.query_mm)?;
        let seen = attention_cached(&q, &cache.layers[0], &spec(true, past))?;
        x = (x + seen.reshape((b, t, m))?)?;
        if let Some(encoded) = encoded {
            let states = &encoded.states;
            let q = self.heads(&x, &self.query_mm)?;
            let (k, v) = (self.heads(states, &self.key_mm)?, self.heads(states, &self.value_mm)?);
            x = (x + attention(&q, &k, &v, &spec(false, 0))?.reshape((b, t, m))?)?;
        }
        Ok(x.tanh()?)
    }

    fn logits(&self, states: &Tensor) -> Result<Tensor> {
        let head_mv = self.head.to_tensor(&Device::Cpu)?.t()?.contiguous()?;
        let mut shape = states.dims().to_vec();
        let flat = states.reshape((states.elem_count() / WIDTH, WIDTH))?.to_dtype(DType::F32)?;
        *shape.last_mut().unwrap() = self.vocab_size;
        Ok(flat.matmul(&head_mv)?.reshape(shape)?)
    }

    fn loss(&self, states: &Tensor, targets: &Targets) -> Result<Tensor> {
        Ok(projected_cross_entropy(states, &self.head, None, targets)?)
    }

    fn set_recomputed_layers(&mut self, _n_layers: usize) {}

    fn n_layers(&self) -> usize {
        1
    }
}
