//! `cargo xtask tidy`: rules that no compiler checks. Also a test, so that nobody can forget it.

mod arrows;
mod files;
mod prose;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

/// One broken rule: where, and what to do.
pub(crate) type Fault = String;

/// Prints every fault and fails when there is one.
pub(crate) fn run(_arguments: &[String]) -> anyhow::Result<()> {
    let faults = faults()?;
    if faults.is_empty() {
        return Ok(());
    }
    bail!("{} faults\n{}", faults.len(), faults.join("\n"))
}

fn faults() -> anyhow::Result<Vec<Fault>> {
    let root = crate::root();
    let tracked = tracked_files(&root)?;
    let mut faults = Vec::new();
    faults.extend(files::check(&root, &tracked)?);
    faults.extend(arrows::check(&root)?);
    faults.extend(prose::check(&root, &tracked)?);
    Ok(faults)
}

/// Files that git tracks or would track.
fn tracked_files(root: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let listed = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()
        .context("starting git ls-files")?;
    let names = String::from_utf8(listed.stdout)?;
    Ok(names.lines().map(PathBuf::from).filter(|path| root.join(path).is_file()).collect())
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_tree_is_tidy() {
        let faults = super::faults().unwrap();
        assert!(faults.is_empty(), "{}", faults.join("\n"));
    }
}
