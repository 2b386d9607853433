//! Runs a decoder-only model on a short text, as its config says and as near configs would.
//!
//! A head count or a rotary base that is wrong leaves every shape as it is. The right config shows by its loss: one that
//! predicts the text much better than the model's own is named. Of an encoder alone it only shows that its states are
//! numbers.

use candle_core::Device;
use luthier_arch::{LoadOptions, TokenBatch, layout_of, load};
use luthier_checkpoint::Checkpoint;
use luthier_checkpoint::layout::StackKind;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{Finding, Severity};
use crate::{Result, fit};

/// Plain sentences of no book, so that no model knows them by heart and every English one finds them likely.
const TEXT: &str = "The train was late again, so we waited on the platform and talked about the weather. My sister had \
brought a basket with bread, cheese and a bottle of cold tea. A man with a small dog asked us whether this was the right \
place for the train to the coast. We told him that it was, and that he could wait with us if he liked. When the train came \
at last, it was so full that we had to stand all the way. The dog slept on the floor between our feet, and the man told us \
stories about the sea, about the storms in winter and the quiet mornings in summer. In the evening we walked along the beach \
until it was dark, and nobody wanted to go home.";

/// Tokens of the text that are read at most.
const MAX_TOKENS: usize = 256;

/// Tokens whose logits stand in memory together.
const LOGIT_ROWS: usize = 32;

/// Nats a token by which another config must do better to be named: the mean over the text's tokens,
const BETTER_NATS: f64 = 0.05;

/// and that mean in its standard errors, so that no few tokens decide.
const BETTER_STANDARD_ERRORS: f64 = 3.0;

/// Rotary bases in use.
const ROTARY_BASES: [f64; 8] = [1e4, 5e4, 1e5, 1.5e5, 5e5, 1e6, 5e6, 1e7];

/// Head widths in use.
const HEAD_WIDTHS: [usize; 7] = [32, 48, 64, 80, 96, 128, 256];

/// How well a model predicts a short English text.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Trial {
    /// Tokens scored.
    pub tokens: usize,
    /// Mean over them.
    pub nats_per_token: f64,
    /// What guessing among all tokens alike comes to.
    pub guessing_nats_per_token: f64,
    /// What near configs come to: the change, nats a token.
    pub near_configs: Vec<(String, f64)>,
}

/// The trial and what it shows; none for a model that has no causal stack or no tokenizer.
pub(super) fn run(checkpoint: &Checkpoint) -> Result<(Option<Trial>, Vec<Finding>)> {
    let Some(tokenizer) = fit::tokenizer(checkpoint)? else { return Ok((None, Vec::new())) };
    let mut ids = tokenizer.encode_prompt(TEXT)?;
    ids.truncate(MAX_TOKENS);
    if !layout_of(checkpoint)?.has_stack(StackKind::Decoder) {
        return Ok((None, states(checkpoint, &ids)?.into_iter().collect()));
    }
    let Some(own) = nats(checkpoint, &checkpoint.config, &ids)? else { return Ok((None, Vec::new())) };
    let mut near = Vec::new();
    for (change, config) in near_configs(&checkpoint.config) {
        // A near config that does not load is not the right one.
        if let Ok(Some(nats)) = nats(checkpoint, &config, &ids) {
            near.push((change, nats));
        }
    }
    let best = near.iter().filter(|(_, nats)| is_clearly_better(nats, &own));
    let best = best.min_by(|a, b| mean(&a.1).total_cmp(&mean(&b.1))).cloned();
    let own = mean(&own);
    let near: Vec<(String, f64)> = near.into_iter().map(|(change, nats)| (change, mean(&nats))).collect();
    let guessing = (tokenizer.vocab_size() as f64).ln();
    let mut findings = Vec::new();
    if let Some((change, nats)) = &best {
        let nats = mean(nats);
        let what = format!(
            "with {change} the model predicts a plain text at {nats:.2} nats a token, as it is at {own:.2}"
        );
        let fix = "set it so, if the model's source agrees";
        let key = change.split(' ').next().unwrap_or(change);
        findings.push(Finding::new(Severity::Error, format!("config key {key}"), what, fix));
    } else if own > guessing {
        let what = format!(
            "it predicts a plain English text at {own:.2} nats a token, guessing comes to {guessing:.2}: it is not trained, or of another \
             language, or damaged"
        );
        findings.push(Finding::new(Severity::Note, "running the model", what, ""));
    }
    let trial = Trial {
        tokens: ids.len().saturating_sub(1),
        nats_per_token: own,
        guessing_nats_per_token: guessing,
        near_configs: near,
    };
    Ok((Some(trial), findings))
}

