//! An encoder-decoder model: a stack that sees all of its input, a causal stack that reads it, an output projection.

use luthier_checkpoint::layout::{Layout, Tie};
use serde_json::{Map, Value};

use super::decoder_only::head_spec;
use super::running_model::{RunningEncoder, RunningModel};
use super::stack::{Site, StackShape};
use crate::model::Model;
use crate::weights::WeightSet;
use crate::{Error, Result};

const ENCODER_EMBEDDING: &str = "model.encoder.embed_tokens.weight";
const DECODER_EMBEDDING: &str = "model.decoder.embed_tokens.weight";

/// Sizes and rules of both stacks and what joins them.
pub struct EncoderDecoderShape {
    /// Reads the input.
    pub encoder: StackShape,
    /// Writes the output.
    pub decoder: StackShape,
    /// What the head is called where it is a weight of its own.
    pub head: &'static str,
    /// Whether the head is the decoder's embedding.
    pub tied_head: bool,
    /// Whether the encoder's embedding is the decoder's.
    pub tied_embeddings: bool,
    /// Whether files that are written carry a tied encoder embedding a second time.
    pub writes_tied_embedding: bool,
    /// The first decoder token.
    pub decoder_start_token: u32,
    /// Deviation of freshly drawn weights.
    pub initializer_range: f64,
}

impl EncoderDecoderShape {
    /// Checks what two stacks must agree on.
    pub fn check(&self) -> Result<()> {
        let (encoder, decoder) = (&self.encoder, &self.decoder);
        if self.tied_embeddings && (encoder.vocab_size, encoder.width) != (decoder.vocab_size, decoder.width)
        {
            let what = format!(
                "true, but the encoder's embedding is [{}, {}] and the decoder's [{}, {}]",
                encoder.vocab_size, encoder.width, decoder.vocab_size, decoder.width
            );
            return Err(Error::config("tie_encoder_embeddings", what));
        }
        if self.decoder_start_token as usize >= decoder.vocab_size {
            let what = format!(
                "token {} is outside the decoder's vocabulary of {}",
                self.decoder_start_token, decoder.vocab_size
            );
            return Err(Error::config("decoder_start_token_id", what));
        }
        Ok(())
    }

    /// All weights, the encoder's first.
    pub fn layout(&self) -> Layout {
        let mut tensors = self.encoder.specs(&Site::encoder());
        let mut ties = Vec::new();
        if self.tied_embeddings {
            tensors.retain(|tensor| tensor.name != ENCODER_EMBEDDING);
            let (name, target) = (ENCODER_EMBEDDING.to_string(), DECODER_EMBEDDING.to_string());
            ties.push(Tie { name, target, written: self.writes_tied_embedding });
        }
        tensors.extend(self.decoder.specs(&Site::decoder(self.encoder.width)));
        if self.tied_head {
            let (name, target) = (self.head.to_string(), DECODER_EMBEDDING.to_string());
            ties.push(Tie { name, target, written: false });
        } else {
            tensors.push(head_spec(self.head, &self.decoder));
        }
        Layout { tensors, ties }
    }

    /// The model that runs.
    pub fn build(&self, config: &Map<String, Value>, weights: WeightSet) -> Result<Box<dyn Model>> {
        let decoder = self.decoder.build(&Site::decoder(self.encoder.width), &weights, None)?;
        let shared = self.tied_embeddings.then(|| decoder.embedding().clone());
        let encoder = self.encoder.build(&Site::encoder(), &weights, shared)?;
        let head = if self.tied_head { decoder.embedding().clone() } else { weights.get(self.head)? };
        Ok(Box::new(RunningModel {
            config: config.clone(),
            encoder: Some(RunningEncoder { stack: encoder, decoder_start_token: self.decoder_start_token }),
            decoder,
            head,
            device: weights.device().clone(),
            weights: weights.into_weights(),
        }))
    }
}
