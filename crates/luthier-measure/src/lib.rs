//! Numbers about models: loss and perplexity, speed and memory, quality against cost. Writes numbers, never weights.

pub mod error;
pub mod memory;
pub mod metrics;
pub mod scoring;

pub use error::{Error, Result};
