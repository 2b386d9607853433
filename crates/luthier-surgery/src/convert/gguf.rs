//! A model as a GGUF file.

use std::path::Path;
use std::sync::Arc;

use luthier_arch::gguf::{GgufForm, GgufOrigin, GgufTensor, Transform};
use luthier_checkpoint::gguf::{Gguf, GgufValue};
use luthier_checkpoint::{Dtype, Error, LedgerSummary, TensorInfo, TensorSource, values};
use luthier_kernels::blocks::BlockType;
use luthier_kernels::bytes::SharedBytes;

use super::{Options, job, restore};
use crate::view::{Cast, find};
use crate::writing::{Origin, write_gguf};
use crate::{Input, Result, fit};

/// The tensors of the GGUF file that is made of a model, and where they come from.
pub(super) fn planned(input: &Input, options: &Options) -> Result<(Vec<TensorInfo>, Vec<Origin>)> {
    if let Some(gguf) = opened(input)? {
        let infos =
            gguf.infos().iter().map(|info| TensorInfo { dtype: file_type(info, options), ..info.clone() });
        let infos: Vec<TensorInfo> = infos.collect();
        let origins = infos.iter().map(|info| Origin::From { input: 0, name: info.name.clone() }).collect();
        return Ok((infos, origins));
    }
    let view = View::new(input, luthier_arch::gguf::plan(&input.checkpoint.config)?, options)?;
    let origins = view.origins();
    Ok((view.infos, origins))
}

/// Writes the model to `out`.
pub(super) fn write(input: &Input, out: &Path, options: &Options) -> Result<LedgerSummary> {
    if let Some(gguf) = opened(input)? {
        return rewrite(input, Arc::new(gguf), out, options);
    }
    let form = luthier_arch::gguf::plan(&input.checkpoint.config)?;
    let mut metadata = general(input);
    metadata.extend(form.metadata.iter().filter(|(key, _)| key != "general.architecture").cloned());
    if let Some(architecture) = form.metadata.iter().find(|(key, _)| key == "general.architecture") {
        metadata.insert(0, architecture.clone());
    }
    let layout = fit::checked_layout(&input.checkpoint)?;
    let side_files =
        luthier_checkpoint::gguf::side_file_metadata(&input.checkpoint.side_files, fit::vocab_size(&layout))?;
    metadata.extend(side_files);
    let view = View::new(input, form, options)?;
    metadata.push(("general.file_type".to_string(), GgufValue::U32(file_type_id(&view.infos))));
    metadata.extend(restore::metadata(&view)?);
    let mut job = job(input, options, view.origins());
    job.dropped = view.dropped();
    write_gguf(&view, metadata, out, options.force, job)
}

/// A GGUF file again: its own names, metadata and order, only types change.
fn rewrite(input: &Input, gguf: Arc<Gguf>, out: &Path, options: &Options) -> Result<LedgerSummary> {
    let mut metadata = gguf.metadata.clone();
    metadata.retain(|(key, _)| key != luthier_checkpoint::lineage::LINEAGE_KEY);
    let source: Arc<dyn TensorSource> = gguf;
    let view = Cast::new(Arc::clone(&source), |info| file_type(info, options));
    if view.infos() != source.infos() {
        for (key, value) in &mut metadata {
            if key == "general.file_type" {
                *value = GgufValue::U32(file_type_id(view.infos()));
            }
        }
    }
    let origins =
        view.infos().iter().map(|info| Origin::From { input: 0, name: info.name.clone() }).collect();
    // The ledger speaks of the file's own names here.
    let raw = Input {
        checkpoint: luthier_checkpoint::Checkpoint { tensors: source, ..input.checkpoint.clone() },
        ..input.clone()
    };
    write_gguf(&view, metadata, out, options.force, job(&raw, options, origins))
}

/// The file of a model that is one.
fn opened(input: &Input) -> Result<Option<Gguf>> {
    let place = &input.checkpoint.place;
    if place.is_file() { Ok(Some(Gguf::open(place)?)) } else { Ok(None) }
}

/// `general.*` keys that do not follow from the config.
fn general(input: &Input) -> Vec<(String, GgufValue)> {
    let text = |key: &str, value: &str| (key.to_string(), GgufValue::String(value.to_string()));
    let name = input.label.trim_end_matches('/').rsplit('/').next().unwrap_or(&input.label);
    let mut metadata = vec![
        text("general.type", "model"),
        text("general.name", name),
        ("general.base_model.count".to_string(), GgufValue::U32(1)),
        text("general.base_model.0.name", name),
    ];
    if let Some(repository) = input.label.strip_prefix("hf:") {
        let repository = repository.split('@').next().unwrap_or(repository);
        metadata.push(text("general.base_model.0.repo_url", &format!("https://huggingface.co/{repository}")));
    }
    metadata
}

