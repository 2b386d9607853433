//! BERT in the forms that files have, against the reference (tools/golden/bert.py).

use std::collections::BTreeSet;
use std::sync::Arc;

use candle_core::Device;
use luthier_arch::model::check_predicts_next;
use luthier_arch::{Cache, LoadOptions, check_headers, layout, load};
use luthier_checkpoint::layout::{Part, Role, StackKind};
use luthier_ops::cross_entropy::Targets;
use luthier_ops::tape::with_reference;
use luthier_ops::weight::collect;
use serde_json::json;

use crate::golden::{assert_close, batch, by_name, model, values};
use crate::source::{Named, checkpoint, golden_config, golden_tensors};

fn check_gradients(name: &str, n_recomputed: usize) {
    let golden = by_name(golden_tensors(name, "golden.safetensors"));
    let mut model = model_of(name, true);
    model.set_recomputed_layers(n_recomputed);
    let states = model.hidden(&batch(&golden, "ids"), None, None).unwrap();
    assert_close("logits", &values(&model.logits(&states).unwrap()), &golden["logits"].2);
    let wanted = &golden["targets"].2;
    let targets = Targets {
        ids: wanted.iter().map(|id| id.max(0.0) as u32).collect(),
        weights: wanted.iter().map(|id| if *id < 0.0 { 0.0 } else { 1.0 }).collect(),
        normalizer: wanted.iter().filter(|id| **id >= 0.0).count() as f32,
        teacher: None,
    };
    let width = states.dims()[2];
    let loss = model.loss(&states.reshape((targets.ids.len(), width)).unwrap(), &targets).unwrap();
    assert_close("loss", &[loss.to_scalar().unwrap()], &golden["loss"].2);
    collect(model.weights(), &loss.backward().unwrap()).unwrap();
    let mut checked = 0;
    for weight in model.weights() {
        match golden.get(&format!("grad.{}", weight.name())) {
            Some((.., wanted)) => {
                assert_close(weight.name(), &weight.grad(), wanted);
                checked += 1;
            }
            None => assert!(weight.grad().is_empty(), "{} takes no part in the loss", weight.name()),
        }
    }
    assert_eq!(checked, golden.keys().filter(|key| key.starts_with("grad.")).count());
}

/// The old form names no model_type, which opening finds out from the tensors.
fn model_of(name: &str, trainable: bool) -> Box<dyn luthier_arch::Model> {
    let mut config = golden_config(name);
    config.entry("model_type").or_insert(json!("bert"));
    let checkpoint = checkpoint(&config, &golden_tensors(name, "model.safetensors"));
    load(&checkpoint, &LoadOptions { trainable, device: Device::Cpu }).unwrap()
}

#[test]
fn masked_token_logits_loss_and_gradients_equal_reference() {
    for name in ["bert", "bert-old"] {
        check_gradients(name, 0);
        check_gradients(name, 1);
        with_reference(|| check_gradients(name, 0));
        let golden = by_name(golden_tensors(name, "golden.safetensors"));
        let frozen = model_of(name, false);
        let states = frozen.encode(&batch(&golden, "ids")).unwrap().states;
        assert_close("frozen logits", &values(&frozen.logits(&states).unwrap()), &golden["logits"].2);
    }
}

#[test]
fn padding_is_hidden() {
    for name in ["bert", "bert-old"] {
        let golden = by_name(golden_tensors(name, "golden.safetensors"));
        let model = model_of(name, false);
        let mut tokens = batch(&golden, "ids");
        let mask = &golden["mask"].2;
        tokens.segments =
            Some(Arc::new(mask.iter().map(|seen| if *seen == 1.0 { 0 } else { u32::MAX }).collect()));
        let states = model.hidden(&tokens, None, None).unwrap();
        let mut logits = values(&model.logits(&states).unwrap());
        let vocabulary = model.vocab_size();
        for (row, seen) in logits.chunks_exact_mut(vocabulary).zip(mask) {
            row.iter_mut().for_each(|value| *value *= seen);
        }
        assert_close("padded logits", &logits, &golden["padded_logits"].2);
    }
}

