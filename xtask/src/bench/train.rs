//! `cargo xtask bench train`: our training step beside PyTorch's, interleaved in one run.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;
use serde_json::{Value, json};

use super::{json_of, median, number, option, say, write_run};
use crate::python_env::succeed;

pub(super) const HELP: &str =
    "bench train [--model FOLDER --name NAME --batch 4 --seq 256 --lora-rank 16 | --only NAME] [--steps 8] [--rounds 5] [--threads 2]
  Without --model: SmolLM2-135M whole and by an adapter beside all projections (4 x 256 tokens), and a Llama of 15 million
  parameters (8 x 256), f32; --only names one of them: train-smollm2-135m, lora-smollm2-135m, train-llama-15m. Beside PyTorch
  eager (adapters: peft), the last also beside torch.compile.
  FOLDER is a Hugging Face folder that transformers can train. PyTorch's Python is made where it is missing
  (`cargo xtask python-env`: several GB, once), or named by LUTHIER_REFERENCE_PYTHON.";

/// One workload: the file that its figures go to, a folder in f32, and the tokens of a step.
struct Workload {
    name: String,
    model: PathBuf,
    batch: usize,
    seq: usize,
    /// Of an adapter that is trained in place of the model.
    lora_rank: Option<usize>,
    peers: &'static [Peer],
}

/// A way in which PyTorch trains: its name in figures and in words, and what its script is told.
struct Peer {
    key: &'static str,
    name: &'static str,
    flags: &'static [&'static str],
}

const EAGER: Peer = Peer { key: "pytorch", name: "PyTorch eager", flags: &[] };
const PEFT: Peer = Peer { key: "peft", name: "peft", flags: &[] };
const COMPILED: Peer = Peer { key: "torch_compile", name: "torch.compile", flags: &["--compile"] };

/// Runs both sides `rounds` times in turn and prints medians and ratios.
pub(super) fn run(arguments: &[String]) -> anyhow::Result<()> {
    let number = |name: &str, default: usize| number(arguments, name, default);
    let (steps, rounds, threads) = (number("--steps", 8)?, number("--rounds", 5)?, number("--threads", 2)?);
    let program = crate::built_program()?;
    let python = crate::python_env::TRANSFORMERS.interpreter()?;
    let workloads = match option(arguments, "--model") {
        Some(model) => {
            let lora_rank = option(arguments, "--lora-rank").map(|_| number("--lora-rank", 0)).transpose()?;
            vec![Workload {
                name: option(arguments, "--name").unwrap_or_else(|| "train".to_string()),
                model: model.into(),
                batch: number("--batch", 4)?,
                seq: number("--seq", 256)?,
                lora_rank,
                peers: if lora_rank.is_some() { &[PEFT] } else { &[EAGER] },
            }]
        }
        None => chosen(standard_workloads(&program, &python)?, option(arguments, "--only"))?,
    };
    for workload in &workloads {
        compare(workload, &program, &python, [steps, rounds, threads])?;
    }
    Ok(())
}

/// All, or the one of that name.
fn chosen(workloads: Vec<Workload>, name: Option<String>) -> anyhow::Result<Vec<Workload>> {
    let Some(name) = name else { return Ok(workloads) };
    let known: Vec<String> = workloads.iter().map(|workload| workload.name.clone()).collect();
    let found: Vec<Workload> = workloads.into_iter().filter(|workload| workload.name == name).collect();
    anyhow::ensure!(!found.is_empty(), "--only {name}: wanted one of {}", known.join(", "));
    Ok(found)
}

/// The three that we publish, made where they are missing.
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
    let workload = |name: &str, model, batch, lora_rank, peers| Workload {
        name: name.to_string(),
        model,
        batch,
        seq: 256,
        lora_rank,
        peers,
    };
    Ok(vec![
        workload("train-smollm2-135m", smollm2.clone(), 4, None, &[EAGER]),
        workload("lora-smollm2-135m", smollm2, 4, Some(16), &[PEFT]),
        workload("train-llama-15m", llama, 8, None, &[EAGER, COMPILED]),
    ])
}

fn compare(
    workload: &Workload,
    program: &Path,
    python: &Path,
    [steps, rounds, threads]: [usize; 3],
) -> anyhow::Result<()> {
    let (name, batch, seq) = (&workload.name, workload.batch, workload.seq);
    let shape = [batch, seq, steps, threads].map(|n| n.to_string());
    let mut flags =
        vec!["--batch", &shape[0], "--seq", &shape[1], "--steps", &shape[2], "--threads", &shape[3]];
    let rank = workload.lora_rank.map(|rank| rank.to_string());
    flags.extend(rank.iter().flat_map(|rank| ["--lora-rank", rank]));
    let mut ours = Vec::new();
    let mut theirs: Vec<Vec<Value>> = vec![Vec::new(); workload.peers.len()];
    let speed_of = |run: &Value| run["train_tokens_per_s"].as_f64().unwrap_or(f64::NAN);
    for round in 0..rounds {
        let mut command = Command::new(program);
        let run =
            json_of(command.arg("bench").arg(&workload.model).args(["--train", "--json"]).args(&flags))?;
        let mut line = format!("{name}, round {}: luthier {:.0} tokens/s", round + 1, speed_of(&run));
        ours.push(run);
        for (peer, runs) in workload.peers.iter().zip(&mut theirs) {
            let mut command = Command::new(python);
            let script = crate::root().join("tools/reference/train_step.py");
            command.arg(script).arg(&workload.model).args(&flags).args(peer.flags);
            let run = json_of(&mut command)?;
            line += &format!(", {} {:.0} tokens/s", peer.name, speed_of(&run));
            runs.push(run);
        }
        say(&line);
    }
    let mut summary = json!({
        "batch": batch, "seq": seq, "steps": steps, "threads": threads, "rounds": rounds,
        "lora_rank": workload.lora_rank, "luthier": ours,
    });
    for (peer, runs) in workload.peers.iter().zip(theirs) {
        let speed = median(&ours, "train_tokens_per_s")? / median(&runs, "train_tokens_per_s")?;
        let memory = median(&ours, "peak_rss_bytes")? / median(&runs, "peak_rss_bytes")?;
        say(&format!(
            "{name}: tokens/s {speed:.2} x {}, peak memory {:.0}% of its",
            peer.name,
            memory * 100.0
        ));
        summary[peer.key] = json!({"tokens_per_s_ratio": speed, "peak_rss_ratio": memory, "runs": runs});
    }
    write_run(name, &summary)
}
