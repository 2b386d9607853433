//! `--target-size`: the types with which a model loses least in a file of a given size.
//!
//! Every matrix that llama-quantize would round is rounded to every type that its rows allow, and what that loses is
//! measured: the squared error against the squared values, both weighted with the column's importance where there are
//! importance weights. The next-token loss grows in proportion to such relative errors (the linearity theorem of HIGGS,
//! arXiv:2411.17525), with a factor for each matrix that follows here from where it stands: each layer adds its output to
//! the residual stream, so that a relative error in one of n layers is an n-th of that in the last hidden state, while an
//! error of the head is one of the logits in full. Sizes are the file's to the byte, header included.
//!
//! Of large matrices a sample is measured: rows at even distances, some million values in all, the same in every run.

use std::collections::BTreeMap;
use std::fmt;

use luthier_checkpoint::gguf::GgufWriter;
use luthier_checkpoint::{Dtype, TensorInfo};
use luthier_kernels::blocks::{self, BlockType, Measured, Unfit};
use serde::Serialize;

use super::allocation::{Allocation, Form, allocate};
use super::{Job, block_type, mix, write};
use crate::convert::gguf::file_type_id;
use crate::{Error, Result};

/// Values of a matrix that are measured, where rows allow it.
const SAMPLE_VALUES: usize = 1 << 20;

/// Types chosen for a wanted size. Errors are means over the model: the share of its matrices' energy that rounding turns
/// into noise, each matrix weighted by how much it counts for the logits.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Choice {
    /// The size that was wanted, in bytes.
    pub target_bytes: u64,
    /// The file's.
    pub file_bytes: u64,
    /// What is lost.
    pub error: f64,
    /// No choice of types within this size loses less.
    pub least_error: f64,
    /// The best of llama-quantize's mixtures within this size; none where the smallest is larger.
    pub best_mix: Option<OtherMix>,
    /// Every tensor that had a choice.
    pub chosen: Vec<ChosenType>,
}

/// One of llama-quantize's mixtures, measured likewise.
#[derive(Clone, Debug, Serialize, PartialEq)]
#[allow(missing_docs)]
pub struct OtherMix {
    pub name: &'static str,
    pub file_bytes: u64,
    pub error: f64,
}

/// The type of one tensor, and what it loses itself.
#[derive(Clone, Debug, Serialize, PartialEq)]
#[allow(missing_docs)]
pub struct ChosenType {
    pub name: String,
    pub dtype: &'static str,
    pub error: f64,
}

impl fmt::Display for Choice {
    /// For people: what is lost, the mixture beside it, then a line for each kind of matrix.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} of {} bytes; relative squared error {:.3e}, at best {:.3e}",
            self.file_bytes, self.target_bytes, self.error, self.least_error
        )?;
        match &self.best_mix {
            Some(mix) => {
                let (name, file_bytes, error) = (mix.name, mix.file_bytes, mix.error);
                write!(f, "; the best mixture of this size is {name}: {file_bytes} bytes, {error:.3e}")?;
            }
            None => write!(f, "; every mixture of llama-quantize is larger")?,
        }
        let mut kinds = BTreeMap::<&str, BTreeMap<&str, usize>>::new();
        for tensor in &self.chosen {
            *kinds.entry(place(&tensor.name).2).or_default().entry(tensor.dtype).or_default() += 1;
        }
        for (kind, types) in kinds {
            let types: Vec<String> = types.iter().map(|(name, count)| format!("{count} {name}")).collect();
            write!(f, "\n  {kind}: {}", types.join(", "))?;
        }
        Ok(())
    }
}

/// Chooses the types of the output's tensors.
pub(super) fn choose(job: &mut Job, target_bytes: u64, requantize: bool) -> Result<()> {
    let source = job.assembled.view().infos().to_vec();
    let measured = measure_all(job, &source, requantize)?;
    let found = fitted(job, &source, &measured, target_bytes)?;
    let file_bytes = write::file_bytes(job)?;
    let factors: f64 = measured.iter().flatten().map(|tensor| tensor.factor).sum();
    let mean = |error: f64| if factors > 0.0 { error / factors } else { 0.0 };
    let chosen = measured.iter().flatten().zip(&found.chosen).map(|(tensor, &at)| {
        let way = &tensor.ways[at];
        ChosenType { name: tensor.name.clone(), dtype: way.block_type.name(), error: way.error }
    });
    job.choice = Some(Choice {
        target_bytes,
        file_bytes,
        error: mean(found.error),
        least_error: mean(found.least_error),
        best_mix: None,
        chosen: chosen.collect(),
    });
    let best_mix = best_mix(job, &source, &measured, target_bytes)?;
    if let Some(choice) = &mut job.choice {
        choice.best_mix = best_mix.map(|mix| OtherMix { error: mean(mix.error), ..mix });
    }
    Ok(())
}

/// A tensor that has a choice.
struct Tensor {
    name: String,
    /// How much its relative error counts.
    factor: f64,
    ways: Vec<Way>,
}

