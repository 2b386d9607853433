//! `luthier merge --study`: merges of several experts in many ways, measured on the experts' own texts and on others.
//!
//! The question of "What Matters for Model Merging at Scale?" (arXiv:2410.03617): methods by number of experts by density by
//! scale. Held-in: texts that belong to the merged experts; held-out: texts that belong to none. Nothing is written but the
//! numbers: each model is merged in memory. A study that was stopped goes on where it was.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use candle_core::Device;
use luthier_arch::LoadOptions;
use luthier_checkpoint::Checkpoint;
use luthier_checkpoint::lineage::sha256_of_bytes;
use luthier_measure::metrics::perplexity::{Method, perplexity};
use luthier_surgery::Input;
use luthier_surgery::merge::{self, Recipe};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::places;
use crate::session::{Report, Session};

/// The cells that are done, one a line.
const CELLS: &str = "cells.jsonl";
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
    /// Names of methods that need no parameters but weight, density and lambda.
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

/// One merge of the grid.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
struct Cell {
    method: String,
    n_experts: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    density: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scale: Option<f64>,
}

/// What was measured of it.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq)]
struct Measured {
    #[serde(flatten)]
    cell: Cell,
    /// Mean over the merged experts' texts; none where the merge was refused.
    held_in_nats_per_token: Option<f64>,
    /// Mean over those of (base - merged) / (base - expert): 1 where each text is predicted as well as by its expert.
    held_in_gain_kept: Option<f64>,
    /// Mean over the held-out texts.
    held_out_nats_per_token: Option<f64>,
    /// The base's mean less that: above 0 where merging helped.
    held_out_gain_nats_per_token: Option<f64>,
    /// Why there are no numbers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    refused: Option<String>,
}

/// A line of the file of cells.
#[derive(Deserialize, Serialize)]
struct Line {
    /// The hash of the study and all that it reads.
    study: String,
    /// A model's losses by text, or a cell.
    #[serde(flatten)]
    entry: Entry,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum Entry {
    Single { model: String, losses: BTreeMap<String, f64> },
    Cell(Measured),
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
        let mut texts: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for path in self.experts.iter().map(|expert| &expert.text).chain(&self.held_out) {
            let bytes = std::fs::read(path).with_context(|| {
                format!("{}: wanted the name of a file that holds a text", path.display())
            })?;
            texts.insert(path.display().to_string(), bytes);
        }
        let work = Work { study: self, base, experts, texts };
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
        let total = self.experts.len();
        if total == 0 || self.methods.is_empty() {
            bail!("a study wants experts and methods, and has {total} and {}", self.methods.len());
        }
        let all: Vec<usize> = (2.min(total)..=total).collect();
        let counts = self.n_experts.clone().unwrap_or(all);
        if let Some(wrong) = counts.iter().find(|count| **count == 0 || **count > total) {
            bail!("n_experts: wanted 1 to {total}, came {wrong}");
        }
        let values =
            |values: &Option<Vec<f64>>, key: &str, is_used: bool| -> anyhow::Result<Vec<Option<f64>>> {
                let values = values.clone().unwrap_or(vec![1.0]);
                if let Some(wrong) = values.iter().find(|value| !value.is_finite()) {
                    bail!("{key}: wanted numbers, came {wrong}");
                }
                Ok(if is_used { values.into_iter().map(Some).collect() } else { vec![None] })
            };
        let mut cells = Vec::new();
        for method in &self.methods {
            let parameters = merge::parameters(method)?;
            let free = ["weight", "density", "lambda"];
            if let Some((name, _)) =
                parameters.iter().find(|(name, is_needed)| *is_needed && !free.contains(name))
            {
                bail!("method {method} needs {name}, which a study does not vary; leave it out");
            }
            let uses = |name: &str| parameters.iter().any(|(parameter, _)| *parameter == name);
            for &n_experts in &counts {
                for density in values(&self.density, "density", uses("density"))? {
                    for scale in values(&self.scale, "scale", uses("lambda"))? {
                        cells.push(Cell { method: method.clone(), n_experts, density, scale });
                    }
                }
            }
        }
        Ok(cells)
    }
}

/// What is read.
struct Work<'s> {
    study: &'s Study,
    base: Input,
    experts: Vec<Input>,
    texts: BTreeMap<String, Vec<u8>>,
}

