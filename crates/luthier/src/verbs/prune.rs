//! `luthier prune`: a smaller model made of the parts that matter most.

use std::path::{Path, PathBuf};

use anyhow::Context;
use candle_core::Device;
use luthier_arch::LoadOptions;
use luthier_checkpoint::Checkpoint;
use luthier_checkpoint::scores::Aggregation;
use luthier_measure::importance::{self, Calibration};
use luthier_measure::metrics::perplexity::{Method, perplexity};
use luthier_surgery::Input;
use luthier_surgery::prune::{self, Amounts, Budget, Criterion, Divisors, Sparse, Sparsity, Targets};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::Act;
use crate::bounded::{AtLeast, Typed};
use crate::dtype::FloatType;
use crate::places;
use crate::session::{Report, Session};

/// Shapes that are tried on a text.
const TRIED: usize = 6;

/// Cuts a model down to the parts that matter most by its scores (Minitron, arXiv:2407.14679), in width and depth together,
/// without training; or sets single weights to 0. VALUE is a new size, or below 1 the share that is kept; an
/// encoder-decoder takes one VALUE for both stacks, or two (`8,4`: encoder, decoder). A share is rounded to a size that
/// quantised blocks fit. The shape is printed and stands in config.json.
#[derive(Debug, clap::Args, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Prune {
    /// The model
    #[arg(value_name = "MODEL")]
    model: String,
    /// The folder or .gguf file to write
    out: PathBuf,
    /// What `luthier score` wrote of this model
    #[arg(long, value_name = "FILE")]
    scores: Option<PathBuf>,
    /// Layers: those of lowest block influence go
    #[arg(long, value_name = "VALUE", allow_negative_numbers = true)]
    layers: Option<Typed<Amounts>>,
    /// Width of the residual stream
    #[arg(long, value_name = "VALUE", allow_negative_numbers = true)]
    hidden: Option<Typed<Amounts>>,
    /// Inner width of the feed-forward blocks
    #[arg(long, value_name = "VALUE", allow_negative_numbers = true)]
    ffn: Option<Typed<Amounts>>,
    /// Query heads: they go evenly within key/value groups
    #[arg(long, value_name = "VALUE", allow_negative_numbers = true)]
    heads: Option<Typed<Amounts>>,
    /// Key/value groups, each with its query heads
    #[arg(long, value_name = "VALUE", allow_negative_numbers = true)]
    kv_groups: Option<Typed<Amounts>>,
    /// Experts of a mixture
    #[arg(long, value_name = "VALUE", allow_negative_numbers = true)]
    experts: Option<Typed<Amounts>>,
    /// Choose the shape that loses least by the scores among those of at most so many weights
    #[arg(long, value_name = "N", conflicts_with = "memory")]
    params: Option<Typed<Count>>,
    /// Choose the shape that loses least by the scores among those whose weights take at most so many bytes
    #[arg(long, value_name = "BYTES")]
    memory: Option<Typed<Count>>,
    /// Widths that are chosen for --params and --memory are multiples of this [default: 256, less for narrow models]
    #[arg(long, value_name = "N")]
    hidden_divisor: Option<AtLeast<1>>,
    /// Feed-forward widths that are chosen are multiples of this [default: 512, less for narrow models]
    #[arg(long, value_name = "N")]
    ffn_divisor: Option<AtLeast<1>>,
    /// Numbers of layers that are chosen are multiples of this [default: 1]
    #[arg(long, value_name = "N")]
    layers_divisor: Option<AtLeast<1>>,
    /// Let layers end with different numbers of neurons and groups: as many altogether, but where they matter
    #[arg(long)]
    #[serde(default)]
    uneven: bool,
    /// Draw importance from this seed instead: a baseline to compare with
    #[arg(long, value_name = "SEED")]
    random: Option<u64>,
    /// Set this share of the weights of every matrix to 0
    #[arg(long, value_name = "SHARE", conflicts_with = "pattern")]
    sparsity: Option<f64>,
    /// Set weights to 0 so that N of every M neighbours stay, as 2:4
    #[arg(long, value_name = "N:M")]
    pattern: Option<Typed<Sparse>>,
    /// Which weights go: those of the smallest magnitude, or by wanda of the smallest magnitude times input
    /// [default: wanda with --scores, else magnitude]
    #[arg(long, value_name = "HOW", value_parser = Criterion::NAMES)]
    by: Option<String>,
    /// A text, UTF-8, to measure the loss on before and after (of an encoder: of every seventh token, masked); it goes into the
    /// record. With --params or --memory the six best shapes by the scores are tried on it, and the one that loses least is
    /// taken: take a text that nothing else is judged on
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// The type of all weights; without it types are kept
    #[arg(long)]
    dtype: Option<FloatType>,
    /// Replace an existing output
    #[arg(long)]
    #[serde(default)]
    force: bool,
    /// Say what would be done, from headers and scores alone, and do nothing
    #[arg(long)]
    #[serde(default)]
    plan: bool,
}

