//! `luthier demo`: the main job on the built-in model, from adaptation to report.
//!
//! The built-in decoder-only model is adapted to an encoder-decoder, and three models are trained on the same windows of
//! the same text with the same optimizer: the adapted one, a randomly initialised one of the same shape, and the
//! decoder-only parent. Each learns the rest of a window from its beginning (PrefixLM). Validation text is in no
//! training set, the built-in model's included.

mod arms;
mod previous;
mod report;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, bail};
use serde::Deserialize;
use serde_json::json;

use self::arms::{Arm, measure, sample, train};
use self::previous::Previous;
use super::Act;
use crate::builtin;
use crate::places;
use crate::session::{Report, Session};

/// Adapts the built-in model to an encoder-decoder and shows what that buys: trains it for a moment beside a randomly
/// initialised one of the same shape and beside the decoder-only parent, at equal tokens, and measures loss, size,
/// speed and memory. Takes about a minute on two cores.
#[derive(Debug, clap::Args, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Demo {
    /// Seed of random weights and of the order of the text [default: 1]
    #[arg(long)]
    seed: Option<u64>,
    /// The folder for models and report [default: runs/demo, whose last demonstration is replaced]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Replace the demonstration in an existing folder
    #[arg(long)]
    #[serde(default)]
    force: bool,
}

/// Where the demonstration goes when nobody says otherwise.
const STANDARD_OUT: &str = "runs/demo";

/// All that a demonstration writes into its folder.
const OUTPUTS: &[&str] =
    &["adapted_start", "adapted", "random_init", "decoder_only", "measurements.json", previous::COMPLETE];

impl Act for Demo {
    const NAME: &'static str = "demo";
    const ABOUT: &'static str =
        "Adapt the built-in model, train, measure and compare; what runs without a command";

    fn act(self, session: &Session) -> anyhow::Result<Report> {
        let started = Instant::now();
        let seed = self.seed.unwrap_or(1);
        let (out, previous) = self.prepare_out()?;
        session.note("adapting the built-in model to an encoder-decoder");
        let start = out.join("adapted_start");
        let parent = places::input(builtin::NAME)?;
        let options = luthier_surgery::adapt::Options { dtype: None, seed, force: false };
        let adapted = luthier_surgery::adapt::run(&parent, &parent, &start, &options)?;
        session.note(&format!(
            "with silent cross-attention its logits differ from the parent's by {:.1e} at most",
            adapted.silenced_max_abs_difference
        ));
        let arms = Arm::all(&out, &start);
        let mut measured = Vec::new();
        for arm in &arms {
            train(arm, seed, session)?;
        }
        for arm in &arms {
            session.note(&format!("measuring {}", arm.title));
            measured.push(measure(arm, session)?);
        }
        let samples = arms.iter().map(sample).collect::<anyhow::Result<Vec<_>>>()?;
        let report_file = out.join("report.html");
        luthier_measure::measurements::record_measurements(&out, &report::measurements(&arms, &measured))?;
        let page = report::page(&arms, &measured, &samples, seed)?;
        std::fs::write(&report_file, page).with_context(|| report_file.display().to_string())?;
        let mut json =
            json!({ "seed": seed, "seconds": started.elapsed().as_secs_f64(), "report": report_file });
        for (arm, numbers) in arms.iter().zip(&measured) {
            json[arm.key] = serde_json::to_value(numbers)?;
        }
        let text = report::words(&arms, &measured, &samples, &report_file);
        previous.remove();
        Ok(Report { json, text })
    }
}

impl Demo {
    /// The demonstration that runs without a command.
    pub(super) fn standard() -> Demo {
        Demo { seed: None, out: None, force: false }
    }

    /// The folder, empty, and the earlier demonstration that stood there.
    fn prepare_out(&self) -> anyhow::Result<(PathBuf, Previous)> {
        let out = self.out.clone().unwrap_or_else(|| PathBuf::from(STANDARD_OUT));
        let may_replace = self.out.is_none() || self.force;
        if out.exists() && !may_replace {
            bail!(
                "{}: exists; choose another --out, or give --force to replace the demonstration in it",
                out.display()
            );
        }
        if out.exists() {
            refuse_foreign_files(&out)?;
        }
        let previous = Previous::set_aside(&out)?;
        std::fs::create_dir_all(&out).with_context(|| out.display().to_string())?;
        Ok((out, previous))
    }
}

/// Refuses a folder that holds anything but a demonstration, whole or begun.
fn refuse_foreign_files(out: &Path) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(out).with_context(|| out.display().to_string())? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let is_output = |output: &&str| match path.is_dir() {
            true => name == **output && is_model_or_run(&path),
            false => name == **output && output.contains('.'),
        };
        // A demonstration that was killed leaves what it was writing.
        let is_remnant = OUTPUTS.iter().any(|output| name.starts_with(&format!(".{output}.luthier-")))
            || (name.starts_with("measurements.json.") && name.ends_with(".part"));
        if !is_remnant && !OUTPUTS.iter().any(is_output) {
            bail!(
                "{}: is not part of a demonstration; move it away, or choose another --out",
                path.display()
            );
        }
    }
    Ok(())
}

/// Whether a folder holds a model, a training run, or nothing.
fn is_model_or_run(folder: &Path) -> bool {
    let known = ["config.json", "lineage.json", "run.json", "metrics.jsonl"];
    known.iter().any(|name| folder.join(name).exists())
        || std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none())
}
