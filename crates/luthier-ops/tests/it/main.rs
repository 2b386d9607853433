//! Fused operations against their plain candle expressions: values and every gradient, on awkward shapes.
#![allow(missing_docs)]

mod check;
mod ops;