struct Way {
    block_type: BlockType,
    size_bytes: u64,
    /// Relative squared error.
    error: f64,
}

/// What every type would lose in every tensor; none for tensors that keep their type.
fn measure_all(job: &Job, source: &[TensorInfo], requantize: bool) -> Result<Vec<Option<Tensor>>> {
    let mut layers = BTreeMap::<&str, Vec<usize>>::new();
    for info in source {
        if let (stack, Some(layer), _) = place(&info.name) {
            let seen = layers.entry(stack).or_default();
            if !seen.contains(&layer) {
                seen.push(layer);
            }
        }
    }
    // An embedding is one of the layers' inputs; where there is no other head it is that too.
    let n_layers = layers.values().map(Vec::len).max().unwrap_or(1);
    let is_tied = !source.iter().any(|info| info.name == "output.weight");
    let factor = |name: &str| match place(name) {
        (stack, Some(_), _) => 1.0 / layers[stack].len() as f64,
        _ if name.contains("embd") && !is_tied => 1.0 / n_layers as f64,
        _ => 1.0,
    };
    let tensors = source.iter().map(|info| {
        if !mix::is_quantised(info) {
            return Ok(None);
        }
        let ways = measured_ways(job, info, requantize)?;
        Ok(Some(Tensor { name: info.name.clone(), factor: factor(&info.name), ways }))
    });
    tensors.collect()
}

/// The part of a name before `blk.N.`, N, and the part after it.
fn place(name: &str) -> (&str, Option<usize>, &str) {
    let parts = name.find("blk.").and_then(|at| {
        let (layer, rest) = name[at + 4..].split_once('.')?;
        Some((&name[..at], layer.parse().ok()?, rest))
    });
    match parts {
        Some((stack, layer, rest)) => (stack, Some(layer), rest),
        None => ("", None, name),
    }
}

fn measured_ways(job: &Job, info: &TensorInfo, requantize: bool) -> Result<Vec<Way>> {
    let from = block_type(info)?;
    let size = |block_type: BlockType| {
        let info = TensorInfo { dtype: Dtype::Weights(block_type), ..info.clone() };
        GgufWriter::tensor_bytes(&job.assembled.metadata, &info)
    };
    let mut ways = Vec::new();
    let columns = info.shape.last().copied().unwrap_or(0);
    // What was rounded before stays as it is, unless the user wants it otherwise.
    let is_kept = from.block_len() > 1 && !requantize;
    let sample = if is_kept { None } else { Some(Sample::of(job, info, from)?) };
    for to in BlockType::ALL {
        if !columns.is_multiple_of(to.block_len()) || (is_kept && to != from) {
            continue;
        }
        let Some(size_bytes) = size(to)? else { continue };
        let error = match &sample {
            Some(sample) if to != from => match sample.error(to, info)? {
                Some(error) => error,
                None => continue,
            },
            _ => 0.0,
        };
        ways.push(Way { block_type: to, size_bytes, error });
    }
    Ok(ways)
}

/// Rows of a matrix, those of each of its parts with their importance weights. Every expert of a stack is a part.
struct Sample<'j> {
    from: BlockType,
    columns: usize,
    parts: Vec<Part<'j>>,
}

struct Part<'j> {
    bytes: Vec<u8>,
    /// Numbers of the rows in the whole matrix.
    rows: Vec<usize>,
    importance: Option<&'j [f32]>,
}

