//! Reads the stack that Llama and its relatives share: RMSNorm, rotary positions, grouped keys, a gated feed-forward block.

use super::attention::{AttentionShape, Heads};
use super::feed_forward::{FeedForwardShape, activation};
use super::layer::{LayerShape, Skips};
use super::names::{self, StackNames};
use super::norm::NormShape;
use super::per_layer;
use super::rope::Rope;
use super::stack::{Positions, StackShape};
use crate::Result;
use crate::config::{Keys, MAX_LAYERS, MAX_POSITIONS, MAX_VOCABULARY, MAX_WIDTH};

/// What an architecture says of its stack beside the sizes, which all configs name alike.
pub struct StackRules {
    /// What its tensors are called.
    pub names: StackNames,
    /// Added to norm weights.
    pub norm_offset: f64,
    /// Key heads where the config does not say; none: as many as query heads.
    pub default_kv_heads: Option<usize>,
    /// Width of a head where the config does not say; none: the model width shared out.
    pub default_head_dim: Option<usize>,
    /// `max_position_embeddings` where the config does not say.
    pub default_context_length: Option<usize>,
    /// Whether query, key and value projections have a bias.
    pub qkv_bias: bool,
    /// Whether the output projection has a bias.
    pub output_bias: bool,
    /// Whether the feed-forward projections have a bias.
    pub feed_forward_bias: bool,
    /// Whether queries and keys are normed head by head.
    pub head_norm: bool,
    /// Scores are scaled by this to the power -0.5; none: the width of a head.
    pub score_scalar: Option<f64>,
    /// Soft cap of the scores.
    pub score_softcap: Option<f64>,
    /// Soft cap of the logits.
    pub logit_softcap: Option<f64>,
    /// The config key of the gate's activation, and its value where the config does not say.
    pub activation: (&'static str, &'static str),
    /// Whether embeddings are scaled by the root of the width.
    pub scales_embedding: bool,
    /// `rms_norm_eps` where the config does not say.
    pub default_eps: f64,
    /// `rope_theta` where the config does not say.
    pub default_theta: f64,
    /// The token whose freshly made embedding is zero.
    pub pad_token: Option<u32>,
}

impl StackRules {
    /// Llama's without biases.
    pub fn llama(keys: &Keys) -> Result<StackRules> {
        Ok(StackRules {
            names: names::LLAMA,
            norm_offset: 0.0,
            default_kv_heads: None,
            default_head_dim: None,
            default_context_length: None,
            qkv_bias: false,
            output_bias: false,
            feed_forward_bias: false,
            head_norm: false,
            score_scalar: None,
            score_softcap: None,
            logit_softcap: None,
            activation: ("hidden_act", "silu"),
            scales_embedding: false,
            default_eps: 1e-6,
            default_theta: 10_000.0,
            pad_token: keys.optional_token("pad_token_id")?,
        })
    }

    /// Gemma 2's, which T5Gemma's stacks share but for the names of norms.
    pub fn gemma2(keys: &Keys, names: StackNames) -> Result<StackRules> {
        let attention_bias = keys.flag_or("attention_bias", false)?;
        // Absent means the default, null means none.
        let softcap = |key: &'static str, default: f64| match keys.map().contains_key(key) {
            true => keys.optional_positive(key),
            false => Ok(Some(default)),
        };
        Ok(StackRules {
            names,
            norm_offset: 1.0,
            default_kv_heads: Some(4),
            default_head_dim: Some(256),
            default_context_length: Some(8192),
            qkv_bias: attention_bias,
            output_bias: attention_bias,
            feed_forward_bias: false,
            head_norm: false,
            score_scalar: Some(keys.optional_positive("query_pre_attn_scalar")?.unwrap_or(256.0)),
            score_softcap: softcap("attn_logit_softcapping", 50.0)?,
            logit_softcap: softcap("final_logit_softcapping", 30.0)?,
            activation: ("hidden_activation", "gelu_pytorch_tanh"),
            scales_embedding: true,
            default_eps: 1e-6,
            default_theta: 10_000.0,
            pad_token: keys.optional_token_or("pad_token_id", 0)?,
        })
    }

    /// The stack, its sizes read from `keys`; `windows` gives the sliding window of each of so many layers.
    pub fn read(
        &self,
        keys: &Keys,
        windows: impl FnOnce(usize) -> Result<Vec<Option<usize>>>,
    ) -> Result<StackShape> {
        let width = keys.size("hidden_size", MAX_WIDTH)?;
        let heads = Heads::read(keys, width, self.default_kv_heads, self.default_head_dim)?;
        let norm =
            NormShape { eps: keys.number_or("rms_norm_eps", self.default_eps)?, offset: self.norm_offset };
        let context_length =
            keys.optional_size("max_position_embeddings", MAX_POSITIONS)?.or(self.default_context_length);
        let attention = AttentionShape {
            width,
            source_width: width,
            query_heads: heads.query,
            kv_heads: heads.kv,
            head_dim: heads.width,
            qkv_bias: self.qkv_bias,
            output_bias: self.output_bias,
            head_norm: self.head_norm.then_some(norm),
            scale: self.score_scalar.unwrap_or(heads.width as f64).powf(-0.5),
            softcap: self.score_softcap,
            window: None,
        };
        let (activation_key, default_activation) = self.activation;
        let feed_forward = FeedForwardShape {
            width,
            inner: keys.size("intermediate_size", MAX_WIDTH)?,
            bias: self.feed_forward_bias,
            gated: true,
            activation: activation(keys, activation_key, default_activation)?,
        };
        let layers =
            windows(keys.size("num_hidden_layers", MAX_LAYERS)?)?.into_iter().map(|window| LayerShape {
                attention: AttentionShape { window, ..attention.clone() },
                feed_forward: feed_forward.clone().into(),
                skips: Skips::default(),
            });
        let mut layers: Vec<LayerShape> = layers.collect();
        per_layer::apply(keys, &mut layers)?;
        Ok(StackShape {
            vocab_size: keys.size("vocab_size", MAX_VOCABULARY)?,
            width,
            // Gemma's reference holds the factor in f32.
            embedding_scale: if self.scales_embedding {
                f64::from((width as f64).sqrt() as f32)
            } else {
                1.0
            },
            layers,
            norm,
            names: self.names,
            positions: Positions::Rotary(Rope::read(keys, heads.width, context_length, self.default_theta)?),
            logit_softcap: self.logit_softcap,
            context_length,
            hidden_token: None,
            initializer_range: keys.number_or("initializer_range", 0.02)?,
            t5_factor: None,
            pad_token: self.pad_token,
        })
    }
}
