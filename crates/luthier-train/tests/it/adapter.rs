//! LoRA adapters: PEFT's losses step for step (tools/golden/lora.py), runs that are stopped and gone on with, refusals.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;

use luthier_arch::{LoadOptions, TokenBatch};
use luthier_checkpoint::TensorSource;
use luthier_checkpoint::safetensors::SafetensorsFile;
use luthier_ops::Device;
use luthier_train::adapter::Adapter;
use luthier_train::batch::Row;
use luthier_train::optimizers::adamw::{AdamW, Settings};
use luthier_train::recipe::AdapterRecipe;
use luthier_train::step::{Mover, train_step};
use serde_json::{Value, json};

use crate::support::{Bench, StopAfter, encoder_decoder_config, files, llama_config, run, run_with};

fn golden(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../golden").join(name)
}

/// The values of a tensor of 4 or 8 bytes each.
fn read(file: &SafetensorsFile, name: &str) -> Vec<f64> {
    let shape = &file.infos().iter().find(|info| info.name == name).unwrap().shape;
    let (n_values, bytes) = (shape.iter().product::<usize>(), file.read(name).unwrap());
    let value = |bytes: &[u8]| match (name, bytes.len()) {
        ("ids", _) => f64::from(i32::from_le_bytes(bytes.try_into().unwrap())),
        (_, 4) => f64::from(f32::from_le_bytes(bytes.try_into().unwrap())),
        _ => f64::from_le_bytes(bytes.try_into().unwrap()),
    };
    bytes.chunks_exact(bytes.len() / n_values).map(value).collect()
}

