//! What holds for every architecture: caches, packed documents, padding, config forms, repeatable fresh weights.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use luthier_arch::{Cache, Encoded, Model, TokenBatch, encoder_decoder_config, init, unknown_keys};
use luthier_ops::without_tape;
use serde_json::{Map, Value, json};

use crate::golden::{assert_close, model, values};
use crate::source::golden_config;

const NAMES: &[&str] =
    &["encoder-decoder", "gemma2", "llama", "llama-tied", "mistral", "qwen2", "qwen3", "t5gemma", "uneven"];

const PADDING: u32 = u32::MAX;

fn tokens(ids: &[u32], segments: Option<&[u32]>) -> TokenBatch {
    TokenBatch { ids: ids.to_vec(), rows: 1, segments: segments.map(|segments| Arc::new(segments.to_vec())) }
}

fn encode(model: &dyn Model, tokens: &TokenBatch) -> Option<Encoded> {
    model.is_encoder_decoder().then(|| model.encode(tokens).unwrap())
}

fn logits(model: &dyn Model, ids: &TokenBatch, encoded: Option<&Encoded>) -> Tensor {
    model.logits(&model.hidden(ids, encoded, None).unwrap()).unwrap()
}

/// Tokens `from..to` of the only row.
fn part(logits_btv: &Tensor, from: usize, to: usize) -> Vec<f32> {
    values(&logits_btv.narrow(1, from, to - from).unwrap().contiguous().unwrap())
}

const A: &[u32] = &[7, 30, 12, 55, 9, 41, 18, 22];
const B: &[u32] = &[50, 3, 3, 44, 29, 17];
const INPUT_A: &[u32] = &[11, 12, 13, 14, 15, 16, 17, 18, 19];
const INPUT_B: &[u32] = &[60, 5, 33, 21, 4, 8, 40];

#[test]
fn cached_steps_equal_whole_text() {
    for name in NAMES {
        let model = model(name, false);
        let encoded = encode(model.as_ref(), &tokens(INPUT_A, None));
        let whole = logits(model.as_ref(), &tokens(A, None), encoded.as_ref());
        for first in [1, 3] {
            let mut cache = Cache::new();
            let mut from = 0;
            while from < A.len() {
                let to = if from == 0 { first } else { from + 1 };
                let step = tokens(&A[from..to], None);
                let states = model.hidden(&step, encoded.as_ref(), Some(&mut cache)).unwrap();
                let step = values(&model.logits(&states).unwrap());
                assert_close(name, &step, &part(&whole, from, to));
                from = to;
            }
        }
    }
}

#[test]
fn truncated_cache_goes_on_as_if_nothing_followed() {
    for name in NAMES {
        let model = model(name, false);
        let encoded = encode(model.as_ref(), &tokens(INPUT_A, None));
        let whole = logits(model.as_ref(), &tokens(A, None), encoded.as_ref());
        let mut cache = Cache::new();
        model.hidden(&tokens(&[A[0], A[1], 4, 4, 4], None), encoded.as_ref(), Some(&mut cache)).unwrap();
        cache.truncate(2).unwrap();
        let states = model.hidden(&tokens(&A[2..], None), encoded.as_ref(), Some(&mut cache)).unwrap();
        assert_close(name, &values(&model.logits(&states).unwrap()), &part(&whole, 2, A.len()));
    }
}

#[test]
fn packed_documents_equal_separate_ones() {
    for name in NAMES {
        let model = model(name, false);
        let join = |a: &[u32], b: &[u32], a_first: bool| {
            let pad = vec![0; 2];
            let (x, y) = if a_first { (a, b) } else { (b, a) };
            let segments: Vec<u32> = std::iter::repeat_n(if a_first { 4 } else { 9 }, x.len())
                .chain(std::iter::repeat_n(if a_first { 9 } else { 4 }, y.len()))
                .chain(std::iter::repeat_n(PADDING, 2))
                .collect();
            tokens(&[x, y, &pad].concat(), Some(&segments))
        };
        let apart_a =
            logits(model.as_ref(), &tokens(A, None), encode(model.as_ref(), &tokens(INPUT_A, None)).as_ref());
        let apart_b =
            logits(model.as_ref(), &tokens(B, None), encode(model.as_ref(), &tokens(INPUT_B, None)).as_ref());
        // The documents of an encoder row may stand in another order than those of the decoder row.
        let encoded = encode(model.as_ref(), &join(INPUT_A, INPUT_B, false));
        let packed = logits(model.as_ref(), &join(A, B, true), encoded.as_ref());
        assert_close(name, &part(&packed, 0, A.len()), &values(&apart_a));
        assert_close(name, &part(&packed, A.len(), A.len() + B.len()), &values(&apart_b));
    }
}

