//! `luthier fuse-adapter` and `luthier extract-adapter` beside peft, on random models of several families.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Check;
use crate::python_env::{TRANSFORMERS, succeed};

pub(super) fn run(program: &Path, folder: &Path) -> Result<Vec<Check>> {
    let script = crate::root().join("tools/parity/adapters.py");
    let python = TRANSFORMERS.interpreter()?;
    succeed(Command::new(&python).arg(&script).arg("make").arg(folder).stderr(Stdio::null()))?;
    let ours = |arguments: &[&str]| {
        succeed(Command::new(program).args(arguments).arg("--json").current_dir(folder).stdout(Stdio::null()))
    };
    let mut adapters = Vec::new();
    for entry in std::fs::read_dir(folder.join("adapters"))? {
        adapters.push(entry?.file_name().to_string_lossy().into_owned());
    }
    adapters.sort();
    ensure!(!adapters.is_empty(), "{} made no adapters", script.display());
    let family = |name: &str| name.split_once('-').map_or(name, |(family, _)| family).to_string();
    for name in &adapters {
        let (base, adapter, out) =
            (format!("{}-base", family(name)), format!("adapters/{name}"), format!("fused/{name}"));
        ours(&["fuse-adapter", &base, &adapter, &out])?;
    }
    let mut families: Vec<String> = adapters.iter().map(|name| family(name)).collect();
    families.dedup();
    for family in &families {
        let (base, tuned) = (format!("{family}-base"), format!("{family}-tuned"));
        let all =
            ["extract-adapter", "--base", &base, "--tuned", &tuned, "--embeddings", "--norms", "--biases"];
        for (size, options) in [("whole", ["--energy", "1"]), ("cut", ["--rank", "4"])] {
            let out = format!("extracted/{family}-{size}");
            ours(&[&all[..], &options, &[&out]].concat())?;
        }
    }
    let output = Command::new(&python).arg(&script).arg("compare").arg(folder).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found: Vec<Value> = serde_json::from_slice(&output.stdout).context("what the script prints")?;
    found.iter().map(check).collect()
}

fn check(found: &Value) -> Result<Check> {
    let name = found["name"].as_str().unwrap_or("?");
    let (Some(max_abs), Some(bound)) = (found["max_abs"].as_f64(), found["bound"].as_f64()) else {
        return Ok(Check { line: format!("{name}: other tensors than peft's"), is_fine: false });
    };
    let is_fine = max_abs <= bound && found["same_names"] == true;
    Ok(Check { line: format!("{name}: max abs {max_abs:.1e}"), is_fine })
}