fn worst(got: impl IntoIterator<Item = f64>, wanted: &[f64]) -> f64 {
    got.into_iter().zip(wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

#[test]
fn losses_and_the_trained_adapter_are_those_of_peft() {
    let expected = SafetensorsFile::open(&golden("lora/expected.safetensors")).unwrap();
    let ids: Vec<u32> = read(&expected, "ids").into_iter().map(|id| id as u32).collect();
    let checkpoint = luthier_arch::open(&golden("llama")).unwrap();
    let options = LoadOptions { trainable: false, device: Device::Cpu };
    let model = luthier_arch::load(&checkpoint, &options).unwrap();
    let recipe =
        AdapterRecipe { rank: 4, alpha: 10.0, targets: Vec::new(), initial: Some(golden("lora/initial")) };
    let adapter = Adapter::attach(model.as_ref(), "llama", &recipe, 1).unwrap();
    let mut config = adapter.config();
    let peft: Value =
        serde_json::from_slice(&fs::read(golden("lora/trained/adapter_config.json")).unwrap()).unwrap();
    config["base_model_name_or_path"] = peft["base_model_name_or_path"].clone();
    for (key, value) in config {
        assert_eq!(value, peft[&key], "{key}");
    }
    let rows: Vec<Row> = ids
        .chunks_exact(18)
        .map(|ids| {
            let mut row = Row::default();
            ids.windows(2).for_each(|pair| row.push(pair[0], 0, pair[1], true));
            row
        })
        .collect();
    let settings = Settings { betas: [0.9, 0.95], weight_decay: 0.1, eps: 1e-8 };
    let mut optimizer = AdamW::new(settings, adapter.weights());
    let losses: Vec<f64> = (1..=8)
        .map(|step| {
            let mover = Mover {
                weights: adapter.weights(),
                optimizer: &mut optimizer,
                masters: None,
                lr: 1e-2,
                balance: None,
                gradient_clip: None,
            };
            train_step(model.as_ref(), None, &rows, 1, step, mover).unwrap().loss_nats
        })
        .collect();
    let off = worst(losses.iter().copied(), &read(&expected, "losses"));
    assert!(off < 2e-5, "off by {off}: {losses:?}");
    // Adam makes of rounding a step's share of lr where a gradient is nearly zero.
    let trained = SafetensorsFile::open(&golden("lora/trained/adapter_model.safetensors")).unwrap();
    for weight in adapter.weights() {
        let got: Vec<f32> = weight.to_tensor(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        let off = worst(got.into_iter().map(f64::from), &read(&trained, weight.name()));
        assert!(off < 1e-3, "{} is off by {off}", weight.name());
    }
    let states = model.hidden(&TokenBatch { ids, rows: 3, segments: None }, None, None).unwrap().detach();
    let logits: Vec<f32> = model.logits(&states).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    let off = worst(logits.into_iter().map(f64::from), &read(&expected, "logits"));
    assert!(off < 1e-3, "logits are off by {off}");
}

fn with_adapter(more: &Value) -> Value {
    let mut adapter = json!({"rank": 3, "alpha": 6});
    for (key, value) in more.as_object().unwrap() {
        adapter[key] = value.clone();
    }
    json!({ "adapter": adapter })
}

#[test]
fn a_stopped_run_leaves_the_bytes_of_an_undisturbed_one() {
    for (config, objective) in [(llama_config(), "next-token"), (encoder_decoder_config(), "prefixlm")] {
        let bench = Bench::new();
        let mut changes = with_adapter(&json!({}));
        changes["objective"] = json!(objective);
        let whole = run(&bench.recipe("whole", changes.clone()), &config).unwrap();
        assert!(whole.validation_loss_nats < whole.initial_validation_loss_nats);
        for stop in [2, 3, 7] {
            let recipe = bench.recipe("stopped", changes.clone());
            let stopped =
                catch_unwind(AssertUnwindSafe(|| run_with(&recipe, &config, &mut StopAfter(stop), false)));
            assert!(stopped.is_err());
        }
        run(&bench.recipe("stopped", changes), &config).unwrap();
        let (whole, stopped) = (files(&bench.path("whole")), files(&bench.path("stopped")));
        assert!(whole == stopped);
        let has = |name: &str| whole.keys().any(|path| path.ends_with(name));
        assert!(has("adapter_model.safetensors") && has("checkpoint-3/adapter_config.json"));
        assert!(!has("config.json") && !has("model.safetensors") && !has("tokenizer.json"));
    }
}

#[test]
fn training_goes_on_from_an_adapter() {
    let bench = Bench::new();
    let first = run(&bench.recipe("first", with_adapter(&json!({}))), &llama_config()).unwrap();
    let initial = json!({"initial": bench.path("first")});
    let second = run(&bench.recipe("second", with_adapter(&initial)), &llama_config()).unwrap();
    let (end, begin) = (first.validation_loss_nats.unwrap(), second.initial_validation_loss_nats.unwrap());
    assert!((end - begin).abs() < 1e-12, "{end} {begin}");
    assert!(second.validation_loss_nats.unwrap() < end);
    let lineage = fs::read_to_string(bench.path("second/lineage.json")).unwrap();
    assert!(lineage.contains("\"first\""), "{lineage}");
}

#[track_caller]
fn refused(changes: Value, wanted: &str) {
    let bench = Bench::new();
    let error = run(&bench.recipe("run", changes), &llama_config()).unwrap_err().to_string();
    assert!(error.contains(wanted), "{error}");
    assert!(!bench.path("run").exists());
}

#[test]
fn what_makes_no_sense_is_refused() {
    refused(with_adapter(&json!({"rank": 0})), "recipe key adapter.rank: wanted 1 to 65536, came 0");
    refused(with_adapter(&json!({"alpha": 0})), "recipe key adapter.alpha");
    refused(
        with_adapter(&json!({"targets": ["q_proj", "gate"]})),
        "recipe key adapter.targets: gate names no projection of this model; it has down_proj, gate_proj, k_proj",
    );
    let also = |key: &str, value: Value| {
        let mut changes = with_adapter(&json!({}));
        changes[key] = value;
        changes
    };
    refused(also("precision", json!("bf16")), "recipe key precision: adapters are trained in f32");
    refused(also("train_only", json!(["*"])), "recipe key train_only: means nothing beside adapter");
    refused(also("model", json!({"config": "c", "tokenizer": "t"})), "recipe key adapter: ");
    let initial = golden("lora/initial");
    refused(with_adapter(&json!({"initial": initial})), "recipe key adapter.initial");
    let same = json!({"initial": initial, "rank": 4, "alpha": 10, "targets": ["q_proj"]});
    refused(with_adapter(&same), "which is no target here; it would be lost");
}

#[test]
fn only_the_targets_get_pairs() {
    let bench = Bench::new();
    let targets = json!({"targets": ["v_proj", "layers.1.mlp.up_proj"]});
    run(&bench.recipe("run", with_adapter(&targets)), &llama_config()).unwrap();
    let file = SafetensorsFile::open(&bench.path("run/adapter_model.safetensors")).unwrap();
    let names: Vec<&str> = file.infos().iter().map(|info| info.name.as_str()).collect();
    assert_eq!(names.len(), 6, "{names:?}");
    let config: Value =
        serde_json::from_slice(&fs::read(bench.path("run/adapter_config.json")).unwrap()).unwrap();
    assert_eq!(config["target_modules"], json!(["model.layers.1.mlp.up_proj", "v_proj"]));
}
