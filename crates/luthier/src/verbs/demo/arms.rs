//! The three models that the demonstration compares: trained alike, measured alike.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};
use luthier_generate::{Aids, GenerateOptions};
use luthier_measure::metrics::prefix_loss::{PrefixTarget, prefix_loss};
use luthier_train::Recipe;
use serde::Serialize;
use serde_json::{Value, json};

use crate::session::Session;
use crate::{builtin, places, recipe, training};

/// Tokens of a window; the encoder reads its first half in validation.
const WINDOW_TOKENS: usize = 256;
/// Windows of a training step.
const BATCH_SIZE: usize = 8;
/// Training steps of each arm.
const STEPS: usize = 96;

/// One of the models.
pub(super) struct Arm {
    /// Its key in the result.
    pub(super) key: &'static str,
    /// What a reader knows it by.
    pub(super) title: &'static str,
    /// Where it is trained.
    pub(super) folder: PathBuf,
    /// The recipe's `model`.
    model: Value,
}

/// What is measured of an arm.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Numbers {
    pub(super) validation_loss_nats: f64,
    pub(super) train_tokens: u64,
    pub(super) parameters: usize,
    pub(super) file_bytes: u64,
    pub(super) prefill_tokens_per_s: f64,
    pub(super) decode_tokens_per_s: f64,
    pub(super) time_to_first_token_ms: f64,
    pub(super) peak_rss_bytes: u64,
    /// Training tokens and validation loss while it was trained.
    #[serde(skip)]
    pub(super) curve: Vec<(u64, f64)>,
}

impl Arm {
    /// The three, in the order in which they are shown. `start` is the adapted model before training.
    pub(super) fn all(out: &Path, start: &Path) -> [Arm; 3] {
        let fresh = json!({ "config": start.join("config.json"), "tokenizer": builtin::NAME });
        [
            ("adapted", "adapted", json!(start)),
            ("random_init", "random start", fresh),
            ("decoder_only", "decoder-only", json!(builtin::NAME)),
        ]
        .map(|(key, title, model)| Arm { key, title, folder: out.join(key), model })
    }
}

/// Trains an arm; all share text, order, tokens and optimizer.
pub(super) fn train(arm: &Arm, seed: u64, session: &Session) -> anyhow::Result<()> {
    let recipe: Recipe = recipe::from_value(&json!({
        "model": arm.model,
        "out": arm.folder,
        "data": { "train": [builtin::TRAINING_TEXT], "validation": [builtin::VALIDATION_TEXT] },
        "objective": "prefixlm",
        "sequence_length": WINDOW_TOKENS,
        "batch_size": BATCH_SIZE,
        "steps": STEPS,
        "optimizer": { "name": "adamw", "lr_peak": 1e-3, "betas": [0.9, 0.95], "weight_decay": 0.1 },
        "schedule": { "name": "wsd", "warmup_steps": 8, "decay_steps": 32 },
        "gradient_clip": 1.0,
        "validate_every_steps": 24,
        "validation_tokens": 8192,
        "seed": seed,
    }))?;
    training::train(&recipe, session, &format!("{}: ", arm.title), false)?;
    Ok(())
}

/// Loss on the held-out chapters, size, and speed and memory in a process of its own.
pub(super) fn measure(arm: &Arm, session: &Session) -> anyhow::Result<Numbers> {
    let folder = arm.folder.display().to_string();
    let loaded = places::load(&folder)?;
    let text =
        builtin::text(Path::new(builtin::VALIDATION_TEXT)).context("the validation text is built in")?;
    let ids = loaded.tokenizer()?.encode(text)?;
    let windows: Vec<PrefixTarget> = ids
        .chunks_exact(WINDOW_TOKENS)
        .map(|window| window.split_at(WINDOW_TOKENS / 2))
        .map(|(prefix, target)| PrefixTarget { prefix: prefix.to_vec(), target: target.to_vec() })
        .collect();
    let loss = prefix_loss(loaded.model.as_ref(), &windows)?;
    let facts = luthier_surgery::info::run(&loaded.checkpoint)?;
    let speed = bench(&folder, session)?;
    let number = |key: &str| speed[key].as_f64().with_context(|| format!("bench gave no {key}"));
    let curve = curve(&arm.folder)?;
    Ok(Numbers {
        validation_loss_nats: loss.nats_per_token,
        train_tokens: curve.last().map_or(0, |point| point.0),
        parameters: facts.parameters,
        file_bytes: facts.file_bytes,
        prefill_tokens_per_s: number("prefill_tokens_per_s")?,
        decode_tokens_per_s: number("decode_tokens_per_s")?,
        time_to_first_token_ms: number("time_to_first_token_ms")?,
        peak_rss_bytes: speed["peak_rss_bytes"].as_u64().context("bench gave no peak_rss_bytes")?,
        curve,
    })
}

