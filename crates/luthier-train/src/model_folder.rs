//! The files of a run that hold what is trained, in a checkpoint or finished: weights and config of a model or of an adapter.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use luthier_arch::model::Model;
use luthier_checkpoint::adapter;
use luthier_checkpoint::safetensors::{SafetensorsFile, SafetensorsWriter};
use luthier_checkpoint::{Dtype, Ledger, LedgerSummary, TensorInfo, TensorSink, TensorSource};
use luthier_kernels::blocks::BlockType;
use luthier_ops::{Device, Weight};
use serde_json::{Map, Value};

use crate::parameters;
use crate::recipe::Precision;
use crate::trainer::Trainer;
use crate::{Error, Result};

/// Their names, and what the config says.
pub(crate) struct Files {
    pub(crate) config_name: &'static str,
    pub(crate) config: Map<String, Value>,
    pub(crate) weights_name: &'static str,
}

impl Files {
    /// A model's, or an adapter's.
    pub(crate) fn of(trainer: &Trainer, precision: Precision) -> Files {
        match trainer.adapter() {
            Some(adapter) => Files {
                config_name: adapter::CONFIG_NAME,
                config: adapter.config(),
                weights_name: adapter::WEIGHTS_NAME,
            },
            None => Files {
                config_name: "config.json",
                config: config_with_dtype(trainer.model(), precision),
                weights_name: "model.safetensors",
            },
        }
    }
}

/// Writes all weights of a model or adapter under their names, f32 or rounded to bf16; a tied one again under each name that
/// other programs look for. One tensor's bytes are in memory at a time.
pub(crate) fn write_weights(path: &Path, trainer: &Trainer, precision: Precision) -> Result<()> {
    let named = named_weights(trainer)?;
    let infos: Vec<TensorInfo> =
        named.iter().map(|(name, weight)| info(name, weight.shape(), precision)).collect();
    let mut writer = SafetensorsWriter::create_file(path, &infos, &SafetensorsWriter::pt_metadata())?;
    for (name, weight) in named {
        with_values(weight, |values| writer.write(&name, &bytes(values, precision)))??;
    }
    Ok(writer.finish()?)
}

/// The metadata key of the steps that moments have seen.
const STEPS: &str = "steps";

/// Writes an optimizer's named f32 vectors, which have seen so many steps.
pub(crate) fn write_moments(path: &Path, vectors: &[(String, &[f32])], steps: u64) -> Result<()> {
    let infos: Vec<TensorInfo> =
        vectors.iter().map(|(name, values)| info(name, &[values.len()], Precision::F32)).collect();
    let mut metadata = SafetensorsWriter::pt_metadata();
    metadata.push((STEPS.to_string(), steps.to_string()));
    let mut writer = SafetensorsWriter::create_file(path, &infos, &metadata)?;
    for (name, values) in vectors {
        writer.write(name, &bytes(values, Precision::F32))?;
    }
    Ok(writer.finish()?)
}

/// What becomes of the tensors of a model that is trained: each is changed; a second copy of a tied one goes into it. Those of
/// a model beside an adapter stay where they are.
pub(crate) fn ledger(
    trainer: &Trainer,
    place: &str,
    tensors: Option<&dyn TensorSource>,
) -> Result<LedgerSummary> {
    const HOW: &str = "trained";
    let named = named_weights(trainer)?;
    let infos: Vec<TensorInfo> =
        named.iter().map(|(name, weight)| info(name, weight.shape(), Precision::F32)).collect();
    if let Some(adapter) = trainer.adapter() {
        return adapter.ledger(tensors, &infos);
    }
    let model = trainer.model();
    let mut ledger = Ledger::new();
    let Some(tensors) = tensors else {
        named.iter().try_for_each(|(name, _)| ledger.made(name, "drawn at random and trained"))?;
        return Ok(ledger.finish(&infos)?);
    };
    let input = ledger.input(&crate::identity::place_name(place), tensors);
    let has = |name: &str| tensors.infos().iter().any(|info| info.name == name);
    let layout = luthier_arch::layout(model.config())?;
    for (name, weight) in &named {
        let ties = layout.ties.iter().filter(|tie| tie.target == weight.name()).map(|tie| tie.name.as_str());
        let sources: Vec<_> = [weight.name()]
            .into_iter()
            .chain(ties)
            .filter(|source| has(source))
            .map(|source| (input, source))
            .collect();
        ledger.changed(&sources, name, HOW)?;
    }
    let known = |name: &str| {
        layout.tensors.iter().any(|spec| spec.name == name) || layout.ties.iter().any(|tie| tie.name == name)
    };
    for info in tensors.infos().iter().filter(|info| !known(&info.name)) {
        ledger.dropped(input, &info.name, "no weight of this model: it is computed from the config")?;
    }
    Ok(ledger.finish(&infos)?)
}

