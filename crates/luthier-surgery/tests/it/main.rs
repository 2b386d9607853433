//! Surgery on tiny models: what is kept, what is refused, what is left behind.
// The whole binary is a test, its helpers too.
#![allow(clippy::unwrap_used)]

mod adapt;
mod convert;
mod diff;
mod experts;
mod info;
mod merge;
mod models;
mod quantize;
mod upcycle;