/// A number as people write it: 100_000_000, 100M, 1.5G.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Count(usize);

impl std::str::FromStr for Count {
    type Err = String;

    fn from_str(text: &str) -> Result<Count, String> {
        let wanted = || format!("wanted a number of 1 or more, such as 100_000_000 or 100M, came {text}");
        let plain = text.trim().replace('_', "");
        let units = [("k", 1e3), ("m", 1e6), ("g", 1e9), ("b", 1e9), ("t", 1e12)];
        let lower = plain.to_ascii_lowercase();
        let unit = units.iter().find_map(|(end, unit)| Some((lower.strip_suffix(end)?, *unit)));
        let (digits, unit) = unit.unwrap_or((&lower, 1.0));
        if let (Ok(count), true) = (digits.parse::<usize>(), unit == 1.0) {
            return if count > 0 { Ok(Count(count)) } else { Err(wanted()) };
        }
        let count = digits.parse::<f64>().map_err(|_| wanted())? * unit;
        if (1.0..1e18).contains(&count) { Ok(Count(count as usize)) } else { Err(wanted()) }
    }
}

impl Act for Prune {
    const NAME: &'static str = "prune";
    const ABOUT: &'static str = "Cut a model down to the parts that matter most";

    fn check(&self) -> Result<(), String> {
        let axes = [&self.layers, &self.hidden, &self.ffn, &self.heads, &self.kv_groups, &self.experts];
        let is_cut = axes.iter().any(|axis| axis.is_some()) || self.params.is_some() || self.memory.is_some();
        let is_thinned = self.sparsity.is_some() || self.pattern.is_some();
        if !is_cut && !is_thinned {
            return Err("wanted what to cut: one or more of --layers, --hidden, --ffn, --heads, --kv-groups, --experts; \
                        --params or --memory; --sparsity or --pattern"
                .to_string());
        }
        if self.params.is_some() && self.memory.is_some() {
            return Err("params and memory: wanted one of the two".to_string());
        }
        if self.sparsity.is_some() && self.pattern.is_some() {
            return Err("sparsity and pattern: wanted one of the two".to_string());
        }
        if self.sparsity.is_some_and(|share| !(0.0..1.0).contains(&share)) {
            return Err("sparsity: wanted a share from 0 to below 1".to_string());
        }
        if self.by.is_some() && !is_thinned {
            return Err("by: is for --sparsity and --pattern".to_string());
        }
        let by = self.by.as_deref();
        if let Some(name) = by.filter(|name| Criterion::from_name(name).is_none()) {
            return Err(format!("by: wanted magnitude or wanda, came {name}"));
        }
        let needs = (is_cut && self.random.is_none()) || by == Some("wanda");
        if needs && self.scores.is_none() {
            return Err("wanted --scores FILE, which luthier score writes".to_string());
        }
        if self.uneven && !is_cut {
            return Err("uneven: is for --ffn, --heads, --kv-groups, --params and --memory".to_string());
        }
        Ok(())
    }

    fn act(self, session: &Session) -> anyhow::Result<Report> {
        let input = places::input(&self.model)?;
        let mut options = self.options();
        places::check_out(&self.out, self.force, &[&input])?;
        if self.plan {
            return super::plan_report(&prune::plan(&input, &self.out, &options)?);
        }
        self.try_shapes(&input, &mut options, session)?;
        let losses = self.losses(&input, &options)?;
        if let Some((before, after)) = losses {
            options.measurements = Map::from_iter([
                ("loss_before_nats_per_token".to_string(), json!(before)),
                ("loss_after_nats_per_token".to_string(), json!(after)),
            ]);
        }
        let result = prune::run(&input, &self.out, &options)?;
        let Report { mut json, mut text } = report(session, &self.out, &result)?;
        if let Some((before, after)) = losses {
            text.push_str(&format!(
                "\nloss {before:.4} before, {after:.4} after, in nats per token; perplexity {:.3} and {:.3}",
                before.exp(),
                after.exp()
            ));
        }
        json["measurements"] = Value::Object(options.measurements);
        Ok(Report { json, text })
    }
}