/// The type of a tensor in a GGUF file: vectors are F32, as llama.cpp wants them.
fn file_type(info: &TensorInfo, options: &Options) -> Dtype {
    match info.dtype {
        Dtype::Weights(_) | Dtype::F64 if info.shape.len() < 2 => Dtype::F32,
        Dtype::F64 => options.dtype.unwrap_or(Dtype::F32),
        Dtype::Weights(_) => options.dtype.unwrap_or(info.dtype),
        other => other,
    }
}

/// `general.file_type` (`enum llama_ftype`) of the type that most values have.
fn file_type_id(infos: &[TensorInfo]) -> u32 {
    let values_of = |block_type: BlockType| -> usize {
        let typed = infos.iter().filter(|info| info.dtype == Dtype::Weights(block_type));
        typed.map(|info| info.shape.iter().product::<usize>()).sum()
    };
    match BlockType::ALL.into_iter().max_by_key(|block_type| values_of(*block_type)) {
        Some(BlockType::F16) => 1,
        Some(BlockType::Q4_0) => 2,
        Some(BlockType::Q4_1) => 3,
        Some(BlockType::Q8_0) => 7,
        Some(BlockType::Q5_0) => 8,
        Some(BlockType::Q5_1) => 9,
        Some(BlockType::Q2K) => 10,
        Some(BlockType::Q3K) => 12,
        Some(BlockType::Q4K) => 15,
        Some(BlockType::Q5K) => 17,
        Some(BlockType::Q6K) => 18,
        Some(BlockType::BF16) => 32,
        Some(BlockType::F32) | None => 0,
    }
}

/// A model under GGUF's names, transformed and cast when it is read.
pub(super) struct View {
    pub(super) source: Arc<dyn TensorSource>,
    pub(super) tensors: Vec<GgufTensor>,
    infos: Vec<TensorInfo>,
}

impl View {
    fn new(input: &Input, form: GgufForm, options: &Options) -> Result<View> {
        let source = Arc::clone(&input.checkpoint.tensors);
        let mut infos = Vec::with_capacity(form.tensors.len());
        for tensor in &form.tensors {
            let dtype = match &tensor.origin {
                GgufOrigin::Tensor { name, .. } => find(source.infos(), name)?.dtype,
                GgufOrigin::Made(_) => Dtype::F32,
            };
            let info = TensorInfo { name: tensor.name.clone(), dtype, shape: tensor.shape.clone() };
            infos.push(TensorInfo { dtype: file_type(&info, options), ..info });
        }
        Ok(View { source, tensors: form.tensors, infos })
    }

    fn origins(&self) -> Vec<Origin> {
        let origin = |tensor: &GgufTensor| match &tensor.origin {
            GgufOrigin::Tensor { name, transform: Transform::Keep } => {
                Origin::From { input: 0, name: name.clone() }
            }
            GgufOrigin::Tensor { name, transform } => {
                let how = match transform {
                    Transform::Interleave { .. } => "rows of heads in GGUF's order",
                    _ => "1 added, as GGUF stores these norms",
                };
                Origin::Changed { input: 0, name: name.clone(), how: how.to_string() }
            }
            GgufOrigin::Made(_) => Origin::Made("from the config".to_string()),
        };
        self.tensors.iter().map(origin).collect()
    }

    /// Tensors of the model that the file does not carry.
    fn dropped(&self) -> Vec<(usize, String, String)> {
        let carried = |wanted: &str| {
            self.tensors
                .iter()
                .any(|tensor| matches!(&tensor.origin, GgufOrigin::Tensor { name, .. } if name == wanted))
        };
        let infos = self.source.infos().iter().filter(|info| !carried(&info.name));
        infos
            .map(|info| {
                (0, info.name.clone(), "repeats a tied weight, or follows from the config".to_string())
            })
            .collect()
    }
}

impl TensorSource for View {
    fn infos(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn read(&self, name: &str) -> luthier_checkpoint::Result<SharedBytes> {
        let position = self.infos.iter().position(|info| info.name == name);
        let position = position.ok_or_else(|| Error::tensor(name, "is not part of this GGUF file"))?;
        let (source_name, transform) = match &self.tensors[position].origin {
            GgufOrigin::Made(made) => {
                return Ok(SharedBytes::from_vec(
                    made.iter().flat_map(|value| value.to_le_bytes()).collect(),
                ));
            }
            GgufOrigin::Tensor { name, transform } => (name, transform),
        };
        let info = find(self.source.infos(), source_name)?;
        let bytes = self.source.read(source_name)?;
        values::check_finite(source_name, info.dtype, &bytes)?;
        let transformed = transform.apply(info, bytes);
        let (dtype, bytes) =
            transformed.map_err(|problem| Error::tensor(source_name, problem.to_string()))?;
        let wanted = self.infos[position].dtype;
        if dtype == wanted {
            Ok(bytes)
        } else {
            Ok(SharedBytes::from_vec(values::cast(name, dtype, &bytes, wanted)?))
        }
    }
}
