//! `cargo xtask bench encdec`: an encoder-decoder of T5-small's shape beside CTranslate2, both in 8 bits, interleaved in one run.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::{json_of, median, number, say, write_run};
use crate::python_env::{CTRANSLATE2, succeed};

pub(super) const HELP: &str = "bench encdec [--rounds 5] [--threads 2]
  A random model of T5-small's shape: 128 tokens read, 64 written greedily, 1 and 8 texts together; Q8_0 beside
  CTranslate2's int8, and the tokens beside those of f32. CTranslate2's Python is made where it is missing, or named by
  LUTHIER_CTRANSLATE2_PYTHON.";

const SOURCE: usize = 128;
const TARGET: usize = 64;
const BATCHES: [usize; 2] = [1, 8];
/// Timed runs of a process, of which the median counts.
const RUNS: usize = 5;
/// Logits at least this far apart are told apart in 8 bits.
const CLEAR: f64 = 0.15;

/// The forms of the model.
struct Files {
    /// A Hugging Face folder, f32.
    folder: PathBuf,
    quantized: PathBuf,
    converted: PathBuf,
}

/// Runs both sides `rounds` times in turn and prints medians and ratios.
pub(super) fn run(arguments: &[String]) -> Result<()> {
    let (rounds, threads) = (number(arguments, "--rounds", 5)?, number(arguments, "--threads", 2)?);
    let (program, python) = (crate::built_program()?, CTRANSLATE2.interpreter()?);
    let files = files(&program, &python)?;
    check_tokens(&files, &program, &python, threads)?;
    for batch in BATCHES {
        compare(&files, &program, &python, [batch, rounds, threads])?;
    }
    Ok(())
}

/// Makes what is missing.
fn files(program: &Path, python: &Path) -> Result<Files> {
    let home = crate::root().join("target/bench");
    std::fs::create_dir_all(&home).with_context(|| format!("cannot make {}", home.display()))?;
    let at = |name: &str| home.join(name);
    let files = Files {
        folder: at("t5-small"),
        quantized: at("t5-small-Q8_0.gguf"),
        converted: at("t5-small-ctranslate2"),
    };
    if !files.folder.exists() {
        succeed(Command::new(python).arg(script("random_t5.py")).arg(&files.folder))?;
    }
    if !files.converted.exists() {
        let mut convert = Command::new(python);
        succeed(
            convert
                .arg(script("ctranslate2_greedy.py"))
                .arg("convert")
                .args([&files.folder, &files.converted]),
        )?;
    }
    if !files.quantized.exists() {
        let mut quantize = Command::new(program);
        succeed(quantize.arg("quantize").args([&files.folder, &files.quantized]).args(["--to", "Q8_0"]))?;
    }
    Ok(files)
}

fn script(name: &str) -> PathBuf {
    crate::root().join("tools/reference").join(name)
}

/// Refuses tokens of the 8 bits that differ from those of f32 where the two best logits are clearly apart.
fn check_tokens(files: &Files, program: &Path, python: &Path, threads: usize) -> Result<()> {
    let tokens =
        |model: &Path| -> Result<Value> { Ok(ours(program, model, [1, threads, 1])?["token_ids"].clone()) };
    let (plain, rounded) = (tokens(&files.folder)?, tokens(&files.quantized)?);
    let (Some(plain), Some(rounded)) = (plain.as_array(), rounded.as_array()) else {
        anyhow::bail!("luthier bench tells no tokens")
    };
    let Some(at) = plain.iter().zip(rounded).position(|(plain, rounded)| plain != rounded) else {
        say(&format!("all {TARGET} tokens are those of f32"));
        return Ok(());
    };
    let before: Vec<String> = plain[..at].iter().map(Value::to_string).collect();
    let mut ask = Command::new(python);
    ask.arg(script("t5_margin.py")).arg(&files.folder).args(["--source", &SOURCE.to_string()]);
    let margin = json_of(ask.arg("--before").arg(before.join(",")))?["margin"].as_f64();
    let margin = margin.context("t5_margin.py tells no margin")?;
    ensure!(margin < CLEAR, "token {at} is not that of f32, where the best logits are {margin:.3} apart");
    say(&format!(
        "the first {at} of {TARGET} tokens are those of f32, the next has logits {margin:.3} apart"
    ));
    Ok(())
}

fn ours(program: &Path, model: &Path, [batch, threads, runs]: [usize; 3]) -> Result<Value> {
    let [source, target, batch, threads, runs] =
        [SOURCE, TARGET, batch, threads, runs].map(|n| n.to_string());
    let mut command = Command::new(program);
    command.arg("bench").arg(model).args(["--prompt-tokens", &source, "--new-tokens", &target]);
    json_of(command.args(["--batch", &batch, "--threads", &threads, "--runs", &runs, "--json"]))
}

fn compare(files: &Files, program: &Path, python: &Path, [batch, rounds, threads]: [usize; 3]) -> Result<()> {
    let (mut own, mut peer) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let mut said = ours(program, &files.quantized, [batch, threads, RUNS])?;
        let number = |key: &str| said[key].as_f64().with_context(|| format!("luthier bench tells no {key}"));
        let after_the_first = ((TARGET - 1) * batch) as f64 / number("decode_tokens_per_s")?;
        said["seconds"] = json!(number("time_to_first_token_ms")? / 1e3 + after_the_first);
        own.push(said);
        let mut command = Command::new(python);
        command.arg(script("ctranslate2_greedy.py")).arg("time").arg(&files.converted);
        let counts = [SOURCE, TARGET, batch, threads, RUNS].map(|n| n.to_string());
        for (flag, count) in
            ["--source", "--target", "--batch", "--threads", "--runs"].into_iter().zip(&counts)
        {
            command.args([flag, count]);
        }
        peer.push(json_of(&mut command)?);
    }
    let (own_s, peer_s) = (median(&own, "seconds")?, median(&peer, "seconds")?);
    let ratio = peer_s / own_s;
    say(&format!(
        "{batch} together: {:.1} ms to CTranslate2's {:.1} ms ({ratio:.2} x); first token after {:.1} ms, then {:.0} tokens/s",
        own_s * 1e3,
        peer_s * 1e3,
        median(&own, "time_to_first_token_ms")?,
        median(&own, "decode_tokens_per_s")?
    ));
    let summary = json!({
        "source_tokens": SOURCE, "target_tokens": TARGET, "batch": batch, "threads": threads, "rounds": rounds,
        "runs_a_round": RUNS, "ratio": ratio, "luthier": own, "ctranslate2": peer,
    });
    write_run(&format!("encdec-{batch}"), &summary)
}