impl Prune {
    fn options(&self) -> prune::Options {
        let amounts = |axis: &Option<Typed<Amounts>>| axis.as_ref().map(|amounts| amounts.0.clone());
        let by = match self.by.as_deref().and_then(Criterion::from_name) {
            Some(by) => by,
            None if self.scores.is_some() => Criterion::Wanda,
            None => Criterion::Magnitude,
        };
        let amount =
            self.sparsity.map(Sparse::Share).or(self.pattern.as_ref().map(|Typed(pattern)| *pattern));
        prune::Options {
            targets: Targets {
                layers: amounts(&self.layers),
                hidden: amounts(&self.hidden),
                ffn: amounts(&self.ffn),
                heads: amounts(&self.heads),
                kv_groups: amounts(&self.kv_groups),
                experts: amounts(&self.experts),
            },
            budget: match (&self.params, &self.memory) {
                (Some(Typed(count)), _) => Some(Budget::Parameters(count.0)),
                (None, Some(Typed(count))) => Some(Budget::Memory(count.0)),
                (None, None) => None,
            },
            divisors: Divisors {
                hidden: self.hidden_divisor.map(|divisor| divisor.0),
                ffn: self.ffn_divisor.map(|divisor| divisor.0),
                layers: self.layers_divisor.map(|divisor| divisor.0),
            },
            rank: 0,
            scores: self.scores.clone(),
            uneven: self.uneven,
            random: self.random,
            sparsity: amount.map(|amount| Sparsity { amount, by }),
            dtype: self.dtype.map(FloatType::dtype),
            force: self.force,
            text: self.text.clone(),
            measurements: Map::new(),
        }
    }

    /// Takes of the few best shapes for a budget the one that loses least on the text, where there is one: scores tell what
    /// cuts of one axis cost, not what several cost together.
    fn try_shapes(
        &self,
        input: &Input,
        options: &mut prune::Options,
        session: &Session,
    ) -> anyhow::Result<()> {
        let (Some(path), Some(_)) = (&self.text, options.budget) else { return Ok(()) };
        let mut best: Option<(usize, f64)> = None;
        let mut before = None;
        for rank in 0..TRIED {
            options.rank = rank;
            let model = prune::model(input, options)?;
            // No more shapes fit.
            if before.as_ref() == Some(&model.config) {
                break;
            }
            let loss = loss(&model, path)?;
            session.note(&format!("shape {} of those that fit: loss {loss:.4} on the text", rank + 1));
            if best.is_none_or(|(_, least)| loss < least) {
                best = Some((rank, loss));
            }
            before = Some(model.config);
        }
        options.rank = best.map_or(0, |(rank, _)| rank);
        Ok(())
    }

    /// The loss before and after, where a text is given.
    fn losses(&self, input: &Input, options: &prune::Options) -> anyhow::Result<Option<(f64, f64)>> {
        let Some(path) = &self.text else { return Ok(None) };
        let before = loss(&input.checkpoint, path)?;
        let after = loss(&prune::model(input, options)?, path)?;
        Ok(Some((before, after)))
    }
}

fn loss(checkpoint: &Checkpoint, path: &Path) -> anyhow::Result<f64> {
    let name = path.display().to_string();
    let text = std::fs::read(path)
        .with_context(|| format!("--text {name}: wanted the name of a file that holds the text"))?;
    let model = luthier_arch::load(checkpoint, &LoadOptions { trainable: false, device: Device::Cpu })?;
    let tokenizer = places::tokenizer(checkpoint)?;
    if model.is_encoder_only() {
        let window = model.context_length().map_or(512, |length| length.min(512));
        let (sequence, batch) = (Aggregation::Mean, Aggregation::L2);
        let options = importance::Options { window, max_tokens: None, sequence, batch };
        return Ok(
            Calibration::new(model.as_ref(), &tokenizer, &name, &text, &options)?.loss(model.as_ref())?
        );
    }
    let method = Method::default_of(model.as_ref());
    Ok(perplexity(model.as_ref(), &tokenizer, &name, &text, method)?.nll_nats_per_token)
}

/// What a verb that cuts a model reports.
pub(super) fn report(session: &Session, out: &Path, result: &prune::Report) -> anyhow::Result<Report> {
    for note in &result.notes {
        session.note(note);
    }
    let (before, after) = result.parameters;
    let text = format!(
        "{}: {after} of {before} parameters ({:.1}%), {} tensors, {} of them as they were",
        out.display(),
        100.0 * after as f64 / before as f64,
        result.tensors,
        result.copied_tensors
    );
    let mut json = serde_json::to_value(result)?;
    json["out"] = json!(out);
    Ok(Report { json, text })
}
