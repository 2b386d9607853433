//! `luthier merge recipe.yaml OUT`: several models of one shape become one.
//!
//! Reads mergekit 0.1.5's YAML (`models`, `slices`, `modules`) and the models that it names. Writes a model folder: config
//! and side files are the base's (else the first model's), the layer count and per-layer lists those of the slices.
//! Arithmetic is f32. Models of an architecture that is not known are merged by name. Guarantees: every tensor of every
//! model is in the ledger; the same seed gives the same bytes. Leaves the inputs alone. Refuses: tensors that only one
//! parent has, shapes that differ, a tied head beside one of its own, weights that are not finite, unknown methods,
//! parameters and keys, slices of an unknown architecture. Example: `luthier merge ties.yaml runs/merged`.

mod by_layout;
mod checks;
mod cuts;
mod karcher;
mod layers;
mod linear;
mod looks;
mod memory;
mod merged;
mod method;
mod model_stock;
mod multislerp;
mod nearswap;
mod nuslerp;
mod pairing;
mod parameters;
mod parts;
mod passthrough;
pub(crate) mod prefix;
mod prepared;
mod products;
pub mod recipe;
mod rows;
mod sce;
mod slerp;
mod task_vectors;
mod tokenizer;
mod vocabulary;

use std::path::Path;
use std::sync::Arc;

use luthier_checkpoint::{Checkpoint, LedgerSummary, SideFile, TensorSource};
use serde_json::{Map, Value};

use self::method::METHODS;
use self::parts::Parts;
use self::prepared::Prepared;
pub use self::recipe::Recipe;
pub use self::vocabulary::{Mapping, ModelMapping};
use crate::plan::Plan;
use crate::writing::{Job, Origin, write_folder};
use crate::{Input, Result, config, fit, model_card};

/// How the merge is run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The verb that the output's record names.
    pub verb: &'static str,
    /// The verb's options, for the record.
    pub record: Value,
    /// What was measured on the models beforehand, for the record.
    pub measurements: Map<String, Value>,
    /// Where random choices come from.
    pub seed: u64,
    /// Whether an existing output is replaced.
    pub force: bool,
    /// The recipe as the user wrote it, for the model card.
    pub text: String,
}

/// What came of it.
#[derive(Clone, Debug, serde::Serialize, PartialEq)]
pub struct Report {
    /// What became of every tensor.
    pub ledger: LedgerSummary,
    /// Which tokens went where, where the recipe asked for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vocabulary: Option<Mapping>,
    /// What to know.
    pub notes: Vec<String>,
}

/// Names of all methods.
pub fn methods() -> Vec<&'static str> {
    METHODS.iter().map(|method| method.name).collect()
}

/// The parameters of a method by name, and whether each must be given.
pub fn parameters(method: &str) -> Result<Vec<(&'static str, bool)>> {
    let parameters = method::find(method)?.parameters.iter();
    Ok(parameters.map(|parameter| (parameter.name, parameter.default.is_none())).collect())
}

/// Whether a method takes a base model for what the others are compared with, not for one of them.
pub fn compares_with_base(method: &str) -> Result<bool> {
    Ok(method::find(method)?.base != method::Base::Ignored)
}

/// Whether a method takes two models and goes from the base to the other.
pub fn goes_from_base_to_other(method: &str) -> Result<bool> {
    let method = method::find(method)?;
    Ok(method.base == method::Base::Required && method.inputs == (2..=2))
}

/// What `run` would write, from headers alone. `inputs` are the models of [`Recipe::places`], in that order.
pub fn plan(recipe: &Recipe, inputs: &[Input], options: &Options) -> Result<Plan> {
    let prepared = Prepared::new(recipe, inputs, options)?;
    let parts = Parts::new(&prepared.merged.inputs);
    let from = prepared.origins(&parts).iter().map(Origin::describe).collect();
    let mut plan = Plan::new(prepared.merged.infos(), from, prepared.notes.clone());
    let largest = |piece: &pairing::Piece| prepared.piece_bytes(piece);
    let of_pieces = prepared.merged.pieces.iter().map(largest).max().unwrap_or(0);
    plan.memory_bytes = of_pieces + prepared.files_bytes(inputs);
    Ok(plan)
}

/// Merges `inputs`, the models of [`Recipe::places`] in that order, into `out`.
pub fn run(recipe: &Recipe, inputs: &[Input], out: &Path, options: &Options) -> Result<Report> {
    let mut prepared = Prepared::new(recipe, inputs, options)?;
    prepared.check_ties(inputs)?;
    let mut side_files = std::mem::take(&mut prepared.side_files);
    let parts = Parts::new(&prepared.merged.inputs);
    let origins = prepared.origins(&parts);
    let dropped = prepared.dropped(&parts);
    let inputs: Vec<Input> = parts.inputs.iter().map(|input| input.without_files()).collect();
    let card = model_card::inherited(&inputs[0], &inputs)
        + &format!(
            "# A merged model\n\nMade by `luthier {}` with method {}.\n\n```yaml\n{}\n```\n",
            options.verb,
            recipe.merge_method,
            options.text.trim_end()
        );
    side_files.retain(|file| file.name != "README.md");
    side_files.push(SideFile { name: "README.md".to_string(), bytes: card.into_bytes() });
    let notes = prepared.notes.clone();
    let vocabulary = prepared.mapping.clone();
    let known = prepared.known;
    let model = Checkpoint {
        place: out.to_path_buf(),
        config: config::with_dtype(&prepared.config, prepared.merged.infos()),
        tensors: Arc::new(prepared.merged),
        side_files,
    };
    let job = Job {
        verb: options.verb,
        recipe: options.record.clone(),
        seed: Some(options.seed),
        inputs: inputs.iter().collect(),
        origins,
        dropped,
    };
    let ledger = write_folder(&model, out, options.force, job, |staged| {
        if known {
            fit::checked_layout(staged)?;
        }
        Ok(options.measurements.clone())
    })?;
    Ok(Report { ledger, vocabulary, notes })
}

/// The merged model without writing it: each tensor is computed when it is read.
pub fn model(recipe: &Recipe, inputs: &[Input], options: &Options) -> Result<Checkpoint> {
    let prepared = Prepared::new(recipe, inputs, options)?;
    prepared.check_ties(inputs)?;
    Ok(Checkpoint {
        place: inputs[0].checkpoint.place.clone(),
        config: prepared.config,
        tensors: Arc::new(prepared.merged),
        side_files: prepared.side_files,
    })
}
