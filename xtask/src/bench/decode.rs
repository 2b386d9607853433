//! `cargo xtask bench decode`: reading a prompt and decoding beside llama.cpp, file by file, interleaved in one run.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{json_of, median, number, option, rounded, say, write_run};
use crate::llama_cpp::LlamaCpp;
use crate::python_env::succeed;

pub(super) const HELP: &str =
    "bench decode [--types Q4_0,Q8_0,Q4_K_M,F16 | --model FILE.gguf] [--rounds 5] [--threads 2]
  SmolLM2-135M in each type: prompt of 512 tokens, 128 tokens after it, 128 tokens from an empty context, and 8 sequences
  together (ours alone). llama.cpp is built where it is missing, or its programs are in the folder that LUTHIER_LLAMA_CPP
  names. Types nf4, fp4 and int8 run beside bitsandbytes, whose Python is made where it is missing, or named by
  LUTHIER_BITSANDBYTES_PYTHON.";

pub(super) const PROMPT_TOKENS: usize = 512;
pub(super) const NEW_TOKENS: usize = 128;
const TOGETHER: usize = 8;

/// One kind of work: its name, and the key of its figure.
const WORKS: [&str; 3] = ["prefill", "decode after a prompt", "decode from nothing"];

/// Runs both sides `rounds` times in turn and prints medians and ratios.
pub(super) fn run(arguments: &[String]) -> Result<()> {
    let (rounds, threads) =
        (number(arguments, "--rounds", 5)?, number(arguments, "--threads", 2)?.to_string());
    let program = crate::built_program()?;
    if let Some(file) = option(arguments, "--model") {
        let path = PathBuf::from(&file);
        let name = path.file_stem().map_or(file, |stem| stem.to_string_lossy().into_owned());
        return compare(&name, &path, &program, &crate::llama_cpp::build()?, rounds, &threads);
    }
    let types = option(arguments, "--types").unwrap_or_else(|| "Q4_0,Q8_0,Q4_K_M,F16".to_string());
    for kind in types.split(',') {
        if rounded::TYPES.contains(&kind) {
            rounded::compare(kind, &program, rounds, &threads)?;
            continue;
        }
        let peer = crate::llama_cpp::build()?;
        let file = smollm2(&program, kind)?;
        compare(kind, &file, &program, &peer, rounds, &threads)?;
    }
    Ok(())
}

/// SmolLM2-135M in a type, made where it is missing.
fn smollm2(program: &Path, kind: &str) -> Result<PathBuf> {
    let folder = crate::root().join("target/bench");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let file = folder.join(format!("smollm2-135m-{kind}.gguf"));
    if !file.exists() {
        let source = crate::fetch_models::smollm2()?;
        let is_float = ["F32", "F16", "BF16"].contains(&kind);
        let mut make = Command::new(program);
        match is_float {
            true => make.arg("convert").arg(&source).arg(&file).args(["--dtype", &kind.to_lowercase()]),
            false => make.arg("quantize").arg(&source).arg(&file).args(["--to", kind, "--requantize"]),
        };
        succeed(make.stdout(std::process::Stdio::null()))?;
    }
    Ok(file)
}

fn compare(
    name: &str,
    file: &Path,
    program: &Path,
    peer: &LlamaCpp,
    rounds: usize,
    threads: &str,
) -> Result<()> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let own = |prompt: usize, batch: usize| -> Result<Value> {
            let counts = [prompt, NEW_TOKENS, batch].map(|n| n.to_string());
            let mut command = Command::new(program);
            command.arg("bench").arg(file).args(["--prompt-tokens", &counts[0], "--new-tokens", &counts[1]]);
            json_of(command.args(["--batch", &counts[2], "--threads", threads, "--json"]))
        };
        let (after, from_nothing) = (own(PROMPT_TOKENS, 1)?, own(1, 1)?);
        let together = own(1, TOGETHER)?;
        ours.push(json!({
            WORKS[0]: after["prefill_tokens_per_s"], WORKS[1]: after["decode_tokens_per_s"],
            WORKS[2]: from_nothing["decode_tokens_per_s"], "together": together["decode_tokens_per_s"],
            "load_ms": after["load_ms"], "peak_rss_bytes": after["peak_rss_bytes"],
        }));
        let speed = |work: &[&str]| peer_speed(peer, file, threads, work);
        theirs.push(json!({
            WORKS[0]: speed(&["-p", "512", "-n", "0"])?, WORKS[1]: speed(&["-p", "0", "-n", "128", "-d", "512"])?,
            WORKS[2]: speed(&["-p", "0", "-n", "128"])?,
        }));
    }
    let mut ratios = serde_json::Map::new();
    let mut words = Vec::new();
    for work in WORKS {
        let (own, peer) = (median(&ours, work)?, median(&theirs, work)?);
        ratios.insert(work.to_string(), json!(own / peer));
        words.push(format!("{work} {own:.0} to {peer:.0} tokens/s ({:.2} x)", own / peer));
    }
    let together = median(&ours, "together")? / median(&ours, WORKS[2])?;
    let (load_ms, memory_bytes) = (median(&ours, "load_ms")?, median(&ours, "peak_rss_bytes")?);
    let file_bytes = std::fs::metadata(file)?.len();
    say(&format!(
        "{name}: {}; {TOGETHER} together {together:.2} x one; load {load_ms:.0} ms; memory {:.0} MB over the file's {:.0}",
        words.join(", "),
        (memory_bytes - file_bytes as f64) / 1e6,
        file_bytes as f64 / 1e6
    ));
    let summary = json!({
        "rounds": rounds, "threads": threads, "prompt_tokens": PROMPT_TOKENS, "new_tokens": NEW_TOKENS,
        "ratios": ratios, "together_ratio": together, "file_bytes": file_bytes, "luthier": ours, "llama.cpp": theirs,
    });
    write_run(&format!("decode-{name}"), &summary)
}

/// Tokens a second that llama-bench says, of one measurement after its warm-up.
fn peer_speed(peer: &LlamaCpp, file: &Path, threads: &str, work: &[&str]) -> Result<f64> {
    let mut command = Command::new(peer.programs().join("llama-bench"));
    command.arg("-m").arg(file).args(["-t", threads, "-r", "1", "-o", "json"]).args(work);
    let said = json_of(&mut command)?;
    let speeds: Vec<f64> =
        said.as_array().into_iter().flatten().filter_map(|one| one["avg_ts"].as_f64()).collect();
    ensure!(speeds.len() == 1, "{command:?}: wanted one measurement, came {said}");
    Ok(speeds[0])
}
