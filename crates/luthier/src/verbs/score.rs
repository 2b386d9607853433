//! `luthier score`: how much each part of a model matters on a text.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, bail};
use candle_core::Device;
use luthier_arch::{LoadOptions, load};
use luthier_checkpoint::layout::{Layout, Part, StackKind};
use luthier_checkpoint::lineage::sha256_of_bytes;
use luthier_checkpoint::scores::{Aggregation, ScoreSettings, Scores, model_sha256};
use luthier_measure::importance::{Calibration, Options, importance};
use luthier_surgery::{Input, prune};
use luthier_text::Tokenizer;
use serde::Deserialize;
use serde_json::json;

use super::Act;
use crate::bounded::AtLeast;
use crate::places;
use crate::session::{Report, Session};

/// Reads a calibration text once and keeps how much every part of the model matters on it, for `prune`: activations of
/// heads, key/value groups, feed-forward neurons and channels of the residual stream (Minitron, arXiv:2407.14679), block
/// influence of layers (ShortGPT, arXiv:2403.03853), input sizes of every matrix (Wanda, arXiv:2306.11695). An encoder's
/// perplexity is that of every seventh token, masked.
#[derive(Debug, clap::Args, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Score {
    /// The model
    model: String,
    /// The calibration text, UTF-8
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// The file of scores to write
    #[arg(long, value_name = "SCORES")]
    out: PathBuf,
    /// Tokens of a window [default: 512, or the model's context where that is shorter]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    window: Option<AtLeast<2>>,
    /// Tokens of the text that are read at most
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    max_tokens: Option<AtLeast<2>>,
    /// How the tokens of a window become one score: mean of absolute values, or l2 [default: mean]
    #[arg(long, value_name = "HOW", value_parser = Aggregation::NAMES)]
    sequence: Option<String>,
    /// How the windows become one score [default: l2]
    #[arg(long, value_name = "HOW", value_parser = Aggregation::NAMES)]
    batch: Option<String>,
    /// Also measure what the perplexity is without each layer, and with a few cuts along each axis, which prices the cuts
    /// that `prune --params` and `--memory` choose from: at most sixteen more readings of the text than there are layers
    #[arg(long)]
    #[serde(default)]
    perplexity: bool,
    /// Replace an existing file
    #[arg(long)]
    #[serde(default)]
    force: bool,
}

impl Act for Score {
    const NAME: &'static str = "score";
    const ABOUT: &'static str = "Measure how much each part of a model matters on a text";

    fn check(&self) -> Result<(), String> {
        for (name, given) in [("sequence", &self.sequence), ("batch", &self.batch)] {
            aggregation(name, given, Aggregation::Mean)?;
        }
        Ok(())
    }

    fn act(self, session: &Session) -> anyhow::Result<Report> {
        if self.out.exists() && !self.force {
            bail!("{}: is there already; choose another name, or pass --force", self.out.display());
        }
        let input = places::input(&self.model)?;
        let name = self.text.display().to_string();
        let text = std::fs::read(&self.text)
            .with_context(|| format!("--text {name}: wanted the name of a file that holds the text"))?;
        let options = LoadOptions { trainable: false, device: Device::Cpu };
        let model = load(&input.checkpoint, &options).with_context(|| format!("model {}", self.model))?;
        let tokenizer = places::tokenizer(&input.checkpoint)?;
        let layout = luthier_arch::layout_of(&input.checkpoint)?;
        if self.perplexity {
            check_has_loss(&layout, &tokenizer)?;
        }
        tokenizer.check_fits(model.vocab_size())?;
        let reach = if model.is_encoder_decoder() { 2 } else { 1 };
        let context = model.context_length().unwrap_or(usize::MAX).saturating_mul(reach);
        let options = Options {
            window: self.window.map_or(context.min(512), |window| window.0),
            max_tokens: self.max_tokens.map(|tokens| tokens.0),
            sequence: aggregation("sequence", &self.sequence, Aggregation::Mean)
                .map_err(anyhow::Error::msg)?,
            batch: aggregation("batch", &self.batch, Aggregation::L2).map_err(anyhow::Error::msg)?,
        };
        let calibration = Calibration::new(model.as_ref(), &tokenizer, &name, &text, &options)?;
        let settings = ScoreSettings {
            model_sha256: model_sha256(&layout, input.checkpoint.tensors.as_ref())?,
            text_sha256: sha256_of_bytes(&text),
            tokens: calibration.tokens,
            window: options.window,
            sequence: options.sequence,
            batch: options.batch,
        };
        let tensors = importance(model.as_ref(), &calibration, &options)?;
        let mut scores = Scores { settings, tensors };
        let mut loss = None;
        if self.perplexity {
            let whole = calibration.loss(model.as_ref())?;
            loss = Some(whole);
            drop(model);
            let trials = trials(&input, &calibration, whole, &scores, session)?;
            scores.tensors.extend(trials);
            scores.tensors.extend(rises(&input, &calibration, whole, session)?);
        }
        scores.write(&self.out, self.force, &[&input.checkpoint.place, &self.text])?;
        Ok(report(&self, &scores, loss))
    }
}