impl Work<'_> {
    /// The hash of the study, its models and its texts.
    fn fingerprint(&self) -> anyhow::Result<String> {
        let mut parents = Vec::new();
        for input in std::iter::once(&self.base).chain(&self.experts).flat_map(Input::parts) {
            parents.push(input.parent()?);
        }
        let texts: Vec<String> = self.texts.values().map(|text| sha256_of_bytes(text)).collect();
        let seed = self.study.seed.unwrap_or(1);
        let experts = &self.study.experts;
        let all = json!({"experts": experts, "seed": seed, "parents": parents, "texts": texts,
            "held_out": self.study.held_out});
        Ok(sha256_of_bytes(all.to_string().as_bytes()))
    }

    fn expert_text(&self, expert: usize) -> String {
        self.study.experts[expert].text.display().to_string()
    }

    fn held_out(&self) -> Vec<String> {
        self.study.held_out.iter().map(|path| path.display().to_string()).collect()
    }

    /// The losses of a model on texts, in nats per token.
    fn losses(&self, checkpoint: &Checkpoint, names: &[String]) -> anyhow::Result<BTreeMap<String, f64>> {
        let load = LoadOptions { trainable: false, device: Device::Cpu };
        let model = luthier_arch::load(checkpoint, &load)?;
        let tokenizer = places::tokenizer(checkpoint)?;
        tokenizer.check_fits(model.vocab_size())?;
        let mut losses = BTreeMap::new();
        for name in names {
            let method = Method::default_of(model.as_ref());
            let found = perplexity(model.as_ref(), &tokenizer, name, &self.texts[name], method)?;
            losses.insert(name.clone(), found.nll_nats_per_token);
        }
        Ok(losses)
    }

    fn recipe(&self, cell: &Cell) -> anyhow::Result<Recipe> {
        let experts = &self.study.experts[..cell.n_experts];
        let models: Vec<Value> = experts.iter().map(|expert| json!({"model": expert.model})).collect();
        let mut parameters = json!({"weight": 1.0});
        for (name, value) in [("density", cell.density), ("lambda", cell.scale)] {
            if let Some(value) = value {
                parameters[name] = json!(value);
            }
        }
        let mut recipe = json!({"merge_method": cell.method, "models": models, "parameters": parameters});
        // Methods that do not compare with a base would take it for one more model.
        if merge::compares_with_base(&cell.method)? {
            recipe["base_model"] = json!(self.study.base_model);
        }
        Ok(serde_json::from_value(recipe)?)
    }

    fn measure(&self, cell: &Cell, singles: &[BTreeMap<String, f64>]) -> anyhow::Result<Measured> {
        let recipe = self.recipe(cell)?;
        let find = |place: &String| {
            std::iter::once(&self.base).chain(&self.experts).find(|input| input.label == *place).cloned()
        };
        let inputs: Vec<Input> = recipe.places().iter().filter_map(find).collect();
        let options = merge::Options {
            verb: "merge",
            record: serde_json::Value::Null,
            measurements: serde_json::Map::new(),
            seed: self.study.seed.unwrap_or(1),
            force: false,
            text: String::new(),
        };
        let own: Vec<String> = (0..cell.n_experts).map(|expert| self.expert_text(expert)).collect();
        let held_out = self.held_out();
        let names: Vec<String> = own.iter().chain(&held_out).cloned().collect();
        let losses = merge::model(&recipe, &inputs, &options)
            .map_err(anyhow::Error::from)
            .and_then(|merged| self.losses(&merged, &names));
        let losses = match losses {
            Ok(losses) => losses,
            Err(problem) => return Ok(Measured::refused(cell, format!("{problem:#}"))),
        };
        let base = &singles[0];
        let kept = own.iter().enumerate().filter_map(|(expert, name)| {
            let gain = base[name] - singles[expert + 1][name];
            (gain > 0.0).then(|| (base[name] - losses[name]) / gain)
        });
        let held_out_loss = mean(held_out.iter().map(|name| losses[name]));
        let before = mean(held_out.iter().map(|name| base[name]));
        Ok(Measured {
            cell: cell.clone(),
            held_in_nats_per_token: mean(own.iter().map(|name| losses[name])),
            held_in_gain_kept: mean(kept),
            held_out_nats_per_token: held_out_loss,
            held_out_gain_nats_per_token: before.zip(held_out_loss).map(|(before, after)| before - after),
            refused: None,
        })
    }

    /// The losses of base and experts, by model.
    fn named(&self, singles: &[BTreeMap<String, f64>]) -> Value {
        let labels = std::iter::once(&self.base).chain(&self.experts).map(|input| &input.label);
        labels.zip(singles).map(|(label, losses)| json!({"model": label, "nats_per_token": losses})).collect()
    }
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0u32), |(sum, count), value| (sum + value, count + 1));
    (count > 0).then(|| sum / f64::from(count))
}

