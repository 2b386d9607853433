//! `luthier upcycle MODEL OUT --experts E --top-k K`: every feed-forward block of a dense model becomes experts.
//!
//! Reads a model folder or a GGUF file. Writes a model folder, or a GGUF file where OUT ends in `.gguf`, in the layout with
//! experts of the model's family (Llama and Mistral: Mixtral; Qwen2: Qwen2-MoE; Qwen3: Qwen3-MoE). Every expert is a copy of
//! the block (sparse upcycling, arXiv:2212.05055), or with `granularity` G one of G slices of a copy, whose routers are equal
//! so that a token takes whole copies (virtual groups, arXiv:2410.07524). Where the family has a shared expert, it gives half
//! of the block's output and the routed experts the other half. Routers are random. Guarantees: every parent tensor is in
//! the ledger; unless `noise`, `drop` or unequal weights change it, the logits are the parent's, checked before the output
//! gets its name. Leaves the parent alone. Refuses: a model that has experts already, an architecture without a layout with
//! experts, biases that this layout does not hold, numbers that do not fit together, weights that are not finite.
//! Drop-Upcycling: arXiv:2502.19261. Example: `luthier upcycle SmolLM2-135M moe --experts 4 --top-k 2`.

mod check;
mod source;

use std::path::Path;
use std::sync::Arc;

use luthier_arch::{Upcycling, upcycled_config};
use luthier_checkpoint::gguf::is_gguf_name;
use luthier_checkpoint::layout::{Layout, Part};
use luthier_checkpoint::{Checkpoint, Dtype, TensorInfo, TensorSource};
use serde::Serialize;
use serde_json::{Map, Value, json};

use self::source::{Recipe, Upcycled};
use crate::convert::gguf::{planned_model, write_model};
use crate::plan::Plan;
use crate::view::{Cast, folder_type};
use crate::writing::{Job, Origin, write_folder};
use crate::{Error, Input, Result, config, fit};

/// How a model gets experts.
#[derive(Clone, Debug)]
pub struct Options {
    /// Routed experts of every layer.
    pub experts: usize,
    /// Of these, how many each token goes through.
    pub top_k: usize,
    /// Copies of the block in the expert that all tokens share; none: one where the family has such an expert.
    pub shared: Option<usize>,
    /// Slices that a copy of the block is cut into, each an expert.
    pub granularity: usize,
    /// Whether the inner dimensions of every copy are put into an order of its own.
    pub shuffle: bool,
    /// Deviation of what is added to every value of the routed experts.
    pub noise: f64,
    /// Share of the inner dimensions of every routed expert that start anew.
    pub drop: f64,
    /// Deviation of the routers' weights.
    pub router_std: f64,
    /// Whether the weights of the chosen experts sum to 1.
    pub normalized: bool,
    /// The type of all float weights; none keeps them.
    pub dtype: Option<Dtype>,
    /// Where random numbers come from.
    pub seed: u64,
    /// Whether an existing output is replaced.
    pub force: bool,
}

/// What came of it.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Report {
    /// The layout that the model has now.
    pub model_type: String,
    /// Number of its weights.
    pub parameters: usize,
    /// Of these, how many a token goes through.
    pub active_parameters: usize,
    /// Those of the parent.
    pub parent_parameters: usize,
    /// Whether the model is made to compute what its parent does.
    pub keeps_function: bool,
    /// Largest difference between the logits of the model and its parent's.
    pub max_abs_difference: f64,
    /// What to know and to do next.
    pub notes: Vec<String>,
}

/// What `run` would write, from headers alone. Refuses what `run` would refuse before it reads a weight.
pub fn plan(input: &Input, out: &Path, options: &Options) -> Result<Plan> {
    let prepared = Prepared::new(input, options)?;
    let origins = prepared.origins();
    if !is_gguf_name(out) {
        let from = origins.iter().map(Origin::describe).collect();
        return Ok(Plan::new(prepared.upcycled.infos(), from, prepared.notes.clone()));
    }
    let (infos, origins) = planned_model(&prepared.model(input, out), None, &origins)?;
    Ok(Plan::new(&infos, origins.iter().map(Origin::describe).collect(), prepared.notes.clone()))
}

