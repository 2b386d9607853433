//! Text files to documents: [`Source`] says where the texts lie, [`read`] gives their documents, [`split`] puts some
//! aside for validation.

mod document;
mod split;

pub use document::{Column, ColumnSource, Source, documents_of, read, read_all};
pub use split::{Split, split};