/// Peak memory belongs to a process, so each arm is timed in one of its own.
fn bench(folder: &str, session: &Session) -> anyhow::Result<Value> {
    let program = std::env::current_exe().context("finding the program's own file")?;
    let threads = session.thread_count().to_string();
    let flags =
        ["--prompt-tokens", "128", "--new-tokens", "64", "--runs", "3", "--json", "--threads", &threads];
    let output =
        Command::new(program).args(["bench", folder]).args(flags).output().context("starting bench")?;
    if !output.status.success() {
        bail!("bench {folder}: {}", String::from_utf8_lossy(&output.stderr));
    }
    serde_json::from_slice(&output.stdout).context("bench --json")
}

/// Training tokens and validation loss from a run's records, the loss before the first step included.
fn curve(folder: &Path) -> anyhow::Result<Vec<(u64, f64)>> {
    let state = folder.join("trainer_state.json");
    let text = std::fs::read_to_string(&state).with_context(|| state.display().to_string())?;
    let state: Value = serde_json::from_str(&text).with_context(|| state.display().to_string())?;
    let mut points: Vec<(u64, f64)> =
        state["initial_validation_loss_nats"].as_f64().map(|loss| (0, loss)).into_iter().collect();
    for entry in state["log_history"].as_array().into_iter().flatten() {
        if let (Some(tokens), Some(loss)) =
            (entry["train_tokens"].as_u64(), entry["validation_loss_nats"].as_f64())
        {
            points.push((tokens, loss));
        }
    }
    Ok(points)
}

/// What an arm writes after a passage of the held-out chapters.
pub(super) fn sample(arm: &Arm) -> anyhow::Result<luthier_measure::report::Sample> {
    let loaded = places::load(&arm.folder.display().to_string())?;
    let tokenizer = loaded.tokenizer()?;
    let text =
        builtin::text(Path::new(builtin::VALIDATION_TEXT)).context("the validation text is built in")?;
    let prompt = passage(text);
    let prompt_ids = tokenizer.encode(prompt)?;
    let options = GenerateOptions {
        max_new_tokens: 60,
        temperature: 0.7,
        top_p: 0.9,
        seed: 1,
        ignore_eos: true,
        eos_token_ids: loaded.end_ids(Some(&tokenizer)),
        ..GenerateOptions::default()
    };
    let mut go_on = |_: &str| std::ops::ControlFlow::Continue(());
    let (_, continuation) = luthier_generate::generate_text(
        loaded.model.as_ref(),
        &tokenizer,
        &prompt_ids,
        None,
        &options,
        Aids::default(),
        &mut go_on,
    )?;
    Ok(luthier_measure::report::Sample {
        name: arm.title.to_string(),
        prompt: prompt.to_string(),
        continuation,
    })
}

/// A few whole lines from the middle of a chapter.
fn passage(text: &str) -> &str {
    let start = text.find("\n\n").map_or(0, |at| at + 2);
    let start = text[start..].find("\n\n").map_or(start, |at| start + at + 2);
    let body = text[start..].trim_start();
    let end = body.match_indices('\n').nth(5).map_or(body.len(), |(at, _)| at + 1);
    &body[..end]
}
