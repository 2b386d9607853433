//! What makes a run this run: the resolved recipe with its texts by name and hash instead of place.
//!
//! It is stored in the run's folder and its lineage. Places that a person may move (`out`, folders of texts) and what
//! changes no number (how often checkpoints are written, how many are kept) are not part of it.

use std::path::Path;

use luthier_checkpoint::lineage::sha256_of_bytes;
use luthier_text::corpus::Source;
use serde_json::{Map, Value, json};

use crate::recipe::{InitialState, ModelSource, Recipe};
use crate::{Error, Result};

/// A text with the source that the recipe gives it.
pub struct NamedText<'a> {
    /// As the recipe has it.
    pub source: &'a Source,
    /// Its content.
    pub text: &'a str,
}

/// The identity of a run of a resolved recipe with this many threads.
pub fn identity(
    recipe: &Recipe,
    train: &[NamedText],
    validation: &[NamedText],
    threads: usize,
) -> Map<String, Value> {
    let value = serde_json::to_value(recipe).expect("a recipe is plain data");
    let Value::Object(mut map) = value else { unreachable!("a recipe is a struct") };
    for key in ["out", "checkpoint_every_steps", "keep_checkpoints", "memory"] {
        map.shift_remove(key);
    }
    // At the end also where the recipe says it, so that both give the same record.
    map.shift_remove("threads");
    map.insert("threads".into(), json!(threads));
    map.insert("model".into(), model_identity(&recipe.model));
    if let Some(teacher) = &recipe.teacher {
        map.insert("teacher".into(), json!(place_name(teacher)));
    }
    if let Some(InitialState::Place(place)) = &recipe.optimizer.initial_state {
        map["optimizer"]["initial_state"] = json!(place_name(&place.to_string_lossy()));
    }
    if let Some(place) = recipe.adapter.as_ref().and_then(|adapter| adapter.initial.as_ref()) {
        map["adapter"]["initial"] = json!(place_name(&place.to_string_lossy()));
    }
    let data = map.get_mut("data").and_then(Value::as_object_mut).expect("a recipe has data");
    data.insert("train".into(), texts_identity(train));
    if !validation.is_empty() {
        data.insert("validation".into(), texts_identity(validation));
    }
    map
}

/// An error that names the first key in which two identities differ; nothing where they agree.
pub fn compare(out: &Path, before: &Map<String, Value>, now: &Map<String, Value>) -> Result<()> {
    let (before, now) = (flat(before), flat(now));
    let keys = before.iter().chain(&now).map(|(key, _)| key);
    for key in keys {
        let find = |side: &[(String, Value)]| {
            side.iter().find(|(other, _)| other == key).map(|(_, value)| value.clone())
        };
        let (was, is) = (find(&before), find(&now));
        if was != is {
            let say = |value: Option<Value>| value.map_or("left out".to_string(), |value| value.to_string());
            let (before, now) = (say(was), say(is));
            return Err(Error::OtherRecipe { out: out.to_path_buf(), key: key.clone(), before, now });
        }
    }
    Ok(())
}

/// A relative path, a hub name or `builtin` as it stands; of an absolute path its last part.
pub fn place_name(place: &str) -> String {
    let path = Path::new(place);
    match path.file_name() {
        Some(name) if path.is_absolute() => name.to_string_lossy().into_owned(),
        _ => place.to_string(),
    }
}

fn model_identity(model: &ModelSource) -> Value {
    match model {
        ModelSource::Place(place) => json!(place_name(place)),
        ModelSource::Random(random) => json!({
            "config": place_name(&random.config.to_string_lossy()),
            "tokenizer": place_name(&random.tokenizer),
        }),
    }
}

fn texts_identity(texts: &[NamedText]) -> Value {
    let identity = |text: &NamedText| {
        let name = place_name(&text.source.path().to_string_lossy());
        let mut identity = json!({"name": name, "sha256": sha256_of_bytes(text.text.as_bytes())});
        if let Source::Column(column) = text.source {
            identity["column"] = json!(column.column);
            identity["header"] = json!(column.header);
            identity["join"] = json!(column.join);
        }
        identity
    };
    texts.iter().map(identity).collect()
}

/// Dotted keys of the leaves; arrays are leaves but for those of objects.
fn flat(map: &Map<String, Value>) -> Vec<(String, Value)> {
    fn walk(prefix: &str, value: &Value, into: &mut Vec<(String, Value)>) {
        let join = |key: &str| if prefix.is_empty() { key.to_string() } else { format!("{prefix}.{key}") };
        match value {
            Value::Object(map) => map.iter().for_each(|(key, value)| walk(&join(key), value, into)),
            Value::Array(items) if items.iter().any(Value::is_object) => {
                items.iter().enumerate().for_each(|(idx, item)| walk(&join(&idx.to_string()), item, into));
            }
            leaf => into.push((prefix.to_string(), leaf.clone())),
        }
    }
    let mut leaves = Vec::new();
    map.iter().for_each(|(key, value)| walk(key, value, &mut leaves));
    leaves
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn the_first_key_that_differs_is_named() {
        let before =
            map(json!({"seed": 1, "schedule": {"name": "wsd", "decay_steps": 4}, "betas": [0.9, 0.95]}));
        let mut now = before.clone();
        assert!(compare(Path::new("o"), &before, &now).is_ok());
        now["schedule"]["decay_steps"] = json!(5);
        let error = compare(Path::new("o"), &before, &now).unwrap_err().to_string();
        assert!(error.contains("schedule.decay_steps is 5") && error.contains("started with 4"), "{error}");
        let now = map(json!({"seed": 1, "schedule": {"name": "wsd", "decay_steps": 4}}));
        let error = compare(Path::new("o"), &before, &now).unwrap_err().to_string();
        assert!(error.contains("betas is left out"), "{error}");
    }

    #[test]
    fn absolute_places_leave_only_their_name() {
        assert_eq!(place_name("/tmp/x1/text.txt"), "text.txt");
        assert_eq!(place_name("hf:org/name"), "hf:org/name");
        assert_eq!(place_name("data/a.txt"), "data/a.txt");
        assert_eq!(
            sha256_of_bytes(b"abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
