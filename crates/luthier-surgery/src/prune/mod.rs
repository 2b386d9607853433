//! `luthier prune MODEL OUT --scores FILE (--layers, --hidden, --ffn, --heads, --kv-groups VALUE | --params N | --memory BYTES)`:
//! a smaller model of the same kind, made of the parts that matter most.
//!
//! Reads a model folder or a GGUF file, and scores that `luthier score` wrote of it. Writes a folder, or a GGUF file where OUT
//! ends in `.gguf`. Width and depth are cut together (Minitron, arXiv:2407.14679): layers of lowest block influence
//! (arXiv:2403.03853), neurons, heads (evenly within their groups, or whole groups) and channels of the residual stream of
//! lowest activation; what stays keeps its order and, but for norms, its values. A narrower norm reads another mean square:
//! norm weights are scaled by sqrt(share of the energy that is kept * old width / new width), so that channels that carried
//! nothing go without a trace; Gemma's embedding, which is scaled by the root of the width, is scaled back. Widths of heads
//! and rotary positions stay. `--sparsity` and `--pattern` set single weights to 0 (magnitude; Wanda, arXiv:2306.11695).
//! Guarantees: every tensor is in the ledger; sizes as they are give the same bytes; the config says the new shape. Refuses:
//! scores of another model, sizes beyond the model, heads that groups do not divide, values that are not finite, shapes that
//! the config or transformers cannot take. Example: `luthier prune model small --scores scores.safetensors --ffn 0.8`.

mod amount;
mod choices;
mod costs;
mod cut;
pub mod inherit;
mod keep;
mod losses;
mod prepare;
mod scored;
mod search;
mod shape;
mod slice;
mod sparse;
pub mod sub_model;
mod table;
mod tensors;
mod trial;
mod uneven;
mod view;
mod without;

use std::path::{Path, PathBuf};

use luthier_checkpoint::gguf::is_gguf_name;
use luthier_checkpoint::{Checkpoint, Dtype, LedgerSummary};
use serde::Serialize;
use serde_json::{Map, Value, json};

use self::prepare::Prepared;
use crate::convert::gguf::{planned_model, write_model};
use crate::plan::Plan;
use crate::writing::{Job, Origin, write_folder};
use crate::{Error, Input, Result};
pub use amount::{Amount, Amounts};
pub use search::{Budget, Candidate, Divisors};
pub use shape::Targets;
pub use sparse::{Criterion, Sparse, Sparsity};
pub use trial::{TrialCut, trial_cuts};
pub use without::without_layer;

/// Why a layer goes.
const REASON: &str = "its layer has a low block influence";

/// How a model is pruned.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// How much of every axis is kept.
    pub targets: Targets,
    /// What the result may cost; axes that `targets` leaves open are chosen for it.
    pub budget: Option<Budget>,
    /// Of the shapes that fit the budget, the best by the scores first, the number of the one that is taken.
    pub rank: usize,
    /// Sizes that are chosen are multiples of these.
    pub divisors: Divisors,
    /// Scores of this model.
    pub scores: Option<PathBuf>,
    /// Whether layers may end with different numbers of neurons and heads.
    pub uneven: bool,
    /// Draw importance from this seed: a baseline to compare with.
    pub random: Option<u64>,
    /// Single weights that go to 0.
    pub sparsity: Option<Sparsity>,
    /// The type of all float weights; none keeps them.
    pub dtype: Option<Dtype>,
    /// Whether an existing output is replaced.
    pub force: bool,
    /// The text that the result was measured on.
    pub text: Option<PathBuf>,
    /// What was measured of the result.
    pub measurements: Map<String, Value>,
}

impl Options {
    /// What the record says: the verb's own keys.
    fn recipe(&self, model: &str) -> Value {
        let mut recipe = json!({ "model": model });
        for (axis, amount) in self.targets.by_axis() {
            recipe[axis] = json!(amount);
        }
        let (params, memory) = match self.budget {
            Some(Budget::Parameters(limit)) => (Some(limit), None),
            Some(Budget::Memory(limit)) => (None, Some(limit)),
            None => (None, None),
        };
        recipe["params"] = json!(params);
        recipe["memory"] = json!(memory);
        let Divisors { hidden, ffn, layers } = self.divisors;
        for (key, divisor) in [("hidden_divisor", hidden), ("ffn_divisor", ffn), ("layers_divisor", layers)] {
            recipe[key] = json!(divisor);
        }
        let amount = self.sparsity.map(|sparsity| sparsity.amount);
        let (share, pattern) = match amount {
            Some(Sparse::Share(share)) => (Some(share), None),
            Some(pattern) => (None, Some(pattern.name())),
            None => (None, None),
        };
        recipe["sparsity"] = json!(share);
        recipe["pattern"] = json!(pattern);
        recipe["by"] = json!(self.sparsity.map(|sparsity| sparsity.by.name()));
        recipe["scores"] = json!(self.scores);
        recipe["uneven"] = json!(self.uneven);
        recipe["random"] = json!(self.random);
        recipe["text"] = json!(self.text);
        recipe["dtype"] = json!(self.dtype.map(Dtype::name));
        recipe
    }
}

