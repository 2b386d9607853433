//! The metrics, one a file.

pub mod bench;
pub mod divergence;
pub mod embeddings;
pub mod logits;
pub mod perplexity;
pub mod prefix_loss;
pub mod profile;

pub use bench::{Bench, BenchOptions, bench, bench_prompt};
pub use divergence::{Divergence, divergence};
pub use embeddings::{Embeddings, embeddings};
pub use logits::{Logits, logits};
pub use perplexity::{Method, Perplexity, perplexity, perplexity_of_ids};
pub use prefix_loss::{PrefixLoss, PrefixTarget, prefix_loss};
pub use profile::{ProfileRow, profile_generation, profile_rows};
