//! What luthier-text promises, from the outside.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod chat;
mod corpus;
mod gguf;
mod malformed;
mod sentencepiece;
mod small;
mod tokenizer;
mod trim;
mod word_piece;
