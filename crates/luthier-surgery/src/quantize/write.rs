//! Rounds and writes a model in one pass: values are looked at while they are rounded, the input is hashed beside it, and
//! a tensor goes to the disk while the next one is rounded.

use std::path::Path;

use luthier_checkpoint::gguf::GgufValue;
use luthier_checkpoint::{Error as FileError, LedgerSummary, TensorInfo, values};
use luthier_kernels::blocks::{self, Unfit};
use luthier_kernels::bytes::SharedBytes;

use super::{Job, block_type};
use crate::convert::gguf::FILE_TYPE_KEY;
use crate::writing::{self, Header, Origin, checked_model, stream_gguf};
use crate::{Error, Result};

/// The version of ggml's quantised layouts.
const QUANTIZATION_VERSION: u32 = 2;

pub(super) fn write(job: &Job, out: &Path, force: bool) -> Result<LedgerSummary> {
    let source = job.assembled.view().infos();
    let make = |at: usize| {
        let (source, info) = (&source[at], &job.infos[at]);
        rounded(job, source, info, job.assembled.read_unchecked(&info.name)?)
    };
    stream_gguf(header(job)?, &job.infos, out, force, &record(job), make, |place| {
        checked_model(place).map(drop)
    })
}

/// Length of the file that [`write`] makes, to the byte.
pub(super) fn file_bytes(job: &Job) -> Result<u64> {
    header(job)?.file_bytes(&job.infos, &record(job))
}

fn record(job: &Job) -> writing::Job<'_> {
    writing::Job {
        verb: "quantize",
        recipe: job.recipe.clone(),
        seed: None,
        inputs: vec![&job.assembled.input],
        origins: origins(job),
        dropped: job.assembled.dropped.clone(),
    }
}

/// Tensors that keep their type are copied, others rounded.
fn origins(job: &Job) -> Vec<Origin> {
    let tensors = job.assembled.view().infos().iter().zip(&job.infos).zip(&job.assembled.origins);
    let origin = |((source, info), origin): ((&TensorInfo, &TensorInfo), &Origin)| match origin {
        Origin::From { input, name } if source.dtype != info.dtype => Origin::Changed {
            input: *input,
            name: name.clone(),
            how: format!("{} as {}", source.dtype, info.dtype),
        },
        Origin::Changed { input, name, how } if source.dtype != info.dtype => Origin::Changed {
            input: *input,
            name: name.clone(),
            how: format!("{how}, {} as {}", source.dtype, info.dtype),
        },
        Origin::Merged { .. } if source.dtype != info.dtype => {
            origin.clone().then(&format!("{} as {}", source.dtype, info.dtype))
        }
        other => other.clone(),
    };
    tensors.map(origin).collect()
}

/// The source's metadata with what llama-quantize sets.
fn header(job: &Job) -> Result<Header> {
    let mut metadata = job.assembled.metadata.clone();
    metadata.extend(job.assembled.memory_of_source()?);
    let mut set = |key: &str, value: GgufValue| match metadata.iter_mut().find(|(name, _)| name == key) {
        Some((_, old)) => *old = value,
        None => metadata.push((key.to_string(), value)),
    };
    set("general.quantization_version", GgufValue::U32(QUANTIZATION_VERSION));
    set(FILE_TYPE_KEY, GgufValue::U32(job.file_type));
    if let Some(imatrix) = &job.imatrix {
        imatrix.metadata().into_iter().for_each(|(key, value)| set(key, value));
    }
    Ok(Header { metadata, measurements: job.measurements.clone() })
}

fn rounded(job: &Job, source: &TensorInfo, info: &TensorInfo, bytes: SharedBytes) -> Result<SharedBytes> {
    if source.dtype == info.dtype {
        values::check_finite(&info.name, info.dtype, &bytes)?;
        return Ok(bytes);
    }
    let (from, to) = (block_type(source)?, block_type(info)?);
    let columns = info.shape.last().copied().unwrap_or(0);
    let size = |what: &TensorInfo| what.dtype.size_bytes(&what.shape);
    let (Some(source_bytes), Some(target_bytes)) = (size(source), size(info)) else {
        let what = format!(
            "shape {:?} is no whole number of {from} or {to} blocks",
            info.shape,
            from = from.name(),
            to = to.name()
        );
        return Err(FileError::tensor(&info.name, what).into());
    };
    let mut target = vec![0u8; target_bytes];
    let importance = job.imatrix.as_ref().and_then(|imatrix| imatrix.of(info));
    // Every expert of a stack of matrices has importance weights of its own.
    let n_parts = importance.map_or(1, |weights| weights.len() / columns.max(1)).max(1);
    let parts =
        bytes.chunks((source_bytes / n_parts).max(1)).zip(target.chunks_mut((target_bytes / n_parts).max(1)));
    let n_values: usize = info.shape.iter().product();
    for (part, (source, target)) in parts.enumerate() {
        let weights = importance.map(|weights| &weights[part * columns..][..columns]);
        blocks::quantize((from, source), to, columns, weights, target)
            .map_err(|unfit| refused(info, unfit, part * (n_values / n_parts)))?;
    }
    Ok(SharedBytes::from_vec(target))
}

pub(super) fn refused(info: &TensorInfo, unfit: Unfit, start: usize) -> Error {
    let what = match unfit {
        Unfit::NotFinite(at) => format!("value {} is NaN or infinite; the weights are damaged", start + at),
        Unfit::TooLarge(at) => format!(
            "value {} is too large for {}, whose scales are f16; keep this model in f32 or bf16",
            start + at,
            info.dtype
        ),
    };
    FileError::tensor(&info.name, what).into()
}
