//! `luthier quantize MODEL OUT (--to TYPE | --target-size BYTES) [--imatrix F]`: a model in few bits a weight.
//!
//! Reads a model folder or a GGUF file. Writes, for ggml's types, a GGUF file in which every tensor has the type that
//! llama-quantize gives it (the mixtures of the K types, the fall-backs for rows that 256 or 32 does not divide), or with a
//! size the type with which all together lose least (target_size.rs), rounded to the same bytes as llama-quantize's. Guarantees: every tensor is in the ledger; tensors are read, rounded and written one at a time, each
//! once. Leaves the input alone. Refuses: an OUT that is no GGUF file, values that are not finite or too large for their
//! type, importance weights that do not fit the model, a source that is quantised already (but with `--requantize`). Identity: a file in the types that it has is copied. Example: `luthier quantize model model.gguf --to Q4_K_M`.

mod allocation;
mod bitsandbytes;
mod imatrix;
mod mix;
pub(crate) mod parts;
mod target_size;
mod write;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use luthier_checkpoint::{Dtype, LedgerSummary, TensorInfo, gguf::is_gguf_name};
use luthier_kernels::blocks::BlockType;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::convert::gguf::{Assembled, assemble, file_type_id};
use crate::plan::Plan;
use crate::writing::Origin;
use crate::{Error, Input, Result, convert};
pub use bitsandbytes::Scheme;
use imatrix::Imatrix;
use luthier_kernels::bitsandbytes::Levels;
pub use mix::Mix;
pub use target_size::{Choice, ChosenType, OtherMix};

/// What `--to` or `--target-size` names. Each scheme has a file of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// ggml's types, into a GGUF file.
    Ggml(Mix),
    /// ggml's types, into a GGUF file of this many bytes at most, each tensor's chosen so that all together lose least.
    Size(u64),
    /// bitsandbytes' types, into a model folder.
    BitsAndBytes(Scheme),
}

impl Target {
    /// The target of a name in upper or lower case. `double`: scales are rounded too, which nf4 and fp4 alone can.
    pub fn parse(name: &str, double: bool) -> Result<Target> {
        let target = match name.to_ascii_lowercase().as_str() {
            "nf4" => Target::BitsAndBytes(Scheme::FourBits { levels: Levels::Nf4, nested: double }),
            "fp4" => Target::BitsAndBytes(Scheme::FourBits { levels: Levels::Fp4, nested: double }),
            "int8" => Target::BitsAndBytes(Scheme::Int8),
            _ => Mix::from_name(name).map(Target::Ggml).ok_or_else(|| {
                let known = Mix::names().join(", ");
                Error::Use(format!(
                    "--to {name}: is no type that this verb makes; wanted one of {known}, nf4, fp4, int8"
                ))
            })?,
        };
        let can_double = matches!(target, Target::BitsAndBytes(Scheme::FourBits { .. }));
        if double && !can_double {
            return Err(Error::Use(format!("--double: {} has no such form; wanted --to nf4 or fp4", name)));
        }
        Ok(target)
    }

    /// As it is written into records; none for a size.
    pub fn name(self) -> Option<&'static str> {
        match self {
            Target::Ggml(mix) => Some(mix.name()),
            Target::Size(_) => None,
            Target::BitsAndBytes(scheme) => Some(scheme.name()),
        }
    }

    fn size_bytes(self) -> Option<u64> {
        if let Target::Size(size_bytes) = self { Some(size_bytes) } else { None }
    }

    fn is_double(self) -> bool {
        matches!(self, Target::BitsAndBytes(Scheme::FourBits { nested: true, .. }))
    }
}

/// How a model is quantised.
#[derive(Clone, Debug)]
pub struct Options {
    /// To what.
    pub target: Target,
    /// Importance of every column, as llama-imatrix writes it (GGUF, or its older binary form).
    pub imatrix: Option<PathBuf>,
    /// Whether tensors that are quantised already may be rounded again.
    pub requantize: bool,
    /// Whether an existing output is replaced.
    pub force: bool,
}

impl Options {
    /// What the record says.
    fn recipe(&self, model: &str) -> Value {
        json!({
            "model": model, "to": self.target.name(), "target_size": self.target.size_bytes(), "double": self.target.is_double(),
            "imatrix": self.imatrix, "requantize": self.requantize,
        })
    }
}

