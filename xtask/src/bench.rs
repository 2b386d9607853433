//! `cargo xtask bench train`: our training step beside PyTorch's, interleaved in one run.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail, ensure};
use serde_json::{Value, json};

use crate::python_env::succeed;

const HELP: &str = "cargo xtask bench train [--model FOLDER --name NAME --batch 4 --seq 256] [--steps 8] [--rounds 5] [--threads 2]
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
pub(crate) fn run(arguments: &[String]) -> anyhow::Result<()> {
    ensure!(arguments.first().map(String::as_str) == Some("train"), "{HELP}");
    let number = |name: &str, default: usize| -> anyhow::Result<usize> {
        option(arguments, name)
            .map_or(Ok(default), |text| text.parse().with_context(|| format!("{name} {text}")))
    };
    let (steps, rounds, threads) = (number("--steps", 8)?, number("--rounds", 5)?, number("--threads", 2)?);
    let program = built_program()?;
    let python = crate::python_env::interpreter()?;
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
    let folder = run_folder()?;
    std::fs::create_dir_all(&folder)?;
    let file = folder.join(format!("{name}.json"));
    std::fs::write(&file, format!("{summary:#}\n"))?;
    say(&format!("written to {}", file.display()));
    Ok(())
}

/// The value after `name`.
fn option(arguments: &[String], name: &str) -> Option<String> {
    let at = arguments.iter().position(|argument| argument == name)?;
    arguments.get(at + 1).cloned()
}

fn built_program() -> anyhow::Result<PathBuf> {
    let status = Command::new("cargo").args(["build", "--release"]).current_dir(crate::root()).status()?;
    if !status.success() {
        bail!("cargo build --release did not pass");
    }
    Ok(crate::root().join("target/release/luthier"))
}

/// Runs a command and reads the one JSON object on its standard output.
fn json_of(command: &mut Command) -> anyhow::Result<Value> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    serde_json::from_slice(&output.stdout).with_context(|| format!("{command:?}: wanted one JSON object"))
}

fn median(runs: &[Value], key: &str) -> anyhow::Result<f64> {
    let mut values: Vec<f64> = runs.iter().filter_map(|run| run[key].as_f64()).collect();
    if values.len() != runs.len() {
        bail!("a run has no number {key}");
    }
    values.sort_by(f64::total_cmp);
    Ok(values[values.len() / 2])
}

/// `bench/runs/<date>-<processor>`.
fn run_folder() -> anyhow::Result<PathBuf> {
    let date = Command::new("date").arg("+%Y-%m-%d").output()?;
    let date = String::from_utf8(date.stdout)?.trim().to_string();
    let cpu = std::fs::read_to_string(Path::new("/proc/cpuinfo")).unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown processor");
    let slug: Vec<String> = model
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
        .collect();
    let cores = std::thread::available_parallelism()?.get();
    Ok(crate::root().join("bench/runs").join(format!("{date}-{}-{cores}-cores", slug.join("-"))))
}

#[allow(clippy::print_stdout)]
fn say(line: &str) {
    println!("{line}");
}
