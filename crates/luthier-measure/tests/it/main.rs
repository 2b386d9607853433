//! Tests of the metrics over a small model.

mod perplexity;
#[path = "../../../luthier-generate/tests/it/tiny.rs"]
mod tiny;
