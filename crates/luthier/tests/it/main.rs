//! The program as its users run it: arguments in, exit code, standard output and files out.
#![allow(clippy::unwrap_used)] // A test that cannot go on fails.

mod adapters;
mod commands;
mod doctor;
mod embed;
mod grow;
mod keeping;
mod kept;
mod lora;
mod memory;
mod merge;
mod outputs;
mod packed;
mod prompt_cache;
mod prune;
mod recipes;
mod refusals;
mod resume;
mod speed;
mod study;
mod training_memory;

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

/// The program in the folder `at`.
fn luthier(at: &Path, arguments: &[&str]) -> Output {
    command(at, arguments).output().unwrap()
}

fn command(at: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_luthier"));
    command.current_dir(at).args(arguments).args(["--threads", "2"]);
    command
}

/// Its one JSON object; panics with what it said where it failed.
fn json(at: &Path, arguments: &[&str]) -> Value {
    let output = luthier(at, &[arguments, &["--json"]].concat());
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), 1, "one line of JSON: {text}");
    serde_json::from_str(&text).unwrap()
}

/// What it said when it failed as it should, with exit code 1.
fn refusal(at: &Path, arguments: &[&str]) -> String {
    let output = luthier(at, arguments);
    let said = String::from_utf8_lossy(&output.stderr).to_string();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
    assert!(output.stdout.is_empty(), "{arguments:?} printed {}", String::from_utf8_lossy(&output.stdout));
    assert!(!said.contains("panicked"), "{said}");
    said
}

/// Every file below a folder with its bytes, sorted.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(place) = open.pop() {
        for entry in std::fs::read_dir(&place).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                let name = path.strip_prefix(folder).unwrap().display().to_string();
                found.push((name, std::fs::read(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

fn has_keys(value: &Value, keys: &[&str]) {
    for key in keys {
        assert!(value.get(key).is_some(), "key {key} is missing from {value}");
    }
}
