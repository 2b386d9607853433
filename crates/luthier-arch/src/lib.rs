//! Architectures, one a file, and the blocks that they are built of. One `forward` trains, scores and generates.

pub mod error;
pub mod model;

pub use error::{Error, Result};
