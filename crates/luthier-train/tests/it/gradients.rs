//! Gradients of whole objectives: against finite differences, across micro-batches, and under a teacher.

use luthier_arch::Model;
use luthier_ops::Weight;
use luthier_train::batch::{Batch, Row};
use luthier_train::objectives::{self, ModelShape};
use luthier_train::random::{Purpose, Random};
use luthier_train::step::batch_loss;
use luthier_train::windows::TokenStream;
use luthier_train::{Recipe, parameters};
use serde_json::{Map, Value, json};

use crate::support::{Bench, VOCAB_SIZE, encoder_decoder_config, llama_config, model, run, text, tokenizer};

/// Four rows with a document boundary in each.
fn rows(model: &dyn Model, recipe: &Recipe) -> Vec<Row> {
    let shape = ModelShape {
        decoder_start_token: model.decoder_start_token(),
        is_encoder_decoder: model.is_encoder_decoder(),
        vocab_size: VOCAB_SIZE,
    };
    let tokenizer = tokenizer();
    let objective =
        objectives::of_recipe(&recipe.clone().resolved().unwrap(), shape, Some(&tokenizer)).unwrap();
    let ids = tokenizer.encode(&text(4, 5)).unwrap();
    let stream = TokenStream::new(ids.chunks(19).map(<[u32]>::to_vec));
    (0..4)
        .map(|index| {
            let mut own = Random::new(1, Purpose::Sequence, index);
            let mut step = Random::new(1, Purpose::Step, 1);
            objective.row(&stream.window(index as usize, 24), &mut step, &mut own)
        })
        .collect()
}

fn loss(model: &dyn Model, batch: &Batch, normalizer: f32) -> f64 {
    f64::from(batch_loss(model, None, batch, normalizer).unwrap().to_scalar::<f32>().unwrap())
}

fn backward(model: &dyn Model, batch: &Batch, normalizer: f32) {
    let tape = batch_loss(model, None, batch, normalizer).unwrap().backward().unwrap();
    luthier_ops::weight::collect(model.weights(), &tape).unwrap();
}

fn gradient(weights: &[Weight]) -> Vec<f32> {
    weights.iter().flat_map(|weight| weight.grad().to_vec()).collect()
}

/// Moves along the gradient by `distance` of its length.
fn shift(model: &dyn Model, gradient: &[f32], distance: f64) {
    let mut rest = gradient;
    for weight in model.weights() {
        let (own, others) = rest.split_at(weight.elem_count());
        rest = others;
        parameters::edit_values(weight, |values| {
            values.iter_mut().zip(own).for_each(|(value, g)| *value += (distance * f64::from(*g)) as f32);
        })
        .unwrap();
    }
}

/// Along its own direction the gradient's slope is its squared length.
fn check_slope(config: &Map<String, Value>, objective: &str) {
    let model = model(config, 3, true);
    let recipe = Bench::new().recipe("run", json!({"objective": objective}));
    let batch = Batch::stack(&rows(model.as_ref(), &recipe));
    let normalizer = batch.target_tokens() as f32;
    backward(model.as_ref(), &batch, normalizer);
    let gradient = gradient(model.weights());
    let squared: f64 = gradient.iter().map(|&g| f64::from(g).powi(2)).sum();
    assert!(squared > 1e-4, "{objective}: {squared}");
    // A move that changes the loss by about 2e-3: far above f32's rounding, small against the curvature.
    let distance = 1e-3 / squared;
    shift(model.as_ref(), &gradient, distance);
    let above = loss(model.as_ref(), &batch, normalizer);
    shift(model.as_ref(), &gradient, -2.0 * distance);
    let below = loss(model.as_ref(), &batch, normalizer);
    let slope = (above - below) / (2.0 * distance);
    assert!((slope / squared - 1.0).abs() < 5e-3, "{objective}: slope {slope}, squared length {squared}");
}

#[test]
fn gradients_are_the_slopes_of_the_losses() {
    check_slope(&llama_config(), "next-token");
    check_slope(&llama_config(), "prefixlm");
    check_slope(&llama_config(), "ul2");
    check_slope(&encoder_decoder_config(), "prefixlm");
    check_slope(&encoder_decoder_config(), "ul2");
}

#[test]
fn a_model_that_knows_nothing_loses_the_logarithm_of_the_vocabulary() {
    // All weights 0 make all logits 0: each target costs ln 40 = 3.688879, whatever is padded or packed.
    for (config, objective) in [
        (llama_config(), "next-token"),
        (llama_config(), "ul2"),
        (encoder_decoder_config(), "prefixlm"),
        (encoder_decoder_config(), "ul2"),
    ] {
        let model = model(&config, 3, true);
        model.weights().iter().for_each(|w| parameters::edit_values(w, |values| values.fill(0.0)).unwrap());
        let batch =
            Batch::stack(&rows(model.as_ref(), &Bench::new().recipe("run", json!({"objective": objective}))));
        let loss = loss(model.as_ref(), &batch, batch.target_tokens() as f32);
        assert!((loss - 3.688_879).abs() < 1e-5, "{objective}: {loss}");
    }
}

#[test]
fn micro_batches_add_up_to_the_full_batch() {
    for (config, objective) in [(llama_config(), "next-token"), (encoder_decoder_config(), "ul2")] {
        let model = model(&config, 3, true);
        let recipe = Bench::new().recipe("run", json!({"objective": objective}));
        let rows = rows(model.as_ref(), &recipe);
        let whole = Batch::stack(&rows);
        let normalizer = whole.target_tokens() as f32;
        backward(model.as_ref(), &whole, normalizer);
        let expected = gradient(model.weights());
        model.weights().iter().for_each(Weight::zero_grad);
        // Parts with unequal numbers of targets.
        for part in [&rows[..1], &rows[1..]] {
            backward(model.as_ref(), &Batch::stack(part), normalizer);
        }
        let worst =
            gradient(model.weights()).iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 1e-6, "{objective}: {worst}");
    }
}

