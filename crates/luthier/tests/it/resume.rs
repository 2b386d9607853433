//! A training run that is killed with -9 and started again ends with the bytes of one that was not.

use std::path::Path;
use std::time::Duration;

use tempfile::tempdir;

use crate::{command, files, luthier};

const STEPS: usize = 12;

fn write_recipe(at: &Path, out: &str) -> String {
    let name = format!("{out}.yaml");
    let recipe = format!(
        "model: builtin\nout: {out}\ndata: {{train: [text.txt], validation_fraction: 0.2}}\nobjective: prefixlm\n\
         sequence_length: 32\nbatch_size: 2\nsteps: {STEPS}\n\
         optimizer: {{name: adamw, lr_peak: 1.0e-3, betas: [0.9, 0.95], weight_decay: 0.1}}\n\
         schedule: {{name: wsd, warmup_steps: 2, decay_steps: 4}}\ngradient_clip: 1.0\n\
         checkpoint_every_steps: 2\nkeep_checkpoints: 2\nseed: 3\n"
    );
    std::fs::write(at.join(&name), recipe).unwrap();
    name
}

#[test]
fn a_killed_run_ends_with_the_bytes_of_an_undisturbed_one() {
    let at = tempdir().unwrap();
    let sentence = "It is very difficult for the prosperous to be humble. ";
    let paragraphs: Vec<String> = (1..40).map(|n| format!("{} {n}", sentence.repeat(3))).collect();
    std::fs::write(at.path().join("text.txt"), paragraphs.join("\n\n")).unwrap();
    let whole = write_recipe(at.path(), "whole");
    assert!(luthier(at.path(), &["pretrain", &whole]).status.success());
    let killed = write_recipe(at.path(), "killed");
    let metrics = at.path().join("killed/metrics.jsonl");
    let lines = || std::fs::read_to_string(&metrics).map_or(0, |text| text.lines().count());
    let mut kills = 0;
    // Each kill falls after another number of steps, so that it hits between and inside of checkpoints.
    for wanted_lines in [1, 3, 4, 7, 9, 11] {
        let mut child = command(at.path(), &["pretrain", &killed]).spawn().unwrap();
        loop {
            if lines() >= wanted_lines {
                child.kill().unwrap();
                kills += 1;
                break;
            }
            if child.try_wait().unwrap().is_some() {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        child.wait().unwrap();
    }
    assert!(kills >= 3, "only {kills} kills hit");
    assert!(luthier(at.path(), &["pretrain", &killed]).status.success());
    let (whole, killed) = (files(&at.path().join("whole")), files(&at.path().join("killed")));
    let names = |files: &[(String, Vec<u8>)]| files.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&whole), names(&killed));
    for ((name, a), (_, b)) in whole.iter().zip(&killed) {
        assert!(a == b, "{name} differs");
    }
}
