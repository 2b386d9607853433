//! The files that a run reads, where they lie beside what it writes.

use std::path::PathBuf;

use crate::initial_state;
use crate::recipe::{ModelSource, Recipe};
use crate::{Error, Result};

/// An `out` that is or holds one of its own inputs would be replaced under the reader.
pub(crate) fn refuse_inside(recipe: &Recipe) -> Result<()> {
    let Ok(out) = recipe.out.canonicalize() else { return Ok(()) };
    let model: Vec<(&str, PathBuf)> = match &recipe.model {
        ModelSource::Place(place) => vec![("model", place.into())],
        ModelSource::Random(random) => {
            vec![("model.config", random.config.clone()), ("model.tokenizer", (&random.tokenizer).into())]
        }
    };
    let teacher = recipe.teacher.iter().map(|place| ("teacher", PathBuf::from(place)));
    let state = initial_state::file(recipe)?.map(|file| ("optimizer.initial_state", file));
    let adapter = recipe.adapter.iter().filter_map(|adapter| adapter.initial.clone());
    let adapter = adapter.map(|place| ("adapter.initial", place));
    let texts = recipe.data.train.iter().map(|source| ("data.train", source.path().to_path_buf()));
    let validation =
        recipe.data.validation.iter().map(|source| ("data.validation", source.path().to_path_buf()));
    for (key, path) in
        model.into_iter().chain(teacher).chain(adapter).chain(state).chain(texts).chain(validation)
    {
        if path.canonicalize().is_ok_and(|path| path.starts_with(&out)) {
            let what =
                format!("{} lies in out, {}; choose another out", path.display(), recipe.out.display());
            return Err(Error::recipe(key, what));
        }
    }
    Ok(())
}
