//! `luthier extract-adapter`: what a fine-tune changed, as a LoRA adapter.

use std::fmt::Write;
use std::path::PathBuf;

use luthier_checkpoint::adapter::Adapter;
use luthier_surgery::extract::{self, Embeddings, Size};
use serde::Deserialize;
use serde_json::{Map, json};

use super::Act;
use crate::bounded::AtLeast;
use crate::divergence::{self, Sample};
use crate::dtype::FloatType;
use crate::places;
use crate::session::{Report, Session};

/// The rank that pairs have where nothing else is said.
const DEFAULT_RANK: usize = 32;

/// Writes the difference of two models as a LoRA adapter that peft loads: for every matrix that changed the leading singular
/// vectors, of the same rank everywhere, or as many as hold a share of the difference's energy. What pairs of matrices do not
/// hold by themselves (embeddings, heads, norms, biases) is refused, unless an option stores it or --exclude leaves it out. The
/// error of base and adapter against the tuned model is printed.
#[derive(Debug, clap::Args, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ExtractAdapter {
    /// The folder to write
    out: PathBuf,
    /// The model that the fine-tune started from
    #[arg(long)]
    base: String,
    /// The fine-tune
    #[arg(long)]
    tuned: String,
    /// Rank of every pair [default: 32]
    #[arg(long, value_name = "R", conflicts_with = "energy")]
    rank: Option<AtLeast<1>>,
    /// Give every pair the smallest rank that holds this share of its difference's sum of squares: above 0, at most 1
    #[arg(long, value_name = "E")]
    energy: Option<f64>,
    /// Pairs for these modules alone, by whole parts of their names: q_proj, layers.0; may be repeated
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    #[serde(default)]
    target_modules: Vec<String>,
    /// Tensors that play no part, by whole parts of their names; may be repeated
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    #[serde(default)]
    exclude: Vec<String>,
    /// Store changed embeddings and heads: as pairs (lora), whole (full), or as pairs but whole where the head is tied (auto)
    #[arg(long, value_name = "HOW", num_args = 0..=1, require_equals = true, default_missing_value = "auto")]
    embeddings: Option<How>,
    /// Store changed norms, whole
    #[arg(long)]
    #[serde(default)]
    norms: bool,
    /// Store changed biases
    #[arg(long)]
    #[serde(default)]
    biases: bool,
    /// The type of the adapter's tensors [default: f32]
    #[arg(long)]
    dtype: Option<FloatType>,
    /// Compare base and adapter with the tuned model on this text, UTF-8
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Replace an existing output
    #[arg(long)]
    #[serde(default)]
    force: bool,
    /// Say what would be done, from headers alone, and do nothing
    #[arg(long)]
    #[serde(default)]
    plan: bool,
}

/// How embeddings and heads are stored.
#[derive(Clone, Copy, Debug, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
enum How {
    /// Pairs, whole where the head is tied
    Auto,
    /// Pairs
    Lora,
    /// Whole
    Full,
}

impl Act for ExtractAdapter {
    const NAME: &'static str = "extract-adapter";
    const ABOUT: &'static str = "Write what a fine-tune changed as a LoRA adapter";

    fn check(&self) -> Result<(), String> {
        match (self.rank, self.energy) {
            (Some(_), Some(_)) => Err("rank, energy: give one of them".to_string()),
            (_, Some(energy)) if !(energy > 0.0 && energy <= 1.0) => {
                Err(format!("energy: wanted a number above 0, at most 1, came {energy}"))
            }
            _ => Ok(()),
        }
    }

    fn act(self, session: &Session) -> anyhow::Result<Report> {
        let (base, tuned) = (places::input(&self.base)?, places::input(&self.tuned)?);
        places::check_folder_out(&self.out, self.force, &[&base, &tuned])?;
        let options = self.options();
        if self.plan {
            return super::plan_report(&extract::plan(&base, &tuned, &options)?);
        }
        let sample = self.text.as_deref().map(|text| Sample::of_file(text, &base.checkpoint)).transpose()?;
        let mut divergence = None;
        let mut problem = None;
        let measure = |adapter: Adapter| {
            let Some(sample) = &sample else { return Ok(Map::new()) };
            let fused = luthier_surgery::fused(base.clone(), "adapter", &self.base, adapter)?;
            match divergence::between(&tuned.checkpoint, &fused.checkpoint, sample) {
                Ok(found) => {
                    divergence = Some(found);
                    Ok(divergence::measurements(&found))
                }
                Err(error) => {
                    let said = format!("--text: {error:#}");
                    problem = Some(error);
                    Err(luthier_surgery::Error::Use(said))
                }
            }
        };
        let result = extract::run(&base, &tuned, &self.out, &options, measure);
        if let Some(problem) = problem {
            return Err(problem.context("--text"));
        }
        let result = result?;
        for note in &result.notes {
            session.note(note);
        }
        let mut json = serde_json::to_value(&result)?;
        json["out"] = json!(self.out);
        json["divergence"] = serde_json::to_value(divergence)?;
        let mut text = words(&result);
        if let Some(divergence) = &divergence {
            let _ =
                writeln!(text, "base and adapter against {}: {}", self.tuned, divergence::words(divergence));
        }
        let _ = write!(
            text,
            "{}: {} pairs, {} tensors whole, {} values, {:.1} MB",
            self.out.display(),
            result.ranks.len(),
            result.saved.len(),
            result.parameters,
            result.size_bytes as f64 / 1e6
        );
        Ok(Report { json, text })
    }
}

impl ExtractAdapter {
    fn options(&self) -> extract::Options {
        let rank = self.rank.map_or(DEFAULT_RANK, |rank| rank.0);
        extract::Options {
            size: self.energy.map_or(Size::Rank(rank), Size::Energy),
            targets: self.target_modules.clone(),
            exclude: self.exclude.clone(),
            embeddings: self.embeddings.map(|how| match how {
                How::Auto => Embeddings::Auto,
                How::Lora => Embeddings::Pairs,
                How::Full => Embeddings::Whole,
            }),
            norms: self.norms,
            biases: self.biases,
            dtype: self.dtype.unwrap_or(FloatType::F32).dtype(),
            text: self.text.clone(),
            force: self.force,
        }
    }
}

/// What did not change, errors by group, and together.
fn words(result: &extract::Report) -> String {
    let mut text = String::new();
    for (what, names) in
        [("did not change", &result.unchanged), ("not targeted, left out", &result.untargeted)]
    {
        if !names.is_empty() {
            let _ = writeln!(text, "{what}: {}", names.join(", "));
        }
    }
    for group in &result.groups {
        let ranks = match group.rank_min == group.rank_max {
            true => group.rank_min.to_string(),
            false => format!("{} to {}", group.rank_min, group.rank_max),
        };
        let _ = writeln!(
            text,
            "{:<24} {:>4} modules, rank {ranks}, relative error {:.4e}",
            group.name, group.modules, group.relative_error
        );
    }
    if !result.groups.is_empty() {
        let _ = writeln!(text, "relative error of all pairs: {:.4e}", result.relative_error);
    }
    text
}
