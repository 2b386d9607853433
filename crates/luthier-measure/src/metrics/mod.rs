//! The metrics, one a file.

pub mod perplexity;
pub mod prefix_loss;

pub use perplexity::{Method, Perplexity, perplexity, perplexity_of_ids};
pub use prefix_loss::{PrefixLoss, PrefixTarget, prefix_loss};