/// Writes the model with experts to `out`.
pub fn run(input: &Input, out: &Path, options: &Options) -> Result<Report> {
    let prepared = Prepared::new(input, options)?;
    let model = prepared.model(input, out);
    let job = Job {
        verb: "upcycle",
        recipe: recipe(input, options),
        seed: Some(options.seed),
        inputs: vec![input],
        origins: prepared.origins(),
        dropped: prepared.dropped(input),
    };
    let keeps_function = prepared.keeps_function(options);
    let mut difference = 0.0;
    let mut check = |made: &Checkpoint| -> Result<Map<String, Value>> {
        let parent = Checkpoint { tensors: Arc::clone(&prepared.parent), ..input.checkpoint.clone() };
        difference = check::against_parent(made, &parent, keeps_function)?;
        Ok(Map::from_iter([("max_abs_logit_difference".to_string(), json!(difference))]))
    };
    if is_gguf_name(out) {
        let measurements = check(&model)?;
        write_model(&model, None, out, options.force, job, measurements)?;
    } else {
        write_folder(&model, out, options.force, job, check)?;
    }
    Ok(Report {
        model_type: model.config.get("model_type").and_then(Value::as_str).unwrap_or_default().to_string(),
        parameters: prepared.target.parameters(),
        active_parameters: active_parameters(&prepared.target, options),
        parent_parameters: prepared.parent_layout.parameters(),
        keeps_function,
        max_abs_difference: difference,
        notes: prepared.notes,
    })
}

/// The verb's own options, as they were given: the verb is run again from them.
fn recipe(input: &Input, options: &Options) -> Value {
    json!({
        "model": input.label, "experts": options.experts, "top_k": options.top_k, "shared": options.shared,
        "granularity": options.granularity, "shuffle": options.shuffle, "noise": options.noise, "drop": options.drop,
        "router_std": options.router_std, "norm_topk_prob": options.normalized,
        "dtype": options.dtype.map(Dtype::name), "seed": options.seed,
    })
}

/// Weights that one token goes through.
fn active_parameters(layout: &Layout, options: &Options) -> usize {
    let values = |shape: &[usize]| shape.iter().product::<usize>();
    let asleep = |part: Part| part.expert().is_some_and(|expert| expert >= options.top_k);
    layout.tensors.iter().filter(|spec| !asleep(spec.role.part)).map(|spec| values(&spec.shape)).sum()
}

/// Everything that is decided before a weight is written.
struct Prepared {
    config: Map<String, Value>,
    target: Layout,
    upcycled: Upcycled,
    parent_layout: Layout,
    /// The parent in the types of the output.
    parent: Arc<dyn TensorSource>,
    notes: Vec<String>,
}

impl Prepared {
    fn new(input: &Input, options: &Options) -> Result<Prepared> {
        check_numbers(options)?;
        let parent_layout = fit::checked_layout(&input.checkpoint)?;
        let shared = shared_copies(&input.checkpoint.config, options)?;
        let inner = inner_width(&parent_layout)?;
        if !inner.is_multiple_of(options.granularity) {
            return Err(Error::Use(format!(
                "--granularity {}: does not divide the {inner} inner dimensions of a feed-forward block; take a divisor",
                options.granularity
            )));
        }
        let upcycling = Upcycling {
            experts: options.experts,
            top_k: options.top_k,
            inner: inner / options.granularity,
            shared_inner: shared * inner,
            normalized: options.normalized,
        };
        let config = upcycled_config(&input.checkpoint.config, &upcycling)?;
        let target = luthier_arch::layout(&config)?;
        let wanted = |info: &TensorInfo| folder_type(info.dtype, options.dtype);
        let parent: Arc<dyn TensorSource> =
            Arc::new(Cast::new(Arc::clone(&input.checkpoint.tensors), wanted));
        let fresh_type = config::main_type(parent.infos()).unwrap_or(Dtype::F32);
        let recipe = Recipe::new(options, shared, inner);
        let upcycled = Upcycled::new(&target, &parent_layout, Arc::clone(&parent), fresh_type, recipe)?;
        let config = config::with_dtype(&config, upcycled.infos());
        let notes = notes(input, options, &upcycled);
        Ok(Prepared { config, target, upcycled, parent_layout, parent, notes })
    }

    fn model(&self, input: &Input, out: &Path) -> Checkpoint {
        // A card describes another model.
        let side_files = input.checkpoint.side_files.iter().filter(|file| file.name != "README.md");
        Checkpoint {
            place: out.to_path_buf(),
            config: self.config.clone(),
            tensors: Arc::new(self.upcycled.clone()),
            side_files: side_files.cloned().collect(),
        }
    }

    fn origins(&self) -> Vec<Origin> {
        self.upcycled.origins()
    }

