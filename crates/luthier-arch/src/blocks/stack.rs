//! A stack of layers between an embedding and a final norm.

use std::sync::Arc;

use luthier_checkpoint::layout::{Part, Role, Space, StackKind, TensorSpec};
use luthier_ops::attention::{Buckets, RelativeBias};
use luthier_ops::profile;
use luthier_ops::recompute::{recompute, recompute_with};
use luthier_ops::{Device, Tensor, Weight};

use super::kept::KeptValues;
use super::layer::{Layer, LayerCache, LayerShape};
use super::names::StackNames;
use super::norm::{Norm, NormShape};
use super::pass::{self, PADDING, Pass};
use super::rope::Rope;
use crate::Result;
use crate::model::{Cache, Encoded, TokenBatch};
use crate::weights::WeightSet;

// b batch, t tokens, m model width, v vocabulary

/// Where a stack stands in its model.
#[derive(Clone, Debug)]
pub struct Site {
    /// In front of the stack's names: `model.`, `model.encoder.`.
    pub prefix: String,
    /// Encoder or decoder.
    pub kind: StackKind,
    /// Width of the encoder that each layer also reads.
    pub encoder_width: Option<usize>,
}

impl Site {
    /// The only stack of a decoder-only model.
    pub fn decoder_only() -> Site {
        Site { prefix: "model.".to_string(), kind: StackKind::Decoder, encoder_width: None }
    }

    /// The encoder of an encoder-decoder.
    pub fn encoder() -> Site {
        Site { prefix: "model.encoder.".to_string(), kind: StackKind::Encoder, encoder_width: None }
    }

    /// The decoder over an encoder of that width.
    pub fn decoder(encoder_width: usize) -> Site {
        let prefix = "model.decoder.".to_string();
        Site { prefix, kind: StackKind::Decoder, encoder_width: Some(encoder_width) }
    }

    /// The full name of a tensor or module of the stack.
    pub fn name(&self, inner: &str) -> String {
        format!("{}{inner}", self.prefix)
    }

    pub(crate) fn spec(
        &self,
        inner: &str,
        layer: Option<usize>,
        part: Part,
        axes: &[(usize, Space)],
    ) -> TensorSpec {
        TensorSpec {
            name: self.name(inner),
            shape: axes.iter().map(|axis| axis.0).collect(),
            spaces: axes.iter().map(|axis| axis.1).collect(),
            role: Role { stack: self.kind, layer, part },
        }
    }

    /// The window of self-attention here: behind only in a decoder; in an encoder tokens up to and including `window`
    /// away on both sides, as the reference's bidirectional mask has it.
    pub fn window(&self, window: usize) -> usize {
        match self.kind {
            StackKind::Decoder => window,
            StackKind::Encoder => window + 1,
        }
    }
}

/// How a stack knows the order of its tokens.
#[derive(Clone, Debug)]
pub enum Positions {
    /// Queries and keys are turned.
    Rotary(Rope),
    /// Scores have a bias by distance, the same in all layers.
    Relative {
        /// Which distances share a number.
        buckets: Buckets,
        /// The name of the numbers inside the stack's prefix.
        name: &'static str,
    },
}

/// Sizes and rules of a stack.
#[derive(Clone, Debug)]
pub struct StackShape {
    /// v.
    pub vocab_size: usize,
    /// m.
    pub width: usize,
    /// On the embedding's rows.
    pub embedding_scale: f64,
    /// Each on its own: layers may differ.
    pub layers: Vec<LayerShape>,
    /// All norms over the residual stream.
    pub norm: NormShape,
    /// What its tensors are called.
    pub names: StackNames,
    /// How it knows the order of its tokens.
    pub positions: Positions,
    /// Soft cap of the logits.
    pub logit_softcap: Option<f64>,
    /// `max_position_embeddings`.
    pub context_length: Option<usize>,
    /// A token whose keys are hidden in this stack's self-attention.
    pub hidden_token: Option<u32>,
    /// Deviation of freshly drawn weights.
    pub initializer_range: f64,
    /// Where freshly drawn weights follow T5's rule: the factor on its deviations.
    pub t5_factor: Option<f64>,
    /// The token whose freshly made embedding is zero.
    pub pad_token: Option<u32>,
}

