//! `cargo xtask python-env`: the pinned Python environment that golden files and side-by-side checks come from.
//!
//! The program itself never needs Python. LUTHIER_REFERENCE_PYTHON names an interpreter that has the packages already.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// The packages, pinned: golden files are what these versions compute.
const REQUIREMENTS: [&str; 9] = [
    "torch==2.15.0",
    "transformers==5.23.0",
    "peft==0.21.2",
    "gguf==0.19.0",
    "safetensors==0.8.0",
    "sentencepiece==0.2.3",
    "protobuf==7.36.2",
    "numpy==2.4.6",
    "jinja2==3.1.6",
];

/// The environment variable that names an interpreter to use as it is.
const VARIABLE: &str = "LUTHIER_REFERENCE_PYTHON";

/// Makes the environment where it is missing, checks the versions, and prints the interpreter's path.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    ensure!(arguments.is_empty(), "python-env takes no arguments, came {arguments:?}");
    println!("{}", interpreter()?.display());
    Ok(())
}

/// The interpreter of the environment, made where it is missing.
pub(crate) fn interpreter() -> Result<PathBuf> {
    #[allow(clippy::disallowed_methods)] // Only xtask and the program itself read the environment.
    if let Some(given) = std::env::var_os(VARIABLE) {
        let given = PathBuf::from(given);
        check_versions(&given)
            .with_context(|| format!("{VARIABLE} names an interpreter that does not fit"))?;
        return Ok(given);
    }
    let folder = crate::root().join("target/python/transformers");
    let interpreter = folder.join("bin/python");
    if interpreter.exists() && check_versions(&interpreter).is_ok() {
        return Ok(interpreter);
    }
    println!("setting up {} (several GB, once)", folder.display());
    succeed(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
    succeed(Command::new(&interpreter).args(["-m", "pip", "install", "--quiet"]).args(REQUIREMENTS))?;
    check_versions(&interpreter)?;
    Ok(interpreter)
}

/// Runs a command, its output shown, and refuses when it does not end well.
pub(crate) fn succeed(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start {command:?}"))?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(())
}

fn check_versions(interpreter: &std::path::Path) -> Result<()> {
    let script =
        "import importlib.metadata as m, sys\nfor name in sys.argv[1:]: print(name + '==' + m.version(name))";
    let names = REQUIREMENTS.map(|requirement| requirement.split("==").next().unwrap_or(requirement));
    let output = Command::new(interpreter)
        .args(["-c", script])
        .args(names)
        .output()
        .with_context(|| format!("cannot start {}", interpreter.display()))?;
    ensure!(
        output.status.success(),
        "{}: {}",
        interpreter.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8_lossy(&output.stdout);
    for (wanted, came) in REQUIREMENTS.iter().zip(text.lines()) {
        if *wanted != came {
            bail!("{}: wanted {wanted}, came {came}", interpreter.display());
        }
    }
    Ok(())
}
