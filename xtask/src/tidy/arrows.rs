//! Which crate may depend on which, and that no architecture imports another.

use std::path::Path;

use super::Fault;

/// The arrows of ARCHITECTURE.md.
const ARROWS: &[(&str, &[&str])] = &[
    ("luthier-kernels", &[]),
    ("luthier-ops", &["kernels"]),
    ("luthier-text", &[]),
    ("luthier-checkpoint", &["kernels", "text"]),
    ("luthier-arch", &["ops", "checkpoint", "kernels"]),
    ("luthier-surgery", &["arch", "checkpoint", "text", "kernels"]),
    ("luthier-train", &["arch", "ops", "checkpoint", "text", "kernels"]),
    ("luthier-generate", &["arch", "ops", "checkpoint", "text"]),
    ("luthier-measure", &["generate", "arch", "ops", "checkpoint", "text"]),
    ("luthier", &["kernels", "ops", "text", "checkpoint", "arch", "surgery", "train", "generate", "measure"]),
];

/// Folders of luthier-arch/src that architectures share; every other file there is an architecture or the table.
const ARCH_SHARED: &[&str] =
    &["lib.rs", "table.rs", "model.rs", "error.rs", "config.rs", "load.rs", "init.rs"];

pub(super) fn check(root: &Path) -> anyhow::Result<Vec<Fault>> {
    let mut faults = Vec::new();
    for entry in std::fs::read_dir(root.join("crates"))? {
        let name = entry?.file_name().to_string_lossy().to_string();
        let Some((_, allowed)) = ARROWS.iter().find(|(known, _)| *known == name) else {
            faults.push(format!("crates/{name}: not in the table of xtask/src/tidy/arrows.rs"));
            continue;
        };
        let manifest = std::fs::read_to_string(root.join("crates").join(&name).join("Cargo.toml"))?;
        for line in manifest.lines().take_while(|line| *line != "[dev-dependencies]") {
            let Some(dependency) =
                line.strip_prefix("luthier-").and_then(|rest| rest.split(['.', ' ', '=']).next())
            else {
                continue;
            };
            if !allowed.contains(&dependency) {
                faults.push(format!(
                    "crates/{name}/Cargo.toml: the arrow to luthier-{dependency} is not in DESIGN"
                ));
            }
        }
    }
    faults.extend(architectures_apart(root)?);
    Ok(faults)
}

fn architectures_apart(root: &Path) -> anyhow::Result<Vec<Fault>> {
    let folder = root.join("crates/luthier-arch/src");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&folder)? {
        let name = entry?.file_name().to_string_lossy().to_string();
        if name.ends_with(".rs") && !ARCH_SHARED.contains(&name.as_str()) {
            names.push(name.trim_end_matches(".rs").to_string());
        }
    }
    let known = std::fs::read_to_string(folder.join("table.rs")).unwrap_or_default();
    let architectures: Vec<&String> =
        names.iter().filter(|name| known.contains(&format!("{name}::"))).collect();
    let mut faults = Vec::new();
    for name in &architectures {
        let text = std::fs::read_to_string(folder.join(format!("{name}.rs")))?;
        for other in &architectures {
            if other != name && text.contains(&format!("crate::{other}")) {
                faults.push(format!("crates/luthier-arch/src/{name}.rs imports the architecture {other}"));
            }
        }
    }
    Ok(faults)
}