#[test]
fn documents_do_not_see_each_other() {
    // The loss of two documents in one row is that of the two in rows of their own.
    let model = model(&llama_config(), 3, true);
    let packed = TokenStream::new([vec![1, 5, 9, 7, 4], vec![1, 8, 8, 3]]);
    let alone = [TokenStream::new([vec![1, 5, 9, 7, 4]]), TokenStream::new([vec![1, 8, 8, 3]])];
    let shape = ModelShape { decoder_start_token: None, is_encoder_decoder: false, vocab_size: VOCAB_SIZE };
    let recipe = Bench::new().recipe("run", json!({}));
    let objective = objectives::of_recipe(&recipe.resolved().unwrap(), shape, None).unwrap();
    let row = |stream: &TokenStream| {
        objective.validation_row(&stream.window(0, 9), &mut Random::new(0, Purpose::Validation, 0))
    };
    let together = loss(model.as_ref(), &Batch::stack(&[row(&packed)]), 7.0);
    let apart: f64 = alone.iter().map(|one| loss(model.as_ref(), &Batch::stack(&[row(one)]), 7.0)).sum();
    assert!((together - apart).abs() < 1e-5, "{together} {apart}");
}

#[test]
fn experts_are_kept_evenly_busy_where_that_counts() {
    let mut config = llama_config();
    let experts = json!({"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2});
    config.extend(experts.as_object().unwrap().clone());
    let bench = Bench::new();
    let balances = |out: &str, changes: Value, config: &Map<String, Value>| -> Vec<Option<f64>> {
        run(&bench.recipe(out, changes), config).unwrap();
        let lines = std::fs::read_to_string(bench.path(out).join("metrics.jsonl")).unwrap();
        let entries = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        entries.map(|entry| entry["balance_loss"].as_f64()).collect()
    };
    assert!(balances("off", json!({}), &config).iter().all(Option::is_none));
    let last = |balances: Vec<Option<f64>>| balances.last().unwrap().unwrap();
    let steps = json!({"steps": 30, "checkpoint_every_steps": null});
    let with = |coefficient: f64, parts: u64| {
        let mut changes = steps.clone();
        changes["router_aux_loss_coef"] = json!(coefficient);
        changes["gradient_accumulation"] = json!(parts);
        changes
    };
    let (whole, parts) = (balances("whole", with(3.0, 1), &config), balances("parts", with(3.0, 2), &config));
    // Two of four experts a token: 2 where all are asked alike.
    assert!(whole.iter().chain(&parts).all(|balance| balance.unwrap() > 1.9));
    let idle = last(balances("idle", with(0.0, 1), &config));
    assert!(last(whole) - 2.0 < 0.5 * (idle - 2.0), "{idle}");
    config.insert("output_router_logits".to_string(), json!(true));
    assert!(balances("config", json!({}), &config).iter().all(Option::is_some));
    let refused = run(&bench.recipe("dense", with(1.0, 1)), &llama_config()).unwrap_err().to_string();
    assert!(refused.contains("router_aux_loss_coef"), "{refused}");
}

#[test]
fn a_student_that_equals_its_teacher_has_no_gradient() {
    // The teacher of the tests is made of seed 77; so is this student.
    let bench = Bench::new();
    let changes = json!({"objective": "prefixlm", "teacher": "teacher", "seed": 77, "steps": 1,
                         "schedule": {"name": "constant"}, "gradient_clip": null});
    run(&bench.recipe("taught", changes), &llama_config()).unwrap();
    let norm = |out: &str| -> f64 {
        let line = std::fs::read_to_string(bench.path(out).join("metrics.jsonl")).unwrap();
        serde_json::from_str::<Value>(&line).unwrap()["grad_norm"].as_f64().unwrap()
    };
    assert!(norm("taught") < 1e-5, "{}", norm("taught"));
    let halved = json!({"objective": "prefixlm", "teacher": "teacher", "seed": 77, "steps": 1,
                        "distillation": {"teacher_share": 0.5}, "schedule": {"name": "constant"}});
    run(&bench.recipe("halved", halved), &llama_config()).unwrap();
    let plain = json!({"objective": "prefixlm", "seed": 77, "steps": 1, "schedule": {"name": "constant"}});
    run(&bench.recipe("plain", plain), &llama_config()).unwrap();
    // Half of the target is the teacher's: half of the gradient is left.
    assert!((norm("halved") / norm("plain") - 0.5).abs() < 1e-4, "{} {}", norm("halved"), norm("plain"));
}

#[test]
fn frozen_weights_stay_and_the_others_move() {
    let bench = Bench::new();
    let changes = json!({"objective": "prefixlm", "train_only": ["*cross_attn*"], "steps": 6});
    run(&bench.recipe("run", changes), &encoder_decoder_config()).unwrap();
    let trained = std::fs::read(bench.path("run/model.safetensors")).unwrap();
    let trained = safetensors::SafeTensors::deserialize(&trained).unwrap();
    let before = model(&encoder_decoder_config(), 1, true);
    for weight in before.weights() {
        let values = weight.to_tensor(&luthier_ops::Device::Cpu).unwrap().flatten_all().unwrap();
        let bytes: Vec<u8> = values.to_vec1::<f32>().unwrap().iter().flat_map(|x| x.to_le_bytes()).collect();
        let same = trained.tensor(weight.name()).unwrap().data() == bytes;
        assert_eq!(same, !weight.name().contains("cross_attn"), "{}", weight.name());
    }
}
