//! An encoder-decoder model: a stack that sees all of its input, a causal stack that reads it, an output projection.

use luthier_checkpoint::layout::{Layout, Tie};
use serde_json::{Map, Value};

use super::decoder_only::head_spec;
use super::running_model::{RunningEncoder, RunningModel};
use super::stack::{Site, StackShape};
use crate::model::Model;
use crate::weights::WeightSet;
use crate::{Error, Result};

/// Sizes and rules of both stacks and what joins them.
pub struct EncoderDecoderShape {
    /// In front of the names of encoder and decoder.
    pub prefixes: [&'static str; 2],
    /// The one embedding of both stacks, where it stands outside of them; else each has its own.
    pub shared_embedding: Option<&'static str>,
    /// Reads the input.
    pub encoder: StackShape,
    /// Writes the output.
    pub decoder: StackShape,
    /// What the head is called where it is a weight of its own.
    pub head: &'static str,
    /// Whether the head is the decoder's embedding.
    pub tied_head: bool,
    /// On the decoder's states before the head.
    pub state_scale: Option<f64>,
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

    fn sites(&self) -> [Site; 2] {
        let [encoder, decoder] = self.prefixes.map(str::to_string);
        [
            Site { prefix: encoder, ..Site::encoder() },
            Site { prefix: decoder, ..Site::decoder(self.encoder.width) },
        ]
    }

    /// All weights, the encoder's first.
    pub fn layout(&self) -> Layout {
        let [encoder_site, decoder_site] = self.sites();
        let encoder_embedding = encoder_site.name(self.encoder.names.embedding);
        let mut decoder_embedding = decoder_site.name(self.decoder.names.embedding);
        let mut tensors = self.encoder.specs(&encoder_site);
        let mut decoder_tensors = self.decoder.specs(&decoder_site);
        let mut ties = Vec::new();
        let mut tie = |name: &str, target: &str, written: bool| {
            ties.push(Tie { name: name.to_string(), target: target.to_string(), written });
        };
        if let Some(shared) = self.shared_embedding {
            tie(&encoder_embedding, shared, false);
            tie(&decoder_embedding, shared, false);
            if let Some(spec) = decoder_tensors.iter_mut().find(|spec| spec.name == decoder_embedding) {
                spec.name = shared.to_string();
            }
            decoder_embedding = shared.to_string();
        } else if self.tied_embeddings {
            tie(&encoder_embedding, &decoder_embedding, self.writes_tied_embedding);
        }
        if self.tied_embeddings || self.shared_embedding.is_some() {
            tensors.retain(|tensor| tensor.name != encoder_embedding);
        }
        tensors.extend(decoder_tensors);
        if self.tied_head {
            tie(self.head, &decoder_embedding, false);
        } else {
            tensors.push(head_spec(self.head, &self.decoder));
        }
        Layout { tensors, ties }
    }

    /// The model that runs.
    pub fn build(&self, config: &Map<String, Value>, weights: WeightSet) -> Result<Box<dyn Model>> {
        let [encoder_site, decoder_site] = self.sites();
        let shared = self.shared_embedding.map(|name| weights.get(name)).transpose()?;
        let decoder = self.decoder.build(&decoder_site, &weights, shared.clone())?;
        let shared = shared.or_else(|| self.tied_embeddings.then(|| decoder.embedding().clone()));
        let encoder = self.encoder.build(&encoder_site, &weights, shared)?;
        let head = if self.tied_head { decoder.embedding().clone() } else { weights.get(self.head)? };
        Ok(Box::new(RunningModel {
            config: config.clone(),
            encoder: Some(RunningEncoder { stack: encoder, decoder_start_token: self.decoder_start_token }),
            decoder,
            head,
            state_scale: self.state_scale,
            device: weights.device().clone(),
            tap: weights.tap().clone(),
            weights: weights.into_weights(),
        }))
    }
}
