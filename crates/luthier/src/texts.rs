//! The texts that recipes name: files, and those that come with the program.

use std::path::Path;

use anyhow::Context;
use luthier_train::{Result, read_text_file, refuse_device};

use crate::builtin;

/// The bytes of a text that `--text` names.
pub fn bytes(path: &Path) -> anyhow::Result<Vec<u8>> {
    refuse_device(path)?;
    std::fs::read(path)
        .with_context(|| format!("--text {}: wanted the name of a file that holds the text", path.display()))
}

/// The bytes of a text of a recipe: one that comes with the program, or a file.
pub fn bytes_of_recipe(path: &Path) -> anyhow::Result<Vec<u8>> {
    if let Some(text) = builtin::text(path) {
        return Ok(text.as_bytes().to_vec());
    }
    refuse_device(path)?;
    std::fs::read(path)
        .with_context(|| format!("text {}: wanted the name of a file that holds a text", path.display()))
}

/// Reads a text of a recipe: one that comes with the program, or a file.
pub fn read(path: &Path) -> Result<String> {
    match builtin::text(path) {
        Some(text) => Ok(text.to_string()),
        None => read_text_file(path),
    }
}
