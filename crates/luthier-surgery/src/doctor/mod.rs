//! `luthier doctor MODEL`: everything about a model that its users trip over, with the cause and what to do.
//!
//! Reads the model, its weights too, and writes nothing. Unlike every other verb it does not stop at the first fault: each
//! examination stands for itself and goes on from what can still be read. An error keeps the model from loading or makes
//! what it computes wrong; a warning makes some program or some use of it go wrong; a note is only worth knowing. Guarantees:
//! a model without errors and warnings opens in every verb, and its end tokens, padding, template and types agree with each
//! other. Taxonomy of what goes wrong in reuse: arXiv:2401.13177 (challenges of model reuse). Example: `luthier doctor builtin`.

mod shapes;
mod tokens;
mod trial;
mod weights;

use std::path::Path;

use luthier_checkpoint::{Checkpoint, folder};
use serde::Serialize;
use serde_json::{Map, Value};

pub use self::trial::Trial;
use crate::{Error, config, fit};

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// It does not load, or what it computes is wrong.
    Error,
    /// It loads, but some program or use of it goes wrong.
    Warning,
    /// Worth knowing.
    Note,
}

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// The file, tensor or key.
    pub subject: String,
    /// What was wanted and what came.
    pub what: String,
    /// What to do; empty where nothing has to be done.
    pub fix: String,
}

impl Finding {
    fn new(severity: Severity, subject: impl Into<String>, what: impl Into<String>, fix: &str) -> Finding {
        Finding { severity, subject: subject.into(), what: what.into(), fix: fix.to_string() }
    }
}

/// What an examination takes in.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Whether every weight is read.
    pub reads_weights: bool,
    /// Whether the model is run on a short text, as its config says and as near configs would.
    pub runs: bool,
}

/// All that was found, the worst first.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Examination {
    /// Neither errors nor warnings.
    pub healthy: bool,
    /// What was found.
    pub findings: Vec<Finding>,
    /// How well it predicts a short text; none where it was not or could not be run.
    pub trial: Option<Trial>,
}

/// Examines what lies at a place, also where it cannot be opened.
pub fn examine_place(place: &Path, options: &Options) -> Examination {
    match luthier_arch::open(place) {
        Ok(checkpoint) => examine(&checkpoint, options),
        Err(problem) => {
            let mut findings =
                vec![Finding::new(Severity::Error, place.display().to_string(), problem.to_string(), "")];
            if place.is_dir() {
                // What can be said without weights all the same.
                let config = folder::read_config(&place.join("config.json"));
                let side_files = folder::read_side_files(place);
                if let (Ok(config), Ok(side_files)) = (&config, &side_files) {
                    findings.extend(of_config(config));
                    findings.extend(tokens::examine(config, side_files, None));
                }
            }
            finished(findings, None)
        }
    }
}

/// Examines a model that opens.
pub fn examine(checkpoint: &Checkpoint, options: &Options) -> Examination {
    let mut findings = of_config(&checkpoint.config);
    let layout = match luthier_arch::layout_of(checkpoint) {
        Ok(layout) => Some(layout),
        Err(problem) => {
            findings.push(Finding::new(Severity::Error, "config.json", problem.to_string(), ""));
            None
        }
    };
    let rows = layout.as_ref().map(fit::vocab_size);
    if let Some(layout) = &layout {
        findings.extend(shapes::examine(checkpoint, layout));
    }
    findings.extend(tokens::examine(&checkpoint.config, &checkpoint.side_files, rows));
    findings.extend(of_files(checkpoint));
    if options.reads_weights {
        findings.extend(weights::examine(checkpoint, layout.as_ref()));
    }
    let can_run = findings.iter().all(|finding| finding.severity != Severity::Error);
    let mut trial = None;
    if options.runs && can_run {
        match trial::run(checkpoint) {
            Ok((came, found)) => {
                findings.extend(found);
                trial = came;
            }
            Err(problem) => {
                findings.push(Finding::new(Severity::Error, "running the model", problem.to_string(), ""));
            }
        }
    }
    finished(findings, trial)
}

fn finished(mut findings: Vec<Finding>, trial: Option<Trial>) -> Examination {
    findings.sort_by_key(|finding| finding.severity);
    findings.dedup();
    let healthy = findings.iter().all(|finding| finding.severity == Severity::Note);
    Examination { healthy, findings, trial }
}

