//! The one decoding loop: prompt in, tokens out, for decoder-only and encoder-decoder models alike.
//!
//! [`generate()`] works on token ids and needs no tokenizer; [`generate_text`] adds streamed text and
//! stop strings.

pub mod end_tokens;
pub mod error;
pub mod generate;
pub mod options;
pub mod random;
pub mod sampling;
pub mod speculate;
pub mod stop;
pub mod text;
pub mod together;

pub use end_tokens::end_token_ids;
pub use error::{Error, Result};
pub use generate::{WithDrafts, generate, generate_drafted};
pub use options::{FinishReason, GenerateOptions, Generation};
pub use speculate::{DraftModel, Drafter, Lookup};
pub use text::generate_text;
pub use together::generate_together;
