//! nf4, fp4 and int8 folders beside bitsandbytes: codes and scales, and logits in transformers.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use luthier_checkpoint::safetensors::SafetensorsFile;
use luthier_checkpoint::{Dtype, TensorSource, values};
use serde_json::Value;

use crate::parity_surgery::Check;
use crate::python_env::{BITSANDBYTES, succeed};

/// Kind, and whether its scales are rounded too.
const KINDS: [(&str, bool); 5] =
    [("nf4", false), ("fp4", false), ("nf4", true), ("fp4", true), ("int8", false)];
/// Any tokens that the model has.
const TOKENS: &str = "1,504,3725,282,4649,314,7042,30,198,788,260,2240";
/// Logits lie between -20 and 30; both sides add up in f32, in other orders.
const MAX_ABS: f32 = 2e-3;

pub(super) fn run(program: &Path, folder: &Path) -> Result<Vec<Check>> {
    let python = BITSANDBYTES.interpreter()?;
    let gguf = crate::fetch_models::smollm2()?;
    let (source, out) = (folder.join("source"), folder.join("rounded"));
    let luthier = |arguments: &mut Command| succeed(arguments.stdout(Stdio::null()).stderr(Stdio::null()));
    luthier(Command::new(program).arg("convert").args([&gguf, &source]).args(["--dtype", "f32"]))?;
    let script = |words: &[&str], paths: &[&Path]| -> Result<Vec<u8>> {
        let script = crate::root().join("tools/parity/bits_and_bytes.py");
        let (first, rest) = words.split_first().context("a use of the script")?;
        let output = Command::new(&python).arg(script).arg(first).args(paths).args(rest).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(output.stdout)
    };
    let mut checks = Vec::new();
    for (kind, double) in KINDS {
        let mut quantize = Command::new(program);
        quantize.arg("quantize").args([&source, &out]).args(["--to", kind, "--force"]);
        luthier(if double { quantize.arg("--double") } else { &mut quantize })?;
        let said = script(&["tensors", kind, if double { "1" } else { "0" }], &[&source, &out])?;
        let found: Value = serde_json::from_slice(&said).context("what the script prints")?;
        let count = |key: &str| found[key].as_array().map_or(usize::MAX, Vec::len);
        let (codes, scales) = (count("other_codes"), count("other_scales"));
        let matrices = found["matrices"].as_u64().unwrap_or(0);
        let form = if double { " --double" } else { "" };
        checks.push(Check {
            line: format!("quantize {kind}{form}: of {matrices} matrices {codes} have other codes, {scales} other scales"),
            is_fine: matrices > 0 && codes + scales == 0,
        });
    }
    // From the GGUF file itself, opened by transformers.
    let (ours, theirs) = (folder.join("ours.safetensors"), folder.join("theirs.safetensors"));
    luthier(Command::new(program).arg("quantize").args([&gguf, &out]).args([
        "--to",
        "nf4",
        "--requantize",
        "--force",
    ]))?;
    let mut logits = Command::new(program);
    luthier(logits.arg("logits").arg(&out).args(["--tokens", TOKENS, "--force", "--out"]).arg(&ours))?;
    let mut reference = Command::new(&python);
    reference.arg(crate::root().join("tools/parity/bits_and_bytes.py")).arg("logits").arg(&out).arg(TOKENS);
    luthier(reference.arg(&theirs))?;
    let read = |path: &Path| -> Result<Vec<f32>> {
        let file = SafetensorsFile::open(path)?;
        Ok(values::to_f32("logits", Dtype::F32, &file.read("logits")?)?)
    };
    let (ours, theirs) = (read(&ours)?, read(&theirs)?);
    ensure!(ours.len() == theirs.len(), "{} logits, transformers has {}", ours.len(), theirs.len());
    let off = ours.iter().zip(&theirs).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
    let line = format!("quantize nf4 from a GGUF file: logits of transformers differ by {off:.1e} at most");
    checks.push(Check { line, is_fine: off <= MAX_ABS });
    Ok(checks)
}