/// What is wrong with an encoder's states of the text.
fn states(checkpoint: &Checkpoint, ids: &[u32]) -> Result<Option<Finding>> {
    let model = load(checkpoint, &LoadOptions { trainable: false, device: Device::Cpu })?;
    let ids = &ids[..ids.len().min(model.context_length().unwrap_or(usize::MAX))];
    let states = model.hidden(&TokenBatch { ids: ids.to_vec(), rows: 1, segments: None }, None, None)?;
    let states = states.flatten_all().and_then(|states| states.to_vec1::<f32>());
    let are_numbers = states.map_err(luthier_arch::Error::from)?.iter().all(|value| value.is_finite());
    Ok((!are_numbers).then(|| {
        let what = "its states of a plain English text are not all finite".to_string();
        let fix = "the weights are damaged, or made for another config; take them from their source again";
        Finding::new(Severity::Error, "running the model", what, fix)
    }))
}

fn mean(nats: &[f64]) -> f64 {
    nats.iter().sum::<f64>() / nats.len() as f64
}

/// Token by token, whether `nats` lies below `own` by more than chance.
fn is_clearly_better(nats: &[f64], own: &[f64]) -> bool {
    let gains: Vec<f64> = own.iter().zip(nats).map(|(own, nats)| own - nats).collect();
    let gain = mean(&gains);
    let variance =
        gains.iter().map(|one| (one - gain).powi(2)).sum::<f64>() / (gains.len() - 1).max(1) as f64;
    gain > BETTER_NATS && gain > BETTER_STANDARD_ERRORS * (variance / gains.len() as f64).sqrt()
}

/// Nats of each token under a config; none where the model is not one that predicts the next token.
fn nats(checkpoint: &Checkpoint, config: &Map<String, Value>, ids: &[u32]) -> Result<Option<Vec<f64>>> {
    let options = LoadOptions { trainable: false, device: Device::Cpu };
    let model = load(&Checkpoint { config: config.clone(), ..checkpoint.clone() }, &options)?;
    if model.is_encoder_decoder() || ids.len() < 2 {
        return Ok(None);
    }
    let inputs = &ids[..ids.len() - 1];
    let states = model.hidden(&TokenBatch { ids: inputs.to_vec(), rows: 1, segments: None }, None, None)?;
    let mut nats = Vec::with_capacity(inputs.len());
    for start in (0..inputs.len()).step_by(LOGIT_ROWS) {
        let rows = LOGIT_ROWS.min(inputs.len() - start);
        let some = states.narrow(1, start, rows).map_err(luthier_arch::Error::from)?;
        let logits = model.logits(&some)?.flatten_to(1).and_then(|logits| logits.to_vec2::<f32>());
        for (row, target) in logits.map_err(luthier_arch::Error::from)?.iter().zip(&ids[start + 1..]) {
            nats.push(surprise(row, *target as usize));
        }
    }
    Ok(Some(nats))
}

/// Minus the logarithm of the softmax of `logits` at `target`.
fn surprise(logits: &[f32], target: usize) -> f64 {
    let largest = logits.iter().fold(f64::NEG_INFINITY, |largest, logit| largest.max(f64::from(*logit)));
    let sum: f64 = logits.iter().map(|logit| (f64::from(*logit) - largest).exp()).sum();
    largest + sum.ln() - f64::from(logits[target])
}

/// Configs that differ in what shapes do not show, each with its change in words; the key first.
fn near_configs(config: &Map<String, Value>) -> Vec<(String, Map<String, Value>)> {
    let mut near = Vec::new();
    let number = |value: &Value| value.as_f64();
    let nested = config.get("rope_parameters").and_then(Value::as_object);
    let base = config.get("rope_theta").or(nested.and_then(|nested| nested.get("rope_theta")));
    for candidate in ROTARY_BASES {
        if base.and_then(number).is_some_and(|base| (base - candidate).abs() < 1.0) {
            continue;
        }
        let mut changed = config.clone();
        if config.contains_key("rope_theta") || nested.is_none() {
            changed.insert("rope_theta".to_string(), json!(candidate));
        }
        if let Some(Value::Object(nested)) = changed.get_mut("rope_parameters") {
            nested.insert("rope_theta".to_string(), json!(candidate));
        }
        near.push((format!("rope_theta {candidate}"), changed));
    }
    let size = |key: &str| config.get(key).and_then(Value::as_u64).map(|size| size as usize);
    let Some(heads) = size("num_attention_heads") else { return near };
    let groups = size("num_key_value_heads").unwrap_or(heads);
    let Some(width) = size("head_dim").or(size("hidden_size").map(|hidden| hidden / heads.max(1))) else {
        return near;
    };
    for candidate in HEAD_WIDTHS {
        let (all, grouped) = (heads * width, groups * width);
        let fits = all.is_multiple_of(candidate) && grouped.is_multiple_of(candidate);
        if candidate == width || !fits || grouped / candidate == 0 {
            continue;
        }
        let mut changed = config.clone();
        let (heads, groups) = (all / candidate, grouped / candidate);
        changed.insert("num_attention_heads".to_string(), json!(heads));
        changed.insert("num_key_value_heads".to_string(), json!(groups));
        changed.insert("head_dim".to_string(), json!(candidate));
        near.push((
            format!("num_attention_heads {heads}, num_key_value_heads {groups}, head_dim {candidate}"),
            changed,
        ));
    }
    near
}