#[test]
fn padding_on_the_left_does_not_leak_with_a_cache() {
    for name in NAMES {
        let model = model(name, false);
        let encoded = encode(model.as_ref(), &tokens(INPUT_B, None));
        let whole = logits(model.as_ref(), &tokens(B, None), encoded.as_ref());
        let mut cache = Cache::new();
        let padded = tokens(&[0, 0, 0, B[0], B[1]], Some(&[PADDING, PADDING, PADDING, 0, 0]));
        let states = model.hidden(&padded, encoded.as_ref(), Some(&mut cache)).unwrap();
        assert_close(name, &part(&model.logits(&states).unwrap(), 3, 5), &part(&whole, 0, 2));
        for at in 2..B.len() {
            let states =
                model.hidden(&tokens(&B[at..=at], None), encoded.as_ref(), Some(&mut cache)).unwrap();
            assert_close(name, &values(&model.logits(&states).unwrap()), &part(&whole, at, at + 1));
        }
    }
}

#[test]
fn recomputed_layers_give_the_same_gradients() {
    for name in NAMES {
        let mut gradients = Vec::new();
        for n_recomputed in [0, 3, 99] {
            let mut model = model(name, true);
            model.set_recomputed_layers(n_recomputed);
            let encoded = encode(model.as_ref(), &tokens(INPUT_A, None));
            let states = model.hidden(&tokens(A, None), encoded.as_ref(), None).unwrap();
            let targets = luthier_ops::cross_entropy::Targets {
                ids: A.to_vec(),
                weights: vec![1.0; A.len()],
                normalizer: A.len() as f32,
                teacher: None,
            };
            let width = states.dims()[2];
            let loss = model.loss(&states.reshape((A.len(), width)).unwrap(), &targets).unwrap();
            luthier_ops::weight::collect(model.weights(), &loss.backward().unwrap()).unwrap();
            let all: Vec<f32> = model.weights().iter().flat_map(|weight| weight.grad().to_vec()).collect();
            assert!(all.len() > 1000 && all.iter().any(|x| *x != 0.0), "{name}");
            gradients.push(all);
        }
        assert_close(name, &gradients[1], &gradients[0]);
        assert_close(name, &gradients[2], &gradients[0]);
    }
}

#[test]
fn nothing_is_recorded_without_a_tape() {
    let model = model("llama", true);
    let states = without_tape(|| model.hidden(&tokens(A, None), None, None).unwrap());
    assert!(!states.track_op());
}

/// The config as transformers 4 wrote it.
fn older_form(config: &Map<String, Value>) -> Map<String, Value> {
    let mut older = config.clone();
    if let Some(Value::Object(mut rope)) = older.remove("rope_parameters") {
        older.insert("rope_theta".to_string(), rope.remove("rope_theta").unwrap());
        let plain = rope.get("rope_type") == Some(&json!("default"));
        older.insert("rope_scaling".to_string(), if plain { Value::Null } else { Value::Object(rope) });
    }
    older.remove("dtype");
    older.insert("torch_dtype".to_string(), json!("float32"));
    older.remove("layer_types");
    for side in ["encoder", "decoder"] {
        if let Some(Value::Object(nested)) = older.get(side) {
            let nested = older_form(nested);
            older.insert(side.to_string(), Value::Object(nested));
        }
    }
    older
}

#[test]
fn older_and_newer_configs_mean_the_same() {
    for name in NAMES {
        let newer = golden_config(name);
        let older = older_form(&newer);
        assert_ne!(newer, older);
        let run = |config: &Map<String, Value>| {
            let model = init(config, 5, false, &Device::Cpu).unwrap();
            let encoded = encode(model.as_ref(), &tokens(INPUT_A, None));
            values(&logits(model.as_ref(), &tokens(A, None), encoded.as_ref()))
        };
        assert_eq!(run(&newer), run(&older), "{name}");
    }
}