    /// The parent's tensors that nothing is made of, and why.
    fn dropped(&self, input: &Input) -> Vec<(usize, String, String)> {
        let origins = self.origins();
        let used: std::collections::HashSet<&str> =
            origins.iter().flat_map(Origin::sources).map(|(_, name)| name).collect();
        let unused =
            input.checkpoint.tensors.infos().iter().filter(|info| !used.contains(info.name.as_str()));
        let reason = |name: &str| match self.parent_layout.ties.iter().find(|tie| tie.name == name) {
            Some(tie) => format!("repeats {}", tie.target),
            None => "a buffer that follows from the config".to_string(),
        };
        unused.map(|info| (0, info.name.clone(), reason(&info.name))).collect()
    }

    /// Whether nothing but rounding in f32 lies between the model and its parent.
    fn keeps_function(&self, options: &Options) -> bool {
        let sums_to_one = options.normalized || options.top_k == options.experts || options.router_std == 0.0;
        sums_to_one && options.noise == 0.0 && options.drop == 0.0 && self.upcycled.scales_are_exact()
    }
}

/// Refuses numbers that do not go together, whatever the model.
fn check_numbers(options: &Options) -> Result<()> {
    let refuse = |what: String| Err(Error::Use(what));
    let Options { experts, top_k, granularity, .. } = *options;
    if experts == 0 || top_k == 0 || granularity == 0 {
        let name = [("experts", experts), ("top-k", top_k), ("granularity", granularity)];
        let (name, _) = name.into_iter().find(|(_, value)| *value == 0).expect("one of them is 0");
        return refuse(format!("--{name} 0: wanted 1 or more"));
    }
    if top_k > experts {
        return refuse(format!(
            "--top-k {top_k}: a token cannot go through more than the {experts} experts there are; wanted 1 to {experts}"
        ));
    }
    for (name, value) in [("experts", experts), ("top-k", top_k)] {
        if !value.is_multiple_of(granularity) {
            return refuse(format!(
                "--{name} {value}: wanted a multiple of --granularity {granularity}, so that whole copies of the block are \
                 there and chosen"
            ));
        }
    }
    for (name, value, high) in [
        ("noise", options.noise, f64::MAX),
        ("drop", options.drop, 1.0),
        ("router-std", options.router_std, f64::MAX),
    ] {
        if !(0.0..=high).contains(&value) {
            let wanted = if high == 1.0 { "0 to 1" } else { "a number from 0 on" };
            return refuse(format!("--{name} {value}: wanted {wanted}"));
        }
    }
    Ok(())
}

/// Copies of the block in the shared expert; refuses what the family does not have.
fn shared_copies(dense: &Map<String, Value>, options: &Options) -> Result<usize> {
    match (luthier_arch::upcycle::is_shared(dense)?, options.shared) {
        (true, Some(0)) => Err(Error::Use(
            "--shared 0: a model of this family always has a shared expert; wanted 1 or more".to_string(),
        )),
        (true, shared) => Ok(shared.unwrap_or(1)),
        (false, None | Some(0)) => Ok(0),
        (false, Some(shared)) => Err(Error::Use(format!(
            "--shared {shared}: a model of this family has no shared expert; leave it out"
        ))),
    }
}

fn inner_width(layout: &Layout) -> Result<usize> {
    let up = layout.tensors.iter().find(|spec| spec.role.part == Part::Up);
    let none = || Error::Use("the model has no feed-forward block that could become experts".to_string());
    up.map(|spec| spec.shape[0]).ok_or_else(none)
}

fn notes(input: &Input, options: &Options, upcycled: &Upcycled) -> Vec<String> {
    let mut notes = Vec::new();
    let quantised = |info: &TensorInfo| info.dtype.block().0 > 1;
    if options.dtype.is_none() && input.checkpoint.tensors.infos().iter().any(quantised) {
        let note =
            "quantised weights are widened to F32, which keeps their values; --dtype bf16 halves the file";
        notes.push(note.to_string());
    }
    if !options.normalized && options.top_k < options.experts && options.router_std > 0.0 {
        let note = "the weights of the chosen experts do not sum to 1 and depend on the token: the experts are scaled for \
                    equal weights, the logits are only near the parent's; --router-std 0 makes them equal";
        notes.push(note.to_string());
    }
    if !upcycled.scales_are_exact() {
        let note = "the experts' scale is no power of two, which rounds their down projections in this type; take --dtype \
                    f32 to keep the parent's logits";
        notes.push(note.to_string());
    }
    let identical =
        options.noise == 0.0 && options.drop == 0.0 && options.granularity == 1 && options.experts > 1;
    if identical && options.router_std == 0.0 {
        let note = "experts and routers are all equal, and training keeps them so; give --noise or --drop";
        notes.push(note.to_string());
    }
    let note =
        "router_aux_loss_coef in the recipe of the training that follows keeps the experts evenly busy";
    notes.push(note.to_string());
    notes
}
