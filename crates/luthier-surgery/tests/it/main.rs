//! Surgery on tiny models: what is kept, what is refused, what is left behind.
// The whole binary is a test, its helpers too.
#![allow(clippy::unwrap_used)]

mod adapt;
mod adapter;
mod convert;
mod diff;
mod encoder;
mod experts;
mod extract;
mod families;
mod fuse;
mod grow;
mod info;
mod inherit;
mod merge;
mod models;
mod moments;
mod prune;
mod prune_experts;
mod prune_refusals;
mod quantize;
mod quantize_refusals;
mod quantize_run;
mod sub_model;
mod target_size;
mod trim_vocab;
mod unshared;
mod upcycle;
mod vocabulary;
