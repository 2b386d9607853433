//! `luthier extract-adapter --base BASE --tuned TUNED OUT`: what a fine-tune changed, as a LoRA adapter.
//!
//! Reads two models of one shape, in any format. Writes a folder that peft loads: for each matrix that changed the leading
//! singular vectors of the difference (rank given, or by energy), sqrt(S) in either factor, scale 1. Embeddings, heads, norms
//! and biases are stored as the options say. Guarantees: every tensor of both models is in the ledger; a change that the
//! adapter does not hold is refused, or left out by name; the folder is opened again before it gets its name. Refuses: equal
//! models, tensors that one model lacks, other shapes, NaN and infinity. Identity: at full rank the adapter on the base is the
//! tuned model. Paper: arXiv:2106.09685 (LoRA); the best matrix of a rank is Eckart and Young's. Example: `luthier
//! extract-adapter --base base --tuned tuned adapter --energy 0.9`.

mod classify;
pub(crate) mod config;
mod factor;
mod held;
mod report;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use luthier_checkpoint::layout::Layout;
use luthier_checkpoint::{Dtype, TensorInfo};
use serde_json::{Map, Value, json};

use crate::plan::Plan;
use crate::writing::{Job, write_adapter};
use crate::{Error, Input, Result, fit, merge};
use classify::{Classified, Kind, Shared, classify, fits};
use config::{Contents, card};
use held::Held;
pub use report::{Group, Report};

/// How large the pairs are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Size {
    /// This rank, where the matrix has it.
    Rank(usize),
    /// The smallest rank that holds this share of the difference's sum of squares, matrix by matrix.
    Energy(f64),
}

/// How changed embeddings and heads are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Embeddings {
    /// As pairs; whole where the head is tied, for peft computes pairs of tied weights wrongly.
    Auto,
    /// As pairs.
    Pairs,
    /// Whole.
    Whole,
}

/// How an adapter is extracted.
#[derive(Clone, Debug)]
pub struct Options {
    /// The pairs' size.
    pub size: Size,
    /// Only matrices whose names these fit get pairs; empty: all.
    pub targets: Vec<String>,
    /// Tensors that play no part.
    pub exclude: Vec<String>,
    /// Whether, and how, changed embeddings and heads are stored.
    pub embeddings: Option<Embeddings>,
    /// Whether changed norms are stored.
    pub norms: bool,
    /// Whether changed biases are stored.
    pub biases: bool,
    /// The type of all that is stored.
    pub dtype: Dtype,
    /// The text that base and adapter are compared with the tuned model on; the record names it.
    pub text: Option<PathBuf>,
    /// Whether an existing output is replaced.
    pub force: bool,
}

impl Options {
    fn recipe(&self, base: &str, tuned: &str) -> Value {
        let (rank, energy) = match self.size {
            Size::Rank(rank) => (Some(rank), None),
            Size::Energy(energy) => (None, Some(energy)),
        };
        let embeddings = self.embeddings.map(|embeddings| match embeddings {
            Embeddings::Auto => "auto",
            Embeddings::Pairs => "lora",
            Embeddings::Whole => "full",
        });
        json!({
            "base": base, "tuned": tuned, "rank": rank, "energy": energy, "target_modules": self.targets,
            "exclude": self.exclude, "embeddings": embeddings, "norms": self.norms, "biases": self.biases,
            "dtype": self.dtype.name().to_ascii_lowercase(), "text": self.text,
        })
    }
}

/// Two models whose tensors have the same names, sorted out.
struct Prepared {
    base: Input,
    tuned: Input,
    layout: Option<Layout>,
    classified: Classified,
    notes: Vec<String>,
}

/// What `run` would write at most, from headers alone: all matrices may have changed.
pub fn plan(base: &Input, tuned: &Input, options: &Options) -> Result<Plan> {
    let prepared = prepare(base, tuned, options)?;
    let (mut infos, mut from) = (Vec::new(), Vec::new());
    for tensor in &prepared.classified.shared {
        let Some(way) = prepared.way(tensor, options) else { continue };
        let rank = match options.size {
            Size::Rank(rank) => rank.min(tensor.shape.iter().copied().min().unwrap_or(0)),
            Size::Energy(_) => tensor.shape.iter().copied().min().unwrap_or(0),
        };
        for info in prepared.planned(tensor, way, rank, options.dtype) {
            infos.push(info);
            from.push(format!("the change of {}, if any", tensor.name));
        }
    }
    let mut notes = prepared.notes.clone();
    notes.push("the most that there can be: only what changed is stored".to_string());
    if matches!(options.size, Size::Energy(_)) {
        notes.push("ranks follow from the weights: the sizes here are those of full rank".to_string());
    }
    let plan = Plan::new(&infos, from, notes);
    let threads = luthier_kernels::pool::threads();
    let work =
        prepared.classified.shared.iter().map(|tensor| held::memory_bytes(&tensor.shape)).max().unwrap_or(0);
    Ok(Plan { memory_bytes: plan.size_bytes + threads * work + (4 << 20), ..plan })
}

