//! `cargo xtask bench train`: our training step beside PyTorch's, interleaved in one run.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use serde_json::json;

use super::{json_of, median, number, option, say, write_run};
use crate::python_env::succeed;

pub(super) const HELP: &str =
    "bench train [--model FOLDER --name NAME --batch 4 --seq 256] [--steps 8] [--rounds 5] [--threads 2]
  Without --model: SmolLM2-135M (4 x 256 tokens) and a Llama of 15 million parameters (8 x 256), f32.
  FOLDER is a Hugging Face folder that transformers can train. PyTorch's Python is made where it is missing
  (`cargo xtask python-env`: several GB, once), or named by LUTHIER_REFERENCE_PYTHON.";

/// One workload: the file that its figures go to, a folder in f32, and the tokens of a step.
struct Workload {
    name: String,
    model: PathBuf,
    batch: usize,
    seq: usize,
}

/// Runs both sides `rounds` times in turn and prints medians and ratios.
pub(super) fn run(arguments: &[String]) -> anyhow::Result<()> {
    let number = |name: &str, default: usize| number(arguments, name, default);
    let (steps, rounds, threads) = (number("--steps", 8)?, number("--rounds", 5)?, number("--threads", 2)?);
    let program = crate::built_program()?;
    let python = crate::python_env::TRANSFORMERS.interpreter()?;
    let workloads = match option(arguments, "--model") {
        Some(model) => vec![Workload {
            name: option(arguments, "--name").unwrap_or_else(|| "train".to_string()),
            model: model.into(),
            batch: number("--batch", 4)?,
            seq: number("--seq", 256)?,
        }],
        None => standard_workloads(&program, &python)?,
    };
    for workload in &workloads {
        compare(workload, &program, &python, [steps, rounds, threads])?;
    }
    Ok(())
}

/// The two that we publish, made where they are missing.
fn standard_workloads(program: &Path, python: &Path) -> anyhow::Result<Vec<Workload>> {
    let folder = crate::root().join("target/bench");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let smollm2 = folder.join("smollm2-135m-f32");
    if !smollm2.exists() {
        let gguf = crate::fetch_models::smollm2()?;
        succeed(Command::new(program).arg("convert").args([&gguf, &smollm2]).args(["--dtype", "f32"]))?;
    }
    let llama = folder.join("llama-15m");
    if !llama.exists() {
        let script = crate::root().join("tools/reference/random_llama.py");
        succeed(Command::new(python).arg(script).arg(&llama))?;
    }
    let workload = |name: &str, model, batch| Workload { name: name.to_string(), model, batch, seq: 256 };
    Ok(vec![workload("train-smollm2-135m", smollm2, 4), workload("train-llama-15m", llama, 8)])
}

fn compare(
    workload: &Workload,
    program: &Path,
    python: &Path,
    [steps, rounds, threads]: [usize; 3],
) -> anyhow::Result<()> {
    let (name, batch, seq) = (&workload.name, workload.batch, workload.seq);
    let shape = [batch, seq, steps, threads].map(|n| n.to_string());
    let flags = ["--batch", &shape[0], "--seq", &shape[1], "--steps", &shape[2], "--threads", &shape[3]];
    let mut ours = Vec::new();
    let mut theirs = Vec::new();
    for round in 0..rounds {
        let mut command = Command::new(program);
        ours.push(json_of(
            command.arg("bench").arg(&workload.model).args(["--train", "--json"]).args(flags),
        )?);
        let mut command = Command::new(python);
        command.arg(crate::root().join("tools/reference/train_step.py")).arg(&workload.model).args(flags);
        theirs.push(json_of(&mut command)?);
        say(&format!(
            "{name}, round {}: luthier {:.0} tokens/s, PyTorch {:.0} tokens/s",
            round + 1,
            ours[round]["train_tokens_per_s"].as_f64().unwrap_or(f64::NAN),
            theirs[round]["train_tokens_per_s"].as_f64().unwrap_or(f64::NAN)
        ));
    }
    let speed = median(&ours, "train_tokens_per_s")? / median(&theirs, "train_tokens_per_s")?;
    let memory = median(&ours, "peak_rss_bytes")? / median(&theirs, "peak_rss_bytes")?;
    say(&format!("{name}: tokens/s {speed:.2} x PyTorch eager, peak memory {:.0}% of its", memory * 100.0));
    let summary = json!({
        "batch": batch, "seq": seq, "steps": steps, "threads": threads, "rounds": rounds,
        "tokens_per_s_ratio": speed, "peak_rss_ratio": memory, "luthier": ours, "pytorch": theirs,
    });
    write_run(name, &summary)
}
