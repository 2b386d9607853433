//! Tests of the decoding loop over a small model.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod decoding;
mod prompts;
mod text;
mod tiny;