#[test]
fn a_plain_model_has_states_and_no_logits() {
    let golden = by_name(golden_tensors("bert-plain", "golden.safetensors"));
    let plain = model("bert-plain", false);
    let states = plain.hidden(&batch(&golden, "ids"), None, None).unwrap();
    assert_close("states", &values(&states), &golden["states"].2);
    let error = plain.logits(&states).unwrap_err().to_string();
    assert!(
        error.contains("cls.predictions.transform.dense.weight") && error.contains("luthier embed"),
        "{error}"
    );
    assert!(plain.is_encoder_only() && !plain.is_encoder_decoder());
    let error = check_predicts_next(plain.as_ref(), "generate").unwrap_err().to_string();
    assert!(
        error.contains("generate needs a model that predicts next tokens, but bert is an encoder"),
        "{error}"
    );
    let mut cache = Cache::new();
    assert!(plain.hidden(&batch(&golden, "ids"), None, Some(&mut cache)).is_err());
    let mut long = batch(&golden, "ids");
    long.rows = 1;
    long.ids = vec![5; 24];
    let error = plain.encode(&long).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("position 23") && error.contains("23 positions"), "{error}");
}

/// One model in every form: the same roles under the names that its file has.
#[test]
fn the_form_of_a_file_is_kept() {
    let (config, tensors) = (golden_config("bert"), golden_tensors("bert", "model.safetensors"));
    let renamed = |rename: &dyn Fn(&str) -> Option<String>| -> Vec<Named> {
        let named = tensors
            .iter()
            .filter_map(|(name, shape, values)| Some((rename(name)?, shape.clone(), values.clone())));
        named.collect()
    };
    let roles = |named: &[Named]| -> BTreeSet<String> {
        let layout = check_headers(&checkpoint(&config, named)).unwrap();
        let names: BTreeSet<&str> = named.iter().map(|tensor| tensor.0.as_str()).collect();
        assert!(layout.tensors.iter().all(|spec| names.contains(spec.name.as_str())));
        layout.tensors.iter().map(|spec| format!("{:?}", spec.role)).collect()
    };
    let whole = roles(&tensors);
    for prefix in ["", "model.bert.", "0.auto_model."] {
        let moved = renamed(&|name| {
            Some(name.strip_prefix("bert.").map_or(name.to_string(), |inner| format!("{prefix}{inner}")))
        });
        assert_eq!(roles(&moved), whole, "{prefix}");
    }
    let old = renamed(&|name| {
        Some(name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"))
    });
    assert_eq!(roles(&old), whole);
    let alias = renamed(&|name| Some(name.replace("cls.predictions.bias", "cls.predictions.decoder.bias")));
    assert_eq!(roles(&alias), whole);
    let headless = renamed(&|name| (!name.starts_with("cls.")).then(|| name.to_string()));
    assert!(roles(&headless).is_subset(&whole) && roles(&headless).len() < whole.len());
    // A tensor of a head without the rest of it is refused, not overlooked.
    let mut half = headless.clone();
    half.push(("cls.predictions.bias".to_string(), vec![61], vec![0.0; 61]));
    assert!(check_headers(&checkpoint(&config, &half)).is_err());
}

#[test]
fn architectures_say_the_form_where_no_file_does() {
    let mut config = golden_config("bert");
    let has = |config: &serde_json::Map<String, serde_json::Value>, part: Part| {
        layout(config)
            .unwrap()
            .at(Role { stack: StackKind::Encoder, layer: None, part })
            .map(|spec| spec.shape.clone())
    };
    assert_eq!((has(&config, Part::HeadBias), has(&config, Part::Pooler)), (Some(vec![61]), None));
    config["architectures"] = json!(["BertModel"]);
    assert_eq!((has(&config, Part::HeadBias), has(&config, Part::Pooler)), (None, Some(vec![35, 35])));
    config["architectures"] = json!(["BertForSequenceClassification"]);
    config.insert("id2label".to_string(), json!({"0": "a", "1": "b", "2": "c"}));
    assert_eq!(has(&config, Part::Classifier), Some(vec![3, 35]));
    config["architectures"] = json!(["BertForPreTraining"]);
    config.insert("tie_word_embeddings".to_string(), json!(false));
    assert_eq!(has(&config, Part::SentencePairHead), Some(vec![2, 35]));
    assert_eq!(has(&config, Part::Head), Some(vec![61, 35]));
}

#[test]
fn variants_that_compute_otherwise_are_refused() {
    let base = golden_config("bert");
    for (key, value, wanted) in [
        ("position_embedding_type", json!("relative_key"), "wanted \"absolute\""),
        ("is_decoder", json!(true), "a BERT that is a decoder"),
        ("add_cross_attention", json!(true), "a BERT that is a decoder"),
        ("pruned_heads", json!({"0": [1]}), "fewer heads"),
        ("hidden_act", json!("mish"), "expected silu"),
        ("num_attention_heads", json!(4), "does not divide hidden_size=35"),
    ] {
        let mut config = base.clone();
        config.insert(key.to_string(), value);
        let error = layout(&config).unwrap_err().to_string();
        assert!(error.contains(key) && error.contains(wanted), "{error}");
    }
}