/// Extracts the adapter of `tuned` on `base` into the folder `out`; `measure` sees the finished adapter before the folder has
/// its name, and says what it measured.
pub fn run(
    base: &Input,
    tuned: &Input,
    out: &Path,
    options: &Options,
    measure: impl FnOnce(luthier_checkpoint::adapter::Adapter) -> Result<Map<String, Value>>,
) -> Result<Report> {
    let prepared = prepare(base, tuned, options)?;
    prepared.check_ties()?;
    let changes = held::find_changes(&prepared, options)?;
    refuse_what_is_not_held(&changes, &prepared, options)?;
    let held = Held::new(&prepared, &changes, options)?;
    if held.infos().is_empty() {
        return Err(Error::Use(match changes.untargeted.is_empty() {
            true => format!(
                "{} and {} have the same weights: there is no adapter to extract",
                base.label, tuned.label
            ),
            false => {
                "no matrix that --target-modules names changed: there is no adapter to extract".to_string()
            }
        }));
    }
    let mut report = held.report(&changes);
    let contents = Contents {
        base,
        layout: prepared.layout.as_ref(),
        ranks: report.ranks.clone(),
        alpha: None,
        saved: held.saved_modules(),
        biases: held.biases(),
        fan_in_fan_out: prepared.classified.fan_in_fan_out,
        has_tied_head: prepared.classified.has_tied_head,
    };
    let summary = format!("Relative error of its pairs: {:.4}.", report.relative_error);
    let infos: Vec<TensorInfo> = held.infos();
    let adapter = luthier_checkpoint::Checkpoint {
        place: out.to_path_buf(),
        config: config::config(&contents),
        side_files: vec![card(&base.label, &tuned.label, &summary)],
        tensors: held.tensors()?,
    };
    let parts: Vec<&Input> = prepared.parts();
    let job = Job {
        verb: "extract-adapter",
        recipe: options.recipe(&base.label, &tuned.label),
        seed: None,
        inputs: parts,
        origins: held.origins(&prepared),
        dropped: held.dropped(&prepared, &changes),
    };
    let error = report.relative_error;
    report.ledger = write_adapter(&adapter, out, options.force, job, |staged| {
        let place = staged.place.clone();
        let mut measured = measure(luthier_checkpoint::adapter::Adapter::open(&place)?)?;
        measured.insert("relative_error".to_string(), json!(error));
        Ok(measured)
    })?;
    report.size_bytes = infos.iter().filter_map(|info| info.dtype.size_bytes(&info.shape)).sum();
    report.notes = prepared.notes;
    Ok(report)
}

fn prepare(base: &Input, tuned: &Input, options: &Options) -> Result<Prepared> {
    let mut notes = Vec::new();
    let mut both = merge::prefix::under_one_name(&[base.clone(), tuned.clone()], &mut notes);
    let tuned = both.pop().expect("two were given");
    let layout = known_layout(base)?;
    known_layout_of_tuned(&tuned)?;
    let classified = classify([base, &tuned], layout.as_ref(), &options.exclude, &options.targets)?;
    if options.embeddings == Some(Embeddings::Pairs) && classified.has_tied_head {
        return Err(Error::Use(format!(
            "--embeddings=lora: {} ties its head to its embedding, and peft computes something else with a pair on tied weights \
             before and after merging; take --embeddings=full",
            base.label
        )));
    }
    if layout.is_none() {
        notes.push(format!(
            "the architecture of {} is not known: embeddings, heads and norms are told by their names and shapes",
            base.label
        ));
    }
    Ok(Prepared { base: base.clone(), tuned, layout, classified, notes })
}

/// The layout of a model whose architecture is known, and which fits its config.
fn known_layout(input: &Input) -> Result<Option<Layout>> {
    match fit::checked_layout(&input.checkpoint) {
        Ok(layout) => Ok(Some(layout)),
        Err(Error::Architecture(luthier_arch::Error::UnknownArchitecture { .. })) => Ok(None),
        Err(_) if !input.checkpoint.config.contains_key("model_type") => Ok(None),
        Err(problem) => Err(problem),
    }
}

