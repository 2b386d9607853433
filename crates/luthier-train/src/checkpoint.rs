//! Checkpoints of a run: `checkpoint-<step>/` with the model (f32 masters) or adapter, the optimizer and the state.
//!
//! model.safetensors and config.json make it a MODEL, an adapter's files one of PEFT's; optimizer.safetensors holds the moments, trainer_state.json the
//! position, the random numbers' seed and the log.

use std::fs;
use std::path::Path;

use luthier_checkpoint::SideFile;
use luthier_checkpoint::json::to_text;
use serde::{Deserialize, Serialize};

use crate::metrics::Entry;
use crate::model_folder::{self, F32File, Files};
use crate::parameters;
use crate::recipe::Precision;
use crate::trainer::{Position, Trainer};
use crate::{Error, Result};

pub(crate) const STATE: &str = "trainer_state.json";
pub(crate) const OPTIMIZER: &str = "optimizer.safetensors";

/// trainer_state.json.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct State {
    /// As Hugging Face's trainer names it: steps done.
    pub(crate) global_step: u64,
    pub(crate) epoch: f64,
    pub(crate) max_steps: u64,
    pub(crate) position: Position,
    /// Random numbers are functions of this and of `position`.
    pub(crate) seed: u64,
    /// Before the first step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) initial_validation_loss_nats: Option<f64>,
    pub(crate) log_history: Vec<Entry>,
}

impl State {
    pub(crate) fn of(
        trainer: &Trainer,
        seed: u64,
        max_steps: u64,
        initial: Option<f64>,
        log: &[Entry],
    ) -> State {
        State {
            global_step: trainer.position().step,
            epoch: trainer.epochs(),
            max_steps,
            position: trainer.position(),
            seed,
            initial_validation_loss_nats: initial,
            log_history: log.to_vec(),
        }
    }

    pub(crate) fn read(path: &Path) -> Result<State> {
        let bytes = fs::read(path).map_err(Error::io(path))?;
        serde_json::from_slice(&bytes).map_err(|error| Error::Format {
            path: path.to_path_buf(),
            what: format!(
                "{error}; the checkpoint is damaged, remove its folder to go on from the one before"
            ),
        })
    }
}

/// Fills the folder of a checkpoint.
pub(crate) fn write(
    folder: &Path,
    trainer: &mut Trainer,
    state: &State,
    side_files: &[SideFile],
) -> Result<()> {
    let put = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        fs::write(&path, bytes).map_err(Error::io(&path))
    };
    for file in side_files {
        put(&file.name, &file.bytes)?;
    }
    let files = Files::of(trainer, Precision::F32);
    put(files.config_name, to_text(&files.config).as_bytes())?;
    trainer.with_masters(|trainer| {
        model_folder::write_weights(&folder.join(files.weights_name), trainer, Precision::F32)
    })?;
    let optimizer = trainer.optimizer();
    model_folder::write_moments(&folder.join(OPTIMIZER), &optimizer.state(), optimizer.steps())?;
    put(STATE, to_text(state).as_bytes())
}

/// Puts the trainer where the checkpoint in `folder` was.
pub(crate) fn read(folder: &Path, trainer: &mut Trainer) -> Result<State> {
    let state = State::read(&folder.join(STATE))?;
    let weights = F32File::open(&folder.join(Files::of(trainer, Precision::F32).weights_name))?;
    let moments = F32File::open(&folder.join(OPTIMIZER))?;
    let steps = moments.steps()?.unwrap_or(state.global_step);
    trainer.restore(
        state.position,
        steps,
        |all| {
            for weight in all {
                // A matrix left in its file's blocks was never trained: it is as it was opened.
                if matches!(weight.values(), luthier_ops::weight::Values::Dense(_)) {
                    let mut taken = Ok(());
                    parameters::edit_values(weight, |values| taken = weights.read(weight.name(), values))?;
                    taken?;
                }
            }
            Ok(())
        },
        |name, values| moments.read(name, values),
    )?;
    Ok(state)
}
