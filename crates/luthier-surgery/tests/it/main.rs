//! Surgery on tiny models: what is kept, what is refused, what is left behind.
// The whole binary is a test, its helpers too.
#![allow(clippy::unwrap_used)]

mod adapt;
mod adapter;
mod convert;
mod diff;
mod extract;
mod fuse;
mod info;
mod merge;
mod models;
mod quantize;
mod vocabulary;
