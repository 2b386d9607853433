//! `luthier merge recipe.yaml OUT`: several models of one shape become one.
//!
//! Reads mergekit 0.1.5's YAML (`models`, `slices`, `modules`) and the models that it names. Writes a model folder: config
//! and side files are the base's (else the first model's), the layer count and per-layer lists those of the slices.
//! Arithmetic is f32. Models of an architecture that is not known are merged by name. Guarantees: every tensor of every
//! model is in the ledger; the same seed gives the same bytes. Leaves the inputs alone. Refuses: tensors that only one
//! parent has, shapes that differ, a tied head beside one of its own, weights that are not finite, unknown methods,
//! parameters and keys, slices of an unknown architecture. Example: `luthier merge ties.yaml runs/merged`.

mod cuts;
mod karcher;
mod layers;
mod linear;
mod looks;
mod merged;
mod method;
mod model_stock;
mod multislerp;
mod nearswap;
mod nuslerp;
mod pairing;
mod parameters;
mod passthrough;
pub(crate) mod prefix;
pub mod recipe;
mod rows;
mod sce;
mod slerp;
mod task_vectors;
mod tokenizer;
mod vocabulary;

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use luthier_checkpoint::layout::Layout;
use luthier_checkpoint::{Checkpoint, Dtype, LedgerSummary, SideFile, TensorSource};
use serde_json::{Map, Value};

use self::layers::{portions, unknown_portion, with_layers};
use self::merged::Merged;
use self::method::{METHODS, Method, nearest};
use self::pairing::Pairing;
pub use self::recipe::Recipe;
pub use self::vocabulary::{Mapping, ModelMapping};
use crate::plan::Plan;
use crate::writing::{Job, Origin, write_folder};
use crate::{Error, Input, Result, config, fit, model_card};

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

/// What `run` would write, from headers alone. `inputs` are the models of [`Recipe::places`], in that order.
pub fn plan(recipe: &Recipe, inputs: &[Input], options: &Options) -> Result<Plan> {
    let prepared = Prepared::new(recipe, inputs, options)?;
    let parts = Parts::new(&prepared.merged.inputs);
    let from = prepared.origins(&parts).iter().map(Origin::describe).collect();
    let mut plan = Plan::new(prepared.merged.infos(), from, prepared.notes.clone());
    let largest = |piece: &pairing::Piece| prepared.piece_bytes(piece);
    plan.memory_bytes = prepared.merged.pieces.iter().map(largest).max().unwrap_or(0);
    Ok(plan)
}

