//! The file that `generate --prompt-cache` reads before a prompt and writes after it.

use std::path::{Path, PathBuf};

use anyhow::Context;
use luthier_checkpoint::lineage::sha256_of_bytes;
use luthier_checkpoint::scores::model_sha256;
use luthier_checkpoint::{Output, json};
use luthier_generate::{CacheType, Found, PromptMemory, PromptOwner, read_prompt, write_prompt};

use crate::places;
use crate::session::Session;

/// A prompt's file and what it held.
pub struct KeptPrompt {
    path: PathBuf,
    owner: PromptOwner,
    /// For the generation.
    pub memory: PromptMemory,
    /// The tokens that the file holds.
    held: Option<Vec<u32>>,
}

impl KeptPrompt {
    /// Opens the file at `path` for `model`, whose cache is of `kind`. What is of no use is said and will be replaced.
    ///
    /// # Errors
    /// A file of another kind or of another model, and a place that cannot be written.
    pub fn open(path: &Path, model: &str, kind: CacheType, session: &Session) -> anyhow::Result<KeptPrompt> {
        let checkpoint = places::open(model)?;
        Output::check(path, false, true, &[&checkpoint.place])?;
        let layout = luthier_arch::layout_of(&checkpoint)?;
        let weights = model_sha256(&layout, checkpoint.tensors.as_ref())?;
        let config = json::to_text(&serde_json::Value::Object(checkpoint.config.clone()));
        let owner = PromptOwner {
            model_sha256: sha256_of_bytes(format!("{config}{weights}").as_bytes()),
            computed_by: format!(
                "luthier {}, {}, {} threads",
                env!("CARGO_PKG_VERSION"),
                luthier_kernels::simd::level_name(),
                session.thread_count()
            ),
            kind,
        };
        let state = match read_prompt(path, &owner)? {
            Found::State(state) => Some(state),
            Found::Nothing => None,
            Found::Useless(why) => {
                session.note(&format!("prompt cache {}: {why}; it is made again", path.display()));
                None
            }
        };
        let held = state.as_ref().map(|state| state.token_ids.clone());
        let memory = PromptMemory { state, reused_tokens: 0 };
        Ok(KeptPrompt { path: path.to_path_buf(), owner, memory, held })
    }

    /// Writes the file, where it does not hold this prompt yet.
    pub fn keep(&self) -> anyhow::Result<()> {
        match &self.memory.state {
            Some(state) if self.held.as_ref() != Some(&state.token_ids) => {
                write_prompt(&self.path, &self.owner, state)
                    .with_context(|| format!("prompt cache {}", self.path.display()))
            }
            _ => Ok(()),
        }
    }
}
