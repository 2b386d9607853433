//! `luthier merge`: several models of one shape become one.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use luthier_checkpoint::adapter::Adapter;
use luthier_checkpoint::gguf::is_gguf_name;
use luthier_surgery::Input;
use luthier_surgery::merge::{self, Recipe};
use serde::Deserialize;

use super::Act;
use crate::session::{Report, Session};
use crate::study::Study;
use crate::{places, recipe};

/// Merges models as a recipe in mergekit's YAML says: linear, slerp, nuslerp, multislerp, karcher, task_arithmetic, ties,
/// dare_linear, dare_ties, della, della_linear, breadcrumbs, breadcrumbs_ties, sce, model_stock, nearswap, passthrough.
/// Models are places as everywhere, or org/name on the hub; MODEL+ADAPTER is a model with a LoRA adapter in PEFT's form. With
/// tokenizer_source or tokenizer in the recipe different vocabularies are aligned by token.
#[derive(Debug, clap::Args, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Merge {
    /// The recipe, as mergekit reads it
    recipe: recipe::Written,
    /// The folder to write; of a study, where its tables go
    out: PathBuf,
    /// The recipe is a study: merge in memory by each method, number of experts, density and scale, and measure on texts
    #[arg(long)]
    #[serde(default)]
    study: bool,
    /// Seed of methods that drop at random [default: 1]
    #[arg(long)]
    seed: Option<u64>,
    /// Replace an existing output
    #[arg(long)]
    #[serde(default)]
    force: bool,
    /// Say what would be done, from headers alone, and do nothing
    #[arg(long)]
    #[serde(default)]
    plan: bool,
}

impl Act for Merge {
    const NAME: &'static str = "merge";
    const ABOUT: &'static str = "Merge models as a mergekit recipe says";

    fn check(&self) -> Result<(), String> {
        match (self.study, self.seed) {
            (true, Some(_)) => Err("seed: a study names its own, as the key seed".to_string()),
            _ => Ok(()),
        }
    }

    fn act(self, session: &Session) -> anyhow::Result<Report> {
        let (text, name) = self.recipe.read()?;
        if self.study {
            let study: Study = recipe::from_yaml(&text).with_context(|| format!("study {name}"))?;
            return if self.plan { study.plan() } else { study.run(&self.out, self.force, session) };
        }
        let recipe: Recipe = recipe::from_yaml(&text).with_context(|| format!("recipe {name}"))?;
        let mut notes = Vec::new();
        let inputs = recipe.places();
        let inputs = inputs.iter().map(|place| open(place, &mut notes));
        let inputs = inputs.collect::<anyhow::Result<Vec<_>>>()?;
        let parts: Vec<&Input> = inputs.iter().flat_map(Input::parts).collect();
        places::check_out(&self.out, self.force, &parts)?;
        for note in &notes {
            session.note(note);
        }
        if is_gguf_name(&self.out) {
            bail!("{}: a merge writes a folder; convert it afterwards", self.out.display());
        }
        let seed = self.seed.unwrap_or(1);
        let options = merge::Options {
            verb: Self::NAME,
            record: serde_json::json!({"recipe": {"text": text, "resolved": recipe}, "seed": seed}),
            measurements: serde_json::Map::new(),
            seed,
            force: self.force,
            text,
        };
        if self.plan {
            return super::plan_report(&merge::plan(&recipe, &inputs, &options)?);
        }
        let result = merge::run(&recipe, &inputs, &self.out, &options)?;
        for note in &result.notes {
            session.note(note);
        }
        let text = format!("{}: {}", self.out.display(), result.ledger);
        let mut json = serde_json::to_value(&result)?;
        json["out"] = serde_json::json!(self.out);
        Ok(Report { json, text })
    }
}

/// A model that a recipe names: a place, or `org/name` of the hub where no such folder exists; with `+` and a LoRA adapter's
/// place behind it the two as one.
pub(crate) fn open(place: &str, notes: &mut Vec<String>) -> anyhow::Result<Input> {
    if !Path::new(place).exists()
        && let Some((base, adapter)) = with_adapter(place)
    {
        let input = open(base, notes)?;
        let path = places::local_path(&resolved(adapter)).with_context(|| format!("adapter {adapter}"))?;
        let opened = Adapter::open(&path).with_context(|| format!("adapter {adapter}"))?;
        notes.extend(opened.notes.iter().cloned());
        return luthier_surgery::fused(input, adapter, place, opened)
            .with_context(|| format!("model {place}"));
    }
    let mut input = places::input(&resolved(place)).with_context(|| format!("model {place}"))?;
    input.label = place.to_string();
    Ok(input)
}

/// The base and the adapter of `base+adapter`: a plus may be part of either's name.
fn with_adapter(place: &str) -> Option<(&str, &str)> {
    let splits = || place.match_indices('+').map(|(at, _)| (&place[..at], &place[at + 1..]));
    splits().find(|(_, adapter)| Adapter::is_adapter(Path::new(adapter))).or_else(|| splits().next())
}

/// `org/name` means the hub, where no such folder exists.
fn resolved(place: &str) -> String {
    let is_hub_name = !Path::new(place).exists()
        && !place.contains(':')
        && !place.starts_with(['.', '/'])
        && place.matches('/').count() == 1;
    if is_hub_name { format!("hf:{place}") } else { place.to_string() }
}
