//! `luthier merge`: several models of one shape become one.

use std::path::PathBuf;

use anyhow::{Context, bail};
use luthier_checkpoint::gguf::is_gguf_name;
use luthier_surgery::merge::{self, Recipe};
use serde::Deserialize;

use super::Act;
use crate::session::{Report, Session};
use crate::{places, recipe};

/// Merges models as a recipe in mergekit's YAML says: linear, slerp, nuslerp, multislerp, karcher, task_arithmetic, ties,
/// dare_linear, dare_ties, della, della_linear, breadcrumbs, breadcrumbs_ties, sce, model_stock, nearswap, passthrough.
/// Models are places as everywhere, or org/name on the hub.
#[derive(Debug, clap::Args, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Merge {
    /// The recipe, as mergekit reads it
    recipe: recipe::Written,
    /// The folder to write
    out: PathBuf,
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

    fn act(self, session: &Session) -> anyhow::Result<Report> {
        let (text, name) = self.recipe.read()?;
        let recipe: Recipe = recipe::from_yaml(&text).with_context(|| format!("recipe {name}"))?;
        let inputs = recipe.places().iter().map(|place| open(place)).collect::<anyhow::Result<Vec<_>>>()?;
        places::check_out(&self.out, self.force, &inputs.iter().collect::<Vec<_>>())?;
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

/// A model that a recipe names: a place, or `org/name` of the hub where no such folder exists.
fn open(place: &str) -> anyhow::Result<luthier_surgery::Input> {
    let exists = std::path::Path::new(place).exists();
    if !exists && place.contains('+') {
        bail!("model {place}: adapters are not merged in yet; fuse the adapter into its base first");
    }
    let is_hub_name =
        !exists && !place.contains(':') && !place.starts_with(['.', '/']) && place.matches('/').count() == 1;
    let resolved = if is_hub_name { format!("hf:{place}") } else { place.to_string() };
    let mut input = places::input(&resolved).with_context(|| format!("model {place}"))?;
    input.label = place.to_string();
    Ok(input)
}