/// Merges `inputs`, the models of [`Recipe::places`] in that order, into `out`.
pub fn run(recipe: &Recipe, inputs: &[Input], out: &Path, options: &Options) -> Result<Report> {
    let prepared = Prepared::new(recipe, inputs, options)?;
    prepared.check_ties(inputs)?;
    let parts = Parts::new(&prepared.merged.inputs);
    let origins = prepared.origins(&parts);
    let dropped = prepared.dropped(&parts);
    let inputs: Vec<Input> = parts.inputs.iter().map(|input| (*input).clone()).collect();
    let mut side_files = prepared.side_files.clone();
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

/// Everything that is decided before a weight is read.
struct Prepared {
    config: Map<String, Value>,
    merged: Merged,
    layouts: Vec<Layout>,
    side_files: Vec<SideFile>,
    known: bool,
    n_merged: usize,
    mapping: Option<Mapping>,
    notes: Vec<String>,
}

impl Prepared {
    fn new(recipe: &Recipe, inputs: &[Input], options: &Options) -> Result<Prepared> {
        let method = method::find(&recipe.merge_method)?;
        exactly_one(recipe)?;
        let mut notes = check_parameters(recipe, method)?;
        let places = recipe.places();
        if places.len() != inputs.len() || inputs.is_empty() {
            return Err(Error::Use(format!(
                "the recipe names {} models, {} were opened",
                places.len(),
                inputs.len()
            )));
        }
        let numbers: HashMap<String, usize> =
            places.into_iter().enumerate().map(|(number, place)| (place, number)).collect();
        let dtype = wanted_type(recipe)?;
        let n_merged = recipe.merged_places().len();
        let merged = &inputs[..n_merged];
        let layouts = layouts(merged)?;
        let renamed = layouts.is_none().then(|| prefix::under_one_name(merged, &mut notes));
        let merged = renamed.as_deref().unwrap_or(merged);
        let aligned = match &layouts {
            Some(layouts) => {
                let mut rows: Vec<usize> = layouts.iter().map(fit::vocab_size).collect();
                rows.extend(inputs[n_merged..].iter().map(tokenizer_rows).collect::<Result<Vec<_>>>()?);
                vocabulary::align(recipe, inputs, &rows, n_merged, &numbers, &mut notes)?
            }
            None => {
                tokenizer::by_number(recipe, inputs)?;
                None
            }
        };
        let (chosen, vocabulary) = aligned.unzip();
        let pairing =
            Pairing { recipe, method, inputs: merged, numbers, dtype, vocabulary: vocabulary.as_ref() };
        let donor = &inputs[0].checkpoint;
        let mut side_files = tokenizer::side_files(recipe, inputs, chosen.as_ref(), &mut notes)?;
        let (config, pieces) = match &layouts {
            Some(layouts) => {
                same_family(merged)?;
                let parts = portions(&pairing, layouts)?;
                let mut config = with_layers(&donor.config, merged, &parts)?;
                if let (Some(chosen), Some(vocabulary)) = (&chosen, &vocabulary) {
                    tokenizer::with_vocab_size(&mut config, vocabulary.rows);
                    tokenizer::with_token_ids(&mut config, &mut side_files, inputs, chosen, &mut notes)?;
                }
                let target = luthier_arch::layout_with(&config, donor.tensors.infos())?;
                same_ties(merged, layouts, &target)?;
                (config, pairing.by_layout(&target, layouts, &parts)?)
            }
            None => {
                notes.push("architecture not known: tensors are merged by name".to_string());
                let part = unknown_portion(&pairing)?;
                (donor.config.clone(), pairing.by_name(&part)?)
            }
        };
        let mapping = vocabulary.map(|vocabulary| vocabulary.mapping);
        notes.extend(mapping.iter().flat_map(Mapping::lines));
        let known = layouts.is_some();
        let inputs: Vec<Input> = merged.iter().chain(&inputs[n_merged..]).cloned().collect();
        let merged = Merged::new(method, &inputs, pieces, options.seed);
        let layouts = layouts.unwrap_or_default();
        if let (Some(_), true) = (&recipe.unshared, known) {
            notes.push("unshared: has no effect, the architecture says which tensors there are".to_string());
        }
        Ok(Prepared { config, merged, layouts, side_files, known, n_merged, mapping, notes })
    }

    /// What `run` holds in memory at most for one tensor.
    fn piece_bytes(&self, piece: &pairing::Piece) -> usize {
        let values: usize = piece.info.shape.iter().product();
        let n_inputs = piece.inputs.len();
        // An adapter's factors, and a changed part in f32 and in its type.
        let derived =
            piece.inputs.iter().filter_map(|(input, _)| self.merged.inputs[*input].derived.as_ref());
        let part_len = self.merged.part_len(piece);
        let fused: usize = derived.map(|derived| derived.size_bytes + 16 * part_len).sum();
        let put_together = fused
            + piece.rows.as_ref().map_or(0, |rows| {
                let in_files = piece
                    .inputs
                    .iter()
                    .filter(|(input, _)| self.merged.inputs[*input].checkpoint.place.is_file());
                rows.size_bytes() + 4 * values * in_files.count()
            });
        if let Some(part_bytes) = self.merged.part_bytes(&piece.info.name) {
            // The part that is made, those that wait for the writer, the inputs' parts, and what a cut keeps of a tensor.
            let cut = if self.merged.is_cut(piece) { values / 2 * n_inputs } else { 0 };
            let width = piece.info.dtype.block().1.max(if piece.rows.is_some() { 4 } else { 1 });
            let part_bytes = part_bytes / piece.info.dtype.block().1 * width;
            return part_bytes * (4 + n_inputs) + cut + put_together;
        }
        let working = 4 * values * (2 * n_inputs + 4);
        let stored = piece.info.dtype.size_bytes(&piece.info.shape).unwrap_or(0);
        working + stored * (3 + n_inputs) + put_together
    }

    fn origins(&self, parts: &Parts) -> Vec<Origin> {
        let merged = &self.merged;
        let origin = |piece: &pairing::Piece| {
            let sources: Vec<(usize, String)> =
                piece.inputs.iter().flat_map(|(input, name)| parts.sources(*input, name)).collect();
            if merged.is_copy(piece)
                && let [(input, name)] = &sources[..]
            {
                return Origin::From { input: *input, name: name.clone() };
            }
            let by_token = if piece.rows.is_some() { ", rows by token" } else { "" };
            let with_adapter = if sources.len() > piece.inputs.len() { ", with an adapter" } else { "" };
            let how = match piece.kept {
                true => format!("kept, only some models have it{with_adapter}"),
                false => format!("merged by {}{by_token}{with_adapter}", merged.method.name),
            };
            Origin::Merged { sources, how }
        };
        merged.pieces.iter().map(origin).collect()
    }

    /// Tensors of the inputs that nothing is made of, and why.
    fn dropped(&self, parts: &Parts) -> Vec<(usize, String, String)> {
        let used: HashSet<(usize, String)> = self
            .merged
            .pieces
            .iter()
            .flat_map(|piece| &piece.inputs)
            .flat_map(|(input, name)| parts.sources(*input, name))
            .collect();
        let mut dropped = Vec::new();
        let mut seen = HashSet::new();
        let mut drop = |at: (usize, String), reason: String| {
            if !used.contains(&at) && seen.insert(at.clone()) {
                dropped.push((at.0, at.1, reason));
            }
        };
        for (number, input) in self.merged.inputs.iter().enumerate() {
            for (at, reason) in parts.unused(number) {
                drop(at, reason);
            }
            for info in input.checkpoint.tensors.infos() {
                for at in parts.sources(number, &info.name) {
                    drop(at, self.reason(number, &info.name));
                }
            }
        }
        dropped
    }

    /// Why nothing is made of a tensor.
    fn reason(&self, number: usize, name: &str) -> String {
        let layout = self.layouts.get(number);
        let tie = layout.and_then(|layout| layout.ties.iter().find(|tie| tie.name == name));
        let in_layout = layout.is_some_and(|layout| layout.tensors.iter().any(|spec| spec.name == name));
        match tie {
            Some(tie) => format!("repeats {}", tie.target),
            None if number >= self.n_merged => "the model brings nothing but its tokenizer".to_string(),
            None if in_layout => "the recipe's slices leave it out".to_string(),
            None if !self.known => "not all models have it, and the recipe lets it go".to_string(),
            None => "a buffer that follows from the config".to_string(),
        }
    }

    /// Refuses a tied weight that a file carries twice with different values.
    fn check_ties(&self, inputs: &[Input]) -> Result<()> {
        for (input, layout) in inputs.iter().zip(&self.layouts) {
            let tensors = &input.checkpoint.tensors;
            for tie in &layout.ties {
                if !tensors.infos().iter().any(|info| info.name == tie.name) {
                    continue;
                }
                if tensors.read(&tie.name)?[..] != tensors.read(&tie.target)?[..] {
                    let what = format!(
                        "differs from {} in {}, but its config ties them; set tie_word_embeddings to false to keep both",
                        tie.target, input.label
                    );
                    return Err(luthier_checkpoint::Error::tensor(&tie.name, what).into());
                }
            }
        }
        Ok(())
    }
}

/// What the inputs consist of on the disk, each once.
struct Parts<'i> {
    inputs: Vec<&'i Input>,
    /// By input: the numbers of its parts.
    numbers: Vec<Vec<usize>>,
    of: &'i [Input],
}