fn aggregation(name: &str, given: &Option<String>, default: Aggregation) -> Result<Aggregation, String> {
    let Some(given) = given else { return Ok(default) };
    Aggregation::from_name(given).ok_or_else(|| format!("{name}: wanted mean or l2, came {given}"))
}

/// Refuses to measure a loss where there is none.
fn check_has_loss(layout: &Layout, tokenizer: &Tokenizer) -> anyhow::Result<()> {
    let has = |part: Part| layout.tensors.iter().any(|spec| spec.role.part == part);
    if layout.has_stack(StackKind::Decoder) {
        return Ok(());
    }
    if !has(Part::HeadBias) {
        bail!(
            "--perplexity: this encoder has no head for masked tokens, so that nothing says what it loses; leave the option out, \
             or score a checkpoint with the head"
        );
    }
    if tokenizer.special_tokens().mask.is_none() {
        bail!(
            "--perplexity: an encoder's loss is that of masked tokens, and this tokenizer has no mask_token"
        );
    }
    Ok(())
}

/// By how much the perplexity rises without each layer, as a factor less 1.
fn rises(
    input: &Input,
    calibration: &Calibration,
    whole: f64,
    session: &Session,
) -> anyhow::Result<Vec<(String, Vec<f32>)>> {
    let sizes = luthier_arch::sizes::sizes(&input.checkpoint.config)?;
    let options = LoadOptions { trainable: false, device: Device::Cpu };
    let mut rises = Vec::new();
    for (at, stack) in sizes.stacks.iter().enumerate() {
        let name = match stack.kind {
            StackKind::Encoder => "encoder",
            StackKind::Decoder => "decoder",
        };
        let mut of_stack = Vec::with_capacity(stack.layers.len());
        for layer in 0..stack.layers.len() {
            if stack.layers.len() == 1 {
                session.note(&format!("{name}: its only layer cannot be left out"));
                of_stack.push(0.0);
                continue;
            }
            let without = prune::without_layer(input, at, layer)?;
            let loss = calibration.loss(load(&without, &options)?.as_ref())?;
            session.note(&format!(
                "without layer {layer} of the {name}: perplexity {:.3} of {:.3}",
                loss.exp(),
                whole.exp()
            ));
            of_stack.push(((loss - whole).exp() - 1.0) as f32);
        }
        rises.push((format!("perplexity_rise.{name}"), of_stack));
    }
    Ok(rises)
}

/// By how many nats the loss rises with cuts of one axis at a time, in pairs with the part of its scores that is gone.
fn trials(
    input: &Input,
    calibration: &Calibration,
    whole: f64,
    scores: &Scores,
    session: &Session,
) -> anyhow::Result<BTreeMap<String, Vec<f32>>> {
    let options = LoadOptions { trainable: false, device: Device::Cpu };
    let mut trials: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    for cut in prune::trial_cuts(input, scores)? {
        let loss = calibration.loss(load(&cut.model, &options)?.as_ref())?;
        session.note(&format!("{}: perplexity {:.3} of {:.3}", cut.shape, loss.exp(), whole.exp()));
        let pair = [cut.part as f32, (loss - whole) as f32];
        trials.entry(format!("trial_cuts.{}", cut.axis)).or_default().extend(pair);
    }
    Ok(trials)
}

fn report(score: &Score, scores: &Scores, loss: Option<f64>) -> Report {
    let settings = &scores.settings;
    let mut json = json!({
        "out": score.out,
        "tokens": settings.tokens,
        "window": settings.window,
        "sequence": settings.sequence.name(),
        "batch": settings.batch.name(),
        "model_sha256": settings.model_sha256,
        "text_sha256": settings.text_sha256,
        "vectors": scores.tensors.len(),
    });
    let mut text = format!(
        "{}: scores of {} tokens in windows of {} ({} over tokens, {} over windows)",
        score.out.display(),
        settings.tokens,
        settings.window,
        settings.sequence.name(),
        settings.batch.name()
    );
    for axis in ["block_influence", "perplexity_rise"] {
        for stack in ["encoder", "decoder"] {
            let Some(layers) = scores.tensors.get(&format!("{axis}.{stack}")) else { continue };
            json[axis][stack] = json!(layers);
            let layers: Vec<String> = layers.iter().map(|layer| format!("{layer:.4}")).collect();
            text.push_str(&format!(
                "\n{} of the {stack}'s layers: {}",
                axis.replace('_', " "),
                layers.join(" ")
            ));
        }
    }
    if let Some(loss) = loss {
        json["loss_nats_per_token"] = json!(loss);
    }
    Report { json, text }
}