/// What came of it.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Report {
    /// Tensors of the output.
    pub tensors: usize,
    /// Those that are byte for byte the input's.
    pub copied_tensors: usize,
    /// How many tensors have which type.
    pub types: BTreeMap<String, usize>,
    /// Bytes of all tensors.
    pub size_bytes: usize,
    /// Bits for each value, all tensors together.
    pub bits_per_weight: f64,
    /// What was chosen for a wanted size.
    pub choice: Option<Choice>,
    /// What to know.
    pub notes: Vec<String>,
}

/// What `run` would write, from headers alone; for a wanted size from a sample of the values too.
pub fn plan(input: &Input, out: &Path, options: &Options) -> Result<Plan> {
    if let Target::BitsAndBytes(scheme) = options.target {
        refuse_gguf(out, scheme)?;
        return bitsandbytes::plan(input, scheme, options);
    }
    let job = prepare(input, out, options)?;
    let from = job.assembled.view().infos().iter().zip(&job.assembled.origins);
    let from = from.map(|(info, origin)| format!("{} {}", info.dtype, origin.describe())).collect();
    let mut notes = job.notes.clone();
    notes.extend(job.choice.iter().map(Choice::to_string));
    Ok(Plan { memory_bytes: job.memory_bytes(), ..Plan::new(&job.infos, from, notes) })
}

/// Writes the quantised model to `out`.
pub fn run(input: &Input, out: &Path, options: &Options) -> Result<Report> {
    crate::fit::check_ties(&input.checkpoint)?;
    if let Target::BitsAndBytes(scheme) = options.target {
        refuse_gguf(out, scheme)?;
        return bitsandbytes::run(input, out, scheme, options);
    }
    let job = prepare(input, out, options)?;
    let summary = write::write(&job, out, options.force)?;
    let n_values = job.infos.iter().map(|info| info.shape.iter().product::<usize>()).sum();
    Ok(Report { choice: job.choice, ..counted(&job.infos, n_values, summary, job.notes) })
}

fn refuse_gguf(out: &Path, scheme: Scheme) -> Result<()> {
    match is_gguf_name(out) {
        true => Err(Error::Use(format!(
            "{}: a GGUF file does not hold {}; name a folder",
            out.display(),
            scheme.name()
        ))),
        false => Ok(()),
    }
}

/// The report on an output of these tensors, which stand for `n_values` weights.
fn counted(infos: &[TensorInfo], n_values: usize, summary: LedgerSummary, notes: Vec<String>) -> Report {
    let mut types = BTreeMap::new();
    for info in infos {
        *types.entry(info.dtype.name().to_string()).or_default() += 1;
    }
    let size_bytes: usize = infos.iter().filter_map(|info| info.dtype.size_bytes(&info.shape)).sum();
    Report {
        tensors: summary.output_tensors,
        copied_tensors: summary.copied,
        types,
        size_bytes,
        bits_per_weight: size_bytes as f64 * 8.0 / n_values.max(1) as f64,
        choice: None,
        notes,
    }
}

/// A run that is worked out but for the values.
struct Job {
    assembled: Assembled,
    /// The output's tensors, in the order of the assembled view.
    infos: Vec<TensorInfo>,
    /// `general.file_type`.
    file_type: u32,
    imatrix: Option<Imatrix>,
    recipe: Value,
    /// What the record says of the output.
    measurements: Map<String, Value>,
    choice: Option<Choice>,
    notes: Vec<String>,
}

impl Job {
    /// What the types of llama-quantize's mixtures depend on.
    fn model(&self) -> mix::Model {
        mix::Model::of(&self.assembled.metadata)
    }

    /// Gives the output's tensors these types.
    fn use_types(&mut self, types: &[Dtype]) {
        for (info, dtype) in self.infos.iter_mut().zip(types) {
            info.dtype = *dtype;
        }
    }

