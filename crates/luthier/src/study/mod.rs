//! `luthier merge --study`: merges of several experts in many ways, measured on the experts' own texts and on others.
//!
//! The question of "What Matters for Model Merging at Scale?" (arXiv:2410.03617): methods by number of experts by density by
//! scale. Held-in: texts that belong to the merged experts; held-out: texts that belong to none. Nothing is written but the
//! numbers: each model is merged in memory. A study that was stopped goes on where it was.

mod cell;
mod done;
mod work;

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use luthier_surgery::merge;
use serde::{Deserialize, Serialize};
use serde_json::json;

use self::cell::{Cell, HEAD, Measured, aligned};
use self::done::{Done, Entry};
use self::work::Work;
use crate::session::{Report, Session};
use crate::texts;

/// Everything, when all are.
const RESULT: &str = "study.json";
/// The table, for spreadsheets.
const TABLE: &str = "study.tsv";

/// What is merged, how, and what it is measured on.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Study {
    /// The model that the experts were trained from.
    pub base_model: String,
    /// The experts; of each number of experts the first ones are merged.
    pub experts: Vec<Expert>,
    /// Texts that belong to no expert, UTF-8.
    #[serde(default)]
    pub held_out: Vec<PathBuf>,
    /// Names of methods that need no parameters but weight, density, lambda and t.
    pub methods: Vec<String>,
    /// How many experts are merged [default: 2 to all].
    #[serde(default)]
    pub n_experts: Option<Vec<usize>>,
    /// Shares of the differences that are kept, for methods that drop some [default: 1].
    #[serde(default)]
    pub density: Option<Vec<f64>>,
    /// What the sum of differences is multiplied with (lambda), for methods that have it [default: 1].
    #[serde(default)]
    pub scale: Option<Vec<f64>>,
    /// How far to go from the first expert to the second, for methods that go from one model to another (slerp, nearswap).
    #[serde(default)]
    pub t: Option<Vec<f64>>,
    /// Seed of methods that drop at random [default: 1].
    #[serde(default)]
    pub seed: Option<u64>,
}

/// One expert and what it is expert in.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Expert {
    /// Its place.
    pub model: String,
    /// The text that it was trained for, UTF-8.
    pub text: PathBuf,
}

impl Study {
    /// Runs what is not done yet, and writes the tables into the folder `out`.
    pub fn run(&self, out: &Path, force: bool, session: &Session) -> anyhow::Result<Report> {
        let cells = self.cells()?;
        let mut notes = Vec::new();
        let mut open = |place: &str| crate::verbs::open_for_merge(place, &mut notes);
        let base = open(&self.base_model)?;
        let experts =
            self.experts.iter().map(|expert| open(&expert.model)).collect::<anyhow::Result<Vec<_>>>()?;
        let mut by_name: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for path in self.experts.iter().map(|expert| &expert.text).chain(&self.held_out) {
            by_name.insert(path.display().to_string(), texts::bytes_of_recipe(path)?);
        }
        let work = Work { study: self, base, experts, texts: by_name };
        let mut done = Done::open(out, work.fingerprint()?, force)?;
        let mut singles = Vec::new();
        for (at, input) in std::iter::once(&work.base).chain(&work.experts).enumerate() {
            let model = input.label.clone();
            if done.single(&model).is_none() {
                let of_own = (at > 0).then(|| vec![work.expert_text(at - 1)]);
                let names = of_own.unwrap_or_else(|| work.texts.keys().cloned().collect());
                let losses =
                    work.losses(&input.checkpoint, &names).with_context(|| format!("model {model}"))?;
                done.add(Entry::Single { model: model.clone(), losses })?;
            }
            singles.extend(done.single(&model).cloned());
        }
        let mut measured = Vec::new();
        for (at, cell) in cells.iter().enumerate() {
            let known = done.cell(cell).cloned();
            let one = match known {
                Some(known) => known,
                None => {
                    let one = work.measure(cell, &singles)?;
                    done.add(Entry::Cell(one.clone()))?;
                    one
                }
            };
            session.note(&format!("{} of {}: {}", at + 1, cells.len(), one.words()));
            measured.push(one);
        }
        let rows = measured.iter().map(Measured::row);
        let table = std::iter::once(HEAD.join("\t")).chain(rows.map(|row| row.join("\t")));
        let table = table.map(|line| line + "\n").collect::<String>();
        let json = json!({"study": self, "single": work.named(&singles), "cells": measured, "out": out});
        done.write(TABLE, table.as_bytes())?;
        done.write(RESULT, luthier_checkpoint::json::to_text(&json).as_bytes())?;
        let text = format!("{}{}: {} merges", aligned(&table), out.join(RESULT).display(), measured.len());
        Ok(Report { json, text })
    }

