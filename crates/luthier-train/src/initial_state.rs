//! The optimizer's state that a run begins with: the moments of another run's checkpoint, as they are or as `grow` made them.
//!
//! AdamW's correction of young moments counts the steps that they have seen, so that the run's first step is one more.

use std::path::{Path, PathBuf};

use crate::checkpoint::{self, OPTIMIZER};
use crate::model_folder::F32File;
use crate::recipe::{InitialState, ModelSource, Recipe};
use crate::trainer::Trainer;
use crate::{Error, Result};

const KEY: &str = "optimizer.initial_state";

/// The file that the recipe names; none where it names none. Refuses a place without one.
pub fn file(recipe: &Recipe) -> Result<Option<PathBuf>> {
    let file = match (&recipe.optimizer.initial_state, &recipe.model) {
        (None | Some(InitialState::Beside(false)), _) => return Ok(None),
        (Some(InitialState::Beside(true)), ModelSource::Random(_)) => {
            return Err(Error::recipe(
                KEY,
                "true, but random weights have no state; name a checkpoint's folder",
            ));
        }
        (Some(InitialState::Beside(true)), ModelSource::Place(place)) => Path::new(place).join(OPTIMIZER),
        (Some(InitialState::Place(place)), _) if place.is_dir() => place.join(OPTIMIZER),
        (Some(InitialState::Place(place)), _) => place.clone(),
    };
    if file.is_file() {
        return Ok(Some(file));
    }
    let what = format!("no file {}; wanted the folder of a checkpoint that holds one", file.display());
    Err(Error::recipe(KEY, what))
}

/// Fills the optimizer of a run at its beginning.
pub(crate) fn load(recipe: &Recipe, trainer: &mut Trainer) -> Result<()> {
    let Some(file) = file(recipe)? else { return Ok(()) };
    let moments = F32File::open(&file)?;
    let steps = match moments.steps()? {
        Some(steps) => steps,
        // A checkpoint from before the file itself said it.
        None => {
            checkpoint::State::read(&file.with_file_name(checkpoint::STATE))
                .map_err(|problem| {
                    Error::recipe(KEY, format!("how many steps {} has seen: {problem}", file.display()))
                })?
                .global_step
        }
    };
    trainer.begin_with(steps, |name, values| {
        moments.read(name, values).map_err(|problem| {
            Error::recipe(
                KEY,
                format!("{problem}; these are the moments of another model, or of other trained weights"),
            )
        })
    })
}
