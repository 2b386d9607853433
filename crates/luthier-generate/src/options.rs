//! How to decode, and what came out.

use std::time::Duration;

use luthier_ops::attention::CacheType;

use crate::{Error, Result};

/// How to pick the next token and when to end. The default is greedy.
///
/// The names and definitions are those of transformers' `GenerationConfig`; the order in which they apply is that of
/// [`crate::sampling`].
#[derive(Clone, Debug, PartialEq)]
pub struct GenerateOptions {
    /// Tokens to decode at most; 0 decodes none.
    pub max_new_tokens: usize,
    /// What the logits are divided by before sampling; 0 takes the most likely token each time (the lowest id of
    /// equally likely ones).
    pub temperature: f64,
    /// Samples among the k most likely tokens (and those as likely as the k-th); 0 is off.
    pub top_k: usize,
    /// Samples among the fewest most likely tokens whose probabilities reach this sum; 1 is off.
    pub top_p: f64,
    /// Samples among the tokens at least this fraction as likely as the most likely one; 0 is off.
    pub min_p: f64,
    /// Divides the positive logits, and multiplies the negative ones, of each token that the decoder has read or
    /// written; 1 is off. It counts for greedy decoding too.
    pub repetition_penalty: f64,
    /// Of the random numbers that sampling draws; see [`crate::random`].
    pub seed: u64,
    /// Texts that end the continuation; they are cut off. Needs a tokenizer ([`crate::generate_text`]).
    pub stop: Vec<String>,
    /// Goes on past an end token.
    pub ignore_eos: bool,
    /// Tokens that end the continuation; such a token is the last one returned.
    pub eos_token_ids: Vec<u32>,
    /// What keys and values are rounded to; none: [`crate::generate::standard_cache`].
    pub kv_cache: Option<CacheType>,
}

impl Default for GenerateOptions {
    fn default() -> GenerateOptions {
        GenerateOptions {
            max_new_tokens: 128,
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            seed: 0,
            stop: Vec::new(),
            ignore_eos: false,
            eos_token_ids: Vec::new(),
            kv_cache: None,
        }
    }
}

impl GenerateOptions {
    /// An error that names the first option outside of its range.
    pub fn check(&self) -> Result<()> {
        let within = |name, expected, value: f64, fits: bool| match fits {
            true => Ok(()),
            false => Err(Error::Option { name, expected, got: value.to_string() }),
        };
        let temperature = self.temperature;
        within("temperature", "0 or more", temperature, temperature >= 0.0 && temperature.is_finite())?;
        within("top_p", "0 to 1", self.top_p, (0.0..=1.0).contains(&self.top_p))?;
        within("min_p", "0 to 1", self.min_p, (0.0..=1.0).contains(&self.min_p))?;
        let penalty = self.repetition_penalty;
        within("repetition_penalty", "more than 0", penalty, penalty > 0.0 && penalty.is_finite())?;
        if self.stop.iter().any(String::is_empty) {
            return Err(Error::Option { name: "stop", expected: "a text", got: "an empty one".into() });
        }
        Ok(())
    }

    /// As `check`, and an error for stop strings, which need text.
    pub(crate) fn check_without_text(&self, expected: &'static str) -> Result<()> {
        self.check()?;
        match self.stop.first() {
            Some(stop) => Err(Error::Option { name: "stop", expected, got: format!("{stop:?}") }),
            None => Ok(()),
        }
    }

    /// Whether `id` ends the continuation.
    pub fn is_end(&self, id: u32) -> bool {
        !self.ignore_eos && self.eos_token_ids.contains(&id)
    }
}

/// Why decoding ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// An end token was decoded.
    EndToken,
    /// A stop string appeared in the text.
    StopString,
    /// `max_new_tokens` were decoded, or the model's context is full.
    Length,
    /// The caller asked for no more.
    Cancelled,
}

impl FinishReason {
    /// The word that the completions API uses: `stop` for an end token and a stop string alike, `length`; and
    /// `cancelled`, which that API has no word for.
    pub fn as_str(self) -> &'static str {
        match self {
            FinishReason::EndToken | FinishReason::StopString => "stop",
            FinishReason::Length => "length",
            FinishReason::Cancelled => "cancelled",
        }
    }
}

/// A continuation, and how long it took.
#[derive(Clone, Debug, PartialEq)]
pub struct Generation {
    /// The new tokens, an end token included.
    pub token_ids: Vec<u32>,
    /// Why there are no more.
    pub finish_reason: FinishReason,
    /// Tokens read before the first new one: the prompt and, for an encoder-decoder, the decoder's input.
    pub prompt_tokens: usize,
    /// From the call to the first new token; none where there is none.
    pub time_to_first_token: Option<Duration>,
    /// From the first new token to the last.
    pub decode_time: Duration,
    /// Tokens that a drafter proposed.
    pub drafted_tokens: usize,
    /// Those of them that the model kept.
    pub accepted_tokens: usize,
}

impl Generation {
    /// Nothing new yet, after so many tokens that are read.
    pub(crate) fn begun(prompt_tokens: usize) -> Generation {
        Generation {
            token_ids: Vec::new(),
            finish_reason: FinishReason::Length,
            prompt_tokens,
            time_to_first_token: None,
            decode_time: Duration::ZERO,
            drafted_tokens: 0,
            accepted_tokens: 0,
        }
    }

    /// Notes a new token, decided this long after the call.
    pub(crate) fn push(&mut self, id: u32, elapsed: Duration) {
        self.token_ids.push(id);
        let first = *self.time_to_first_token.get_or_insert(elapsed);
        self.decode_time = elapsed - first;
    }

    /// Tokens read a second, up to the first new token.
    pub fn prefill_tokens_per_s(&self) -> Option<f64> {
        let seconds = self.time_to_first_token?.as_secs_f64();
        (seconds > 0.0).then(|| self.prompt_tokens as f64 / seconds)
    }

    /// New tokens a second after the first one; none for fewer than two.
    pub fn decode_tokens_per_s(&self) -> Option<f64> {
        let seconds = self.decode_time.as_secs_f64();
        (self.token_ids.len() > 1 && seconds > 0.0).then(|| (self.token_ids.len() - 1) as f64 / seconds)
    }
}
