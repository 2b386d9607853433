//! GGUF files: typed metadata, then tensors under GGUF's own names. Versions 2 and 3 are read, version 3 is written.
//!
//! Source: docs/gguf.md of ggml. Layout, all little-endian: `"GGUF", u32 version, u64 n_tensors, u64 n_metadata`, the
//! metadata, the tensor infos, padding to the alignment, the tensors' bytes, each padded to the alignment.

mod cursor;
mod read;
mod side_files;
mod split;
mod value;
mod write;

pub use read::{Gguf, Header};
pub use side_files::{side_file_metadata, side_files};
pub use value::{GgufArray, GgufValue};
pub use write::GgufWriter;

/// Whether an output of that name is to be a GGUF file.
pub fn is_gguf_name(path: &std::path::Path) -> bool {
    path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gguf"))
}

/// Where tensors start unless `general.alignment` says otherwise, in bytes.
pub const DEFAULT_ALIGNMENT: usize = 32;
