//! `luthier fuse-adapter`: a LoRA adapter inside the weights of its base.

use std::fmt::Write;
use std::path::PathBuf;

use anyhow::Context;
use luthier_measure::metrics::Divergence;
use luthier_surgery::fuse::{self, Fusion};
use serde::Deserialize;
use serde_json::{Map, json};

use super::Act;
use crate::divergence::{self, Sample};
use crate::dtype::FloatType;
use crate::places;
use crate::session::{Report, Session};

/// Below this share of equal greedy tokens rounding has undone a part of the adapter.
const AGREEMENT_WANTED: f64 = 0.99;

/// Writes base + scale * (what the adapter makes of it - base), as peft's merge_and_unload does at scale 1: LoRA, rsLoRA, DoRA,
/// rank and alpha patterns, embeddings, biases, saved modules. OUT is a folder, or a GGUF file where it ends in .gguf. A
/// quantised base (a GGUF file's types into a GGUF file; nf4, fp4 and int8 into a folder) is computed with as floats and rounded
/// to its own types again; the model before rounding and the written one are then compared, on --text or on a text that comes
/// with the program.
#[derive(Debug, clap::Args, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FuseAdapter {
    /// The base
    base: String,
    /// The adapter: a folder in PEFT's form, or a GGUF file in llama.cpp's
    adapter: String,
    /// The folder or .gguf file to write
    out: PathBuf,
    /// Further adapters, fused one after the other; may be repeated
    #[arg(long, value_name = "ADAPTER")]
    #[serde(default)]
    then: Vec<String>,
    /// How much of the adapter: 1 is as it was trained, 0 nothing [default: 1]
    #[arg(long, value_name = "S", allow_negative_numbers = true)]
    scale: Option<f64>,
    /// The type of all float weights, quantised ones too; without it the base's types are kept
    #[arg(long)]
    dtype: Option<FloatType>,
    /// Round to the quantised types of the base, or fail; where the output can hold them this is done anyway
    #[arg(long, alias = "requantise")]
    #[serde(default)]
    requantize: bool,
    /// Compare the model before rounding and the written one on this text, UTF-8
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

impl Act for FuseAdapter {
    const NAME: &'static str = "fuse-adapter";
    const ABOUT: &'static str = "Put a LoRA adapter into the weights of its base";

    fn check(&self) -> Result<(), String> {
        match self.scale {
            Some(scale) if !scale.is_finite() => Err(format!("scale: wanted a number, came {scale}")),
            _ if self.requantize && self.dtype.is_some() => {
                Err("requantize, dtype: the base's types, or another; give one of them".to_string())
            }
            _ => Ok(()),
        }
    }

    fn act(self, session: &Session) -> anyhow::Result<Report> {
        let base = places::input(&self.base)?;
        let options = fuse::Options {
            scale: self.scale.unwrap_or(1.0),
            dtype: self.dtype.map(FloatType::dtype),
            requantize: self.requantize,
            text: self.text.clone(),
            force: self.force,
        };
        let mut adapters = Vec::new();
        for place in std::iter::once(&self.adapter).chain(&self.then) {
            let opened = places::adapter(place, Some(&base.checkpoint));
            adapters.push((place.clone(), opened.with_context(|| format!("adapter {place}"))?));
        }
        places::check_out_beside(&self.out, self.force, &[&base], &adapters)?;
        let fusion = Fusion::new(base.clone(), adapters, &self.out, &options)?;
        if self.plan {
            return super::plan_report(&fusion.plan(&options)?);
        }
        for note in fusion.notes() {
            session.note(note);
        }
        let divergence = self.divergence(&fusion, &base.checkpoint, &options, session)?;
        let measured = divergence.as_ref().map_or_else(Map::new, divergence::measurements);
        let result = fusion.run(&self.out, &options, measured)?;
        let mut json = serde_json::to_value(&result)?;
        json["out"] = json!(self.out);
        json["divergence"] = serde_json::to_value(divergence)?;
        let mut text = format!(
            "{}: {} tensors, {} with the adapter, {} byte for byte",
            self.out.display(),
            result.tensors,
            result.fused_tensors,
            result.copied_tensors
        );
        if let Some(divergence) = &divergence {
            let _ = write!(text, "\nwritten against exact: {}", divergence::words(divergence));
        }
        Ok(Report { json, text })
    }
}

impl FuseAdapter {
    /// How far the model that is written is from what it should be, where it is rounded to few bits or a text is given.
    fn divergence(
        &self,
        fusion: &Fusion,
        base: &luthier_checkpoint::Checkpoint,
        options: &fuse::Options,
        session: &Session,
    ) -> anyhow::Result<Option<Divergence>> {
        if self.text.is_none() && !fusion.is_rounded() {
            return Ok(None);
        }
        let sample = match &self.text {
            Some(text) => Sample::of_file(text, base)?,
            None => Sample::standard(base)?,
        };
        let found = match divergence::between(&fusion.exact(), &fusion.written(options)?, &sample) {
            Ok(found) => found,
            // Nobody asked for the numbers of a model that cannot be run.
            Err(problem) if self.text.is_none() && divergence::is_unknown(&problem) => {
                session.note(&format!("the written model is not compared with the exact one: {problem:#}"));
                return Ok(None);
            }
            Err(problem) => return Err(problem),
        };
        if found.greedy_agreement < AGREEMENT_WANTED {
            session.note(&format!(
                "warning: after rounding {:.1}% of the likeliest tokens are still the same, of {} on {}; --dtype f16 keeps more of the \
                 adapter",
                100.0 * found.greedy_agreement,
                found.tokens,
                sample.name
            ));
        }
        Ok(Some(found))
    }
}
