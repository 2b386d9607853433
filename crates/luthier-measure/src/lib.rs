//! Numbers about models: loss and perplexity, speed and memory, quality against cost. Writes numbers, never weights.

pub mod energy;
pub mod error;
pub mod frontier;
pub mod importance;
pub mod measurements;
pub mod memory;
pub mod metrics;
pub mod report;
pub mod scoring;

pub use error::{Error, Result};