impl<'i> Parts<'i> {
    fn new(of: &'i [Input]) -> Parts<'i> {
        let mut inputs: Vec<&Input> = Vec::new();
        let mut number = |part: &'i Input| {
            let same =
                |known: &&Input| known.checkpoint.place == part.checkpoint.place && known.label == part.label;
            inputs.iter().position(same).unwrap_or_else(|| {
                inputs.push(part);
                inputs.len() - 1
            })
        };
        let numbers = of.iter().map(|input| input.parts().into_iter().map(&mut number).collect()).collect();
        Parts { inputs, numbers, of }
    }

    fn sources(&self, input: usize, name: &str) -> Vec<(usize, String)> {
        let sources = self.of[input].sources(name).into_iter();
        sources.map(|(part, name)| (self.numbers[input][part], name)).collect()
    }

    fn unused(&self, input: usize) -> Vec<((usize, String), String)> {
        let unused = self.of[input].unused().into_iter();
        unused.map(|(part, name, reason)| ((self.numbers[input][part], name), reason)).collect()
    }
}

/// Refuses parameters that no method has; notes those that this one does not use.
fn check_parameters(recipe: &Recipe, method: &Method) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    for (set, of_one_model) in recipe.all_parameters() {
        for name in set.keys() {
            let own = method.parameters.iter().find(|parameter| parameter.name == name);
            let known =
                || METHODS.iter().flat_map(|method| method.parameters).map(|parameter| parameter.name);
            let note = match own {
                Some(parameter) if of_one_model && !parameter.per_input => {
                    format!("parameter {name} belongs to the whole merge; under one model it is not used")
                }
                Some(_) => continue,
                None if known().any(|known| known == name) => {
                    format!("parameter {name}: merge_method {} does not use it", method.name)
                }
                None => {
                    let meant = nearest(name, known());
                    return Err(Error::Use(format!("unknown parameter {name}: did you mean {meant}?")));
                }
            };
            if !notes.contains(&note) {
                notes.push(note);
            }
        }
    }
    Ok(notes)
}

