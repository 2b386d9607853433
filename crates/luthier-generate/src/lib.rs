//! The one decoding loop: prompt in, tokens out, for decoder-only and encoder-decoder models alike.
//!
//! [`generate()`] works on token ids and needs no tokenizer; [`generate_text`] adds streamed text and
//! stop strings.

pub mod end_tokens;
pub mod error;
pub mod generate;
pub mod options;
pub mod prompt_file;
pub mod prompt_memory;
pub mod random;
pub mod sampling;
pub mod speculate;
pub mod stop;
pub mod text;
pub mod together;

pub use luthier_ops::attention::CacheType;

pub use end_tokens::end_token_ids;
pub use error::{Error, Result};
pub use generate::{Aids, WithDrafts, generate, generate_with};
pub use options::{FinishReason, GenerateOptions, Generation};
pub use prompt_file::{Found, PromptOwner, read_prompt, write_prompt};
pub use prompt_memory::{PromptMemory, PromptState, check_keeps_prompts};
pub use speculate::{DraftModel, Drafter, Lookup};
pub use text::generate_text;
pub use together::generate_together;
