//! What a run refuses, and that it says why.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};

use luthier_train::{Error, Recipe};
use serde_json::{Value, json};

use crate::support::{Bench, StopAfter, encoder_decoder_config, files, llama_config, run, run_with};

#[track_caller]
fn refused(changes: Value, wanted: &str) {
    let bench = Bench::new();
    let error = run(&bench.recipe("run", changes), &llama_config()).unwrap_err().to_string();
    assert!(error.contains(wanted), "{error}");
    assert!(!bench.path("run").exists());
}

#[test]
fn recipes_that_make_no_sense() {
    refused(json!({"steps": null}), "recipe key steps: missing");
    refused(json!({"out": "x.gguf"}), "a run is a folder");
    refused(json!({"tokens": 100}), "recipe key tokens: stands beside steps");
    refused(
        json!({"gradient_accumulation": 3}),
        "recipe key gradient_accumulation: 3 does not divide batch_size 4",
    );
    refused(json!({"steps": 5}), "warm-up and decay take 6 steps, the run has 5");
    refused(json!({"schedule": {"name": "constant", "decay_steps": 2}}), "schedule.decay_steps");
    refused(json!({"gradient_clip": 0.0}), "recipe key gradient_clip");
    refused(json!({"ul2": {"denoisers": [], "mode_tokens": true}}), "recipe key ul2: means nothing");
    refused(
        json!({"distillation": {"teacher_share": 0.5}}),
        "recipe key distillation: stands without a teacher",
    );
    refused(
        json!({"sequence_length": 65}),
        "recipe key sequence_length: is 65, the model's positions reach 64",
    );
    refused(json!({"freeze": ["*nowhere*"]}), "recipe key freeze: *nowhere* names no weight");
    refused(json!({"recompute_layers": 3}), "recipe key recompute_layers");
    refused(
        json!({"recompute_layers": 1, "memory": "2G"}),
        "recipe key recompute_layers: stands beside memory",
    );
    refused(json!({"memory": "1M"}), "memory: wanted ");
}

#[test]
fn unknown_keys_are_named() {
    let bench = Bench::new();
    let mut recipe = serde_json::to_value(bench.recipe("run", json!({}))).unwrap();
    recipe["schedule"]["warmup_step"] = json!(1);
    let error = serde_json::from_value::<Recipe>(recipe).unwrap_err().to_string();
    assert!(error.contains("unknown field `warmup_step`"), "{error}");
}

#[test]
fn texts_that_are_not_text() {
    let bench = Bench::new();
    fs::write(bench.path("a.txt"), b"ab\xff").unwrap();
    let error = run(&bench.recipe("run", json!({})), &llama_config()).unwrap_err().to_string();
    assert!(error.contains("a.txt: is not UTF-8 from byte 2 on"), "{error}");
    fs::write(bench.path("a.txt"), "").unwrap();
    fs::write(bench.path("b.txt"), "").unwrap();
    let error = run(&bench.recipe("run2", json!({})), &llama_config()).unwrap_err().to_string();
    assert!(error.contains("longer text"), "{error}");
}

#[test]
fn an_encoder_decoder_without_its_objective() {
    let bench = Bench::new();
    let error = run(&bench.recipe("run", json!({})), &encoder_decoder_config()).unwrap_err().to_string();
    assert!(error.contains("use prefixlm or ul2"), "{error}");
}

#[test]
fn a_folder_of_another_run_or_of_something_else() {
    let bench = Bench::new();
    run(&bench.recipe("run", json!({})), &llama_config()).unwrap();
    let error = run(&bench.recipe("run", json!({"seed": 2})), &llama_config()).unwrap_err().to_string();
    assert!(error.contains("recipe key seed is 2, but the run in there was started with 1"), "{error}");
    fs::write(bench.path("b.txt"), "other words.").unwrap();
    let error = run(&bench.recipe("run", json!({})), &llama_config()).unwrap_err().to_string();
    assert!(error.contains("data.train.1.sha256"), "{error}");

    let precious = bench.path("precious");
    fs::create_dir(&precious).unwrap();
    fs::write(precious.join("letter.txt"), "dear").unwrap();
    let error = run(&bench.recipe("precious", json!({})), &llama_config()).unwrap_err();
    assert!(matches!(error, Error::NotARun { .. }), "{error}");
    assert_eq!(files(&precious).len(), 1);
}

#[test]
fn an_out_that_holds_its_own_inputs() {
    let bench = Bench::new();
    run(&bench.recipe("run", json!({})), &llama_config()).unwrap();
    let before = files(&bench.path("run"));
    for changes in [json!({"model": bench.path("run")}), json!({"teacher": bench.path("run/checkpoint-3")})] {
        let recipe = bench.recipe("run", changes);
        let error = run_with(&recipe, &llama_config(), &mut StopAfter(0), true).unwrap_err().to_string();
        assert!(error.contains("lies in out"), "{error}");
    }
    assert!(files(&bench.path("run")) == before);
}

