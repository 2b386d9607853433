//! Tests of the decoding loop over a small model.

mod decoding;
mod text;
mod tiny;
