//! `luthier quantize` beside llama-quantize, with and without importance weights: every ggml type on SmolLM2-135M, whose rows
//! of 576 need the fall-back types, and on rows that 32 does not divide; values beside those that the package gguf reads;
//! perplexity beside llama.cpp's. Then nf4, fp4 and int8 beside bitsandbytes.

mod bits_and_bytes;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Check;
use crate::llama_cpp::{self, LlamaCpp};
use crate::python_env::{TRANSFORMERS, succeed};

/// All that both make without importance weights.
const TYPES: [&str; 18] = [
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_K_S", "Q4_K_M",
    "Q5_K_S", "Q5_K_M", "Q6_K", "TQ1_0", "TQ2_0", "F16", "BF16",
];
/// Those whose bytes depend on importance weights.
const WEIGHTED: [&str; 14] = [
    "Q2_K_S", "Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K_S", "Q4_K_M",
    "Q5_K_S", "Q5_K_M", "Q6_K",
];
/// Those for rows that 32 does not divide.
const NARROW: [&str; 4] = ["Q4_0", "Q8_0", "Q4_K_M", "TQ2_0"];
/// Those whose perplexity is compared, one of each kind. llama.cpp rounds activations, we do not.
const PERPLEXITY: [&str; 3] = ["Q8_0", "Q4_0", "Q4_K_M"];
const PERPLEXITY_BOUND: f64 = 0.006;

pub(super) fn run(program: &Path, folder: &Path) -> Result<Vec<Check>> {
    let setting = Setting {
        program: program.to_path_buf(),
        python: TRANSFORMERS.interpreter()?,
        llama_cpp: llama_cpp::build()?,
        folder: folder.to_path_buf(),
    };
    let text = crate::root().join("LICENSE-APACHE");
    let source = folder.join("source.gguf");
    setting.convert(&crate::fetch_models::smollm2()?, &source)?;
    let mut checks = Vec::new();
    for kind in TYPES {
        checks.push(setting.compare(&source, kind, None)?);
        if PERPLEXITY.contains(&kind) {
            checks.push(setting.perplexity(kind, &text)?);
        }
    }
    let (weights, older) = (folder.join("importance.gguf"), folder.join("importance.dat"));
    setting.llama_cpp.importance(&source, &text, "gguf", &weights)?;
    setting.llama_cpp.importance(&source, &text, "dat", &older)?;
    for kind in WEIGHTED {
        checks.push(setting.compare(&source, kind, Some(&weights))?);
    }
    for kind in ["Q2_K_S", "Q4_K_M"] {
        checks.push(setting.compare(&source, kind, Some(&older))?);
    }
    let narrow = folder.join("narrow");
    setting.script(&["narrow"], &[&narrow])?;
    let source = folder.join("narrow.gguf");
    setting.convert(&narrow, &source)?;
    for kind in NARROW {
        checks.push(setting.compare(&source, kind, None)?);
    }
    checks.extend(bits_and_bytes::run(program, folder)?);
    Ok(checks)
}

struct Setting {
    program: PathBuf,
    python: PathBuf,
    llama_cpp: LlamaCpp,
    folder: PathBuf,
}

impl Setting {
    fn convert(&self, from: &Path, to: &Path) -> Result<()> {
        let mut convert = Command::new(&self.program);
        convert.arg("convert").args([from, to]).args(["--dtype", "f32", "--force"]);
        succeed(convert.stdout(Stdio::null()).stderr(Stdio::null()))
    }

    fn script(&self, words: &[&str], paths: &[&Path]) -> Result<Vec<u8>> {
        let script = crate::root().join("tools/parity/quantize.py");
        let output = Command::new(&self.python).arg(script).args(words).args(paths).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(output.stdout)
    }

    /// Names, types, bytes, and the values that our reader gives.
    fn compare(&self, source: &Path, kind: &str, weights: Option<&Path>) -> Result<Check> {
        let [ours, theirs, wide] =
            ["ours.gguf", "theirs.gguf", "wide.gguf"].map(|name| self.folder.join(name));
        let mut quantize = Command::new(&self.program);
        quantize.arg("quantize").args([source, &ours]).args(["--to", kind, "--force", "--json"]);
        let mut peer = Command::new(self.llama_cpp.programs().join("llama-quantize"));
        if let Some(weights) = weights {
            quantize.arg("--imatrix").arg(weights);
            peer.arg("--imatrix").arg(weights);
        }
        succeed(quantize.stdout(Stdio::null()).stderr(Stdio::null()))?;
        succeed(peer.args([source, &theirs]).args([kind, "2"]).stdout(Stdio::null()).stderr(Stdio::null()))?;
        self.convert(&ours, &wide)?;
        let found: Value = serde_json::from_slice(&self.script(&["compare"], &[&ours, &theirs, &wide])?)
            .context("what the script prints")?;
        let count = |key: &str| found[key].as_array().map_or(usize::MAX, Vec::len);
        let [missing, types, bytes, values] =
            ["missing", "other_types", "other_bytes", "other_values"].map(count);
        let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let weights = weights.map_or(String::new(), |path| format!(" with {}", name(path)));
        let line = format!(
            "quantize {} to {kind}{weights}: of {} tensors {missing} are in one file alone, {types} have other types, {bytes} \
             other bytes; {values} are read as other values than gguf's",
            name(source),
            found["tensors"]
        );
        Ok(Check { line, is_fine: missing + types + bytes + values == 0 })
    }

    /// Of the file that was quantised last.
    fn perplexity(&self, kind: &str, text: &Path) -> Result<Check> {
        let model = self.folder.join("ours.gguf");
        let mut command = Command::new(&self.program);
        command.arg("perplexity").arg(&model).arg("--text").arg(text);
        let output = command.args(["--method", "llama.cpp", "--window", "512", "--json"]).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let ours: Value = serde_json::from_slice(&output.stdout)?;
        let ours = ours["perplexity"].as_f64().context("perplexity printed no number")?;
        let theirs = self.llama_cpp.perplexity(&model, text, 2)?;
        let line = format!("quantize {kind}: perplexity {ours:.4}, llama-perplexity's {theirs:.4}");
        Ok(Check { line, is_fine: (ours / theirs - 1.0).abs() <= PERPLEXITY_BOUND })
    }
}
