//! The programs that decoding is compared with: how each is set up, and how it says its speed.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};

use super::decode::{NEW_TOKENS, PROMPT_TOKENS, WORKS};
use super::{json_of, option, say};
use crate::python_env::{MISTRALRS, TRANSFORMERS, succeed};

/// Tokens a second of each of [`WORKS`], of one run on a file with that many threads.
type Measure = Box<dyn Fn(&Path, &str) -> Result<Value>>;

/// A program that is set up.
pub(super) struct Peer {
    pub(super) name: &'static str,
    pub(super) measure: Measure,
}

/// Name, and how it is set up.
type Known = (&'static str, fn() -> Result<Measure>);

const ALL: [Known; 4] =
    [("llama.cpp", llama_cpp), ("transformers", transformers), ("candle", candle), ("mistralrs", mistralrs)];

/// Those that `--against` names, llama.cpp alone without it. One that cannot be set up is reported and left out.
pub(super) fn named(arguments: &[String]) -> Result<Vec<Peer>> {
    let list = option(arguments, "--against").unwrap_or_else(|| "llama.cpp".to_string());
    let mut peers = Vec::new();
    for wanted in list.split(',') {
        let known: Vec<&str> = ALL.iter().map(|(name, _)| *name).collect();
        let found = ALL.iter().find(|(name, _)| *name == wanted);
        let (name, set_up) =
            found.with_context(|| format!("--against {wanted}: there are {}", known.join(", ")))?;
        match set_up() {
            Ok(measure) => peers.push(Peer { name, measure }),
            Err(problem) => say(&format!("{name} is not compared: {problem:#}")),
        }
    }
    ensure!(!peers.is_empty(), "--against {list}: nothing to compare with is left");
    Ok(peers)
}

fn counts() -> [String; 2] {
    [PROMPT_TOKENS, NEW_TOKENS].map(|count| count.to_string())
}

fn llama_cpp() -> Result<Measure> {
    let bench = crate::llama_cpp::build()?.programs().join("llama-bench");
    Ok(Box::new(move |file, threads| {
        let [prompt, new] = counts();
        let works = [
            ["-p", &prompt, "-n", "0", "-d", "0"],
            ["-p", "0", "-n", &new, "-d", &prompt],
            ["-p", "0", "-n", &new, "-d", "0"],
        ];
        let mut speeds = Map::new();
        for (name, work) in WORKS.into_iter().zip(works) {
            let mut command = Command::new(&bench);
            command.arg("-m").arg(file).args(["-t", threads, "-r", "1", "-o", "json"]).args(work);
            let said = json_of(&mut command)?;
            let said: Vec<f64> =
                said.as_array().into_iter().flatten().filter_map(|one| one["avg_ts"].as_f64()).collect();
            ensure!(said.len() == 1, "{command:?}: wanted one measurement, came {said:?}");
            speeds.insert(name.to_string(), json!(said[0]));
        }
        Ok(Value::Object(speeds))
    }))
}

fn transformers() -> Result<Measure> {
    let python = TRANSFORMERS.interpreter()?;
    Ok(Box::new(move |file, threads| {
        let mut command = script(&python, "transformers_decode.py");
        last_line(command.arg(file).args(counts()).arg(threads))
    }))
}

fn mistralrs() -> Result<Measure> {
    let python = MISTRALRS.interpreter()?;
    Ok(Box::new(move |file, threads| {
        let mut command = script(&python, "mistralrs_decode.py");
        last_line(command.env("RAYON_NUM_THREADS", threads).arg(file).args(counts()))
    }))
}

fn candle() -> Result<Measure> {
    let (source, target) =
        (crate::root().join("tools/peers/candle"), crate::root().join("target/peers/candle"));
    let mut build = Command::new("cargo");
    build.args(["build", "--release", "--quiet"]).current_dir(source);
    // It has no dispatch of its own at run time.
    succeed(build.env("CARGO_TARGET_DIR", &target).env("RUSTFLAGS", "-C target-cpu=native"))?;
    let program = target.join("release/candle-decode");
    Ok(Box::new(move |file, threads| {
        let mut command = Command::new(&program);
        command.env("RAYON_NUM_THREADS", threads).env("CANDLE_NUM_THREADS", threads);
        last_line(command.arg(file).args(counts()))
    }))
}

fn script(python: &PathBuf, name: &str) -> Command {
    let mut command = Command::new(python);
    command.arg(crate::root().join("tools/peers").join(name));
    command
}

/// The object on the last line of what a command prints.
fn last_line(command: &mut Command) -> Result<Value> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    let (said, problem) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{command:?}: {}\n{problem}", output.status);
    let line = said.lines().next_back().unwrap_or_default();
    serde_json::from_str(line).with_context(|| format!("{command:?}: wanted a JSON object last, came {line}"))
}
