//! `cargo xtask bench eval`: perplexity beside llama-perplexity's, type by type: the number itself, and the time it takes.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{decode, json_of, median, number, option, say, write_run};
use crate::llama_cpp::LlamaCpp;

pub(super) const HELP: &str =
    "bench eval [--types Q4_0,Q8_0,Q4_K_M,F16] [--text FILE] [--bytes 100000] [--rounds 5] [--threads 2] [--against llama.cpp]
  Perplexity of SmolLM2-135M in each type over the first bytes of a text, Austen's Emma without --text, windows of 512, by
  llama-perplexity's method on both sides.";

/// Runs both sides `rounds` times in turn and prints medians and ratios.
pub(super) fn run(arguments: &[String]) -> Result<()> {
    let (rounds, threads) = (number(arguments, "--rounds", 5)?, number(arguments, "--threads", 2)?);
    let against = option(arguments, "--against").unwrap_or_else(|| "llama.cpp".to_string());
    ensure!(against == "llama.cpp", "--against {against}: perplexity is compared with llama.cpp alone");
    let program = crate::built_program()?;
    let peer = crate::llama_cpp::build()?;
    let text = option(arguments, "--text")
        .map_or_else(|| crate::root().join("../shared/data/austen_emma.txt"), PathBuf::from);
    let whole = std::fs::read(&text).with_context(|| format!("cannot read {}", text.display()))?;
    let bytes = number(arguments, "--bytes", 100_000)?.min(whole.len());
    let part = crate::root().join("target/bench/eval.txt");
    let types = option(arguments, "--types").unwrap_or_else(|| "Q4_0,Q8_0,Q4_K_M,F16".to_string());
    for kind in types.split(',') {
        let (name, file) = decode::smollm2(&program, kind)?;
        std::fs::write(&part, &whole[..bytes]).with_context(|| format!("cannot write {}", part.display()))?;
        compare(&name, &file, &part, (&program, &peer), rounds, threads)?;
    }
    Ok(())
}

fn compare(
    name: &str,
    file: &Path,
    text: &Path,
    (program, peer): (&Path, &LlamaCpp),
    rounds: usize,
    threads: usize,
) -> Result<()> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let mut command = Command::new(program);
        command.arg("perplexity").arg(file).arg("--text").arg(text).args(["--method", "llama.cpp"]);
        let started = Instant::now();
        let said = json_of(command.args(["--window", "512", "--threads", &threads.to_string(), "--json"]))?;
        ours.push(json!({"perplexity": said["perplexity"], "seconds": started.elapsed().as_secs_f64()}));
        let started = Instant::now();
        let perplexity = peer.perplexity(file, text, threads)?;
        theirs.push(json!({"perplexity": perplexity, "seconds": started.elapsed().as_secs_f64()}));
    }
    let (own, other) = (median(&ours, "perplexity")?, median(&theirs, "perplexity")?);
    let (own_s, other_s) = (median(&ours, "seconds")?, median(&theirs, "seconds")?);
    say(&format!(
        "{name}: perplexity {own:.4} to {other:.4} ({:+.3}%), {own_s:.1} to {other_s:.1} s ({:.2} x)",
        100.0 * (own / other - 1.0),
        other_s / own_s
    ));
    let summary = json!({
        "rounds": rounds, "threads": threads, "text_bytes": std::fs::metadata(text)?.len(),
        "perplexity_difference": own / other - 1.0, "ratio": other_s / own_s, "luthier": ours, "llama.cpp": theirs,
    });
    write_run(&format!("eval-{name}"), &summary)
}
