//! Surgery on tiny models: what is kept, what is refused, what is left behind.
// The whole binary is a test, its helpers too.
#![allow(clippy::unwrap_used)]

mod adapt;
mod convert;
mod diff;
mod grow;
mod info;
mod inherit;
mod merge;
mod models;
mod moments;
mod prune;
mod quantize;
mod sub_model;