impl StackShape {
    /// The tensors of the stack: embedding, layers, final norm.
    pub fn specs(&self, site: &Site) -> Vec<TensorSpec> {
        let axes = [(self.vocab_size, Space::Vocab), (self.width, Space::Residual)];
        let mut specs = vec![site.spec(self.names.embedding, None, Part::Embedding, &axes)];
        if let Positions::Relative { buckets, name } = &self.positions {
            let heads = self.layers.first().map_or(0, |layer| layer.attention.query_heads);
            let axes = [(buckets.count, Space::Buckets), (heads, Space::QueryHeads)];
            specs.push(site.spec(name, None, Part::RelativeBias, &axes));
        }
        for (at, layer) in self.layers.iter().enumerate() {
            specs.extend(layer.specs(site, at, &self.norm, &self.names));
        }
        specs.push(self.norm.spec(site, self.names.final_norm, None, Part::FinalNorm, self.width));
        specs
    }

    /// The stack that runs; `embedding` in place of its own where it is tied to another's.
    pub fn build(&self, site: &Site, weights: &WeightSet, embedding: Option<Weight>) -> Result<Stack> {
        let embedding = match embedding {
            Some(embedding) => embedding,
            None => weights.get(&site.name(self.names.embedding))?,
        };
        let layer =
            |at: usize| self.layers[at].build(site, weights, at, &self.norm, &self.names).map(Arc::new);
        let bias = match &self.positions {
            Positions::Rotary(_) => None,
            Positions::Relative { buckets, name } => Some((weights.get(&site.name(name))?, *buckets)),
        };
        Ok(Stack {
            embedding,
            bias,
            layers: (0..self.layers.len()).map(layer).collect::<Result<_>>()?,
            final_norm: self.norm.build(weights, &site.name(self.names.final_norm))?,
            shape: self.clone(),
            causal: site.kind == StackKind::Decoder,
            device: weights.device().clone(),
            n_recomputed: 0,
            kept: self.kept_values(site),
        })
    }
}

/// A stack that runs.
pub struct Stack {
    embedding: Weight,
    bias: Option<(Weight, Buckets)>,
    layers: Vec<Arc<Layer>>,
    final_norm: Norm,
    shape: StackShape,
    causal: bool,
    device: Device,
    n_recomputed: usize,
    kept: Vec<KeptValues>,
}

impl Stack {
    /// Final-normed states [b, t, m] of `tokens`, which continue what the cache holds.
    pub fn forward(
        &self,
        tokens: &TokenBatch,
        encoded: Option<&Encoded>,
        cache: Option<&mut Cache>,
    ) -> Result<Tensor> {
        self.forward_routed(tokens, encoded, cache).map(|(states_btm, _)| states_btm)
    }

    /// The same, and the logits of the routers [b * t, e] of all layers that have experts.
    pub fn forward_routed(
        &self,
        tokens: &TokenBatch,
        encoded: Option<&Encoded>,
        mut cache: Option<&mut Cache>,
    ) -> Result<(Tensor, Vec<Tensor>)> {
        let t = pass::tokens_per_row(tokens, self.shape.vocab_size)?;
        if let Some(cache) = cache.as_deref_mut() {
            let n_layers = self.layers.len();
            cache.fit(n_layers, if encoded.is_some() { n_layers } else { 0 });
        }
        let pass = self.pass(tokens, t, encoded, cache.as_deref_mut())?;
        let ids = Tensor::from_slice(&tokens.ids, (tokens.rows, t), &self.device)?;
        let mut x_btm = luthier_ops::embedding::embedding(&ids, &self.embedding, self.shape.embedding_scale)?;
        let mut routers = Vec::new();
        for (at, layer) in self.layers.iter().enumerate() {
            let _span = profile::numbered_part("layer", at);
            let (y_btm, logits_ne) = match cache.as_deref_mut() {
                Some(cache) => {
                    let (own, cross) = (&mut cache.layers[at], cache.cross.get_mut(at));
                    layer.forward(&x_btm, &pass, Some(LayerCache { own, cross }))?
                }
                None if at < self.n_recomputed => recomputed(layer, &x_btm, &pass)?,
                None => layer.forward(&x_btm, &pass, None)?,
            };
            x_btm = y_btm;
            routers.extend(logits_ne);
        }
        Ok((self.final_norm.forward(&x_btm)?, routers))
    }

    /// The embedding, which a tied head shares.
    pub fn embedding(&self) -> &Weight {
        &self.embedding
    }

