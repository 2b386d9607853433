//! `cargo xtask golden`: makes the golden files again with tools/golden and the pinned Python environments.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::python_env::{BITSANDBYTES, Environment, MERGEKIT, TRANSFORMERS, VOCABTRIMMER};

/// A part of another script.
const PART: &str = "joined";

/// Runs every script of tools/golden, or those whose names (without .py) are given, from the repository's root.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    let folder = crate::root().join("tools/golden");
    let mut scripts = Vec::new();
    for entry in std::fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "py") && stem(&path) != PART {
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
    for script in scripts.iter().filter(|path| arguments.is_empty() || arguments.contains(&stem(path))) {
        println!("{}", script.display());
        let mut command = Command::new(environment(&stem(script)).interpreter()?);
        command.arg(script).arg("golden").current_dir(crate::root());
        if stem(script) == "quantize" {
            command.env(crate::llama_cpp::VARIABLE, crate::llama_cpp::build()?.programs());
        }
        crate::python_env::succeed(&mut command)?;
    }
    Ok(())
}

/// Where a script finds what it imports.
fn environment(script: &str) -> &'static Environment {
    match script {
        "merge" | "vocabularies" => &MERGEKIT,
        "bits_and_bytes" => &BITSANDBYTES,
        "trim_vocab" => &VOCABTRIMMER,
        _ => &TRANSFORMERS,
    }
}

fn stem(path: &Path) -> String {
    path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default()
}
