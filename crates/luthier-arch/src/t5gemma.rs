//! T5Gemma: two Gemma 2 stacks as encoder and decoder.
//!
//! Paper: arXiv:2504.06225. Reference: transformers, `modeling_t5gemma.py`. Differs from gemma2 in: the encoder sees its
//! whole input, in windowed layers up to and including `sliding_window` tokens on both sides; decoder layers read the
//! encoder between self-attention and feed-forward, with the decoder's heads, without positions or window; other names
//! of the norms around self-attention; the decoder starts from the decoder's start token. The reference holds two
//! embeddings; with `tie_encoder_embeddings`, a key of ours, they are one and are written twice.

use crate::blocks::encoder_decoder::EncoderDecoderShape;
use crate::blocks::names::{self, AttentionNames, StackNames};
use crate::blocks::stack::{Site, StackShape};
use crate::blocks::stack_rules::StackRules;
use crate::blocks::window::alternating_windows;
use crate::config::{Keys, MAX_VOCABULARY, MAX_WIDTH};
use crate::table::{Architecture, ModelShape};
use crate::{Error, Result};

/// Its line in the table.
pub const ARCHITECTURE: Architecture =
    Architecture { model_type: "t5gemma", shape, stack: None, encoder_decoder: None, gguf: None };

const NAMES: StackNames = StackNames {
    own: AttentionNames {
        norms: ("layers.{i}.pre_self_attn_layernorm", Some("layers.{i}.post_self_attn_layernorm")),
        ..names::GEMMA2.own
    },
    ..names::GEMMA2
};

fn shape(keys: &Keys) -> Result<ModelShape> {
    let missing = |key: &str| Error::config(key, "missing; expected the config of this stack");
    let encoder_keys = keys.object("encoder")?.ok_or_else(|| missing("encoder"))?;
    let decoder_keys = keys.object("decoder")?.ok_or_else(|| missing("decoder"))?;
    let mut encoder = stack(&encoder_keys, &Site::encoder())?;
    // Without an attention mask the reference's encoder does not look at padding tokens.
    encoder.hidden_token = encoder.pad_token;
    let decoder = stack(&decoder_keys, &Site::decoder(encoder.width))?;
    if let Some(width) = decoder_keys.optional_size("cross_attention_hidden_size", MAX_WIDTH)?
        && width != encoder.width
    {
        let what = format!("expected encoder.hidden_size={}, found {width}", encoder.width);
        return Err(Error::config(decoder_keys.name("cross_attention_hidden_size"), what));
    }
    // Written beside the nested sizes; the reference computes with those.
    keys.optional_size("vocab_size", MAX_VOCABULARY)?;
    let start = match keys.optional_token("decoder_start_token_id")? {
        Some(start) => Some(start),
        None => decoder_keys.optional_token_or("bos_token_id", 2)?,
    };
    let shape = EncoderDecoderShape {
        prefixes: ["model.encoder.", "model.decoder."],
        shared_embedding: None,
        state_scale: None,
        head: "lm_head.out_proj.weight",
        tied_head: keys.flag_or("tie_word_embeddings", true)?,
        tied_embeddings: keys.flag_or("tie_encoder_embeddings", false)?,
        writes_tied_embedding: true,
        decoder_start_token: start.ok_or_else(|| Error::config("decoder_start_token_id", "missing"))?,
        initializer_range: keys.optional_positive("initializer_range")?.unwrap_or(decoder.initializer_range),
        encoder,
        decoder,
    };
    shape.check()?;
    Ok(ModelShape::EncoderDecoder(Box::new(shape)))
}

fn stack(keys: &Keys, site: &Site) -> Result<StackShape> {
    // The reference looks at the flag of the whole model only.
    keys.flag_or("tie_word_embeddings", true)?;
    let rules = StackRules::gemma2(keys, NAMES)?;
    rules.read(keys, |n_layers| alternating_windows(keys, site, n_layers))
}