impl<'j> Sample<'j> {
    fn of(job: &'j Job, info: &TensorInfo, from: BlockType) -> Result<Sample<'j>> {
        let columns = info.shape.last().copied().unwrap_or(0);
        let bytes = job.assembled.read_unchecked(&info.name)?;
        let row_bytes = from.bytes_for(columns).unwrap_or(0);
        let n_rows = bytes.len().checked_div(row_bytes).unwrap_or(0);
        let weights = job.imatrix.as_ref().and_then(|imatrix| imatrix.of(info));
        let n_parts = weights.map_or(1, |weights| weights.len() / columns.max(1)).max(1);
        let (part_rows, wanted) = (n_rows / n_parts, SAMPLE_VALUES / columns.max(1) / n_parts);
        let n_sampled = wanted.max(1).min(part_rows);
        let parts = (0..n_parts).map(|part| {
            let rows: Vec<usize> =
                (0..n_sampled).map(|at| part * part_rows + at * part_rows / n_sampled).collect();
            let bytes = rows.iter().flat_map(|row| &bytes[row * row_bytes..][..row_bytes]).copied().collect();
            let importance = weights.map(|weights| &weights[part * columns..][..columns]);
            Part { bytes, rows, importance }
        });
        Ok(Sample { from, columns, parts: parts.collect() })
    }

    /// What `to` loses; none where it cannot hold the values.
    fn error(&self, to: BlockType, info: &TensorInfo) -> Result<Option<f64>> {
        let mut all = Measured::default();
        for part in &self.parts {
            match blocks::measure_error((self.from, &part.bytes), to, self.columns, part.importance) {
                Ok(measured) => {
                    all.error += measured.error;
                    all.energy += measured.energy;
                }
                Err(Unfit::TooLarge(_)) => return Ok(None),
                Err(Unfit::NotFinite(at)) => {
                    let row = part.rows[at / self.columns.max(1)];
                    let at = Unfit::NotFinite(row * self.columns + at % self.columns.max(1));
                    return Err(write::refused(info, at, 0));
                }
            }
        }
        Ok(Some(if all.energy > 0.0 { all.error / all.energy } else { 0.0 }))
    }
}

/// Gives the job's tensors the best types with which the file is no larger than `target_bytes`.
fn fitted(
    job: &mut Job,
    source: &[TensorInfo],
    measured: &[Option<Tensor>],
    target_bytes: u64,
) -> Result<Allocation> {
    let things: Vec<Vec<Form>> = measured.iter().flatten().map(forms).collect();
    // The header's length depends on the types that it lists. It only grows here, so that this ends.
    let mut other_bytes = 0;
    loop {
        let Some(found) =
            target_bytes.checked_sub(other_bytes).and_then(|bytes| allocate(&things, bytes))
        else {
            return Err(too_small(job, source, measured, target_bytes)?);
        };
        let mut choices = found.chosen.iter();
        let types: Vec<Dtype> = source
            .iter()
            .zip(measured)
            .map(|(info, tensor)| match tensor {
                Some(tensor) => {
                    let at = choices.next().expect("every tensor with a choice has one");
                    Dtype::Weights(tensor.ways[*at].block_type)
                }
                None => info.dtype,
            })
            .collect();
        let wanted = job.use_chosen(&types)?;
        let came = wanted - found.size_bytes;
        if came <= other_bytes {
            return Ok(found);
        }
        other_bytes = came;
    }
}

fn forms(tensor: &Tensor) -> Vec<Form> {
    let form = |way: &Way| Form { size_bytes: way.size_bytes, error: tensor.factor * way.error };
    tensor.ways.iter().map(form).collect()
}

impl Job {
    /// Gives the tensors these types; the file's length.
    fn use_chosen(&mut self, types: &[Dtype]) -> Result<u64> {
        self.use_types(types);
        self.file_type = file_type_id(&self.infos);
        write::file_bytes(self)
    }
}

/// The refusal of a size that even the smallest types exceed.
fn too_small(
    job: &mut Job,
    source: &[TensorInfo],
    measured: &[Option<Tensor>],
    target_bytes: u64,
) -> Result<Error> {
    let smallest = |tensor: &Tensor| tensor.ways.iter().min_by_key(|way| way.size_bytes).map(|way| way.block_type);
    let types: Vec<Dtype> = source
        .iter()
        .zip(measured)
        .map(|(info, tensor)| tensor.as_ref().and_then(smallest).map_or(info.dtype, Dtype::Weights))
        .collect();
    let file_bytes = job.use_chosen(&types)?;
    let mut counts = BTreeMap::<&str, usize>::new();
    types.iter().for_each(|dtype| *counts.entry(dtype.name()).or_default() += 1);
    let counts: Vec<String> = counts.iter().map(|(name, count)| format!("{count} {name}")).collect();
    let is_kept = |tensor: &Tensor| tensor.ways.iter().all(|way| way.block_type.block_len() > 1 && way.error == 0.0);
    let n_kept = measured.iter().flatten().filter(|tensor| is_kept(tensor)).count();
    let hint = match n_kept {
        0 => "shrink the model first (prune, trim-vocab)".to_string(),
        _ => format!(
            "{n_kept} tensors are quantised already and keep their types: start from the model before it was quantised, or \
             pass --requantize"
        ),
    };
    Ok(Error::Use(format!(
        "--target-size {target_bytes}: the smallest file of this model has {file_bytes} bytes ({}); {hint}",
        counts.join(", ")
    )))
}

/// The mixture of llama-quantize that loses least within the size.
fn best_mix(
    job: &mut Job,
    source: &[TensorInfo],
    measured: &[Option<Tensor>],
    target_bytes: u64,
) -> Result<Option<OtherMix>> {
    let (infos, file_type) = (job.infos.clone(), job.file_type);
    let mut best: Option<OtherMix> = None;
    for mix in mix::Mix::all() {
        if mix == mix::Mix::Q2_K_S && job.imatrix.is_none() {
            continue;
        }
        let types = mix::types(mix, &job.model(), source, job.imatrix.is_some());
        let error = measured.iter().zip(&types).try_fold(0.0, |sum, (tensor, dtype)| {
            let Some(tensor) = tensor else { return Some(sum) };
            let way = tensor.ways.iter().find(|way| Dtype::Weights(way.block_type) == *dtype)?;
            Some(sum + tensor.factor * way.error)
        });
        let Some(error) = error else { continue };
        let file_bytes = job.use_chosen(&types)?;
        if file_bytes <= target_bytes && best.as_ref().is_none_or(|best| error < best.error) {
            best = Some(OtherMix { name: mix.name(), file_bytes, error });
        }
    }
    (job.infos, job.file_type) = (infos, file_type);
    Ok(best)
}
