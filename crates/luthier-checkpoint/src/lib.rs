//! Checkpoints as values: reading and writing model folders and GGUF files, atomic outputs, layout, ledger, lineage, hub.
//!
//! The only crate that knows a file format.

pub mod adapter;
pub mod bitsandbytes;
pub mod byte_count;
pub mod checkpoint;
pub mod dtype;
mod early_sync;
pub mod error;
pub mod folder;
pub mod gguf;
pub mod hub;
pub mod json;
pub mod layout;
pub mod ledger;
pub mod lineage;
pub mod mapped;
pub mod memory;
pub mod output;
pub mod safetensors;
pub mod scores;
pub mod sentence;
pub mod torch;
pub mod values;

pub use checkpoint::{Checkpoint, SideFile, TensorInfo, TensorSink, TensorSource};
pub use dtype::Dtype;
pub use error::{Error, Result};
pub use gguf::{Gguf, GgufArray, GgufValue};
pub use ledger::{Ledger, LedgerSummary};
pub use lineage::Lineage;
pub use memory::{HeadersOnly, MemoryTensors};
pub use output::Output;
pub use scores::Scores;
