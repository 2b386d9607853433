//! `cargo xtask VERB`: what keeps the repository in order; nothing here is part of the program.

#![allow(clippy::print_stdout, clippy::print_stderr)] // A program for the terminal.

mod bench;
mod ci;
mod fetch_models;
mod gen_docs;
mod golden;
mod llama_cpp;
mod parity;
mod parity_surgery;
mod python_env;
mod tidy;

use std::path::PathBuf;
use std::process::ExitCode;

/// Name, what it does, and the function.
type Verb = (&'static str, &'static str, fn(&[String]) -> anyhow::Result<()>);

/// Sorted by name.
const VERBS: &[Verb] = &[
    (
        "bench",
        "our speed beside a peer, interleaved: bench decode, encdec, eval, machine, surgery, train",
        bench::run,
    ),
    ("ci", "everything that must pass: tests, format, clippy, tidy, generated docs, rustdoc", ci::run),
    ("fetch-models", "fetch the real models that recipes use into models/cache/", fetch_models::run),
    ("gen", "write docs/verbs.md and its siblings from the code; --check only compares", gen_docs::run),
    ("golden", "make the golden files again: all, or those named", golden::run),
    ("parity", "compare the program with transformers and llama.cpp on SmolLM2", parity::run),
    (
        "parity-surgery",
        "compare merges with mergekit's, and what more of the kind there is",
        parity_surgery::run,
    ),
    (
        "python-env",
        "set up a pinned Python environment: transformers, mergekit, bitsandbytes",
        python_env::run,
    ),
    ("tidy", "check what no compiler does: file budgets, crate arrows, links, blobs", tidy::run),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let verb = arguments.first().and_then(|name| VERBS.iter().find(|verb| verb.0 == name));
    let Some((_, _, run)) = verb else {
        eprintln!("usage: cargo xtask VERB");
        for (name, what, _) in VERBS {
            eprintln!("  {name:14} {what}");
        }
        return ExitCode::from(2);
    };
    match run(&arguments[1..]) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("{problem:#}");
            ExitCode::FAILURE
        }
    }
}

/// The repository's root.
pub(crate) fn root() -> PathBuf {
    let own = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    own.parent().expect("xtask lies in the root").to_path_buf()
}

/// The program, built as a user builds it.
pub(crate) fn built_program() -> anyhow::Result<PathBuf> {
    python_env::succeed(
        std::process::Command::new("cargo").args(["build", "--release"]).current_dir(root()),
    )?;
    Ok(root().join("target/release/luthier"))
}
