//! Types chosen for a size: the file fits to the byte, nothing of that size loses less than it should, refusals.

use std::path::Path;

use luthier_checkpoint::{Dtype, Gguf, Lineage, TensorSource};
use luthier_surgery::quantize::{Options, Report, Target, plan, run};
use serde_json::json;

use crate::models::{config, open, write};

fn options(size_bytes: u64) -> Options {
    Options { target: Target::Size(size_bytes), imatrix: None, requantize: false, force: true }
}

/// Rows of 256 and of 288, of which blocks of 256 fit the first alone.
fn model(home: &Path, tied: bool) -> luthier_surgery::Input {
    let mut config = config("llama", 256, 300);
    config.insert("intermediate_size".to_string(), json!(288));
    config.insert("tie_word_embeddings".to_string(), json!(tied));
    open(&write(&home.join("folder"), &config, Dtype::BF16, 5))
}

fn smallest(input: &luthier_surgery::Input, out: &Path) -> u64 {
    let refused = run(input, out, &options(1000)).unwrap_err().to_string();
    assert!(refused.contains("--target-size 1000: the smallest file of this model has"), "{refused}");
    assert!(refused.contains("TQ1_0") && !out.exists(), "{refused}");
    let number = refused.split("has ").nth(1).and_then(|rest| rest.split(' ').next());
    number.unwrap().parse().unwrap()
}

fn made(input: &luthier_surgery::Input, out: &Path, size_bytes: u64) -> Report {
    let planned = plan(input, out, &options(size_bytes)).unwrap();
    let report = run(input, out, &options(size_bytes)).unwrap();
    let choice = report.choice.as_ref().unwrap();
    let len = std::fs::metadata(out).unwrap().len();
    assert_eq!(choice.file_bytes, len);
    assert!(len <= size_bytes, "{len} of {size_bytes}");
    let gguf = Gguf::open(out).unwrap();
    for ((info, planned), wanted) in gguf.infos().iter().zip(&planned.tensors).zip(input_names(out)) {
        assert_eq!((&info.name, info.dtype.name()), (&planned.name, planned.dtype.as_str()), "{wanted}");
        let chosen = choice.chosen.iter().find(|chosen| chosen.name == info.name);
        assert_eq!(chosen.map(|chosen| chosen.dtype), (info.shape.len() > 1).then(|| info.dtype.name()));
        assert!(info.shape.len() > 1 || info.dtype == Dtype::F32, "{} is {}", info.name, info.dtype);
    }
    luthier_arch::check_headers(&luthier_arch::open(out).unwrap()).unwrap();
    report
}

fn input_names(out: &Path) -> Vec<String> {
    Gguf::open(out).unwrap().infos().iter().map(|info| info.name.clone()).collect()
}

#[test]
fn every_size_is_kept_and_more_room_loses_less() {
    for tied in [false, true] {
        let home = tempfile::tempdir().unwrap();
        let input = model(home.path(), tied);
        let out = home.path().join("out.gguf");
        let smallest = smallest(&input, &out);
        let mut before = f64::INFINITY;
        for percent in [100, 101, 117, 140, 180, 230, 300, 420, 640, 900] {
            let size_bytes = smallest * percent / 100;
            let report = made(&input, &out, size_bytes);
            let choice = report.choice.unwrap();
            assert!(choice.least_error <= choice.error && choice.error <= before * 1.06, "{choice}");
            assert!(percent < 200 || choice.error <= choice.least_error * 2.0 + 1e-9, "{choice}");
            if let Some(mix) = &choice.best_mix {
                assert!(mix.file_bytes <= size_bytes && choice.error <= mix.error, "{choice}");
            }
            assert_eq!(percent >= 640, choice.error == 0.0, "{choice}");
            before = choice.error;
        }
        assert!(run(&input, &out, &options(smallest - 1)).is_err());
        // All the room that it could want: the source's own values.
        assert!(
            Gguf::open(&out)
                .unwrap()
                .infos()
                .iter()
                .all(|info| info.shape.len() == 1 || info.dtype == Dtype::BF16)
        );
    }
}

#[test]
fn a_mixture_of_that_very_size_is_never_better() {
    let home = tempfile::tempdir().unwrap();
    let input = model(home.path(), false);
    let (mixed, out) = (home.path().join("mixed.gguf"), home.path().join("out.gguf"));
    for name in ["Q2_K", "Q3_K_M", "Q4_0", "Q4_K_M", "Q5_K_S", "Q6_K", "Q8_0"] {
        let target = Target::parse(name, false).unwrap();
        run(&input, &mixed, &Options { target, ..options(0) }).unwrap();
        // The records of both differ by some bytes.
        let size_bytes = std::fs::metadata(&mixed).unwrap().len() + 2000;
        let choice = made(&input, &out, size_bytes).choice.unwrap();
        let mix = choice.best_mix.as_ref().unwrap();
        assert!(choice.error <= mix.error, "{name}: {choice}");
    }
}

#[test]
fn the_record_says_the_size_and_the_same_choice_comes_again() {
    let home = tempfile::tempdir().unwrap();
    let input = model(home.path(), false);
    let out = home.path().join("out.gguf");
    let first = made(&input, &out, 400_000);
    let bytes = std::fs::read(&out).unwrap();
    luthier_kernels::pool::set_threads(1);
    let again = made(&input, &out, 400_000);
    luthier_kernels::pool::set_threads(0);
    assert_eq!(first, again);
    assert!(bytes == std::fs::read(&out).unwrap());
    let lineage = Lineage::read(&out).unwrap().unwrap();
    assert_eq!((&lineage.recipe["to"], &lineage.recipe["target_size"]), (&json!(null), &json!(400_000)));
    assert_eq!(lineage.ledger.output_tensors, first.tensors);
}

#[test]
fn quantised_tensors_stay_unless_they_may_be_rounded_again() {
    let home = tempfile::tempdir().unwrap();
    let input = model(home.path(), false);
    let (first, out) = (home.path().join("first.gguf"), home.path().join("out.gguf"));
    let target = Target::parse("Q4_0", false).unwrap();
    run(&input, &first, &Options { target, ..options(0) }).unwrap();
    let rounded = open(&first);
    let len = std::fs::metadata(&first).unwrap().len();
    let refused = run(&rounded, &out, &options(len / 2)).unwrap_err().to_string();
    assert!(refused.contains("quantised already") && refused.contains("--requantize"), "{refused}");
    let kept = run(&rounded, &out, &options(len + 4000)).unwrap();
    assert_eq!((kept.copied_tensors, kept.choice.unwrap().error), (kept.tensors, 0.0));
    let again = run(&rounded, &out, &Options { requantize: true, ..options(len * 9 / 10) }).unwrap();
    assert!(again.notes.iter().any(|note| note.contains("a second time")), "{:?}", again.notes);
}