/// The result's type where the recipe says one.
fn wanted_type(recipe: &Recipe) -> Result<Option<Dtype>> {
    let mut found = None;
    for (key, name) in [("dtype", &recipe.dtype), ("out_dtype", &recipe.out_dtype)] {
        let Some(name) = name else { continue };
        found = Some(match name.trim_start_matches("torch.") {
            "float64" => Dtype::F64,
            "float32" => Dtype::F32,
            "bfloat16" => Dtype::BF16,
            "float16" => Dtype::F16,
            other => {
                return Err(Error::Use(format!(
                    "{key}: wanted float64, float32, bfloat16 or float16, came {other}"
                )));
            }
        });
    }
    Ok(found)
}

/// The checked layouts of all models; none where one of them has no known architecture.
fn layouts(inputs: &[Input]) -> Result<Option<Vec<Layout>>> {
    // Old configs do not say what they are.
    if inputs.iter().any(|input| !input.checkpoint.config.contains_key("model_type")) {
        return Ok(None);
    }
    let mut layouts = Vec::new();
    for input in inputs {
        match luthier_arch::check_headers(&input.checkpoint) {
            Ok(layout) => layouts.push(layout),
            Err(luthier_arch::Error::UnknownArchitecture { .. }) => return Ok(None),
            Err(problem) => return Err(problem.into()),
        }
    }
    Ok(Some(layouts))
}

fn same_family(inputs: &[Input]) -> Result<()> {
    let family = |input: &Input| input.checkpoint.config.get("model_type").cloned().unwrap_or_default();
    match inputs.iter().find(|input| family(input) != family(&inputs[0])) {
        Some(other) => Err(Error::Use(format!(
            "model_type is {} in {} and {} in {}; only models of one architecture are merged",
            family(&inputs[0]),
            inputs[0].label,
            family(other),
            other.label
        ))),
        None => Ok(()),
    }
}

/// Refuses a model with a head of its own where the result's head is its embedding.
fn same_ties(inputs: &[Input], layouts: &[Layout], target: &Layout) -> Result<()> {
    for (input, layout) in inputs.iter().zip(layouts) {
        let lost = target.ties.iter().find(|tie| layout.tensors.iter().any(|spec| spec.name == tie.name));
        if let Some(tie) = lost {
            let what = format!(
                "is a weight of its own in {}, but tied to {} in {}; untie the latter first, or take the former as the base",
                input.label, tie.target, inputs[0].label
            );
            return Err(luthier_checkpoint::Error::tensor(&tie.name, what).into());
        }
    }
    Ok(())
}

/// Rows of a model that brings nothing but its tokenizer.
fn tokenizer_rows(input: &Input) -> Result<usize> {
    let said = input.checkpoint.config.get("vocab_size").and_then(serde_json::Value::as_u64);
    let of_tokenizer =
        || Ok(fit::tokenizer(&input.checkpoint)?.map_or(0, |tokenizer| tokenizer.vocab_size()));
    said.map_or_else(of_tokenizer, |rows| Ok(rows as usize))
}

fn exactly_one(recipe: &Recipe) -> Result<()> {
    let given = [recipe.models.is_some(), recipe.slices.is_some(), recipe.modules.is_some()];
    match given.into_iter().filter(|given| *given).count() {
        1 => Ok(()),
        count => Err(Error::Use(format!("wanted exactly one of models, slices and modules, came {count}"))),
    }
}
