//! What was computed of a prompt, kept for the next one that begins alike.
//!
//! A prompt is read in chunks, and how many tokens are read together tells in the last bits of what comes out. So that a
//! continuation is the same with and without, whole chunks are taken over, and of the very same prompt everything.

use luthier_arch::model::{Cache, Model};
use luthier_ops::attention::SavedCache;

use crate::generate::{PREFILL_CHUNK_TOKENS, prefill};
use crate::{Error, Result};

/// A prompt that a decoder-only model has read.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptState {
    /// The prompt.
    pub token_ids: Vec<u32>,
    /// Keys and values of each layer; none of a layer without attention.
    pub layers: Vec<Option<SavedCache>>,
    /// The logits after the last token, `[v]`.
    pub logits: Vec<f32>,
}

/// The last prompt, where one was read.
#[derive(Clone, Debug, Default)]
pub struct PromptMemory {
    /// The prompt and what came of it.
    pub state: Option<PromptState>,
    /// Tokens that the last generation took over.
    pub reused_tokens: usize,
}

impl PromptMemory {
    /// Reads a prompt into an empty cache, as far as it is new, and remembers it; the logits after its last token.
    pub(crate) fn read(&mut self, model: &dyn Model, prompt: &[u32], cache: &mut Cache) -> Result<Vec<f32>> {
        let held = self.state.as_ref().filter(|state| state.fits(model, cache));
        let same = held.map_or(0, |state| {
            state.token_ids.iter().zip(prompt).take_while(|(held, wanted)| held == wanted).count()
        });
        if let Some(state) = held.filter(|state| state.token_ids == prompt) {
            cache.fill(&state.layers)?;
            self.reused_tokens = same;
            return Ok(state.logits.clone());
        }
        // The last token is read anyway, since its logits are wanted.
        let same = same.min(prompt.len().saturating_sub(1)) / PREFILL_CHUNK_TOKENS * PREFILL_CHUNK_TOKENS;
        if let Some(state) = held.filter(|_| same > 0) {
            cache.fill(&state.layers)?;
            cache.truncate(same)?;
        }
        self.reused_tokens = same;
        let mut rows = prefill(model, &[prompt[same..].to_vec()], None, cache)?;
        let logits = rows.swap_remove(0);
        self.state =
            Some(PromptState { token_ids: prompt.to_vec(), layers: cache.save(), logits: logits.clone() });
        Ok(logits)
    }
}

impl PromptState {
    /// Whether it may be the model's, in a cache of that type.
    fn fits(&self, model: &dyn Model, cache: &Cache) -> bool {
        let tokens = self.token_ids.len();
        self.layers.len() == model.n_layers()
            && self.logits.len() == model.vocab_size()
            && self.layers.iter().any(Option::is_some)
            && self.layers.iter().flatten().all(|layer| (layer.kind, layer.tokens) == (cache.kind(), tokens))
    }
}

/// An error where the model has an encoder, whose states are no part of what is kept.
pub fn check_keeps_prompts(model: &dyn Model) -> Result<()> {
    match model.is_encoder_decoder() {
        true => Err(Error::Option {
            name: "prompt_cache",
            expected: "a decoder-only model",
            got: "one whose encoder reads the prompt".to_string(),
        }),
        false => Ok(()),
    }
}
