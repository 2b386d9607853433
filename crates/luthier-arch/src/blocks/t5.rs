//! Reads the two stacks of T5 and its relatives: pre-norm RMSNorm without biases, a bias by distance in place of positions,
//! unscaled scores, one embedding for both stacks, plain or gated feed-forward blocks.

use luthier_ops::activation::Activation;
use luthier_ops::attention::Buckets;

use super::attention::AttentionShape;
use super::encoder_decoder::EncoderDecoderShape;
use super::feed_forward::{FeedForwardShape, activation_called};
use super::layer::{LayerShape, Skips};
use super::names::{AttentionNames, FeedForwardNames, StackNames};
use super::norm::NormShape;
use super::stack::{Positions, StackShape};
use crate::config::{Keys, MAX_HEADS, MAX_LAYERS, MAX_POSITIONS, MAX_VOCABULARY, MAX_WIDTH};
use crate::{Error, Result};

const PROJECTIONS: [&str; 4] = ["q", "k", "v", "o"];

const ENCODER: StackNames = StackNames {
    embedding: "embed_tokens.weight",
    own: AttentionNames {
        module: "block.{i}.layer.0.SelfAttention",
        projections: PROJECTIONS,
        norms: ("block.{i}.layer.0.layer_norm", None),
    },
    cross: AttentionNames {
        module: "block.{i}.layer.1.EncDecAttention",
        projections: PROJECTIONS,
        norms: ("block.{i}.layer.1.layer_norm", None),
    },
    feed_forward: FeedForwardNames {
        module: "block.{i}.layer.1.DenseReluDense",
        projections: ["wi_0", "wi_1", "wo"],
        norms: ("block.{i}.layer.1.layer_norm", None),
    },
    final_norm: "final_layer_norm",
};

/// The decoder's feed-forward block stands behind its cross-attention.
const DECODER: StackNames = StackNames {
    feed_forward: FeedForwardNames {
        module: "block.{i}.layer.2.DenseReluDense",
        norms: ("block.{i}.layer.2.layer_norm", None),
        ..ENCODER.feed_forward
    },
    ..ENCODER
};

/// What an architecture says of itself beside the sizes.
pub struct T5Rules {
    /// `feed_forward_proj` where the config does not say.
    pub feed_forward: &'static str,
    /// Whether states are scaled by d_model^-0.5 before a head that is the embedding.
    pub scales_states: bool,
}

/// The whole model.
pub fn read(keys: &Keys, rules: &T5Rules) -> Result<EncoderDecoderShape> {
    let (activation, gated) = feed_forward(keys, rules.feed_forward)?;
    let n_layers = keys.size("num_layers", MAX_LAYERS)?;
    let n_decoder_layers = keys.size_or("num_decoder_layers", MAX_LAYERS, n_layers)?;
    let stack = |names: StackNames, n_layers: usize, bidirectional: bool| -> Result<StackShape> {
        let feed_forward = match gated {
            true => names.feed_forward,
            false => FeedForwardNames { projections: ["", "wi", "wo"], ..names.feed_forward },
        };
        read_stack(keys, StackNames { feed_forward, ..names }, (activation, gated), n_layers, bidirectional)
    };
    let (encoder, decoder) = (stack(ENCODER, n_layers, true)?, stack(DECODER, n_decoder_layers, false)?);
    // In old files an untied head also means that states are not scaled before it.
    let tied_head = keys.flag_or("tie_word_embeddings", true)?;
    let scaled = rules.scales_states && keys.flag_or("scale_decoder_outputs", tied_head)?;
    let pad = keys.optional_token_or("pad_token_id", 0)?;
    let start = keys.optional_token("decoder_start_token_id")?.or(pad);
    let shape = EncoderDecoderShape {
        prefixes: ["encoder.", "decoder."],
        shared_embedding: Some("shared.weight"),
        head: "lm_head.weight",
        tied_head,
        state_scale: scaled.then(|| (decoder.width as f64).powf(-0.5)),
        tied_embeddings: true,
        writes_tied_embedding: false,
        decoder_start_token: start.ok_or_else(|| Error::config("decoder_start_token_id", "missing"))?,
        initializer_range: decoder.initializer_range,
        encoder,
        decoder,
    };
    shape.check()?;
    Ok(shape)
}

fn read_stack(
    keys: &Keys,
    names: StackNames,
    (activation, gated): (Activation, bool),
    n_layers: usize,
    bidirectional: bool,
) -> Result<StackShape> {
    let width = keys.size("d_model", MAX_WIDTH)?;
    let (heads, head_dim) = (keys.size("num_heads", MAX_HEADS)?, keys.size("d_kv", MAX_WIDTH)?);
    if heads * head_dim > MAX_WIDTH {
        let what = format!("{heads} heads of width {head_dim} are more than {MAX_WIDTH} together");
        return Err(Error::config(keys.name("num_heads"), what));
    }
    let buckets = Buckets {
        count: keys.size_or("relative_attention_num_buckets", MAX_WIDTH, 32)?,
        max_distance: keys.size_or("relative_attention_max_distance", MAX_WIDTH, 128)?,
        bidirectional,
    };
    if !buckets.is_sound() {
        let what = format!("{} buckets up to a distance of {}", buckets.count, buckets.max_distance);
        return Err(Error::config(keys.name("relative_attention_num_buckets"), what));
    }
    let attention = AttentionShape {
        width,
        source_width: width,
        query_heads: heads,
        kv_heads: heads,
        head_dim,
        qkv_bias: false,
        output_bias: false,
        head_norm: None,
        scale: 1.0,
        softcap: None,
        window: None,
    };
    let inner = keys.size("d_ff", MAX_WIDTH)?;
    let feed_forward = FeedForwardShape { width, inner, bias: false, gated, activation };
    // Says how long the training texts were; nothing depends on it.
    keys.optional_size("n_positions", MAX_POSITIONS)?;
    let factor = keys.number_or("initializer_factor", 1.0)?;
    Ok(StackShape {
        vocab_size: keys.size("vocab_size", MAX_VOCABULARY)?,
        width,
        embedding_scale: 1.0,
        layers: vec![
            LayerShape { attention, feed_forward: feed_forward.into(), skips: Skips::default() };
            n_layers
        ],
        norm: NormShape { eps: keys.number_or("layer_norm_epsilon", 1e-6)?, offset: 0.0 },
        names,
        positions: Positions::Relative {
            buckets,
            name: "block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        },
        logit_softcap: None,
        context_length: None,
        hidden_token: None,
        initializer_range: factor,
        t5_factor: Some(factor),
        pad_token: None,
    })
}

/// `relu`, `gated-gelu` and the like: the activation, and whether it is a gate's.
fn feed_forward(keys: &Keys, default: &str) -> Result<(Activation, bool)> {
    // What newer files say beside it follows from it.
    keys.optional_text("dense_act_fn")?;
    keys.flag_or("is_gated_act", false)?;
    let name = keys.optional_text("feed_forward_proj")?.unwrap_or(default);
    let (gated, activation) = match name.strip_prefix("gated-") {
        Some("gelu") => (true, "gelu_new"),
        Some(activation) => (true, activation),
        None => (false, name),
    };
    let activation = activation_called(activation).ok_or_else(|| {
        let what = format!("expected relu, gelu, silu, or gated- before one of them, found {name:?}");
        Error::config(keys.name("feed_forward_proj"), what)
    })?;
    Ok((activation, gated))
}
