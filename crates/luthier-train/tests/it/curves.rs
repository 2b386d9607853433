//! Ten steps of every objective: the losses of the day they were recorded, and that they fall.

use serde_json::{Map, Value, json};

use crate::support::{Bench, encoder_decoder_config, llama_config, model, run};

/// The kernels of different processors sum in different orders; ten steps of Adam make that at most this.
const TOLERANCE: f64 = 2e-4;

fn curve(config: &Map<String, Value>, changes: Value) -> Vec<f64> {
    let bench = Bench::new();
    run(&bench.recipe("run", changes), config).unwrap();
    let metrics = std::fs::read_to_string(bench.path("run/metrics.jsonl")).unwrap();
    let loss = |line: &str| serde_json::from_str::<Value>(line).unwrap()["loss"].as_f64().unwrap();
    metrics.lines().map(loss).collect()
}

#[track_caller]
fn check(config: &Map<String, Value>, changes: Value, golden: [f64; 10]) {
    let losses = curve(config, changes);
    let worst = losses.iter().zip(golden).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(losses.len() == 10 && worst < TOLERANCE, "off by {worst}: {losses:.5?}");
    assert!(losses[9] < losses[0] - 0.1, "{losses:?}");
}

#[test]
fn next_token() {
    check(
        &llama_config(),
        json!({}),
        [3.87387, 3.68866, 3.56800, 3.53333, 3.41504, 3.29143, 3.35885, 3.16175, 3.19433, 3.09425],
    );
}

#[test]
fn next_token_in_bf16() {
    check(
        &llama_config(),
        json!({"precision": "bf16"}),
        [3.87311, 3.68961, 3.56792, 3.53337, 3.41509, 3.29141, 3.35878, 3.16199, 3.19459, 3.09493],
    );
}

#[test]
fn prefixlm() {
    check(
        &encoder_decoder_config(),
        json!({"objective": "prefixlm"}),
        [3.71664, 3.55976, 3.43140, 3.40380, 3.29089, 3.24362, 3.16498, 3.23906, 3.36713, 3.15413],
    );
}

#[test]
fn prefixlm_of_a_decoder_only_model() {
    check(
        &llama_config(),
        json!({"objective": "prefixlm"}),
        [3.87413, 3.69570, 3.52759, 3.53146, 3.54984, 3.24958, 3.37606, 3.19105, 3.32486, 3.13569],
    );
}

#[test]
fn ul2() {
    check(
        &encoder_decoder_config(),
        json!({"objective": "ul2"}),
        [3.73000, 3.63397, 3.38327, 3.51279, 3.35454, 3.37140, 3.10023, 3.25041, 3.11418, 3.29886],
    );
}

#[test]
fn distillation() {
    let changes =
        json!({"objective": "prefixlm", "teacher": "teacher", "distillation": {"teacher_share": 0.5}});
    check(
        &encoder_decoder_config(),
        changes,
        [3.74951, 3.67657, 3.63072, 3.58561, 3.52903, 3.52348, 3.48829, 3.53017, 3.57100, 3.48501],
    );
}

#[test]
fn distillation_under_ul2_from_a_teacher_without_encoder() {
    let changes = json!({"objective": "ul2", "teacher": "teacher", "distillation": {"teacher_share": 0.5}});
    check(
        &encoder_decoder_config(),
        changes,
        [3.76769, 3.69063, 3.41861, 3.55001, 3.43209, 3.48199, 3.29170, 3.44624, 3.30774, 3.41046],
    );
}

#[test]
fn recomputed_layers_change_nothing() {
    let plain = curve(&encoder_decoder_config(), json!({"objective": "prefixlm"}));
    let recomputed =
        curve(&encoder_decoder_config(), json!({"objective": "prefixlm", "recompute_layers": 2}));
    let worst = plain.iter().zip(&recomputed).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(worst < 1e-5, "{worst}");
}

#[test]
fn validation_is_the_same_before_training_whatever_the_accumulation() {
    let bench = Bench::new();
    let changes = |parts: u64| json!({"gradient_accumulation": parts, "steps": 6});
    let one = run(&bench.recipe("one", changes(1)), &llama_config()).unwrap();
    let four = run(&bench.recipe("four", changes(4)), &llama_config()).unwrap();
    let (one, four) = (one.initial_validation_loss_nats.unwrap(), four.initial_validation_loss_nats.unwrap());
    assert!((one - four).abs() < 1e-6, "{one} {four}");
}

#[test]
fn the_losses_of_timed_steps_fall() {
    for config in [llama_config(), encoder_decoder_config()] {
        let times =
            luthier_train::bench_step(model(&config, 1, true).as_mut(), None, None, 3, 10, 4).unwrap();
        assert_eq!(times.losses.len(), 6);
        assert!(times.losses.windows(2).all(|pair| pair[1] < pair[0]), "{:?}", times.losses);
        assert!(times.step_ms > 0.0 && times.train_tokens_per_s > 0.0);
        assert!(luthier_train::bench_step(model(&config, 1, true).as_mut(), None, None, 0, 10, 4).is_err());
        assert!(luthier_train::bench_step(model(&config, 1, true).as_mut(), None, None, 1, 65, 4).is_err());
    }
}
