//! Text files to documents, to token streams, to windows of one length in a reproducible order.
//!
//! [`Source`] says where the texts lie, [`read`] gives their documents, [`split`] puts some aside for
//! validation, [`Packer`] tokenizes, packs them into windows and knows the order in which to visit them.

mod document;
mod order;
mod packer;
mod split;

pub use document::{Column, ColumnSource, Source, documents_of, read, read_all};
pub use order::{Order, Position};
pub use packer::{Packer, Window};
pub use split::{Split, split};
