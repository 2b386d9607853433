//! PyTorch's own files (`pytorch_model.bin`, `.pt`): a pickle that describes tensors, and their storages' bytes.
//!
//! Reading them as Python does runs whatever the pickle names. Here a small machine reads the few operations and names
//! that describe tensors, and refuses every other by name; nothing is ever run. Source: `torch/serialization.py` and
//! `torch/_weights_only_unpickler.py` of PyTorch 2.15 for both containers, `pickletools` of Python for the operations.
//!
//! Two containers: a zip archive with stored entries `NAME/data.pkl`, `NAME/data/KEY` (since 1.6), and before that three
//! small pickles, the pickle of the tensors, the list of keys, and each storage behind its length.

mod globals;
mod header;
mod legacy;
mod pickle;
mod read;
mod rebuild;
mod state;
mod strided;
mod value;
mod zip;

pub use header::{Header, HeaderEntry};
pub use read::TorchFile;
pub use zip::Stored;

/// The name of the one file in a folder.
pub(crate) const SINGLE_NAME: &str = "pytorch_model.bin";

/// The name of the index of shards in a folder.
pub(crate) const INDEX_NAME: &str = "pytorch_model.bin.index.json";

/// Whether a lone file of that name may be one of these; its content decides.
pub fn is_torch_name(path: &std::path::Path) -> bool {
    let ending = path.extension().and_then(|ending| ending.to_str());
    ending.is_some_and(|ending| ["bin", "pt", "pth"].iter().any(|known| ending.eq_ignore_ascii_case(known)))
}
