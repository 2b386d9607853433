//! Integration tests of the training loop on tiny models of real architectures.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

mod adapter;
mod curves;
mod gradients;
mod refusals;
mod resume;
mod support;
