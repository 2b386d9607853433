//! Fused operations against their plain candle expressions: values and every gradient, on awkward shapes.
#![allow(missing_docs, clippy::unwrap_used)]

mod check;
mod experts;
mod lora;
mod ops;