    /// What would be run.
    pub fn plan(&self) -> anyhow::Result<Report> {
        let cells = self.cells()?;
        let lines: Vec<String> = cells.iter().map(Cell::words).collect();
        let text = format!("{}\n{} merges, each in memory", lines.join("\n"), cells.len());
        Ok(Report { json: json!({ "cells": cells }), text })
    }

    /// The grid: options that a method does not have are not multiplied out.
    fn cells(&self) -> anyhow::Result<Vec<Cell>> {
        self.check_names()?;
        let total = self.experts.len();
        if total == 0 || self.methods.is_empty() {
            bail!("a study wants experts and methods, and has {total} and {}", self.methods.len());
        }
        let all: Vec<usize> = (2.min(total)..=total).collect();
        let counts = self.n_experts.clone().unwrap_or(all);
        if let Some(wrong) = counts.iter().find(|count| **count == 0 || **count > total) {
            bail!("n_experts: wanted 1 to {total}, came {wrong}");
        }
        let mut cells = Vec::new();
        for method in &self.methods {
            let parameters = merge::parameters(method)?;
            let free = ["weight", "density", "lambda", "t"];
            if let Some((name, _)) =
                parameters.iter().find(|(name, is_needed)| *is_needed && !free.contains(name))
            {
                bail!("method {method} needs {name}, which a study does not vary; leave it out");
            }
            let uses = |name: &str| parameters.iter().any(|(parameter, _)| *parameter == name);
            if uses("t") && self.t.is_none() {
                bail!(
                    "method {method} goes from one expert to another and wants the key t: how far, such as [0.5]"
                );
            }
            let densities = values(&self.density, "density", uses("density"))?;
            let scales = values(&self.scale, "scale", uses("lambda"))?;
            let ts = values(&self.t, "t", uses("t"))?;
            for &n_experts in &counts {
                for &density in &densities {
                    for &scale in &scales {
                        let cell = |&t| Cell { method: method.clone(), n_experts, density, scale, t };
                        cells.extend(ts.iter().map(cell));
                    }
                }
            }
        }
        Ok(cells)
    }

    /// Refuses models and texts that are named twice: an expert's gain is measured on a text of its own.
    fn check_names(&self) -> anyhow::Result<()> {
        let mut models = HashSet::from([&self.base_model]);
        if let Some(twice) = self.experts.iter().find(|expert| !models.insert(&expert.model)) {
            bail!("model {} is named twice; the base and the experts are different models", twice.model);
        }
        let own: HashSet<&PathBuf> = self.experts.iter().map(|expert| &expert.text).collect();
        if let Some(text) = self.held_out.iter().find(|text| own.contains(text)) {
            bail!("held_out: {} is an expert's text; held-out texts belong to none", text.display());
        }
        Ok(())
    }
}

/// The values that a key is varied over; none where the method does not have it.
fn values(values: &Option<Vec<f64>>, key: &str, is_used: bool) -> anyhow::Result<Vec<Option<f64>>> {
    let values = values.clone().unwrap_or(vec![1.0]);
    if values.is_empty() {
        bail!("{key}: wanted at least one number, the list is empty");
    }
    if let Some(wrong) = values.iter().find(|value| !value.is_finite()) {
        bail!("{key}: wanted numbers, came {wrong}");
    }
    Ok(if is_used { values.into_iter().map(Some).collect() } else { vec![None] })
}
