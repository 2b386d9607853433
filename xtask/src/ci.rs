//! `cargo xtask ci`: everything that must pass before a change lands, timed, with a closing summary.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, bail};

/// Runs all steps in order and stops at the first that fails.
pub(crate) fn run(_arguments: &[String]) -> anyhow::Result<()> {
    let test_command = readme_test_command()?;
    let steps: Vec<(&str, Vec<&str>)> = vec![
        ("tests", test_command.split_whitespace().collect()),
        ("format", vec!["cargo", "fmt", "--all", "--check"]),
        (
            "clippy",
            vec!["cargo", "clippy", "--release", "--workspace", "--all-targets", "--", "-D", "warnings"],
        ),
        ("tidy", vec!["cargo", "xtask", "tidy"]),
        ("generated docs", vec!["cargo", "xtask", "gen", "--check"]),
        (
            "rustdoc",
            vec!["cargo", "doc", "--release", "--workspace", "--no-deps", "--document-private-items"],
        ),
    ];
    let mut summary = Vec::new();
    for (name, words) in steps {
        let start = Instant::now();
        say(&format!("=== {name}: {}", words.join(" ")));
        let status = Command::new(words[0])
            .args(&words[1..])
            .current_dir(crate::root())
            // Shapes in docs, such as [n, m], look like links.
            .env(
                "RUSTDOCFLAGS",
                "-D warnings -A rustdoc::private_intra_doc_links -A rustdoc::broken_intra_doc_links",
            )
            .status()
            .with_context(|| format!("starting {}", words[0]))?;
        summary.push(format!("{name} {:.0} s", start.elapsed().as_secs_f64()));
        if !status.success() {
            bail!("{name} did not pass ({status}); so far: {}", summary.join(", "));
        }
    }
    say(&format!("=== all passed: {}", summary.join(", ")));
    Ok(())
}

/// The second command of the README's first fenced block: what a reader types is what is checked.
fn readme_test_command() -> anyhow::Result<String> {
    let readme = std::fs::read_to_string(crate::root().join("README.md"))?;
    let block = readme.split("```").nth(1).context("README.md: wanted a fenced block with two commands")?;
    let commands: Vec<&str> = block.lines().skip(1).filter(|line| !line.trim().is_empty()).collect();
    match commands.as_slice() {
        [first, second] if first.starts_with("cargo run") && second.starts_with("cargo test") => {
            Ok((*second).to_string())
        }
        _ => bail!(
            "README.md: its first fenced block must hold `cargo run ...` and `cargo test ...`, got {commands:?}"
        ),
    }
}

#[allow(clippy::print_stdout)]
fn say(line: &str) {
    println!("{line}");
}
