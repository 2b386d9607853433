//! A run that is stopped and gone on with leaves the bytes of one that was not.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};

use luthier_train::Recipe;
use serde_json::{Map, Value, json};

use crate::support::{Bench, StopAfter, encoder_decoder_config, files, llama_config, run, run_with};

/// Runs to the end with a stop after each of these steps.
fn run_with_stops(recipe: &Recipe, config: &Map<String, Value>, stops: &[u64]) {
    for &stop in stops {
        let stopped =
            catch_unwind(AssertUnwindSafe(|| run_with(recipe, config, &mut StopAfter(stop), false)));
        assert!(stopped.is_err(), "step {stop} was not reached");
    }
    run(recipe, config).unwrap();
}

fn check_same_bytes(config: &Map<String, Value>, changes: Value, stops: &[u64]) {
    let bench = Bench::new();
    run(&bench.recipe("whole", changes.clone()), config).unwrap();
    run_with_stops(&bench.recipe("stopped", changes), config, stops);
    let (whole, stopped) = (files(&bench.path("whole")), files(&bench.path("stopped")));
    assert_eq!(whole.keys().collect::<Vec<_>>(), stopped.keys().collect::<Vec<_>>());
    for (name, bytes) in &whole {
        assert!(bytes == &stopped[name], "{} differs", name.display());
    }
}

#[test]
fn next_token_in_f32() {
    check_same_bytes(&llama_config(), json!({"validate_every_steps": 4}), &[1, 4, 5, 8]);
}

#[test]
fn ul2_of_an_encoder_decoder_in_bf16_with_accumulation_and_discarded_checkpoints() {
    let changes =
        json!({"objective": "ul2", "precision": "bf16", "gradient_accumulation": 2, "keep_checkpoints": 1});
    check_same_bytes(&encoder_decoder_config(), changes, &[2, 7]);
}

#[test]
fn prefixlm_with_a_teacher_over_several_epochs() {
    let changes = json!({"objective": "prefixlm", "teacher": "teacher", "batch_size": 40, "steps": 4,
                         "checkpoint_every_steps": 1, "schedule": {"name": "cosine", "warmup_steps": 1}});
    check_same_bytes(&encoder_decoder_config(), changes, &[1, 3]);
}

#[test]
fn a_memory_budget_changes_no_byte() {
    let bench = Bench::new();
    run(&bench.recipe("whole", json!({})), &llama_config()).unwrap();
    run_with_stops(&bench.recipe("kept", json!({"memory": "20G"})), &llama_config(), &[4]);
    assert!(files(&bench.path("whole")) == files(&bench.path("kept")));
}

#[test]
fn a_half_written_checkpoint_is_cleaned_away() {
    let bench = Bench::new();
    let recipe = bench.recipe("run", json!({}));
    let stopped =
        catch_unwind(AssertUnwindSafe(|| run_with(&recipe, &llama_config(), &mut StopAfter(4), false)));
    assert!(stopped.is_err());
    let partial = bench.path("run/checkpoint-6.partial");
    fs::create_dir(&partial).unwrap();
    fs::write(partial.join("model.safetensors"), b"half").unwrap();
    fs::write(bench.path("run/config.json.partial"), b"{").unwrap();
    // A torn line, as a kill in the middle of a write leaves it.
    let metrics = fs::read_to_string(bench.path("run/metrics.jsonl")).unwrap();
    fs::write(bench.path("run/metrics.jsonl"), format!("{metrics}{{\"step\": 5, \"lo")).unwrap();
    run(&recipe, &llama_config()).unwrap();
    run(&bench.recipe("whole", json!({})), &llama_config()).unwrap();
    assert!(files(&bench.path("run")) == files(&bench.path("whole")));
}

#[test]
fn a_finished_run_is_left_alone() {
    let bench = Bench::new();
    let recipe = bench.recipe("run", json!({}));
    let first = run(&recipe, &llama_config()).unwrap();
    let before = files(&bench.path("run"));
    let again = run_with(&recipe, &llama_config(), &mut StopAfter(1), false).unwrap();
    assert!(again.was_finished && !first.was_finished);
    assert_eq!(again.validation_loss_nats, first.validation_loss_nats);
    assert_eq!((again.steps, again.train_tokens), (10, first.train_tokens));
    assert!(files(&bench.path("run")) == before);
}

