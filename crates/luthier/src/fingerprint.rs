//! Hashes of the files that a step of a chain reads and writes, to know whether it has to be done again.

use std::path::{Path, PathBuf};

use anyhow::Context;
use luthier_checkpoint::folder::model_files;
use luthier_checkpoint::lineage::{sha256_of_bytes, sha256_of_file};
use serde_json::{Map, Value};

/// The hash of every existing file or folder that the keys name, `out` aside.
pub fn of_inputs(keys: &Value) -> anyhow::Result<Value> {
    let mut found = Map::new();
    collect(keys, &mut found)?;
    Ok(Value::Object(found))
}

/// The hash of what stands at the key `out`; null where the step writes nothing.
pub fn of_output(keys: &Value) -> anyhow::Result<Value> {
    match keys.get("out").and_then(Value::as_str) {
        Some(out) if Path::new(out).exists() => Ok(Value::String(of_path(Path::new(out))?)),
        _ => Ok(Value::Null),
    }
}

fn collect(value: &Value, found: &mut Map<String, Value>) -> anyhow::Result<()> {
    match value {
        Value::String(text) => {
            let path = Path::new(text);
            if path.exists() {
                found.insert(text.clone(), Value::String(of_path(path)?));
            }
        }
        Value::Array(items) => items.iter().try_for_each(|item| collect(item, found))?,
        Value::Object(entries) => {
            for (key, entry) in entries {
                if key != "out" {
                    collect(entry, found)?;
                }
            }
        }
        _ => {}
    }
    Ok(())
}

/// A file's SHA-256; for a folder, or a GGUF model in several files, that of the files' names and hashes in order.
fn of_path(path: &Path) -> anyhow::Result<String> {
    let mut names: Vec<PathBuf> = Vec::new();
    if path.is_dir() {
        for entry in std::fs::read_dir(path).with_context(|| path.display().to_string())? {
            names.push(entry?.path());
        }
        names.sort();
    } else {
        names = model_files(path)?;
        if names.len() == 1 {
            return Ok(sha256_of_file(path)?.1);
        }
    }
    let mut listing = String::new();
    for name in names {
        let hash = if name.is_dir() { of_path(&name)? } else { sha256_of_file(&name)?.1 };
        listing.push_str(&format!("{} {hash}\n", name.display()));
    }
    Ok(sha256_of_bytes(listing.as_bytes()))
}