    /// Sizes and rules.
    pub fn shape(&self) -> &StackShape {
        &self.shape
    }

    /// What a training pass keeps of each layer.
    pub fn kept_values(&self) -> Vec<KeptValues> {
        self.kept.clone()
    }

    /// How many layers, from the first on, drop their activations and recompute them in the backward pass.
    pub fn set_recomputed_layers(&mut self, n_layers: usize) {
        self.n_recomputed = n_layers.min(self.layers.len());
    }

    fn pass(
        &self,
        tokens: &TokenBatch,
        t: usize,
        encoded: Option<&Encoded>,
        cache: Option<&mut Cache>,
    ) -> Result<Pass> {
        let (rows, offset) = (tokens.rows, cache.as_ref().map_or(0, |cache| cache.len()));
        let documents = match cache {
            Some(cache) => cache.extend_segments(tokens, t, offset)?,
            None => tokens.segments.clone(),
        };
        let turns = match (&self.shape.positions, &documents) {
            (Positions::Relative { .. }, _) => None,
            (Positions::Rotary(rope), Some(all)) => {
                Some(rope.tables(&pass::positions(all, rows, t), rows, &self.device)?)
            }
            (Positions::Rotary(rope), None) => {
                let positions: Vec<u32> = (offset..offset + t).map(|position| position as u32).collect();
                Some(rope.tables(&positions, 1, &self.device)?)
            }
        };
        let cross_segments = match encoded {
            Some(encoded) => pass::cross_segments(tokens, encoded)?,
            None => None,
        };
        Ok(Pass {
            turns,
            bias: self.bias.clone().map(|(weight, buckets)| RelativeBias::new(weight, buckets)),
            causal: self.causal,
            query_offset: offset,
            segments: self.self_segments(tokens, t, documents),
            encoded: encoded.map(|encoded| encoded.states.clone()),
            cross_segments,
        })
    }

    /// Document numbers of queries and keys, with keys of the hidden token marked as padding.
    fn self_segments(
        &self,
        tokens: &TokenBatch,
        t: usize,
        documents: Option<Arc<Vec<u32>>>,
    ) -> Option<pass::SegmentPair> {
        let hides = self.shape.hidden_token.is_some_and(|hidden| tokens.ids.contains(&hidden));
        let keys = match documents {
            Some(keys) => keys,
            None if hides => Arc::new(vec![0; tokens.ids.len()]),
            None => return None,
        };
        let s = keys.len() / tokens.rows;
        let queries = keys.chunks_exact(s).flat_map(|row| row[s - t..].iter().copied()).collect();
        let keys = match self.shape.hidden_token {
            Some(hidden) if hides => {
                let hide = |(id, key): (&u32, &u32)| if *id == hidden { PADDING } else { *key };
                Arc::new(tokens.ids.iter().zip(keys.iter()).map(hide).collect())
            }
            _ => keys,
        };
        Some((Arc::new(queries), keys))
    }
}

/// Runs a layer without keeping its activations.
fn recomputed(
    layer: &Arc<Layer>,
    x_btm: &Tensor,
    pass: &Pass,
) -> luthier_ops::Result<(Tensor, Option<Tensor>)> {
    let experts = layer.experts();
    let (layer, mut pass) = (Arc::clone(layer), pass.clone());
    let together = match pass.encoded.take() {
        None => recompute(x_btm, move |x| joined(layer.forward(x, &pass, None)?))?,
        Some(encoded) => recompute_with(x_btm, &encoded, move |x, encoded| {
            let pass = Pass { encoded: Some(encoded.clone()), ..pass.clone() };
            joined(layer.forward(x, &pass, None)?)
        })?,
    };
    let Some(experts) = experts else { return Ok((together, None)) };
    let (b, t, m) = x_btm.dims3()?;
    let logits_ne = together.narrow(2, m, experts)?.reshape((b * t, experts))?;
    Ok((together.narrow(2, 0, m)?.contiguous()?, Some(logits_ne)))
}

/// What is recomputed is one tensor: states and router logits side by side, [b, t, m + e].
fn joined((y_btm, logits_ne): (Tensor, Option<Tensor>)) -> luthier_ops::Result<Tensor> {
    let Some(logits_ne) = logits_ne else { return Ok(y_btm) };
    let (b, t, _) = y_btm.dims3()?;
    Tensor::cat(&[&y_btm, &logits_ne.reshape((b, t, ()))?], 2)
}
