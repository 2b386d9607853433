//! The optimizer's state of a training run's checkpoint, grown by the same map as the weights.
//!
//! A moment of a copied weight is its parent's. A weight that stands n times, each scaled by f, gets 1 / (n f) of the first
//! moment, as its gradient does, and the square of that of the second. New weights, and copies that nothing can be learnt
//! through yet, begin at 0.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use luthier_checkpoint::safetensors::{SafetensorsFile, SafetensorsWriter};
use luthier_checkpoint::{Dtype, TensorInfo, TensorSink, TensorSource, values};
use serde_json::Value;

use super::piece::{Fill, Form, Piece, place};
use crate::{Error, Result};

/// The file of moments in the folder of a checkpoint.
pub(super) const OPTIMIZER: &str = "optimizer.safetensors";
/// The checkpoint's own account of itself, and its key for the steps done.
const STATE: (&str, &str) = ("trainer_state.json", "global_step");
/// The metadata key of the steps that the moments have seen.
const STEPS: &str = "steps";
/// Ends of names and the power of a gradient that such a moment is made of: AdamW's.
const KINDS: [(&str, i32); 2] = [(".exp_avg", 1), (".exp_avg_sq", 2)];

/// The moments of a model that was in training.
pub(super) struct Moments {
    path: PathBuf,
    file: SafetensorsFile,
    /// Steps that they have seen.
    steps: u64,
}

impl Moments {
    /// Those beside a model; none where there are none.
    pub(super) fn beside(place: &Path) -> Result<Option<Moments>> {
        let path = place.join(OPTIMIZER);
        if !path.is_file() {
            return Ok(None);
        }
        let file = SafetensorsFile::open(&path)?;
        for info in file.infos() {
            if kind(&info.name).is_none() || info.dtype != Dtype::F32 {
                let what = format!(
                    "{}: {} of {} is no moment that can be grown; wanted AdamW's exp_avg and exp_avg_sq in F32, or the \
                     file moved away",
                    path.display(),
                    info.name,
                    info.dtype
                );
                return Err(Error::Use(what));
            }
        }
        let steps = steps(&path, &file)?;
        Ok(Some(Moments { path, file, steps }))
    }

    /// Bytes of the largest vector.
    pub(super) fn largest_bytes(&self) -> usize {
        let sizes = self.file.infos().iter().filter_map(|info| info.dtype.size_bytes(&info.shape));
        sizes.max().unwrap_or(0)
    }

    /// Writes those of the grown weights into `folder`. `pieces`: each weight once, tied ones under their first name, with
    /// the shape of its source.
    pub(super) fn write(&self, folder: &Path, pieces: &[(&Piece, Vec<usize>)]) -> Result<usize> {
        let by_name: BTreeMap<&str, &TensorInfo> =
            self.file.infos().iter().map(|info| (info.name.as_str(), info)).collect();
        let mut infos = Vec::new();
        let mut made = Vec::new();
        for (piece, shape) in pieces {
            for (end, power) in KINDS {
                let Some(info) = by_name.get(format!("{}{end}", piece.source).as_str()) else { continue };
                let (wanted, came) = (shape.iter().product::<usize>(), info.shape.iter().product::<usize>());
                if wanted != came {
                    let what = format!(
                        "{}: {} has {came} values, the model's tensor {wanted}; these are the moments of another model",
                        self.path.display(),
                        info.name
                    );
                    return Err(Error::Use(what));
                }
                let name = format!("{}{end}", piece.spec.name);
                infos.push(TensorInfo {
                    name: name.clone(),
                    dtype: Dtype::F32,
                    shape: vec![piece.spec.shape.iter().product()],
                });
                made.push((name, info.name.clone(), *piece, shape, power));
            }
        }
        let mut metadata = SafetensorsWriter::pt_metadata();
        metadata.push((STEPS.to_string(), self.steps.to_string()));
        let mut writer = SafetensorsWriter::create_file(&folder.join(OPTIMIZER), &infos, &metadata)?;
        for (name, source, piece, shape, power) in made {
            let bytes = self.file.read(&source)?;
            values::check_finite(&source, Dtype::F32, &bytes)?;
            writer.write(&name, &grown(piece, shape, &bytes, power))?;
        }
        writer.finish()?;
        Ok(infos.len())
    }
}

fn kind(name: &str) -> Option<i32> {
    KINDS.iter().find(|(end, _)| name.ends_with(end)).map(|(_, power)| *power)
}

/// From the file's metadata, or from the checkpoint's account of itself.
fn steps(path: &Path, file: &SafetensorsFile) -> Result<u64> {
    let said = file.metadata().iter().find(|(key, _)| key == STEPS).and_then(|(_, steps)| steps.parse().ok());
    if let Some(steps) = said {
        return Ok(steps);
    }
    let state = path.with_file_name(STATE.0);
    let found = std::fs::read(&state).ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
    found.as_ref().and_then(|state| state.get(STATE.1)).and_then(Value::as_u64).ok_or_else(|| {
        Error::Use(format!(
            "{}: wanted {} beside it, whose {} says how many steps these moments have seen",
            path.display(),
            STATE.0,
            STATE.1
        ))
    })
}

/// The moments of one tensor, F32.
fn grown(piece: &Piece, shape: &[usize], bytes: &[u8], power: i32) -> Vec<u8> {
    let n_values: usize = piece.spec.shape.iter().product();
    match &piece.form {
        Form::Copied { is_learnt: true } => bytes.to_vec(),
        Form::Copied { is_learnt: false } | Form::Silent | Form::Neutral | Form::Fresh => {
            vec![0; n_values * 4]
        }
        Form::Wider(wider) => {
            let mut placed = place(bytes, 4, shape, &wider.times, wider.fill == Fill::Copies);
            let factor = wider.gradient_factor().powi(power);
            for value in placed.chunks_exact_mut(4) {
                let number = f32::from_le_bytes([value[0], value[1], value[2], value[3]]);
                value.copy_from_slice(&((f64::from(number) * factor) as f32).to_le_bytes());
            }
            placed
        }
    }
}