/// The f32 tensors of a file that a checkpoint wrote.
pub(crate) struct F32File {
    path: PathBuf,
    file: SafetensorsFile,
}

impl F32File {
    pub(crate) fn open(path: &Path) -> Result<F32File> {
        Ok(F32File { path: path.to_path_buf(), file: SafetensorsFile::open(path)? })
    }

    /// Steps that moments have seen; none where an older file does not say.
    pub(crate) fn steps(&self) -> Result<Option<u64>> {
        let Some((_, steps)) = self.file.metadata().iter().find(|(key, _)| key == STEPS) else {
            return Ok(None);
        };
        let wrong = |_| Error::Format {
            path: self.path.clone(),
            what: format!("metadata key {STEPS}: wanted a number, found {steps:?}"),
        };
        steps.parse().map(Some).map_err(wrong)
    }

    /// Copies one tensor into `values`.
    pub(crate) fn read(&self, name: &str, values: &mut [f32]) -> Result<()> {
        let format = |what: String| Error::Format { path: self.path.clone(), what };
        let stored = self.file.infos().iter().find(|info| info.name == name);
        let stored =
            stored.ok_or_else(|| format(format!("tensor {name} is missing; the checkpoint is damaged")))?;
        let n_values: usize = stored.shape.iter().product();
        if stored.dtype != Dtype::Weights(BlockType::F32) || n_values != values.len() {
            let what = format!(
                "tensor {name}: wanted {} F32 values, has {n_values} {}",
                values.len(),
                stored.dtype.name()
            );
            return Err(format(what));
        }
        for (value, bytes) in values.iter_mut().zip(self.file.read(name)?.chunks_exact(4)) {
            *value = f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        Ok(())
    }
}

/// The model's config with the dtype that its weights are written in.
fn config_with_dtype(model: &dyn Model, precision: Precision) -> Map<String, Value> {
    let mut config = model.config().clone();
    let name = match precision {
        Precision::F32 => "float32",
        Precision::Bf16 => "bfloat16",
    };
    // Old folders say torch_dtype, new ones dtype.
    let key = if config.contains_key("torch_dtype") { "torch_dtype" } else { "dtype" };
    config.insert(key.to_string(), Value::from(name));
    config
}

/// The weights by the names that files carry them under.
fn named_weights(trainer: &Trainer) -> Result<Vec<(String, &Weight)>> {
    let weights = trainer.kept();
    let mut named: Vec<(String, &Weight)> =
        weights.iter().map(|weight| (weight.name().to_string(), weight)).collect();
    if trainer.adapter().is_some() {
        return Ok(named);
    }
    let layout = luthier_arch::layout(trainer.model().config())?;
    for tie in layout.ties.iter().filter(|tie| tie.written) {
        let target = weights.iter().find(|weight| weight.name() == tie.target);
        named.extend(target.map(|weight| (tie.name.clone(), weight)));
    }
    Ok(named)
}

fn info(name: &str, shape: &[usize], precision: Precision) -> TensorInfo {
    let block_type = match precision {
        Precision::F32 => BlockType::F32,
        Precision::Bf16 => BlockType::BF16,
    };
    TensorInfo { name: name.to_string(), dtype: Dtype::Weights(block_type), shape: shape.to_vec() }
}

fn with_values<T>(weight: &Weight, look: impl FnOnce(&[f32]) -> T) -> Result<T> {
    match weight.values() {
        luthier_ops::weight::Values::Dense(values) if values.device().is_cpu() => {
            parameters::view_values(weight, look)
        }
        _ => Ok(look(&weight.to_tensor(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?)),
    }
}

#[cfg(target_endian = "big")]
compile_error!("safetensors is little-endian, and values are written as they lie in memory");

fn bytes(values: &[f32], precision: Precision) -> Cow<'_, [u8]> {
    match precision {
        Precision::F32 => bytemuck::cast_slice(values).into(),
        // Trained weights are bf16 values already; frozen matrices from blocks are rounded here.
        Precision::Bf16 => values
            .iter()
            .flat_map(|value| ((crate::masters::rounded(*value).to_bits() >> 16) as u16).to_le_bytes())
            .collect::<Vec<u8>>()
            .into(),
    }
}
