//! Outputs are whole or not there; what a killed process leaves is cleaned; inputs are never written over.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use luthier_checkpoint::safetensors::SafetensorsWriter;
use luthier_checkpoint::{Dtype, Output, TensorSink};

use crate::safetensors::{content, info};

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_folder_appears_at_once_and_only_when_committed() {
    let place = tempfile::tempdir().unwrap();
    let target = place.path().join("deep/er/out");
    let output = Output::folder(&target, false, &[]).unwrap();
    output.write("config.json", b"{}").unwrap();
    output.write("templates/a.jinja", b"a").unwrap();
    assert!(output.write("../escape", b"").is_err());
    assert!(output.write("/escape", b"").is_err());
    assert!(!target.exists());
    output.commit().unwrap();
    assert_eq!(names(&target), ["config.json", "templates"]);
    assert_eq!(names(target.parent().unwrap()), ["out"]);
}

#[test]
fn an_output_that_is_dropped_leaves_nothing() {
    let place = tempfile::tempdir().unwrap();
    let output = Output::folder(&place.path().join("deep/out"), false, &[]).unwrap();
    output.write("config.json", b"{}").unwrap();
    drop(output);
    drop(Output::file(&place.path().join("deep/out.gguf"), false, &[]).unwrap());
    assert_eq!(names(place.path()), [""; 0]);
}

#[test]
fn an_existing_place_needs_force_and_is_then_replaced() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("out");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("old"), "old").unwrap();
    let error = Output::folder(&folder, false, &[]).unwrap_err().to_string();
    assert!(error.contains("exists; pass --force"), "{error}");
    let output = Output::folder(&folder, true, &[]).unwrap();
    output.write("new", b"new").unwrap();
    assert_eq!(names(&folder), ["old"]);
    output.commit().unwrap();
    assert_eq!(names(&folder), ["new"]);
    assert_eq!(names(place.path()), ["out"]);

    let file = place.path().join("out.gguf");
    fs::write(&file, "old").unwrap();
    assert!(Output::file(&file, false, &[]).is_err());
    let output = Output::file(&file, true, &[]).unwrap();
    fs::write(output.path(), "new").unwrap();
    output.commit().unwrap();
    assert_eq!(fs::read_to_string(&file).unwrap(), "new");
    assert!(Output::file(&folder, true, &[]).unwrap_err().to_string().contains("is a folder"));
}

#[test]
fn a_place_that_fills_meanwhile_is_not_overwritten() {
    let place = tempfile::tempdir().unwrap();
    let target = place.path().join("out");
    let output = Output::folder(&target, false, &[]).unwrap();
    fs::create_dir(&target).unwrap();
    let error = output.commit().unwrap_err().to_string();
    assert!(error.contains("appeared while"), "{error}");
    assert_eq!(names(place.path()), ["out"]);
}

#[test]
fn inputs_are_safe_from_outputs() {
    let place = tempfile::tempdir().unwrap();
    let input = place.path().join("model");
    fs::create_dir(&input).unwrap();
    let link = place.path().join("link");
    std::os::unix::fs::symlink(&input, &link).unwrap();
    let refuse = |target: &Path, wanted: &str| {
        let error = Output::folder(target, true, &[&input]).unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    };
    refuse(&input, "the output is the input");
    refuse(&link, "the output is the input");
    refuse(&input.join("."), "the output is the input");
    refuse(&input.join("sub/out"), "lies inside the input");
    refuse(&link.join("out"), "lies inside the input");
    refuse(place.path(), "contains the input");
    refuse(Path::new("/"), "no place for an output");
    refuse(Path::new(".."), "no place for an output");
    drop(Output::folder(&place.path().join("model2"), true, &[&input]).unwrap());
}

#[test]
fn remnants_of_dead_processes_go_and_those_of_living_ones_stay() {
    let place = tempfile::tempdir().unwrap();
    let target = place.path().join("out");
    let remnant = place.path().join(".out.luthier-partial-999999-0");
    fs::create_dir(&remnant).unwrap();
    fs::write(remnant.join("model.safetensors"), "half").unwrap();
    let foreign = place.path().join(".out2.luthier-partial-999999-0");
    fs::create_dir(&foreign).unwrap();
    let alive = Output::folder(&target, false, &[]).unwrap();
    assert!(!remnant.exists() && foreign.exists());
    let second = Output::folder(&target, false, &[]).unwrap();
    assert!(alive.path().exists() && second.path().exists());
    alive.commit().unwrap();
    assert!(second.commit().is_err());
}

#[test]
fn an_old_state_that_was_moved_aside_comes_back() {
    let place = tempfile::tempdir().unwrap();
    let target = place.path().join("out");
    let previous = place.path().join(".out.luthier-previous");
    fs::create_dir(&previous).unwrap();
    fs::write(previous.join("old"), "old").unwrap();
    drop(Output::folder(&target, true, &[]).unwrap());
    assert_eq!(names(&target), ["old"]);
}

#[test]
fn places_that_cannot_be_written_are_named() {
    let place = tempfile::tempdir().unwrap();
    let file = place.path().join("file");
    fs::write(&file, "x").unwrap();
    let error = Output::folder(&file.join("out"), false, &[]).unwrap_err().to_string();
    assert!(error.contains("file"), "{error}");
    let error = Output::folder(Path::new("/proc/luthier-out"), false, &[]).unwrap_err().to_string();
    assert!(error.contains("/proc"), "{error}");
}

/// Names the place in which a child of the test below replaces its output for ever.
const CHILD_PLACE: &str = "LUTHIER_TEST_OUTPUT_PLACE";

#[test]
fn a_child_that_replaces_its_output_until_it_is_killed() {
    let Ok(place) = std::env::var(CHILD_PLACE) else { return };
    let stdout = std::io::stdout();
    for number in 0.. {
        let output = Output::folder(&Path::new(&place).join("out"), true, &[]).unwrap();
        output.write("a", format!("{number}").as_bytes()).unwrap();
        writeln!(stdout.lock(), "round {number}").unwrap();
        output.write("b", format!("{number}").as_bytes()).unwrap();
        output.commit().unwrap();
        writeln!(stdout.lock(), "done {number}").unwrap();
    }
}

#[test]
fn a_kill_at_any_moment_leaves_the_old_state_or_the_new_one() {
    let place = tempfile::tempdir().unwrap();
    for n_lines in 3..15 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--nocapture", "output::a_child_that_replaces_its_output_until_it_is_killed"])
            .env(CHILD_PLACE, place.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let seen = lines.filter(|line| line.as_ref().unwrap().contains(' ')).nth(n_lines + 2);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(seen.is_some());
        let out = place.path().join("out");
        let (a, b) = (fs::read_to_string(out.join("a")).unwrap(), fs::read_to_string(out.join("b")).unwrap());
        assert_eq!(a, b);
    }
    drop(Output::folder(&place.path().join("out"), true, &[]).unwrap());
    assert_eq!(names(place.path()), ["out"]);
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_named_with_what_to_do() {
    let infos = [info("w", Dtype::U8, &[100_000])];
    let full = Path::new("/dev/full");
    let problem = SafetensorsWriter::create_file(full, &infos, &[])
        .and_then(|mut writer| writer.write("w", &content(&infos[0])))
        .unwrap_err()
        .to_string();
    assert!(problem.contains("/dev/full: ") && problem.contains("free some space"), "{problem}");
}
