//! `cargo xtask bench WHAT`: our speed beside a peer's, interleaved in one run; figures go to bench/runs.

mod billion;
mod decode;
mod encdec;
mod eval;
mod machine;
mod peers;
mod rounded;
mod surgery;
mod train;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Runs what the first argument names.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    match arguments.first().map(String::as_str) {
        Some("decode") => decode::run(&arguments[1..]),
        Some("encdec") => encdec::run(&arguments[1..]),
        Some("eval") => eval::run(&arguments[1..]),
        Some("machine") => machine::run(&arguments[1..]),
        Some("surgery") => surgery::run(&arguments[1..]),
        Some("train") => train::run(&arguments[1..]),
        _ => bail!(
            "cargo xtask\n{}",
            [decode::HELP, encdec::HELP, eval::HELP, machine::HELP, surgery::HELP, train::HELP].join("\n")
        ),
    }
}

/// The value after `name`.
fn option(arguments: &[String], name: &str) -> Option<String> {
    let at = arguments.iter().position(|argument| argument == name)?;
    arguments.get(at + 1).cloned()
}

/// The number after `name`.
fn number(arguments: &[String], name: &str, default: usize) -> Result<usize> {
    option(arguments, name)
        .map_or(Ok(default), |text| text.parse().with_context(|| format!("{name} {text}: wanted a number")))
}

/// Runs a command and reads the one JSON object on its standard output.
fn json_of(command: &mut Command) -> Result<Value> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    if !output.status.success() {
        bail!("{command:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    serde_json::from_slice(&output.stdout).with_context(|| format!("{command:?}: wanted one JSON object"))
}

fn median(runs: &[Value], key: &str) -> Result<f64> {
    let mut values: Vec<f64> = runs.iter().filter_map(|run| run[key].as_f64()).collect();
    if values.len() != runs.len() || values.is_empty() {
        bail!("a run has no number {key}");
    }
    values.sort_by(f64::total_cmp);
    Ok(values[values.len() / 2])
}

/// Writes the figures of one workload to `bench/runs/<date>-<processor>/<name>.json`.
fn write_run(name: &str, summary: &Value) -> Result<()> {
    let folder = run_folder()?;
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let file = folder.join(format!("{name}.json"));
    std::fs::write(&file, format!("{summary:#}\n"))
        .with_context(|| format!("cannot write {}", file.display()))?;
    say(&format!("written to {}", file.display()));
    Ok(())
}

fn run_folder() -> Result<PathBuf> {
    let date = Command::new("date").arg("+%Y-%m-%d").output()?;
    let date = String::from_utf8(date.stdout)?.trim().to_string();
    let cpu = std::fs::read_to_string(Path::new("/proc/cpuinfo")).unwrap_or_default();
    let value = |key: &str| {
        let line = cpu.lines().find(|line| line.split(':').next().is_some_and(|name| name.trim() == key));
        line.and_then(|line| line.split(':').nth(1)).unwrap_or("unknown")
    };
    // Rented machines often hide the processor's name, but not its family and model.
    let processor = [value("model name"), value("cpu family"), value("model")].join(" ");
    let slug: Vec<String> = processor
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
        .collect();
    let cores = std::thread::available_parallelism()?.get();
    Ok(crate::root().join("bench/runs").join(format!("{date}-{}-{cores}-cores", slug.join("-"))))
}

fn say(line: &str) {
    println!("{line}");
}
