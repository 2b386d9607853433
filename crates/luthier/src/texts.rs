//! The texts that recipes name: files, and those that come with the program.

use std::path::Path;

use luthier_train::{Result, read_text_file};

use crate::builtin;

/// Reads a text of a recipe: one that comes with the program, or a file.
pub fn read(path: &Path) -> Result<String> {
    match builtin::text(path) {
        Some(text) => Ok(text.to_string()),
        None => read_text_file(path),
    }
}
