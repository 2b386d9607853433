//! Whether the files that the steps of a chain name are there, or will be made by an earlier step.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use luthier_train::Recipe;
use serde_json::Value;

use crate::recipe::{self, Kind};
use crate::verbs::{Act, logits, pretrain};
use crate::{builtin, places};

/// Keys under which verbs name models and files that they read.
const INPUTS: &[&str] =
    &["a", "b", "decoder", "dirs", "encoder", "from", "input", "model", "onto", "recipe", "text", "tuned"];

/// Refuses the first name behind which nothing is and that no step before it makes. Training recipes are read whole,
/// so that a misspelt key in the last step is found before the first one runs.
pub(super) fn check(steps: &[(String, Value)]) -> anyhow::Result<()> {
    let mut made: Vec<PathBuf> = Vec::new();
    for (index, (verb, keys)) in steps.iter().enumerate() {
        check_step(verb, keys, &mut made).with_context(|| format!("step {} ({verb})", index + 1))?;
    }
    Ok(())
}

/// Adds what the step makes to `made`.
fn check_step(verb: &str, keys: &Value, made: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    let named = keys.as_object().into_iter().flatten();
    for (key, value) in named.filter(|(key, _)| INPUTS.contains(&key.as_str())) {
        // `logits` takes the text itself.
        if !(verb == logits::Logits::NAME && key == "text") {
            strings(value).try_for_each(|name| check_name(key, name, made))?;
        }
    }
    made.extend(keys.get("out").and_then(Value::as_str).map(PathBuf::from));
    let training = keys.get("recipe").and_then(Value::as_str).map(Path::new);
    if let Some(path) = training.filter(|path| verb == pretrain::Pretrain::NAME && path.exists()) {
        let _: Recipe = recipe::from_file(path, Kind::Training)?;
        let keys: Value = recipe::from_file(path, Kind::Training)?;
        let data = |key: &str| keys.pointer(&format!("/data/{key}")).cloned().unwrap_or_default();
        for key in ["train", "validation"] {
            strings(&data(key))
                .filter(|name| builtin::text(Path::new(name)).is_none())
                .try_for_each(|name| check_name(&format!("data.{key}"), name, made))?;
        }
        if let Some(model) = keys["model"].as_str() {
            check_name("model", model, made)?;
        }
        made.extend(keys["out"].as_str().map(PathBuf::from));
    }
    Ok(())
}

/// A text, or the texts of a list.
fn strings(value: &Value) -> impl Iterator<Item = &str> {
    let list = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
    list.iter().filter_map(Value::as_str)
}

fn check_name(key: &str, name: &str, made: &[PathBuf]) -> anyhow::Result<()> {
    let path = Path::new(name);
    let will_be = made.iter().any(|out| path.starts_with(out));
    if name == builtin::NAME || places::is_hub_name(name) || path.exists() || will_be {
        return Ok(());
    }
    bail!("key {key}: {name}: no such file or folder, and no earlier step makes it")
}
