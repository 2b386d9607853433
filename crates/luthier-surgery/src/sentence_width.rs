//! What sentence-transformers' files beside a model say of its width, where surgery changes that.

use luthier_arch::sizes::ModelSizes;
use luthier_checkpoint::sentence::MODULES;
use luthier_checkpoint::{Checkpoint, SideFile};
use serde_json::{Value, json};

use crate::{Error, Result};

/// The pooling's key for the width of the states.
const WIDTH: &str = "word_embedding_dimension";

/// The small files of a model whose states become as wide as `new` says. Refuses linear steps behind the pooling, which
/// read states of the old width.
pub(crate) fn side_files(
    checkpoint: &Checkpoint,
    old: &ModelSizes,
    new: &ModelSizes,
) -> Result<Vec<SideFile>> {
    let mut files = checkpoint.side_files.clone();
    // What is embedded are the states of the first stack: an encoder's where there is one.
    let width = |sizes: &ModelSizes| sizes.stacks.first().map_or(0, |stack| stack.width);
    let (old, new) = (width(old), width(new));
    let parsed = |file: &SideFile| serde_json::from_slice::<Value>(&file.bytes).ok();
    let Some(list) = files.iter().find(|file| file.name == MODULES).and_then(parsed).filter(|_| old != new)
    else {
        return Ok(files);
    };
    for module in list.as_array().into_iter().flatten() {
        let text = |key: &str| module.get(key).and_then(Value::as_str).unwrap_or_default();
        let place = format!("{}/config.json", text("path"));
        match text("type").rsplit('.').next().unwrap_or_default() {
            "Dense" => {
                return Err(Error::Use(format!(
                    "{MODULES}: the module at {} reads {old} values, and states of width {new} would not fit it; wanted a model \
                     without one, or another width left as it is",
                    text("path")
                )));
            }
            "Pooling" => {
                let Some(file) = files.iter_mut().find(|file| file.name == place) else { continue };
                if let Some(mut config) = parsed(file)
                    && config.get(WIDTH).is_some()
                {
                    config[WIDTH] = json!(new);
                    file.bytes = luthier_checkpoint::json::to_text(&config).into_bytes();
                }
            }
            _ => {}
        }
    }
    Ok(files)
}