const HEAD: [&str; 8] = [
    "method",
    "n_experts",
    "density",
    "scale",
    "held_in_nats_per_token",
    "held_in_gain_kept",
    "held_out_nats_per_token",
    "held_out_gain_nats_per_token",
];

impl Measured {
    fn refused(cell: &Cell, why: String) -> Measured {
        Measured {
            cell: cell.clone(),
            held_in_nats_per_token: None,
            held_in_gain_kept: None,
            held_out_nats_per_token: None,
            held_out_gain_nats_per_token: None,
            refused: Some(why),
        }
    }

    fn row(&self) -> Vec<String> {
        let number = |value: Option<f64>| value.map_or("-".to_string(), |value| format!("{value:.4}"));
        let option = |value: Option<f64>| value.map_or("-".to_string(), |value| value.to_string());
        vec![
            self.cell.method.clone(),
            self.cell.n_experts.to_string(),
            option(self.cell.density),
            option(self.cell.scale),
            number(self.held_in_nats_per_token),
            number(self.held_in_gain_kept),
            number(self.held_out_nats_per_token),
            number(self.held_out_gain_nats_per_token),
        ]
    }

    fn words(&self) -> String {
        let cell = self.cell.words();
        if let Some(why) = &self.refused {
            return format!("{cell}: refused: {why}");
        }
        let row = self.row();
        format!("{cell}: held-in {} nats per token, held-out {}", row[4], row[6])
    }
}

impl Cell {
    fn words(&self) -> String {
        let mut words = format!("{}, {} experts", self.method, self.n_experts);
        for (name, value) in [("density", self.density), ("scale", self.scale)] {
            if let Some(value) = value {
                words.push_str(&format!(", {name} {value}"));
            }
        }
        words
    }
}

/// The table with its columns under one another.
fn aligned(table: &str) -> String {
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split('\t').collect()).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..HEAD.len()).map(width).collect();
    let line = |row: &Vec<&str>| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_string() + "\n"
    };
    rows.iter().map(line).collect()
}

/// The cells of a folder that are done.
struct Done {
    folder: PathBuf,
    study: String,
    entries: Vec<Entry>,
}

impl Done {
    /// Opens a folder of this study, or makes it. Refuses one that holds anything else, but for another study and `force`.
    fn open(folder: &Path, study: String, force: bool) -> anyhow::Result<Done> {
        let path = folder.join(CELLS);
        let mut entries = Vec::new();
        if path.exists() {
            let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            // The last line of a study that was killed may be half.
            let lines: Vec<Line> = text.lines().map_while(|line| serde_json::from_str(line).ok()).collect();
            let is_other = lines.iter().any(|line| line.study != study);
            if is_other && !force {
                bail!(
                    "{}: holds another study, or its models or texts have changed; choose another place, or --force",
                    folder.display()
                );
            }
            if !is_other {
                entries = lines.into_iter().map(|line| line.entry).collect();
            }
        } else if folder.exists() && std::fs::read_dir(folder).is_ok_and(|mut files| files.next().is_some()) {
            bail!("{}: is there already and holds no study; choose another place", folder.display());
        }
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        let done = Done { folder: folder.to_path_buf(), study, entries };
        let mut text = String::new();
        for entry in &done.entries {
            text.push_str(&done.line(entry)?);
        }
        done.write(CELLS, text.as_bytes())?;
        Ok(done)
    }

    fn line(&self, entry: &Entry) -> anyhow::Result<String> {
        let mut line = serde_json::to_value(entry)?;
        line["study"] = json!(self.study);
        Ok(line.to_string() + "\n")
    }

    fn single(&self, wanted: &str) -> Option<&BTreeMap<String, f64>> {
        self.entries.iter().find_map(|entry| match entry {
            Entry::Single { model, losses } if model == wanted => Some(losses),
            _ => None,
        })
    }

    fn cell(&self, wanted: &Cell) -> Option<&Measured> {
        self.entries.iter().find_map(|entry| match entry {
            Entry::Cell(measured) if measured.cell == *wanted => Some(measured),
            _ => None,
        })
    }

    fn add(&mut self, entry: Entry) -> anyhow::Result<()> {
        let path = self.folder.join(CELLS);
        let mut file = std::fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .with_context(|| path.display().to_string())?;
        file.write_all(self.line(&entry)?.as_bytes()).with_context(|| path.display().to_string())?;
        self.entries.push(entry);
        Ok(())
    }

    /// Writes beside and renames.
    fn write(&self, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
        let path = self.folder.join(name);
        let beside = self.folder.join(format!("{name}.new"));
        std::fs::write(&beside, bytes).with_context(|| beside.display().to_string())?;
        std::fs::rename(&beside, &path).with_context(|| path.display().to_string())
    }
}