    /// What `run` holds at most: the largest tensor rounded, the one before it on its way to the disk, and a source whose
    /// rows are moved or that is put together.
    fn memory_bytes(&self) -> usize {
        let size = |info: &TensorInfo| info.dtype.size_bytes(&info.shape).unwrap_or(0);
        let target = self.infos.iter().map(size).max().unwrap_or(0);
        let pairs = self.assembled.view().infos().iter().zip(&self.assembled.origins);
        let moved =
            pairs.filter(|(_, origin)| matches!(origin, Origin::Changed { .. } | Origin::Merged { .. }));
        let moved = moved.map(|(info, _)| size(info)).max().unwrap_or(0);
        let imatrix = self.imatrix.as_ref().map_or(0, Imatrix::size_bytes);
        let sample = self.choice.as_ref().map_or(0, |_| target_size::sample_bytes(&self.infos));
        (2 * target + moved).max(sample) + imatrix + (4 << 20)
    }
}

fn prepare(input: &Input, out: &Path, options: &Options) -> Result<Job> {
    if !is_gguf_name(out) {
        let what = "is no GGUF file, which ggml's types are kept in; give it a name that ends in .gguf";
        return Err(Error::Use(format!("{}: {what}", out.display())));
    }
    let notes = convert::check(input, out, &convert::Options { dtype: None, force: options.force })?;
    let assembled = assemble(input, None)?;
    let imatrix = options.imatrix.as_deref().map(Imatrix::read).transpose()?;
    let source = assembled.view().infos().to_vec();
    let mut job = Job {
        file_type: file_type_id(&source),
        infos: source.clone(),
        recipe: options.recipe(&assembled.input.label),
        measurements: Map::new(),
        choice: None,
        assembled,
        imatrix,
        notes,
    };
    match options.target {
        Target::Ggml(mix) => {
            job.use_types(&mix::types(mix, &job.model(), &source, job.imatrix.is_some()));
            job.file_type = mix.file_type();
            if mix == Mix::Q2_K_S && job.imatrix.is_none() {
                let what = "--to Q2_K_S: needs importance weights, without which the result is useless; give --imatrix, or take Q2_K";
                return Err(Error::Use(what.to_string()));
            }
            job.notes.extend(fall_back_note(mix, &job.infos));
        }
        Target::Size(size_bytes) => target_size::choose(&mut job, size_bytes, options.requantize)?,
        Target::BitsAndBytes(_) => unreachable!("has a file of its own"),
    }
    if let Some(imatrix) = &job.imatrix {
        job.notes.extend(imatrix.check(&source, &job.infos)?);
    }
    job.notes.extend(rounded_twice(&source, &job.infos, options.requantize)?);
    Ok(job)
}

/// Refuses to round what was rounded before, or where that is wished says that it loses.
fn rounded_twice(source: &[TensorInfo], infos: &[TensorInfo], requantize: bool) -> Result<Option<String>> {
    let is_block = |dtype: Dtype| matches!(dtype, Dtype::Weights(block_type) if block_type.block_len() > 1);
    let twice: Vec<&TensorInfo> = source
        .iter()
        .zip(infos)
        .filter(|(a, b)| a.dtype != b.dtype && is_block(a.dtype))
        .map(|row| row.0)
        .collect();
    let Some(first) = twice.first() else { return Ok(None) };
    if !requantize {
        let what = format!(
            "is {} already, and rounding it again loses more; wanted floats: start from the model before it was \
             quantised, or pass --requantize",
            first.dtype
        );
        return Err(luthier_checkpoint::Error::tensor(&first.name, what).into());
    }
    Ok(Some(format!("{} tensors of the source are quantised already and lose a second time", twice.len())))
}

/// Tensors that could not have the type that their mixture means them to have.
fn fall_back_note(mix: Mix, infos: &[TensorInfo]) -> Option<String> {
    let wide = mix.main_type().block_len();
    let columns = |info: &TensorInfo| info.shape.last().copied().unwrap_or(0);
    let narrow = infos.iter().filter(|info| mix::is_quantised(info) && !columns(info).is_multiple_of(wide));
    let n_tensors = narrow.count();
    (n_tensors > 0 && wide > 1).then(|| {
        format!(
            "{n_tensors} tensors have rows that blocks of {wide} values do not divide and get the types that llama.cpp falls back to"
        )
    })
}

/// The block type of a tensor that is rounded.
fn block_type(info: &TensorInfo) -> Result<BlockType> {
    match info.dtype {
        Dtype::Weights(block_type) => Ok(block_type),
        other => {
            let what =
                format!("holds {other}; wanted f32, f16, bf16 or ggml's blocks, convert the model first");
            Err(luthier_checkpoint::Error::tensor(&info.name, what).into())
        }
    }
}
