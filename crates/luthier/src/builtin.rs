//! The small model that comes with the program, and the text of the demonstration, so that every command works offline
//! at once.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, anyhow};
use luthier_checkpoint::lineage::Parent;
use luthier_checkpoint::safetensors::Header;
use luthier_checkpoint::{Checkpoint, Lineage, MemoryTensors, SideFile};
use luthier_kernels::bytes::SharedBytes;

/// What MODEL is called on the command line.
pub const NAME: &str = "builtin";

const CONFIG: &str = "config.json";
const WEIGHTS: &str = "model.safetensors";
const LINEAGE: &str = "lineage.json";

macro_rules! file {
    ($name:literal) => {
        ($name, include_bytes!(concat!("../../../models/builtin/", $name)))
    };
}

/// The model's folder, as in the repository.
const FILES: &[(&str, &[u8])] = &[
    file!("README.md"),
    file!("config.json"),
    file!("generation_config.json"),
    file!("lineage.json"),
    file!("model.safetensors"),
    file!("special_tokens_map.json"),
    file!("tokenizer.json"),
    file!("tokenizer_config.json"),
];

/// Texts that the model has not been trained on: chapters of Northanger Abbey to train on, and later ones to validate.
const TEXTS: &[(&str, &str)] = &[
    (TRAINING_TEXT, include_str!("../../../models/builtin/text/northanger_abbey_1_24.txt")),
    (VALIDATION_TEXT, include_str!("../../../models/builtin/text/northanger_abbey_25_31.txt")),
];

/// The path by which recipes name the demonstration's training text.
pub const TRAINING_TEXT: &str = "builtin/northanger_abbey_1_24.txt";
/// The path by which recipes name the demonstration's validation text.
pub const VALIDATION_TEXT: &str = "builtin/northanger_abbey_25_31.txt";

/// The model, read from the program itself.
pub fn checkpoint() -> anyhow::Result<Checkpoint> {
    let weights = file(WEIGHTS)?;
    let header = Header::parse(weights).map_err(|what| anyhow!("built-in {WEIGHTS}: {what}"))?;
    let owner: Arc<dyn AsRef<[u8]> + Send + Sync> = Arc::new(weights);
    let tensors = header.entries.into_iter().map(|entry| {
        let bytes = SharedBytes::new(Arc::clone(&owner), entry.range);
        Ok((entry.info, bytes.context("a tensor outside of the built-in weights")?))
    });
    let tensors = MemoryTensors::new(tensors.collect::<anyhow::Result<Vec<_>>>()?)?;
    let side_files = FILES.iter().filter(|(name, _)| ![CONFIG, WEIGHTS, LINEAGE].contains(name));
    Ok(Checkpoint {
        place: PathBuf::from(NAME),
        config: serde_json::from_slice(file(CONFIG)?)?,
        tensors: Arc::new(tensors),
        side_files: side_files
            .map(|(name, bytes)| SideFile { name: (*name).to_string(), bytes: bytes.to_vec() })
            .collect(),
    })
}

/// How the model was made.
pub fn lineage() -> anyhow::Result<Lineage> {
    Lineage::parse(file(LINEAGE)?).map_err(|what| anyhow!("built-in {LINEAGE}: {what}"))
}

/// What the lineage of a model made from it says of it: every file's hash.
pub fn record() -> Parent {
    Parent { lineage: lineage().ok().map(Box::new), ..Parent::of_bytes(NAME, FILES) }
}

/// Size of its weights' file.
pub fn file_bytes() -> u64 {
    FILES.iter().filter(|(name, _)| *name == WEIGHTS).map(|(_, bytes)| bytes.len() as u64).sum()
}

/// A text that comes with the program, by the path that recipes name it by.
pub fn text(path: &Path) -> Option<&'static str> {
    TEXTS.iter().find(|(name, _)| Path::new(name) == path).map(|(_, text)| *text)
}

fn file(name: &str) -> anyhow::Result<&'static [u8]> {
    let found = FILES.iter().find(|(known, _)| *known == name);
    found.map(|(_, bytes)| *bytes).with_context(|| format!("built-in {name} is missing"))
}
