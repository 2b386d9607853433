//! What luthier-text promises, from the outside.

mod chat;
mod corpus;
mod gguf;
mod malformed;
mod sentencepiece;
mod small;
mod tokenizer;
