//! `luthier grow MODEL OUT --op stack|split|zero|random (--depth G | --width G)`: a larger model that begins as the small one.
//!
//! Reads a model folder or a GGUF file. Writes a folder, or a GGUF file where OUT ends in `.gguf`. Depth G makes G times the
//! layers (of both stacks of an encoder-decoder); width G makes G times the width of the residual stream, of heads, of
//! key/value heads and of feed-forward blocks, while widths of heads stay. Operations (arXiv:2405.15319):
//! - stack: the layers again and again, G times, byte for byte (G_stack). Depth only. The function changes.
//! - zero: what is new adds nothing. Depth: the layers again, their output projections zeros. Width: what writes to new
//!   channels is zero, what reads them fresh; norms and their eps make up for the zeros.
//! - split: what is there shares its work with its copies. Depth: of a layer's copies, side by side, the first attends and the
//!   last has the feed-forward block. Width: everything stands G times, what reads it is divided by G (Net2Net,
//!   arXiv:1511.05641; bert2BERT, arXiv:2110.07143); `asymmetry` gives copies unequal shares, so that they learn apart.
//! - random: what is new is fresh. The function changes.
//!
//! Post-norm layers (BERT) get their norms along (see `post_norm.rs`); zeros in width beside LayerNorm are refused.
//!
//! Guarantees: every tensor is in the ledger; G = 1 gives the same bytes; zero and split keep the function: logits of the
//! written model and of its parent on fixed tokens are compared, and one that is off by more than 1e-4 of the largest logit
//! is not written (weights of 16 bits round what is scaled: there the difference is reported, and refused above 0.1). An optimizer's state beside
//! the model (a training run's `checkpoint-<step>/`) is grown by the same map. Refuses: sizes that the config cannot take,
//! values that are not finite, moments of another model. Example: `luthier grow small large --op stack --depth 4`.

mod depth;
mod moments;
mod piece;
mod post_norm;
mod prepare;
mod timing;
mod width;

use std::path::Path;

use luthier_checkpoint::gguf::is_gguf_name;
use luthier_checkpoint::{Checkpoint, Dtype, TensorInfo};
use serde::Serialize;
use serde_json::{Map, Value, json};

use self::prepare::{Prepared, keeps_function};
use crate::convert::gguf::{planned_model, write_model};
use crate::function_check::{Difference, difference, gives_logits, logits, states};
use crate::plan::Plan;
use crate::writing::{Job, Origin, write_folder};
use crate::{Error, Input, Result};
pub use timing::{GROWTH_FACTOR, Timing, timing};

/// Largest difference of logits, over the largest logit, that rounding of f32 explains.
const TOLERANCE: f64 = 1e-4;

/// The same where weights of 16 bits are scaled, and rounded again.
const TOLERANCE_16_BITS: f64 = 0.1;

/// How a model grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// The layers again.
    Stack,
    /// Copies share the work.
    Split,
    /// What is new adds nothing.
    Zero,
    /// What is new is fresh.
    Random,
}

impl Operation {
    /// All of them.
    pub const ALL: [Operation; 4] = [Operation::Stack, Operation::Split, Operation::Zero, Operation::Random];
    /// Names of options.
    pub const NAMES: [&str; 4] = ["stack", "split", "zero", "random"];

    /// The operation of that name.
    pub fn from_name(name: &str) -> Option<Operation> {
        Operation::NAMES.iter().position(|known| *known == name).map(|at| Operation::ALL[at])
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Operation::Stack => "stack",
            Operation::Split => "split",
            Operation::Zero => "zero",
            Operation::Random => "random",
        }
    }
}

/// What grows, and how many times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Axis {
    /// Layers.
    Depth(usize),
    /// Channels, heads and neurons.
    Width(usize),
}

impl Axis {
    /// How many times.
    pub fn times(self) -> usize {
        match self {
            Axis::Depth(times) | Axis::Width(times) => times,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Axis::Depth(_) => "depth",
            Axis::Width(_) => "width",
        }
    }
}

/// How a model is grown.
#[derive(Clone, Debug)]
pub struct Options {
    /// How.
    pub operation: Operation,
    /// What.
    pub axis: Axis,
    /// Of fresh values and unequal shares.
    pub seed: u64,
    /// For split width: the deviation of a copy's share of a weight, relative to an equal one.
    pub asymmetry: f64,
    /// The type of all float weights; none keeps them.
    pub dtype: Option<Dtype>,
    /// Whether an existing output is replaced.
    pub force: bool,
}

impl Options {
    fn check(&self) -> Result<()> {
        let refuse = |what: &str| Err(Error::Use(what.to_string()));
        match (self.operation, self.axis) {
            (_, axis) if axis.times() == 0 => refuse("wanted 1 time or more, came 0"),
            (Operation::Stack, Axis::Width(_)) => {
                refuse("stack repeats layers and knows no width; take --op split for copies side by side")
            }
            (operation, axis)
                if self.asymmetry > 0.0 && (operation, axis.name()) != (Operation::Split, "width") =>
            {
                refuse("asymmetry is for split in width, whose copies would else learn the same")
            }
            _ if !self.asymmetry.is_finite() || self.asymmetry < 0.0 => {
                refuse("asymmetry: wanted a deviation of 0 or more")
            }
            _ => Ok(()),
        }
    }

