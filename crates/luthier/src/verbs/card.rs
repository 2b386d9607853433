//! `luthier card`: what a model's README.md says, lacks, and gets wrong.

use std::path::PathBuf;

use anyhow::{Context, bail};
use luthier_checkpoint::{Lineage, Output};
use luthier_surgery::model_card::{self, Said};
use serde::Deserialize;
use serde_json::json;

use super::Act;
use crate::session::{Report, Session};
use crate::{builtin, places};

/// Writes, examines or compares model cards. `init` prints a card of what the model's files and record prove (or writes it to
/// --out); `lint` finds what the model's README.md lacks and where it contradicts the model, with exit code 1; `diff` compares
/// the cards of two models.
#[derive(Debug, clap::Args, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Card {
    /// init, lint or diff
    action: Action,
    /// The model
    model: String,
    /// The other model, for diff
    other: Option<String>,
    /// Where init writes the card; printed without it
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// The licence, as the hub calls it
    #[arg(long)]
    license: Option<String>,
    /// A language code; may be given several times
    #[arg(long, value_name = "CODE")]
    #[serde(default)]
    language: Vec<String>,
    /// A data set of the hub that it was trained on; may be given several times
    #[arg(long, value_name = "NAME")]
    #[serde(default)]
    dataset: Vec<String>,
    /// The release's version
    #[arg(long = "model-version", value_name = "VERSION")]
    model_version: Option<String>,
    /// Replace an existing file
    #[arg(long)]
    #[serde(default)]
    force: bool,
}

/// What to do with a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Action {
    /// Print a card of what the files prove
    Init,
    /// Find what the card lacks and gets wrong
    Lint,
    /// Compare two models' cards
    Diff,
}

impl Act for Card {
    const NAME: &'static str = "card";
    const ABOUT: &'static str = "Write, examine or compare model cards";

    fn check(&self) -> Result<(), String> {
        match (self.action, &self.other) {
            (Action::Diff, None) => Err("card diff takes two models".to_string()),
            _ if self.out.as_ref().is_some_and(|out| out.extension().is_none_or(|ending| ending != "md")) => {
                Err("--out: wanted the name of a .md file, such as README.md".to_string())
            }
            (Action::Init | Action::Lint, Some(other)) => {
                Err(format!("card init and lint take one model, came {other} too"))
            }
            _ => Ok(()),
        }
    }

    fn act(self, _session: &Session) -> anyhow::Result<Report> {
        let checkpoint = places::open(&self.model)?;
        let lineage = match self.model == builtin::NAME {
            true => Some(builtin::lineage()?),
            false => Lineage::read(&checkpoint.place)?,
        };
        match self.action {
            Action::Init => {
                let said = Said {
                    license: self.license,
                    languages: self.language,
                    datasets: self.dataset,
                    version: self.model_version,
                };
                let card = model_card::init(&self.model, &checkpoint, lineage.as_ref(), &said)?;
                let Some(out) = self.out else {
                    return Ok(Report { json: json!({ "card": card }), text: card });
                };
                // Into the model's own folder too, but over nothing else than a card.
                let output = Output::file(&out, self.force, &[])?;
                std::fs::write(output.path(), card.as_bytes()).with_context(|| out.display().to_string())?;
                output.commit()?;
                Ok(Report {
                    text: format!("{}: written", out.display()),
                    json: json!({ "card": card, "out": out }),
                })
            }
            Action::Lint => {
                let problems = model_card::lint(&checkpoint, lineage.as_ref());
                let mut lines: Vec<String> =
                    problems.iter().map(|problem| format!("{}: {}", problem.field, problem.what)).collect();
                lines.push(match problems.len() {
                    0 => format!("{}: the card says what is wanted", self.model),
                    count => format!("{}: {count} problems", self.model),
                });
                let json = json!({ "model": self.model, "problems": problems });
                Report { json, text: lines.join("\n") }.judged(problems.is_empty())
            }
            Action::Diff => {
                let Some(other) = self.other else { bail!("card diff takes two models") };
                let differences = model_card::difference(&checkpoint, &places::open(&other)?);
                let said = |value: &Option<serde_json::Value>| {
                    value.as_ref().map_or("absent".to_string(), ToString::to_string)
                };
                let lines: Vec<String> = differences
                    .iter()
                    .map(|one| format!("{}: {} and {}", one.field, said(&one.a), said(&one.b)))
                    .collect();
                let text = if lines.is_empty() { "identical".to_string() } else { lines.join("\n") };
                Ok(Report { json: json!({ "a": self.model, "b": other, "differences": differences }), text })
            }
        }
    }
}
