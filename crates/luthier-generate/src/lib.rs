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
pub mod stop;
pub mod text;

pub use end_tokens::end_token_ids;
pub use error::{Error, Result};
pub use generate::generate;
pub use options::{FinishReason, GenerateOptions, Generation};
pub use text::generate_text;
