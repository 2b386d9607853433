//! Tests of the metrics over a small model.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod importance;
mod perplexity;
mod report;
mod speed;
#[path = "../../../luthier-generate/tests/it/tiny.rs"]
mod tiny;
