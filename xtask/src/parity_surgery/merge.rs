//! Every method of `luthier merge`, and every source of a tokenizer, beside mergekit, on random models.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Check;
use crate::python_env::{MERGEKIT, succeed};

/// mergekit and we compute in f32; sums may be taken in another order.
const MAX_ABS: f64 = 1e-6;
/// Of methods that draw at random: by how much the share of values that the base keeps may differ.
const MAX_SHARE: f64 = 0.01;
/// Of the same: by how much the size of the change (root mean square) may differ, as a share of it.
const MAX_SIZE: f64 = 0.02;

pub(super) fn run(program: &Path, folder: &Path) -> Result<Vec<Check>> {
    let python = MERGEKIT.interpreter()?;
    let mut checks = Vec::new();
    for script in ["merge", "merge_vocabularies"] {
        let own = folder.join(script);
        std::fs::create_dir_all(&own)?;
        let script = crate::root().join(format!("tools/parity/{script}.py"));
        checks.extend(compared(program, &own, &script, &python)?);
    }
    Ok(checks)
}

/// Runs one script's recipes, and compares.
fn compared(program: &Path, folder: &Path, script: &Path, python: &Path) -> Result<Vec<Check>> {
    // Silent: mergekit warns of every model that it opens.
    succeed(Command::new(python).arg(script).arg("make").arg(folder).stderr(Stdio::null()))?;
    let recipes = std::fs::read_dir(folder.join("recipes"))?;
    let mut recipes: Vec<_> =
        recipes.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    recipes.sort();
    ensure!(!recipes.is_empty(), "{} made no recipes", script.display());
    for recipe in &recipes {
        let name = recipe.file_stem().context("a recipe has a name")?;
        let mut merge = Command::new(program);
        merge.arg("merge").arg(recipe).arg(folder.join("ours").join(name)).arg("--json");
        succeed(merge.current_dir(folder).stdout(Stdio::null()))?;
    }
    let output = Command::new(python).arg(script).arg("compare").arg(folder).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found: Vec<Value> = serde_json::from_slice(&output.stdout).context("what the script prints")?;
    ensure!(found.len() == recipes.len(), "{} recipes, {} comparisons", recipes.len(), found.len());
    found.iter().map(check).collect()
}

fn check(found: &Value) -> Result<Check> {
    let number = |key: &str| found[key].as_f64().with_context(|| format!("{found} has no number {key}"));
    let name = found["name"].as_str().unwrap_or("?");
    if found["same_names"] != true {
        return Ok(Check { line: format!("merge {name}: other tensors than mergekit's"), is_fine: false });
    }
    if found["random"] == true {
        let (share, size) = (number("share_difference")?, number("size_ratio")? - 1.0);
        let line = format!(
            "merge {name}: share of unchanged values differs by {share:.1e}, size of the change by {size:.1e}"
        );
        return Ok(Check { line, is_fine: share.abs() <= MAX_SHARE && size.abs() <= MAX_SIZE });
    }
    let max_abs = number("max_abs")?;
    Ok(Check { line: format!("merge {name}: max abs {max_abs:.1e}"), is_fine: max_abs <= MAX_ABS })
}