#[test]
fn checkpoints_hold_the_whole_state_and_the_log_one_line_a_step() {
    let bench = Bench::new();
    run(&bench.recipe("run", json!({})), &llama_config()).unwrap();
    let names: Vec<String> =
        files(&bench.path("run")).keys().map(|path| path.display().to_string()).collect();
    for name in [
        "config.json",
        "lineage.json",
        "metrics.jsonl",
        "model.safetensors",
        "run.json",
        "tokenizer.json",
        "trainer_state.json",
        "checkpoint-3/model.safetensors",
        "checkpoint-6/optimizer.safetensors",
        "checkpoint-9/trainer_state.json",
        "checkpoint-9/config.json",
        "checkpoint-9/tokenizer.json",
    ] {
        assert!(names.iter().any(|other| other == name), "{name} is not among {names:?}");
    }
    let metrics = fs::read_to_string(bench.path("run/metrics.jsonl")).unwrap();
    let lines: Vec<Value> = metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let steps: Vec<u64> = lines.iter().map(|line| line["step"].as_u64().unwrap()).collect();
    assert_eq!(steps, (1..=10).collect::<Vec<_>>());
    // Ten steps of four windows of 24 tokens, of which some were the text's short last one.
    let train_tokens = lines[9]["train_tokens"].as_u64().unwrap();
    assert!(
        (940..=960).contains(&train_tokens) && lines[9]["target_tokens"].as_u64().unwrap() < train_tokens
    );
    // No place of this machine in any text of the model.
    let place = bench.folder.path().to_string_lossy().into_owned();
    for (name, bytes) in files(&bench.path("run")) {
        assert!(!String::from_utf8_lossy(&bytes).contains(&place), "{}", name.display());
    }
}

#[test]
fn columns_of_tables_are_trained_on_and_a_share_is_held_out() {
    let bench = Bench::new();
    let rows: String =
        (0..80).map(|n| format!("id{n}\tthe old violin {}\n", "sang ".repeat(n % 5))).collect();
    fs::write(bench.path("table.tsv"), rows).unwrap();
    let data = json!({"train": [{"file": bench.path("table.tsv"), "column": 1}], "validation_fraction": 0.2});
    let outcome = run(&bench.recipe("run", json!({"data": data})), &llama_config()).unwrap();
    assert!(outcome.validation_loss_nats.unwrap() < outcome.initial_validation_loss_nats.unwrap());
    let run_json: Value = serde_json::from_slice(&fs::read(bench.path("run/run.json")).unwrap()).unwrap();
    assert_eq!(run_json["data"]["train"][0]["column"], json!(1));
    assert_eq!(run_json["data"]["train"][0]["name"], json!("table.tsv"));
}

#[test]
fn moments_of_a_checkpoint_are_a_first_state_that_survives_stops() {
    let bench = Bench::new();
    let with = |state: Value| {
        json!({"optimizer": {"name": "adamw", "lr_peak": 3e-3, "betas": [0.9, 0.95], "weight_decay": 0.1,
                             "initial_state": state}})
    };
    run(&bench.recipe("first", json!({})), &llama_config()).unwrap();
    run(&bench.recipe("plain", with(json!(false))), &llama_config()).unwrap();
    assert!(files(&bench.path("first")) == files(&bench.path("plain")), "false is as left out");
    let place = json!(bench.path("first/checkpoint-6"));
    run(&bench.recipe("begun", with(place.clone())), &llama_config()).unwrap();
    // The file says it too, without the checkpoint's own account.
    let file = bench.path("optimizer.safetensors");
    fs::copy(bench.path("first/checkpoint-6/optimizer.safetensors"), &file).unwrap();
    let losses = |run: &str| -> Vec<f64> {
        let metrics = fs::read_to_string(bench.path(run).join("metrics.jsonl")).unwrap();
        metrics
            .lines()
            .map(|line| serde_json::from_str::<Value>(line).unwrap()["loss"].as_f64().unwrap())
            .collect()
    };
    let (first, begun) = (losses("first"), losses("begun"));
    // The same weights before the first step, others after it.
    assert!((first[0] - begun[0]).abs() < 1e-12 && (first[1] - begun[1]).abs() > 1e-6, "{first:?} {begun:?}");
    run(&bench.recipe("of-file", with(json!(file))), &llama_config()).unwrap();
    assert_eq!(losses("of-file"), begun);
    run_with_stops(&bench.recipe("stopped", with(place)), &llama_config(), &[2, 4]);
    assert!(files(&bench.path("begun")) == files(&bench.path("stopped")));
    let moments = luthier_checkpoint::safetensors::SafetensorsFile::open(
        &bench.path("begun/checkpoint-3/optimizer.safetensors"),
    )
    .unwrap();
    assert!(moments.metadata().contains(&("steps".to_string(), "9".to_string())), "{:?}", moments.metadata());
}