    /// What the record says.
    fn recipe(&self, model: &str) -> Value {
        json!({
            "model": model,
            "op": self.operation.name(),
            (self.axis.name()): self.axis.times(),
            "seed": self.seed,
            "asymmetry": self.asymmetry,
            "dtype": self.dtype.map(Dtype::name),
        })
    }
}

/// What came of it.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Report {
    /// Number of weights before and after.
    pub parameters: (usize, usize),
    /// Tensors of the output.
    pub tensors: usize,
    /// Those that are byte for byte the input's.
    pub copied_tensors: usize,
    /// Whether the operation keeps the function.
    pub keeps_function: bool,
    /// How far the logits lie from the parent's on fixed tokens.
    pub logits_difference: Difference,
    /// Vectors of the optimizer's state that were grown.
    pub moments: usize,
    /// What to know.
    pub notes: Vec<String>,
}

/// What `run` would write, from headers alone.
pub fn plan(input: &Input, out: &Path, options: &Options) -> Result<Plan> {
    options.check()?;
    let prepared = Prepared::new(input, options)?;
    let to_file = is_gguf_name(out);
    let (infos, origins) = match to_file {
        true => planned_model(&prepared.model(out), None, &prepared.origins)?,
        false => (prepared.infos().to_vec(), prepared.origins.clone()),
    };
    let from = origins.iter().map(Origin::describe).collect();
    let memory_bytes = prepared.memory_bytes(input.checkpoint.tensors.infos(), to_file);
    Ok(Plan { memory_bytes, ..Plan::new(&infos, from, notes(&prepared, options, to_file)) })
}

/// Writes the grown model to `out`.
pub fn run(input: &Input, out: &Path, options: &Options) -> Result<Report> {
    options.check()?;
    let prepared = Prepared::new(input, options)?;
    let to_file = is_gguf_name(out);
    let model = prepared.model(out);
    let moments = prepared.moments.as_ref().filter(|_| !to_file);
    let job = Job {
        verb: "grow",
        recipe: options.recipe(&input.label),
        seed: Some(options.seed),
        inputs: vec![input],
        origins: prepared.origins.clone(),
        dropped: prepared.dropped.clone(),
    };
    let (mut found, mut n_moments) = (Difference::default(), 0);
    let mut check = |made: &Checkpoint| -> Result<Map<String, Value>> {
        found = compared(&prepared.parent(input), made, options)?;
        Ok(Map::from_iter([
            ("logits_max_abs_difference".to_string(), json!(found.max_abs)),
            ("logits_relative_difference".to_string(), json!(found.relative)),
        ]))
    };
    let summary = if to_file {
        let measurements = check(&model)?;
        write_model(&model, None, out, options.force, job, measurements)?
    } else {
        write_folder(&model, out, options.force, job, |staged| {
            if let Some(moments) = moments {
                n_moments = moments.write(&staged.place, &prepared.weights())?;
            }
            check(staged)
        })?
    };
    Ok(Report {
        parameters: prepared.parameters(),
        tensors: summary.output_tensors,
        copied_tensors: summary.copied,
        keeps_function: keeps_function(options),
        logits_difference: found,
        moments: n_moments,
        notes: notes(&prepared, options, to_file),
    })
}

fn notes(prepared: &Prepared, options: &Options, to_file: bool) -> Vec<String> {
    let mut notes = prepared.notes.clone();
    let (before, after) = prepared.parameters();
    notes.push(format!("{after} parameters, {before} before"));
    if !prepared.has_logits() {
        notes.push("this model has no logits; what is compared with the parent are its states".to_string());
    }
    match (&prepared.moments, to_file) {
        (Some(_), true) => {
            notes.push(
                "the optimizer's state beside the model has no place in a GGUF file and stays behind"
                    .to_string(),
            );
        }
        (Some(_), false) => {
            let note = "the optimizer's state is grown too: `optimizer: {initial_state: true}` in a recipe begins with it";
            notes.push(note.to_string());
        }
        (None, _) => {}
    }
    if options.operation == Operation::Split
        && matches!(options.axis, Axis::Width(2..))
        && options.asymmetry <= 0.0
    {
        let note =
            "copies of equal shares learn the same until something tells them apart; --asymmetry 0.1 does";
        notes.push(note.to_string());
    }
    notes
}

/// How far the grown model's logits lie from its parent's. Refuses more than rounding where the function is to be kept.
fn compared(parent: &Checkpoint, made: &Checkpoint, options: &Options) -> Result<Difference> {
    let check = format!("the logits of the model grown by {} against its parent's", options.operation.name());
    let found = match gives_logits(&luthier_arch::layout_of(parent)?) {
        true => difference(&check, &logits(parent)?, &logits(made)?)?,
        false => {
            let (width, wanted) = states(parent, usize::MAX)?;
            let check = check.replace("logits", "states");
            difference(&check, &wanted, &states(made, width)?.1)?
        }
    };
    let is_narrow = |info: &TensorInfo| matches!(info.dtype, Dtype::F16 | Dtype::BF16);
    let rounds = made.tensors.infos().iter().any(is_narrow);
    let tolerance = if rounds { TOLERANCE_16_BITS } else { TOLERANCE };
    // Not `>`, which a NaN is not.
    let is_close = found.relative <= tolerance;
    if is_close || !keeps_function(options) {
        return Ok(found);
    }
    let wanted = format!("a difference of at most {tolerance:e} of the largest");
    let came =
        format!("{:e}; this model's function cannot be kept that way, take another --op", found.relative);
    Err(Error::Check { check, wanted, came })
}
