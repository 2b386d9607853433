//! Tokenizers, chat templates and text corpora as token streams. No tensors, no checkpoint formats.
//!
//! Everything here takes bytes and plain maps and gives bytes and plain maps back: whoever opens a model
//! folder or a GGUF file hands its side files over, so that this crate never touches a weight.

mod base64;
pub mod chat;
pub mod corpus;
mod error;
pub mod gguf;
pub mod sentencepiece;
mod special_tokens;
mod stream_decoder;
mod tokenizer;
mod tokenizer_json;
pub mod train_bpe;
pub mod trim;
pub mod union;
mod word_piece;

pub use error::{Result, TextError};
pub use special_tokens::SpecialTokens;
pub use stream_decoder::StreamDecoder;
pub use tokenizer::Tokenizer;
