//! Safetensors files: `u64 header length, JSON header, tensor bytes`; single, or shards with an index.
//!
//! Source: the format section of the safetensors README. Stricter than that text in one point: every problem names the
//! tensor, and a header that could be read in two ways (a name given twice, a gap between tensors) is refused.

mod header;
mod index;
mod read;
mod write;

pub use header::{Header, HeaderEntry};
pub(crate) use index::INDEX_NAME;
pub use index::Index;
pub use read::{SafetensorsFile, ShardedTensors};
pub use write::SafetensorsWriter;
