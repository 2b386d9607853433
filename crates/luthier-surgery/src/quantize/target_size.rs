//! `--target-size`: the types with which a model loses least in a file of a given size.
//!
//! Every matrix that llama-quantize would round is rounded to every type that its rows allow, and what that loses is
//! measured: the squared error against the squared values, both weighted with the column's importance where there are
//! importance weights. The next-token loss grows in proportion to such relative errors (the linearity theorem of HIGGS,
//! arXiv:2411.17525), with a factor for each kind of matrix (measured.rs): each of n layers adds its output to the residual
//! stream, so that an error in one of them counts an n-th of one in all, and of that value projections count most. Sizes
//! are the file's to the byte, header included.
//!
//! Of large matrices a sample is measured: rows at even distances, some million values in all, the same in every run.

mod measured;

use std::collections::BTreeMap;
use std::fmt;

use luthier_checkpoint::{Dtype, TensorInfo};
use serde::Serialize;

use super::allocation::{Allocation, Form, allocate};
use super::{Job, mix, write};
use crate::convert::gguf::file_type_id;
use crate::{Error, Result};
pub(super) use measured::sample_bytes;
use measured::{Tensor, Way, measure_all, place};

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

/// By how much less the types that are found must lose by the estimate than llama-quantize's mixture of that size. The
/// factors come from one model and have been off by a half (the head's: docs/log.md); a small advantage by them is none, and
/// the mixture is what many have tried on many models.
const MARGIN: f64 = 0.05;

/// Chooses the types of the output's tensors: the best that are found where they lose clearly less than the best mixture,
/// else that.
pub(super) fn choose(job: &mut Job, target_bytes: u64, requantize: bool) -> Result<()> {
    let source = job.assembled.view().infos().to_vec();
    let measured = measure_all(job, &source, requantize)?;
    let found = fitted(job, &source, &measured, target_bytes)?;
    let mut types: Vec<Dtype> = job.infos.iter().map(|info| info.dtype).collect();
    let mut error = found.error;
    let best_mix = best_mix(job, &source, &measured, target_bytes)?;
    if let Some((mix, mix_types)) = &best_mix
        && mix.error * (1.0 - MARGIN) < error
    {
        (types, error) = (mix_types.clone(), mix.error);
    }
    let file_bytes = job.use_chosen(&types)?;
    let factors: f64 = measured.iter().flatten().map(|tensor| tensor.factor).sum();
    let mean = |error: f64| if factors > 0.0 { error / factors } else { 0.0 };
    let chosen = measured.iter().zip(&types).filter_map(|(tensor, dtype)| {
        let tensor = tensor.as_ref()?;
        let error = tensor.way(*dtype)?.error;
        Some(ChosenType { name: tensor.name.clone(), dtype: dtype.name(), error })
    });
    job.choice = Some(Choice {
        target_bytes,
        file_bytes,
        error: mean(error),
        least_error: mean(found.least_error.min(error)),
        best_mix: best_mix.map(|(mix, _)| OtherMix { error: mean(mix.error), ..mix }),
        chosen: chosen.collect(),
    });
    Ok(())
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
        let within = target_bytes.checked_sub(other_bytes);
        let Some(found) = within.and_then(|bytes| allocate(&things, bytes)) else {
            // The header of the smallest types may be shorter than that of those before.
            let smallest = things.iter().map(|forms| forms.iter().map(|form| form.size_bytes).min());
            let found = allocate(&things, smallest.map(|size| size.unwrap_or(0)).sum());
            return match found {
                Some(found) if job.use_chosen(&smallest_types(source, measured))? <= target_bytes => {
                    Ok(found)
                }
                _ => Err(too_small(job, source, measured, target_bytes)?),
            };
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

/// The smallest type of each tensor.
fn smallest_types(source: &[TensorInfo], measured: &[Option<Tensor>]) -> Vec<Dtype> {
    let smallest = |tensor: &Tensor| {
        tensor.ways.iter().min_by_key(|way| way.size_bytes).map(|way| Dtype::Weights(way.block_type))
    };
    let tensors = source.iter().zip(measured);
    tensors.map(|(info, tensor)| tensor.as_ref().and_then(smallest).unwrap_or(info.dtype)).collect()
}

/// The refusal of a size that even the smallest types exceed.
fn too_small(
    job: &mut Job,
    source: &[TensorInfo],
    measured: &[Option<Tensor>],
    target_bytes: u64,
) -> Result<Error> {
    let types = smallest_types(source, measured);
    let mut file_bytes = job.use_chosen(&types)?;
    // A record that says this size may be longer than one that says the wanted one.
    for _ in 0..2 {
        job.recipe["target_size"] = file_bytes.into();
        file_bytes = job.use_chosen(&types)?;
    }
    let mut counts = BTreeMap::<&str, usize>::new();
    types.iter().for_each(|dtype| *counts.entry(dtype.name()).or_default() += 1);
    let counts: Vec<String> = counts.iter().map(|(name, count)| format!("{count} {name}")).collect();
    let is_kept =
        |tensor: &Tensor| tensor.ways.iter().all(|way| way.block_type.block_len() > 1 && way.error == 0.0);
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

/// The mixture of llama-quantize that loses least within the size, and its types.
fn best_mix(
    job: &mut Job,
    source: &[TensorInfo],
    measured: &[Option<Tensor>],
    target_bytes: u64,
) -> Result<Option<(OtherMix, Vec<Dtype>)>> {
    let mut best: Option<(OtherMix, Vec<Dtype>)> = None;
    for mix in mix::Mix::all() {
        if mix == mix::Mix::Q2_K_S && job.imatrix.is_none() {
            continue;
        }
        let types = mix::types(mix, &job.model(), source, job.imatrix.is_some());
        let error = measured.iter().zip(&types).try_fold(0.0, |sum, (tensor, dtype)| {
            let Some(tensor) = tensor else { return Some(sum) };
            Some(sum + tensor.factor * tensor.way(*dtype)?.error)
        });
        let Some(error) = error else { continue };
        if best.as_ref().is_some_and(|(best, _)| best.error <= error) {
            continue;
        }
        let file_bytes = job.use_chosen(&types)?;
        if file_bytes <= target_bytes {
            best = Some((OtherMix { name: mix.name(), file_bytes, error }, types));
        }
    }
    Ok(best)
}
