//! Rounds and writes a model in one pass: values are looked at while they are rounded, the input is hashed beside it, and
//! a tensor goes to the disk while the next one is rounded.

use std::path::Path;
use std::sync::mpsc::sync_channel;

use luthier_checkpoint::gguf::{GgufValue, GgufWriter};
use luthier_checkpoint::lineage::LINEAGE_KEY;
use luthier_checkpoint::{Error as FileError, LedgerSummary, Output, TensorInfo, TensorSink, values};
use luthier_kernels::blocks::{self, Unfit};
use luthier_kernels::bytes::SharedBytes;

use super::{Job, Options, block_type};
use crate::convert::gguf::FILE_TYPE_KEY;
use crate::writing::{self, Account, Origin, places};
use crate::{Error, Result};

/// The version of ggml's quantised layouts.
const QUANTIZATION_VERSION: u32 = 2;

pub(super) fn write(job: &Job, out: &Path, options: &Options) -> Result<LedgerSummary> {
    let record = writing::Job {
        verb: "quantize",
        recipe: options.recipe(&job.assembled.input.label),
        seed: None,
        inputs: vec![&job.assembled.input],
        origins: origins(job),
        dropped: job.assembled.dropped.clone(),
    };
    let output = Output::file(out, options.force, &places(&record))?;
    let mut account = Account::new(&record)?;
    for (info, origin) in job.infos.iter().zip(&record.origins) {
        match origin {
            Origin::From { .. } => {
                account.note(info, origin, &job.assembled.read_unchecked(&info.name)?)?;
            }
            _ => account.note(info, origin, &[])?,
        }
    }
    let summary = account.finish(&job.infos)?;
    // Hashing the input takes as long as rounding it; the record is as long without the hashes as with them.
    let mut lineage = writing::record_without_hashes(&record, summary.clone())?;
    let mut metadata = metadata(job)?;
    metadata.push((LINEAGE_KEY.to_string(), GgufValue::String(lineage.to_text())));
    let mut writer = GgufWriter::create(output.path(), &metadata, &job.infos)?;
    std::thread::scope(|scope| {
        let parents = scope.spawn(|| writing::parents(&record.inputs));
        let written = write_tensors(job, &mut writer);
        lineage.parents = parents.join().expect("hashing does not panic")?;
        written
    })?;
    writer.finish()?;
    metadata.pop();
    metadata.push((LINEAGE_KEY.to_string(), GgufValue::String(lineage.to_text())));
    writer.replace_metadata(&metadata, &job.infos)?;
    drop(writer);
    luthier_arch::check_headers(&luthier_arch::open(output.path())?)?;
    output.commit()?;
    Ok(summary)
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
fn metadata(job: &Job) -> Result<Vec<(String, GgufValue)>> {
    let mut metadata = job.assembled.metadata.clone();
    metadata.extend(job.assembled.memory_of_source()?);
    let mut set = |key: &str, value: GgufValue| match metadata.iter_mut().find(|(name, _)| name == key) {
        Some((_, old)) => *old = value,
        None => metadata.push((key.to_string(), value)),
    };
    set("general.quantization_version", GgufValue::U32(QUANTIZATION_VERSION));
    set(FILE_TYPE_KEY, GgufValue::U32(job.mix.file_type()));
    if let Some(imatrix) = &job.imatrix {
        imatrix.metadata().into_iter().for_each(|(key, value)| set(key, value));
    }
    Ok(metadata)
}

/// Rounds on this thread (and the pool's), writes on another.
fn write_tensors(job: &Job, writer: &mut GgufWriter) -> Result<()> {
    std::thread::scope(|scope| {
        let (sender, receiver) = sync_channel::<(&str, SharedBytes)>(0);
        let written = scope
            .spawn(move || receiver.into_iter().try_for_each(|(name, bytes)| writer.write(name, &bytes)));
        let rounding = || {
            for (source, info) in job.assembled.view().infos().iter().zip(&job.infos) {
                let bytes = rounded(job, source, info, job.assembled.read_unchecked(&info.name)?)?;
                if sender.send((&info.name, bytes)).is_err() {
                    break; // The writer ended, and says why.
                }
            }
            Ok(())
        };
        let rounded = rounding();
        drop(sender);
        written.join().expect("writing does not panic")?;
        rounded
    })
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