/// The new shape of one stack.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct StackReport {
    /// `decoder` or `encoder`.
    pub stack: &'static str,
    /// Layers before and after.
    pub layers: (usize, usize),
    /// Numbers, before, of the layers that are gone.
    pub dropped_layers: Vec<usize>,
    /// Width of the residual stream before and after.
    pub hidden: (usize, usize),
    /// Inner widths of the layers after.
    pub ffn: Vec<usize>,
    /// Routed experts of the layers after.
    pub experts: Vec<usize>,
    /// Query heads of the layers after.
    pub heads: Vec<usize>,
    /// Key/value groups of the layers after.
    pub kv_groups: Vec<usize>,
}

/// What came of it.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Report {
    /// The new shape, the encoder's first where there is one.
    pub shape: Vec<StackReport>,
    /// Number of weights before and after.
    pub parameters: (usize, usize),
    /// The shape that was taken for the budget, then others that fit, the best by the scores first.
    pub candidates: Vec<Candidate>,
    /// Tensors of the output.
    pub tensors: usize,
    /// Those that are byte for byte the input's.
    pub copied_tensors: usize,
    /// What to know.
    pub notes: Vec<String>,
}

/// What `run` would write, from headers and scores alone.
pub fn plan(input: &Input, out: &Path, options: &Options) -> Result<Plan> {
    planned(&Prepared::new(input, options, false)?, out)
}

fn planned(prepared: &Prepared, out: &Path) -> Result<Plan> {
    let mut notes = prepared.shape_lines();
    notes.extend(prepared.notes.clone());
    let (infos, origins) = match is_gguf_name(out) {
        true => planned_model(&prepared.model(out), None, &prepared.origins)?,
        false => (prepared.infos().to_vec(), prepared.origins.clone()),
    };
    let from = origins.iter().map(Origin::describe).collect();
    Ok(Plan { memory_bytes: prepared.memory_bytes(), ..Plan::new(&infos, from, notes) })
}

/// The pruned model, its tensors made when they are read.
pub fn model(input: &Input, options: &Options) -> Result<Checkpoint> {
    Ok(Prepared::new(input, options, true)?.model(&input.checkpoint.place))
}

/// Writes the pruned model to `out`.
pub fn run(input: &Input, out: &Path, options: &Options) -> Result<Report> {
    let prepared = Prepared::new(input, options, true)?;
    let record = Record {
        verb: "prune",
        recipe: options.recipe(&input.label),
        seed: options.random,
        measurements: options.measurements.clone(),
    };
    write(&prepared, input, out, options.force, record)
}

/// What a verb that cuts writes down beside the tensors.
struct Record {
    verb: &'static str,
    recipe: Value,
    seed: Option<u64>,
    measurements: Map<String, Value>,
}

fn write(prepared: &Prepared, input: &Input, out: &Path, force: bool, record: Record) -> Result<Report> {
    let summary = written(prepared, input, out, force, record)?;
    let mut notes = prepared.shape_lines();
    notes.extend(prepared.notes.clone());
    Ok(Report {
        shape: prepared.report(),
        parameters: prepared.parameters(),
        candidates: prepared.candidates.clone(),
        tensors: summary.output_tensors,
        copied_tensors: summary.copied,
        notes,
    })
}

fn written(
    prepared: &Prepared,
    input: &Input,
    out: &Path,
    force: bool,
    record: Record,
) -> Result<LedgerSummary> {
    let model = prepared.model(out);
    let job = Job {
        verb: record.verb,
        recipe: record.recipe,
        seed: record.seed,
        inputs: vec![input],
        origins: prepared.origins.clone(),
        dropped: prepared.dropped.clone(),
    };
    let measurements = record.measurements;
    if is_gguf_name(out) {
        return write_model(&model, None, out, force, job, measurements);
    }
    write_folder(&model, out, force, job, |staged| {
        let layout = luthier_arch::check_headers(staged)?;
        let (wanted, came) = (prepared.parameters().1, layout.parameters());
        if wanted != came {
            let (wanted, came) = (format!("{wanted} weights"), format!("{came}"));
            return Err(Error::Check { check: "the written folder".to_string(), wanted, came });
        }
        Ok(measurements)
    })
}
