//! Rules about texts: links that lead somewhere, no paths of one machine, names that say something.

use std::path::{Path, PathBuf};

use super::Fault;

const BANNED_FILE_NAMES: &[&str] = &["utils", "util", "misc", "common", "helpers"];

pub(super) fn check(root: &Path, tracked: &[PathBuf]) -> anyhow::Result<Vec<Fault>> {
    let mut faults = Vec::new();
    for path in tracked {
        let name = path.to_string_lossy().replace('\\', "/");
        let stem = path.file_stem().map(|stem| stem.to_string_lossy().to_string()).unwrap_or_default();
        if name.ends_with(".rs") && BANNED_FILE_NAMES.contains(&stem.as_str()) {
            faults.push(format!("{name}: name the file for what it holds"));
        }
        let is_text =
            [".rs", ".md", ".toml", ".py", ".yaml", ".yml", ".txt"].iter().any(|end| name.ends_with(end));
        if !is_text || name.starts_with("golden/") || name.starts_with("xtask/src/tidy") {
            continue;
        }
        let text = std::fs::read_to_string(root.join(path))?;
        for (index, line) in text.lines().enumerate() {
            if ["/work/", "/opt/", "/root/", "/home/"].iter().any(|prefix| line.contains(prefix)) {
                faults.push(format!("{name}:{}: a path of one machine", index + 1));
            }
        }
        if name.ends_with(".md") {
            faults.extend(broken_links(root, path, &text));
        }
    }
    Ok(faults)
}

fn broken_links(root: &Path, path: &Path, text: &str) -> Vec<Fault> {
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut faults = Vec::new();
    for piece in text.split("](").skip(1) {
        let Some(target) = piece.split(')').next() else { continue };
        let file = target.split('#').next().unwrap_or("");
        if file.is_empty() || target.contains("://") || target.starts_with("mailto:") {
            continue;
        }
        if !root.join(folder).join(file).exists() {
            faults.push(format!("{}: the link to {target} leads nowhere", path.display()));
        }
    }
    faults
}
