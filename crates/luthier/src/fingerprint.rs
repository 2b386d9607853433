//! Hashes of the files that a step of a chain reads and writes, to know whether it has to be done again.

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

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

/// A file's SHA-256; for a folder, that of its files' names and hashes in sorted order.
fn of_path(path: &Path) -> anyhow::Result<String> {
    if path.is_file() {
        return sha256_file(path);
    }
    let mut names: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(path).with_context(|| path.display().to_string())? {
        names.push(entry?.path());
    }
    names.sort();
    let mut listing = String::new();
    for name in names {
        listing.push_str(&format!("{} {}\n", name.display(), of_path(&name)?));
    }
    Ok(hex(&Sha256::digest(listing.as_bytes())))
}

/// A file's SHA-256, in hexadecimal.
pub fn sha256_file(path: &Path) -> anyhow::Result<String> {
    let mut file = std::fs::File::open(path).with_context(|| path.display().to_string())?;
    let mut hasher = Sha256::new();
    std::io::copy(&mut file, &mut HashWriter(&mut hasher)).with_context(|| path.display().to_string())?;
    Ok(hex(&hasher.finalize()))
}

/// The SHA-256 of bytes, in hexadecimal.
pub fn sha256_bytes(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

struct HashWriter<'a>(&'a mut Sha256);

impl std::io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn hex(digest: &[u8]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