/// What config.json says of itself.
fn of_config(config: &Map<String, Value>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let model_type = config.get("model_type").and_then(Value::as_str);
    let class = config.get("architectures").and_then(|list| list.get(0)).and_then(Value::as_str);
    if let (Some(model_type), Some(class)) = (model_type, class) {
        let plain = |name: &str| -> String { name.chars().filter(|c| *c != '_' && *c != '-').collect() };
        let of_class = |name: &&str| class.to_lowercase().starts_with(&plain(name));
        let known = luthier_arch::ARCHITECTURES.iter().map(|architecture| architecture.model_type);
        // The longest name: Qwen2MoeForCausalLM is no qwen2.
        let named = known.filter(of_class).max_by_key(|name| name.len());
        if let Some(named) = named.filter(|named| *named != model_type && !of_class(&model_type)) {
            let what =
                format!("the class {class} belongs to model_type {named}, config.json says {model_type}");
            let fix = "set the two to the architecture that the weights have";
            findings.push(Finding::new(Severity::Warning, "config key architectures", what, fix));
        }
    }
    if let Ok(keys) = luthier_arch::unknown_keys(config) {
        for key in keys {
            let what = "is not read by this architecture; it is kept all the same".to_string();
            findings.push(Finding::new(Severity::Note, format!("config key {key}"), what, ""));
        }
    }
    findings
}

/// What the files say of each other, the tokenizer's aside.
fn of_files(checkpoint: &Checkpoint) -> Vec<Finding> {
    let mut findings = Vec::new();
    let said = ["dtype", "torch_dtype"].iter().find_map(|key| checkpoint.config.get(*key)?.as_str());
    let stored = config::main_type(checkpoint.tensors.infos()).and_then(config::torch_name);
    if let (Some(said), Some(stored)) = (said, stored)
        && said.trim_start_matches("torch.") != stored
        && checkpoint.place.is_dir()
    {
        let what = format!("says {said}, most weights are stored as {stored}");
        findings.push(Finding::new(Severity::Note, "config key dtype", what, ""));
    }
    if let Some(bytes) = checkpoint.side_file("generation_config.json") {
        findings.extend(of_generation_config(bytes));
    }
    let place = &checkpoint.place;
    if place.join("model.safetensors").exists() && place.join("model.safetensors.index.json").exists() {
        let what = "lies beside model.safetensors, which is what is read";
        let fix = "remove the one that is out of date";
        findings.push(Finding::new(Severity::Warning, "model.safetensors.index.json", what, fix));
    }
    if let Err(problem) = luthier_checkpoint::Lineage::read(place)
        && place.exists()
    {
        let fix = "remove the record, or take the file from its source again";
        findings.push(Finding::new(Severity::Warning, "lineage.json", problem.to_string(), fix));
    }
    findings
}

fn of_generation_config(bytes: &[u8]) -> Vec<Finding> {
    const NAME: &str = "generation_config.json";
    let parsed: std::result::Result<Map<String, Value>, _> = serde_json::from_slice(bytes);
    let generation = match parsed {
        Ok(generation) => generation,
        Err(problem) => {
            let fix = "repair the file, or remove it";
            return vec![Finding::new(Severity::Error, NAME, problem.to_string(), fix)];
        }
    };
    let samples = generation.get("do_sample").and_then(Value::as_bool).unwrap_or(false);
    let neutral = |key: &str, value: f64| {
        generation.get(key).and_then(Value::as_f64).is_none_or(|came| (came - value).abs() < 1e-12)
    };
    let is_neutral = neutral("temperature", 1.0) && neutral("top_p", 1.0);
    if !samples && !is_neutral {
        let what = "temperature or top_p is set, but do_sample is not true: it is not used, and transformers complains";
        let fix = "set do_sample to true, or remove temperature and top_p";
        return vec![Finding::new(Severity::Warning, NAME, what, fix)];
    }
    Vec::new()
}

impl From<Error> for Finding {
    fn from(problem: Error) -> Finding {
        Finding::new(Severity::Error, "model", problem.to_string(), "")
    }
}