#[test]
fn unknown_keys_are_reported_with_their_path() {
    for name in NAMES {
        let mut config = golden_config(name);
        assert_eq!(unknown_keys(&config).unwrap(), Vec::<String>::new(), "{name}");
        config.insert("num_hiden_layers".to_string(), json!(7));
        assert_eq!(unknown_keys(&config).unwrap(), ["num_hiden_layers"], "{name}");
    }
    let mut config = golden_config("t5gemma");
    config["decoder"]["extra"] = json!(1);
    assert_eq!(unknown_keys(&config).unwrap(), ["decoder.extra"]);
}

#[test]
fn fresh_weights_follow_seed_and_name() {
    let config = golden_config("gemma2");
    let fresh = |seed: u64| -> Vec<(String, Vec<f32>)> {
        let model = init(&config, seed, false, &Device::Cpu).unwrap();
        let read =
            |w: &luthier_ops::Weight| (w.name().to_string(), values(&w.to_tensor(&Device::Cpu).unwrap()));
        model.weights().iter().map(read).collect()
    };
    let (once, again, other) = (fresh(1), fresh(1), fresh(2));
    assert_eq!(once, again);
    for ((name, a), (_, b)) in once.iter().zip(&other) {
        if name.contains("norm") {
            assert!(a.iter().all(|x| *x == 0.0), "{name}");
            continue;
        }
        assert_ne!(a, b, "{name}");
        let deviation = (a.iter().map(|x| f64::from(x * x)).sum::<f64>() / a.len() as f64).sqrt();
        assert!((deviation - 0.02).abs() < 0.002, "{name}: {deviation}");
    }
    // Gemma's padding token.
    assert!(once[0].1[..40].iter().all(|x| *x == 0.0));
}

#[test]
fn parents_make_an_encoder_decoder_config() {
    let (gemma, llama, qwen) = (golden_config("gemma2"), golden_config("llama"), golden_config("qwen3"));
    let t5gemma = encoder_decoder_config(&gemma, &gemma).unwrap();
    assert_eq!(t5gemma["model_type"], "t5gemma");
    assert_eq!(t5gemma["tie_encoder_embeddings"], true);
    for (encoder, decoder) in [(&llama, &qwen), (&gemma, &llama), (&llama, &gemma), (&qwen, &qwen)] {
        let config = encoder_decoder_config(encoder, decoder).unwrap();
        assert_eq!(config["model_type"], "luthier_encoder_decoder");
        assert_eq!(config["encoder"], Value::Object(encoder.clone()));
        let model = init(&config, 1, false, &Device::Cpu).unwrap();
        let encoded = encode(model.as_ref(), &tokens(INPUT_A, None));
        let logits = values(&logits(model.as_ref(), &tokens(A, None), encoded.as_ref()));
        assert!(logits.iter().all(|x| x.is_finite()) && logits.iter().any(|x| *x != 0.0));
    }
    let error = encoder_decoder_config(&t5gemma, &gemma).unwrap_err();
    assert_eq!(error.to_string(), "config key model_type: t5gemma is an encoder-decoder already");
}

#[test]
fn wrong_use_is_named() {
    let model = model("llama", false);
    let error = |batch: &TokenBatch| model.hidden(batch, None, None).unwrap_err().to_string();
    assert_eq!(error(&tokens(&[3, 61], None)), "token id 61 is outside the vocabulary of 61");
    assert_eq!(error(&tokens(&[], None)), "0 tokens do not fill 1 rows of equal length");
    assert_eq!(error(&tokens(&[1, 2], Some(&[0]))), "1 document numbers for 2 tokens");
    assert_eq!(
        model.encode(&tokens(A, None)).unwrap_err().to_string(),
        "a decoder-only model has no encoder"
    );
    let t5gemma = crate::golden::model("t5gemma", false);
    assert_eq!(
        t5gemma.hidden(&tokens(A, None), None, None).unwrap_err().to_string(),
        "the decoder of an encoder-decoder needs the encoder's states: encode the input first"
    );
}
