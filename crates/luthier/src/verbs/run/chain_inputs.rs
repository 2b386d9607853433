//! Whether the files that the steps of a chain name are there, or will be made by an earlier step.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use luthier_train::Recipe;
use serde_json::Value;

use crate::recipe::{self, Kind};
use crate::verbs::{Act, logits, pretrain};
use crate::{builtin, places};

/// Keys under which verbs name models and files that they read.
const INPUTS: &[&str] = &[
    "a", "adapter", "b", "base", "corpus", "decoder", "dirs", "encoder", "from", "held", "imatrix", "input",
    "model", "onto", "recipe", "scores", "table", "text", "tuned",
];

/// Those of them that are models.
const MODELS: &[&str] = &["a", "b", "base", "decoder", "encoder", "from", "model", "onto", "tuned"];

/// Refuses the first name behind which nothing is and that no step before it makes. Training recipes are read whole,
/// so that a misspelt key in the last step is found before the first one runs.
///
/// Models that are there already are opened, and outputs compared with what stands in their place; `is_known` tells a step
/// whose output an earlier run of the chain at `chain_out` made.
pub(super) fn check(
    steps: &[(String, Value)],
    chain_out: &Path,
    is_known: &dyn Fn(usize, &str) -> bool,
) -> anyhow::Result<()> {
    let mut made: Vec<PathBuf> = Vec::new();
    for (index, (verb, keys)) in steps.iter().enumerate() {
        let mut checked = check_out(
            keys,
            chain_out,
            is_known(index, verb)
                || [pretrain::Pretrain::NAME, logits::Logits::NAME].contains(&verb.as_str()),
        );
        checked = checked.and_then(|()| check_step(verb, keys, &mut made));
        checked.with_context(|| format!("step {} ({verb})", index + 1))?;
    }
    Ok(())
}

/// Refuses an output that is one of the step's inputs, the chain's own folder, or there already.
fn check_out(keys: &Value, chain_out: &Path, may_exist: bool) -> anyhow::Result<()> {
    let Some(out) = keys.get("out").and_then(Value::as_str) else { return Ok(()) };
    let forced = keys.get("force") == Some(&Value::Bool(true));
    let same =
        |a: &Path, b: &Path| a == b || a.canonicalize().is_ok_and(|a| b.canonicalize().is_ok_and(|b| a == b));
    let out_path = Path::new(out);
    if same(out_path, chain_out) {
        bail!("key out: {out} is the chain's own folder; choose a place in it");
    }
    let named = keys.as_object().into_iter().flatten().filter(|(key, _)| INPUTS.contains(&key.as_str()));
    for (key, value) in named {
        if let Some(input) = strings(value).find(|input| same(out_path, Path::new(input))) {
            bail!("key out: {out} is the step's own {key}, {input}; choose another place");
        }
    }
    if out_path.exists() && !forced && !may_exist {
        bail!("key out: {out} is there already; choose another place, or give force: true");
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
    if name == builtin::NAME || places::is_hub_name(name) || will_be {
        return Ok(());
    }
    if path.exists() {
        let is_recipe = path.extension().is_some_and(|ending| ending == "yaml" || ending == "yml");
        let is_model = MODELS.contains(&key) && !is_recipe && !places::is_adapter(name)?;
        return if is_model { places::open(name).map(drop) } else { Ok(()) };
    }
    bail!("key {key}: {name}: no such file or folder, and no earlier step makes it")
}
