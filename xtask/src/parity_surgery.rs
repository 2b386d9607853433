//! `cargo xtask parity-surgery [JOB...]`: reshaped checkpoints beside what the reference tools make of the same inputs.
//!
//! Slow; each job sets up the Python environment that it needs. What they make lies under target/parity-surgery.

mod adapters;
mod merge;
mod quantize;
mod trim_vocab;

use std::path::Path;

use anyhow::{Context, Result, ensure};

/// Name, what it compares, and the function; it gets the program and a folder of its own.
type Job = (&'static str, &'static str, fn(&Path, &Path) -> Result<Vec<Check>>);

/// Sorted by name.
const JOBS: &[Job] = &[
    ("adapters", "adapters fused and extracted, beside peft", adapters::run),
    ("merge", "every method of merge beside mergekit", merge::run),
    (
        "quantize",
        "every ggml type beside llama-quantize, nf4, fp4 and int8 beside bitsandbytes",
        quantize::run,
    ),
    ("trim-vocab", "kept pieces and rows beside lm-vocab-trimmer's", trim_vocab::run),
];

/// One comparison.
pub(crate) struct Check {
    /// What was compared, and what came.
    pub(crate) line: String,
    /// Whether it is within its bound.
    pub(crate) is_fine: bool,
}

/// Runs the named jobs, or all; prints one line a comparison, and fails when any of them does.
pub(crate) fn run(arguments: &[String]) -> Result<()> {
    for wanted in arguments {
        let known: Vec<String> = JOBS.iter().map(|job| format!("  {:10} {}", job.0, job.1)).collect();
        ensure!(JOBS.iter().any(|job| job.0 == wanted), "no job {wanted}; there are\n{}", known.join("\n"));
    }
    let program = crate::built_program()?;
    let mut failures = Vec::new();
    for (name, _, job) in
        JOBS.iter().filter(|job| arguments.is_empty() || arguments.iter().any(|a| a == job.0))
    {
        let folder = crate::root().join("target/parity-surgery").join(name);
        if folder.exists() {
            std::fs::remove_dir_all(&folder)
                .with_context(|| format!("cannot remove {}", folder.display()))?;
        }
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        for check in job(&program, &folder)? {
            println!("{} {}", if check.is_fine { "ok  " } else { "FAIL" }, check.line);
            if !check.is_fine {
                failures.push(check.line);
            }
        }
    }
    ensure!(failures.is_empty(), "{} comparisons failed:\n{}", failures.len(), failures.join("\n"));
    Ok(())
}
