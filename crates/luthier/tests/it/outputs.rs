//! Outputs are there whole or not at all: every verb that writes a model is killed at many moments, and meets a full disk.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::tempdir;

use crate::{command, files, json};

/// Kills of each verb, spread over the time that it takes.
const KILLS: u32 = 7;

/// Verbs with their arguments, OUT the one that begins with `out`. `a` and `b` are the built-in model, `b` in f32.
const VERBS: [&[&str]; 9] = [
    &["adapt", "a", "out"],
    &["convert", "a", "out.gguf"],
    &[
        "extract-adapter",
        "--base",
        "a",
        "--tuned",
        "t",
        "out",
        "--energy",
        "1",
        "--embeddings=full",
        "--norms",
    ],
    &["fuse-adapter", "a", "l", "out"],
    &["fuse-adapter", "q.gguf", "l", "out.gguf"],
    &["merge", "ties.yaml", "out"],
    &["quantize", "a", "out.gguf", "--to", "Q4_K_M"],
    &["quantize", "a", "out", "--to", "nf4"],
    &["transfer", "--from", "a", "--tuned", "b", "--onto", "builtin", "out"],
];

fn with_inputs() -> tempfile::TempDir {
    let at = tempdir().unwrap();
    json(at.path(), &["convert", "builtin", "a"]);
    json(at.path(), &["convert", "builtin", "b", "--dtype", "f32"]);
    let recipe =
        "merge_method: ties\nbase_model: a\nmodels:\n  - {model: b, parameters: {weight: 1, density: 0.5}}\n";
    std::fs::write(at.path().join("ties.yaml"), recipe).unwrap();
    // A model of other weights everywhere, an adapter that leads there, and a base in few bits.
    let more = "merge_method: linear\nmodels:\n  - {model: b, parameters: {weight: 1.01}}\nparameters: {normalize: false}\n";
    std::fs::write(at.path().join("more.yaml"), more).unwrap();
    json(at.path(), &["merge", "more.yaml", "t"]);
    json(
        at.path(),
        &["extract-adapter", "--base", "a", "--tuned", "t", "l", "--rank", "4", "--embeddings", "--norms"],
    );
    json(at.path(), &["quantize", "a", "q.gguf", "--to", "Q8_0"]);
    at
}

fn out_of<'v>(verb: &[&'v str]) -> &'v str {
    verb.iter().find(|argument| argument.starts_with("out")).unwrap()
}

/// A folder's files, or the file itself; nothing where there is neither.
fn state(path: &Path) -> Vec<(String, Vec<u8>)> {
    match path.is_file() {
        true => vec![(String::new(), std::fs::read(path).unwrap())],
        false if path.exists() => files(path),
        false => Vec::new(),
    }
}

/// Puts the model that a verb replaces at its place.
fn put_old(at: &Path, out: &str) {
    let place = at.join(out);
    if place.is_dir() {
        std::fs::remove_dir_all(&place).unwrap();
    }
    json(at, &["convert", "builtin", out, "--dtype", "f16", "--force"]);
}

fn remnants(at: &Path) -> Vec<String> {
    let names = std::fs::read_dir(at).unwrap().map(|entry| entry.unwrap().file_name());
    let names = names.map(|name| name.to_string_lossy().into_owned());
    names.filter(|name| name.contains("luthier-partial") || name.contains("luthier-previous")).collect()
}

#[test]
fn a_kill_leaves_the_old_state_or_the_new_one() {
    let at = with_inputs();
    let at = at.path();
    let inputs = || [state(&at.join("a")), state(&at.join("b"))];
    let before = inputs();
    for verb in VERBS {
        let forced = [verb, &["--force"]].concat();
        let place = at.join(out_of(verb));
        put_old(at, out_of(verb));
        let old = state(&place);
        let start = Instant::now();
        json(at, &forced);
        let duration = start.elapsed();
        let new = state(&place);
        assert!(old != new, "{verb:?} changed nothing");
        put_old(at, out_of(verb));
        let mut n_killed = 0;
        for kill in 1..=KILLS {
            let mut child = command(at, &forced).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            std::thread::sleep(duration * kill / (KILLS + 1));
            child.kill().unwrap();
            n_killed += u32::from(!child.wait().unwrap().success());
            let found = state(&place);
            assert!(
                found == old || found == new,
                "{verb:?}, kill {kill}: neither the old state nor the new one"
            );
            if found == new {
                put_old(at, out_of(verb));
            }
        }
        assert!(n_killed > 0, "{verb:?} was never killed in time");
        json(at, &forced);
        assert!(state(&place) == new, "{verb:?} after the kills");
        assert_eq!(remnants(at), [""; 0], "{verb:?}");
    }
    assert!(inputs() == before, "an input was touched");
}

/// A limit on the size of files stands in for the disk: a write past it fails, as one past the disk's end does.
#[test]
fn a_full_disk_gives_an_error_and_no_half_output() {
    let at = with_inputs();
    let at = at.path();
    for verb in VERBS {
        let mut limited = Command::new("sh");
        limited
            .args(["-c", "trap '' XFSZ; ulimit -f 300; exec \"$0\" \"$@\""])
            .arg(env!("CARGO_BIN_EXE_luthier"));
        let mut child =
            limited.current_dir(at).args(verb).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(60);
        while child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "{verb:?} hangs");
            std::thread::sleep(Duration::from_millis(5));
        }
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{verb:?}: {said}");
        assert!(said.contains(out_of(verb)) && !said.contains("panicked"), "{verb:?}: {said}");
        assert!(!at.join(out_of(verb)).exists(), "{verb:?} left something");
        assert_eq!(remnants(at), [""; 0], "{verb:?}");
    }
}