#[test]
fn a_beginning_without_a_checkpoint_gives_way_to_another_recipe() {
    let bench = Bench::new();
    let stop = |changes| {
        let recipe = bench.recipe("run", changes);
        catch_unwind(AssertUnwindSafe(|| run_with(&recipe, &llama_config(), &mut StopAfter(2), false)))
            .unwrap_err()
    };
    stop(json!({}));
    stop(json!({"seed": 2}));
    run(&bench.recipe("run", json!({"seed": 3})), &llama_config()).unwrap();
    run(&bench.recipe("whole", json!({"seed": 3})), &llama_config()).unwrap();
    assert!(files(&bench.path("run")) == files(&bench.path("whole")));
}

#[test]
fn how_often_checkpoints_are_written_may_change() {
    let bench = Bench::new();
    run(&bench.recipe("run", json!({})), &llama_config()).unwrap();
    assert!(
        run(&bench.recipe("run", json!({"checkpoint_every_steps": 7})), &llama_config())
            .unwrap()
            .was_finished
    );
}

#[test]
fn force_starts_over() {
    let bench = Bench::new();
    run(&bench.recipe("run", json!({})), &llama_config()).unwrap();
    let before = files(&bench.path("run"));
    let again = run_with(&bench.recipe("run", json!({})), &llama_config(), &mut StopAfter(0), true).unwrap();
    assert!(!again.was_finished);
    assert!(files(&bench.path("run")) == before);
}

#[test]
fn two_runs_in_one_folder() {
    let bench = Bench::new();
    let recipe = bench.recipe("run", json!({}));
    fs::create_dir(bench.path("run")).unwrap();
    let held = fs::File::create(bench.path("run/metrics.jsonl")).unwrap();
    held.lock().unwrap();
    let error = run(&recipe, &llama_config()).unwrap_err();
    assert!(matches!(error, Error::Locked { .. }), "{error}");
    drop(held);
    run(&recipe, &llama_config()).unwrap();
}

#[test]
fn a_loss_that_is_no_number_ends_the_run_and_keeps_the_last_checkpoint() {
    let bench = Bench::new();
    let changes = json!({"optimizer": {"name": "adamw", "lr_peak": 1e30, "betas": [0.9, 0.95], "weight_decay": 0.1},
                         "schedule": {"name": "constant", "warmup_steps": 0}, "checkpoint_every_steps": 1});
    let recipe = bench.recipe("run", changes);
    for _ in 0..2 {
        let error = run(&recipe, &llama_config()).unwrap_err();
        assert!(matches!(error, Error::Diverged { .. }), "{error}");
        assert!(error.to_string().contains("run/checkpoint-1"), "{error}");
        assert!(bench.path("run/checkpoint-1/model.safetensors").exists());
        assert!(!bench.path("run/lineage.json").exists());
    }
}

#[test]
fn weights_that_are_no_numbers_are_never_saved() {
    let bench = Bench::new();
    let changes = json!({"optimizer": {"name": "adamw", "lr_peak": 1e300, "betas": [0.9, 0.95], "weight_decay": 0.1},
                         "schedule": {"name": "constant"}, "checkpoint_every_steps": 1});
    let error = run(&bench.recipe("run", changes), &llama_config()).unwrap_err().to_string();
    assert!(error.contains("step 1: a weight is NaN") && error.contains("no checkpoint"), "{error}");
    assert!(!bench.path("run/checkpoint-1").exists() && !bench.path("run/model.safetensors").exists());
}

#[test]
fn a_first_state_that_is_none_is_refused() {
    let bench = Bench::new();
    let with = |state: Value| {
        json!({"optimizer": {"name": "adamw", "lr_peak": 3e-3, "betas": [0.9, 0.95], "weight_decay": 0.1,
                             "initial_state": state}})
    };
    run(&bench.recipe("first", json!({})), &llama_config()).unwrap();
    let refused = |state: Value, config: &serde_json::Map<String, Value>| {
        let error = run(&bench.recipe("second", with(state)), config).unwrap_err().to_string();
        assert!(!bench.path("second").exists(), "{error}");
        assert!(error.contains("optimizer.initial_state"), "{error}");
        error
    };
    assert!(refused(json!(bench.path("missing")), &llama_config()).contains("missing"));
    // The model of these runs lies nowhere.
    assert!(refused(json!(true), &llama_config()).contains("student/optimizer.safetensors"));
    let place = json!(bench.path("first/checkpoint-3"));
    let mut wider = llama_config();
    wider.insert("intermediate_size".to_string(), json!(44));
    assert!(refused(place, &wider).contains("another model"));
    let place = json!(bench.path("first/checkpoint-3/config.json"));
    assert!(run(&bench.recipe("second", with(place)), &llama_config()).is_err());
}
