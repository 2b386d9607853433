//! Checkpoints as values: reading and writing model folders and GGUF files, atomic outputs, layout, ledger, lineage, hub.
//!
//! The only crate that knows a file format.

pub mod checkpoint;
pub mod dtype;
pub mod error;
pub mod layout;

pub use checkpoint::{Checkpoint, TensorInfo, TensorSource};
pub use dtype::Dtype;
pub use error::{Error, Result};
