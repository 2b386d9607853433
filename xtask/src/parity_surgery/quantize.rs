//! `luthier quantize` beside llama-quantize: every ggml type on SmolLM2-135M, whose rows of 576 need the fall-back types.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Check;
use crate::python_env::{TRANSFORMERS, succeed};

/// All that both make without importance weights.
const TYPES: [&str; 18] = [
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M",
    "Q5_K_S", "Q5_K_M", "Q6_K", "TQ1_0", "TQ2_0", "F16", "BF16",
];

pub(super) fn run(program: &Path, folder: &Path) -> Result<Vec<Check>> {
    let source = folder.join("source.gguf");
    let mut convert = Command::new(program);
    convert.arg("convert").arg(crate::fetch_models::smollm2()?).arg(&source).args(["--dtype", "f32"]);
    succeed(convert.stdout(Stdio::null()))?;
    let peer = crate::llama_cpp::build()?.programs().join("llama-quantize");
    let python = TRANSFORMERS.interpreter()?;
    TYPES.iter().map(|kind| compare(program, &peer, &python, &source, kind)).collect()
}

fn compare(program: &Path, peer: &Path, python: &Path, source: &Path, kind: &str) -> Result<Check> {
    let (ours, theirs) = (source.with_file_name("ours.gguf"), source.with_file_name("theirs.gguf"));
    let mut quantize = Command::new(program);
    quantize.arg("quantize").args([source, &ours]).args(["--to", kind, "--force", "--json"]);
    succeed(quantize.stdout(Stdio::null()))?;
    let mut quantize = Command::new(peer);
    quantize.args([source, &theirs]).args([kind, "2"]).stdout(Stdio::null()).stderr(Stdio::null());
    succeed(&mut quantize)?;
    let script = crate::root().join("tools/parity/quantize.py");
    let output = Command::new(python).arg(script).args([&ours, &theirs]).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found: Value = serde_json::from_slice(&output.stdout).context("what the script prints")?;
    let count = |key: &str| found[key].as_array().map_or(usize::MAX, Vec::len);
    let [missing, types, bytes] = ["missing", "other_types", "other_bytes"].map(count);
    let line = format!(
        "quantize {kind}: of {} tensors {missing} are in one file alone, {types} have other types, {bytes} other bytes",
        found["tensors"]
    );
    Ok(Check { line, is_fine: missing + types + bytes == 0 })
}
