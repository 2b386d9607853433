//! `luthier transfer`: what a fine-tune learnt, added to another base.

use std::path::PathBuf;

use anyhow::bail;
use candle_core::Device;
use luthier_arch::LoadOptions;
use luthier_checkpoint::gguf::is_gguf_name;
use luthier_measure::metrics::perplexity::{Method, perplexity};
use luthier_surgery::Input;
use luthier_surgery::merge::{self, Recipe};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::Act;
use crate::bounded::AtLeast;
use crate::session::{Report, Session};
use crate::{places, texts};

/// A rise of the loss between the ends below this share of it leaves them linearly connected (2%, arXiv:1912.05671).
const CONNECTED_BELOW: f64 = 0.02;

/// Writes NEWBASE + scale * (TUNED - BASE): a fine-tune moves to another version of its base without training
/// (arXiv:2503.20110). With --text the loss is measured along the straight line from NEWBASE to the result; where it rises
/// between the ends by more than 2% the two are not linearly connected, and the transfer is not to be trusted.
#[derive(Debug, clap::Args, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Transfer {
    /// The folder to write
    out: PathBuf,
    /// The base that the fine-tune started from
    #[arg(long, value_name = "BASE")]
    from: String,
    /// The fine-tune
    #[arg(long)]
    tuned: String,
    /// The base that it moves to
    #[arg(long, value_name = "NEWBASE")]
    onto: String,
    /// How much of the difference is added [default: 1]
    #[arg(long, value_name = "S", allow_negative_numbers = true)]
    scale: Option<f64>,
    /// A text, UTF-8, to measure the loss on along the line
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Points on the line, its ends included [default: 5]
    #[arg(long, value_name = "N")]
    points: Option<AtLeast<3>>,
    /// What becomes of tensors that not all three models have, such as heads: refuse, base (those of NEWBASE are kept, others
    /// left out), keep (as NEWBASE, else the first that has them) or drop [default: refuse]
    #[arg(long, value_name = "RULE", value_parser = ["refuse", "base", "keep", "drop"])]
    unshared: Option<String>,
    /// Replace an existing output
    #[arg(long)]
    #[serde(default)]
    force: bool,
    /// Say what would be done, from headers alone, and do nothing
    #[arg(long)]
    #[serde(default)]
    plan: bool,
}

/// The loss on the way from the new base to the result.
#[derive(Serialize)]
struct Line {
    /// Loss in nats per token at equally spaced points.
    losses_nats_per_token: Vec<f64>,
    /// Loss of the result less that of the new base: below 0 where the transfer helped on this text.
    loss_change_nats_per_token: f64,
    /// How far the loss rises above the straight line between those of the ends.
    barrier_nats_per_token: f64,
    /// Whether it stays below the bound.
    linearly_connected: bool,
}

impl Act for Transfer {
    const NAME: &'static str = "transfer";
    const ABOUT: &'static str = "Add what a fine-tune learnt to another base";

    fn check(&self) -> Result<(), String> {
        match (self.scale, self.points, &self.text) {
            (Some(scale), _, _) if !scale.is_finite() => Err(format!("scale: wanted a number, came {scale}")),
            (_, Some(_), None) => Err("points: the line is measured on a text; give --text".to_string()),
            _ => Ok(()),
        }
    }