/// The tuned model may have been renamed: it is checked as it lies on the disk.
fn known_layout_of_tuned(tuned: &Input) -> Result<()> {
    tuned.parts().iter().try_for_each(|part| known_layout(part).map(drop))
}

impl Prepared {
    /// How a change of this tensor is held; none where the options do not say.
    fn way(&self, tensor: &Shared, options: &Options) -> Option<held::Way> {
        let is_target = options.targets.is_empty() || fits(&options.targets, &tensor.name);
        let whole = match options.embeddings {
            Some(Embeddings::Whole) => true,
            Some(Embeddings::Auto) => {
                self.classified.has_tied_head && config::is_embedding(self.layout.as_ref(), &tensor.path)
            }
            _ => false,
        };
        match tensor.kind {
            Kind::Linear => is_target.then_some(held::Way::Pair),
            Kind::Embedding | Kind::Head => {
                options.embeddings?;
                Some(if whole { held::Way::Module } else { held::Way::Pair })
            }
            Kind::Norm => options.norms.then_some(held::Way::Module),
            Kind::Bias => options.biases.then_some(held::Way::Bias),
            Kind::Other => None,
        }
    }

    /// The tensors that hold a change, those of a head that is tied to it too.
    fn planned(&self, tensor: &Shared, way: held::Way, rank: usize, dtype: Dtype) -> Vec<TensorInfo> {
        let mut infos = held::infos(tensor, way, rank, dtype);
        let ties = self.layout.iter().flat_map(|layout| &layout.ties);
        for tie in ties.filter(|tie| {
            way == held::Way::Module && tie.target == tensor.name && self.classified.has_tied_head
        }) {
            let name = format!("{}{}", luthier_checkpoint::adapter::PREFIX, tie.name);
            infos.push(TensorInfo { name, dtype, shape: tensor.shape.clone() });
        }
        infos
    }

    /// What lies on the disk: the base's parts, then the tuned model's.
    fn parts(&self) -> Vec<&Input> {
        self.base.parts().into_iter().chain(self.tuned.parts()).collect()
    }

    /// Where a tensor of the base (0) or the tuned model (1) comes from, as a part's number and name.
    fn sources(&self, of: usize, name: &str) -> Vec<(usize, String)> {
        match of {
            0 => self.base.sources(name),
            _ => {
                let first = self.base.parts().len();
                self.tuned.sources(name).into_iter().map(|(part, name)| (first + part, name)).collect()
            }
        }
    }

    /// Refuses a name that repeats a tied weight with other values.
    fn check_ties(&self) -> Result<()> {
        for (of, name, target) in &self.classified.ties {
            let input = if *of == 0 { &self.base } else { &self.tuned };
            if held::values(input, name)? != held::values(input, target)? {
                let what = format!(
                    "differs from {target} in {}, but the base's config ties them; wanted a fine-tune that ties them too",
                    input.label
                );
                return Err(luthier_checkpoint::Error::tensor(name, what).into());
            }
        }
        Ok(())
    }
}

/// Refuses changes that the options leave nowhere, with their names.
fn refuse_what_is_not_held(changes: &held::Changes, prepared: &Prepared, options: &Options) -> Result<()> {
    let mut lost: BTreeMap<Kind, Vec<&str>> = BTreeMap::new();
    for tensor in prepared.classified.shared.iter().filter(|tensor| changes.is_changed(&tensor.name)) {
        if prepared.way(tensor, options).is_none() && tensor.kind != Kind::Linear {
            lost.entry(tensor.kind).or_default().push(&tensor.name);
        }
    }
    if lost.is_empty() {
        return Ok(());
    }
    let what = lost.iter().map(|(kind, names)| {
        let advice = match kind {
            Kind::Embedding | Kind::Head => "--embeddings stores them",
            Kind::Norm => "--norms stores them",
            Kind::Bias => "--biases stores them",
            _ => "no adapter holds them",
        };
        format!("{} {} ({advice}): {}", names.len(), kind.name(), classify::some(names))
    });
    let what: Vec<String> = what.collect();
    Err(Error::Use(format!(
        "the fine-tune changed more than pairs of matrices hold by themselves, and the adapter would lose it:\n  {}\nstore them, or \
         leave them out with --exclude",
        what.join("\n  ")
    )))
}
