//! Rules about single files: first lines, budgets, blobs, unsafe code, known traps.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::Fault;

const BUDGET_LINES: usize = 400;
const LIMIT_LINES: usize = 1000;
const BLOB_BYTES: u64 = 100_000;
const BLOB_FOLDERS: &[&str] = &["models/", "golden/", "bench/runs/", "Cargo.lock", "fuzz/Cargo.lock"];
const UNSAFE_PLACES: &[&str] = &["crates/luthier-kernels/", "crates/luthier-checkpoint/src/mapped.rs"];

pub(super) fn check(root: &Path, tracked: &[PathBuf]) -> anyhow::Result<Vec<Fault>> {
    let allowed = allowed_lengths(root)?;
    let mut faults = Vec::new();
    for path in tracked {
        let name = path.to_string_lossy().replace('\\', "/");
        let bytes = std::fs::metadata(root.join(path))?.len();
        if bytes > BLOB_BYTES && !BLOB_FOLDERS.iter().any(|folder| name.starts_with(folder)) {
            faults.push(format!(
                "{name}: {bytes} bytes; blobs over {BLOB_BYTES} belong into models/ or golden/"
            ));
        }
        if name.ends_with(".rs") {
            let text = std::fs::read_to_string(root.join(path))?;
            faults.extend(check_source(&name, &text, &allowed));
        }
    }
    for name in allowed.keys() {
        if !root.join(name).is_file() {
            faults.push(format!("xtask/tidy_allow.txt: {name} is no longer there; remove its line"));
        }
    }
    Ok(faults)
}

fn check_source(name: &str, text: &str, allowed: &BTreeMap<String, usize>) -> Vec<Fault> {
    let mut faults = Vec::new();
    let lines = text.lines().count();
    if !text.starts_with("//!") {
        faults.push(format!(
            "{name}: the first line must be `//!` and one sentence that says what the file is"
        ));
    }
    let budget = allowed.get(name).copied().unwrap_or(BUDGET_LINES);
    if lines > budget || lines > LIMIT_LINES {
        faults.push(format!("{name}: {lines} lines, budget {budget}; split it by what its parts do"));
    }
    let is_tidy_itself = name.starts_with("xtask/src/tidy");
    for (index, line) in text.lines().enumerate() {
        let code = line.split("//").next().unwrap_or("");
        let at = format!("{name}:{}", index + 1);
        if is_tidy_itself {
            continue;
        }
        if code.contains("unsafe ") && !UNSAFE_PLACES.iter().any(|place| name.starts_with(place)) {
            faults.push(format!("{at}: unsafe code lives in {}", UNSAFE_PLACES.join(" and ")));
        }
        if code.contains("broadcast_as") && text.contains("matmul") {
            faults.push(format!(
                "{at}: broadcast_as in a file with matmul gives wrong values silently (docs/decisions.md)"
            ));
        }
        if ["#[ignore", "#[should_panic", "TODO", "FIXME", "unimplemented!", "todo!("]
            .iter()
            .any(|it| line.contains(it))
        {
            faults.push(format!("{at}: no ignored tests, should_panic, TODO or unfinished code"));
        }
    }
    faults
}

/// `xtask/tidy_allow.txt`: `<file> <lines>` for files over budget; the numbers may only shrink.
fn allowed_lengths(root: &Path) -> anyhow::Result<BTreeMap<String, usize>> {
    let text = std::fs::read_to_string(root.join("xtask/tidy_allow.txt")).unwrap_or_default();
    let rows = text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
    rows.map(|row| {
        let (name, lines) =
            row.split_once(' ').ok_or_else(|| anyhow::anyhow!("xtask/tidy_allow.txt: {row:?}"))?;
        Ok((name.to_string(), lines.trim().parse()?))
    })
    .collect()
}