    fn act(self, session: &Session) -> anyhow::Result<Report> {
        let scale = self.scale.unwrap_or(1.0);
        let recipe = self.recipe(scale)?;
        let mut notes = Vec::new();
        let inputs = recipe
            .places()
            .iter()
            .map(|place| super::merge::open(place, &mut notes))
            .collect::<anyhow::Result<Vec<_>>>()?;
        places::check_out(&self.out, self.force, &inputs.iter().flat_map(Input::parts).collect::<Vec<_>>())?;
        for note in &notes {
            session.note(note);
        }
        if is_gguf_name(&self.out) {
            bail!("{}: a transfer writes a folder; convert it afterwards", self.out.display());
        }
        let mut options = merge::Options {
            verb: Self::NAME,
            record: json!({
                "from": self.from,
                "tuned": self.tuned,
                "onto": self.onto,
                "scale": scale,
                "text": self.text,
                "points": self.points.as_ref().map(|points| points.0),
                "unshared": self.unshared,
            }),
            measurements: Map::new(),
            seed: 1,
            force: self.force,
            text: serde_json::to_string_pretty(&recipe)?,
        };
        if self.plan {
            return super::plan_report(&merge::plan(&recipe, &inputs, &options)?);
        }
        let line = self.line(scale, &inputs, &options)?;
        if let Some(line) = &line
            && let Value::Object(measured) = serde_json::to_value(line)?
        {
            options.measurements = measured;
        }
        let result = merge::run(&recipe, &inputs, &self.out, &options)?;
        for note in &result.notes {
            session.note(note);
        }
        let mut text = format!("{}: {}", self.out.display(), result.ledger);
        if let Some(line) = &line {
            let verdict =
                if line.linearly_connected { "linearly connected" } else { "NOT linearly connected" };
            text.push_str(&format!(
                "\nloss along the line: {:.4?} nats per token; barrier {:.4}: {verdict}",
                line.losses_nats_per_token, line.barrier_nats_per_token
            ));
            if line.loss_change_nats_per_token > 0.0 {
                text.push_str(&format!(
                    "\nthe result is WORSE than {} on this text, by {:.4} nats per token",
                    self.onto, line.loss_change_nats_per_token
                ));
            }
        }
        let mut json = serde_json::to_value(&result)?;
        json["out"] = json!(self.out);
        json["line"] = serde_json::to_value(&line)?;
        Ok(Report { json, text })
    }
}

impl Transfer {
    /// The transfer as a merge: a linear one whose weights are not normalised.
    fn recipe(&self, scale: f64) -> anyhow::Result<Recipe> {
        let mut weights: Vec<(&str, f64)> = Vec::new();
        for (place, weight) in [(&self.tuned, scale), (&self.from, -scale), (&self.onto, 1.0)] {
            match weights.iter_mut().find(|known| known.0 == place) {
                Some(known) => known.1 += weight,
                None => weights.push((place, weight)),
            }
        }
        let models: Vec<Value> = weights
            .iter()
            .map(|(place, weight)| json!({"model": place, "parameters": {"weight": weight}}))
            .collect();
        Ok(serde_json::from_value(json!({
            "merge_method": "linear",
            "base_model": self.onto,
            "models": models,
            "parameters": {"normalize": false},
            "unshared": self.unshared,
        }))?)
    }

    /// The loss along the line, where a text is given.
    fn line(&self, scale: f64, inputs: &[Input], options: &merge::Options) -> anyhow::Result<Option<Line>> {
        let Some(path) = &self.text else { return Ok(None) };
        let name = path.display().to_string();
        let text = texts::bytes(path)?;
        let last = self.points.map_or(5, |points| points.0) - 1;
        let mut losses = Vec::with_capacity(last + 1);
        for point in 0..=last {
            let recipe = self.recipe(scale * point as f64 / last as f64)?;
            let checkpoint = merge::model(&recipe, inputs, options)?;
            let load = LoadOptions { trainable: false, device: Device::Cpu };
            let model = luthier_arch::load(&checkpoint, &load)?;
            let tokenizer = places::tokenizer(&checkpoint)?;
            tokenizer.check_fits(model.vocab_size())?;
            let method = Method::default_of(model.as_ref());
            losses.push(perplexity(model.as_ref(), &tokenizer, &name, &text, method)?.nll_nats_per_token);
        }
        let (start, end) = (losses[0], losses[last]);
        let above = losses.iter().enumerate().map(|(point, loss)| {
            let share = point as f64 / last as f64;
            loss - ((1.0 - share) * start + share * end)
        });
        let barrier = above.fold(0.0, f64::max);
        let linearly_connected = barrier <= CONNECTED_BELOW * 0.5 * (start + end);
        Ok(Some(Line {
            loss_change_nats_per_token: end - start,
            losses_nats_per_token: losses,
            barrier_nats_per_token: barrier,
            linearly_connected,
        }))
    }
}
