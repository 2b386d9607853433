//! `cargo xtask golden`: makes the golden files again with tools/golden and the pinned Python environment.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Runs every script of tools/golden, or those whose names (without .py) are given, from the repository's root.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let folder = crate::root().join("tools/golden");
    let mut scripts = Vec::new();
    for entry in std::fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "py") {
            scripts.push(path);
        }
    }
    scripts.sort();
    for wanted in arguments {
        let known = || scripts.iter().map(|path: &PathBuf| stem(path)).collect::<Vec<_>>().join(", ");
        ensure!(
            scripts.iter().any(|path: &PathBuf| stem(path) == *wanted),
            "no golden script {wanted}; there are {}",
            known()
        );
    }
    let interpreter = crate::python_env::interpreter()?;
    for script in scripts.iter().filter(|path| arguments.is_empty() || arguments.contains(&stem(path))) {
        println!("{}", script.display());
        crate::python_env::succeed(Command::new(&interpreter).arg(script).current_dir(crate::root()))?;
    }
    Ok(())
}

fn stem(path: &Path) -> String {
    path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default()
}
