//! `general.*` keys of a GGUF file from a model's card and name: licence, languages, tags, parents, and the parts of its name.
//!
//! Source: `gguf-py/gguf/metadata.py` of llama.cpp for what is read from where, and how a name falls into parts.

use luthier_checkpoint::gguf::{GgufArray, GgufValue};
use serde_json::{Map, Value};

use super::model_name::{NameParts, size_label, title};

type Keys = Vec<(String, GgufValue)>;

/// The keys of a model called `label` (a place, or `hf:org/name`) with that README.md, the models of the hub that its record
/// says it was made of, and its number of weights.
pub(super) fn general(label: &str, card: Option<&[u8]>, recorded: Vec<String>, parameters: usize) -> Keys {
    let card = card.map(front_matter).unwrap_or_default();
    let hub = label.strip_prefix("hf:").map(|place| place.split('@').next().unwrap_or(place));
    let local = || label.trim_end_matches('/').rsplit('/').next().unwrap_or(label);
    let id = hub.unwrap_or_else(local);
    let own = NameParts::of(id, parameters);
    let mut keys = vec![text("general.type", "model")];
    let said = |key: &str| card.get(key).and_then(Value::as_str).map(str::to_string);
    let name = said("model_name").unwrap_or_else(|| title(&own.name));
    keys.push(text("general.name", &name));
    for (key, value) in [
        ("author", said("model_creator")),
        ("version", own.version),
        ("organization", own.organization.map(|organization| title(&organization))),
        ("finetune", own.finetune),
        ("basename", own.basename),
        ("size_label", Some(own.size_label.unwrap_or_else(|| size_label(parameters)))),
        ("license", said("license")),
        ("license.name", said("license_name")),
        ("license.link", said("license_link")),
        ("repo_url", hub.map(repository_url)),
    ] {
        keys.extend(value.map(|value| text(&format!("general.{key}"), &value)));
    }
    let mut parents = texts(card.get("base_model"));
    if parents.is_empty() {
        parents = recorded;
    }
    if !parents.is_empty() {
        keys.push(("general.base_model.count".to_string(), GgufValue::U32(parents.len() as u32)));
    }
    for (number, parent) in parents.iter().enumerate() {
        keys.extend(parent_keys(number, parent, parameters));
    }
    let mut tags = texts(card.get("tags"));
    tags.extend(texts(card.get("pipeline_tag")));
    for (key, list) in [("tags", tags), ("languages", texts(card.get("language")))] {
        if !list.is_empty() {
            keys.push((format!("general.{key}"), GgufValue::Array(GgufArray::String(list))));
        }
    }
    keys
}

fn text(key: &str, value: &str) -> (String, GgufValue) {
    (key.to_string(), GgufValue::String(value.to_string()))
}

fn repository_url(id: &str) -> String {
    format!("https://huggingface.co/{id}")
}

/// `general.base_model.N.*` of one entry of a card: `org/name`, or an address.
fn parent_keys(number: usize, parent: &str, parameters: usize) -> Keys {
    let key = |name: &str| format!("general.base_model.{number}.{name}");
    let address = ["https://", "http://", "ssh://"].iter().any(|scheme| parent.starts_with(scheme));
    let id = if address { parent.split_once("huggingface.co/").map(|(_, id)| id) } else { Some(parent) };
    let mut keys = Keys::new();
    if let Some(id) = id {
        let parts = NameParts::of(id, parameters);
        keys.push(text(&key("name"), &title(&parts.name)));
        keys.extend(parts.version.map(|version| text(&key("version"), &version)));
        keys.extend(parts.organization.map(|organization| text(&key("organization"), &title(&organization))));
    }
    if address {
        keys.push(text(&key("repo_url"), parent));
    } else if parent.contains('/') {
        keys.push(text(&key("repo_url"), &repository_url(parent)));
    }
    keys
}

/// What stands between the two lines `---` at the top of a card; nothing where that is no YAML of keys.
pub(crate) fn front_matter(card: &[u8]) -> Map<String, Value> {
    let text = String::from_utf8_lossy(card);
    let mut lines = text.lines();
    if lines.next().map(str::trim_end) != Some("---") {
        return Map::new();
    }
    let yaml: Vec<&str> = lines.take_while(|line| line.trim_end() != "---").collect();
    match serde_saphyr::from_str::<Value>(&yaml.join("\n")) {
        Ok(Value::Object(keys)) => keys,
        _ => Map::new(),
    }
}

/// One text, or a list of them.
pub(crate) fn texts(value: Option<&Value>) -> Vec<String> {
    match value {
        Some(Value::String(one)) => vec![one.clone()],
        Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).map(str::to_string).collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_gives_licence_languages_tags_and_parents() {
        let card = b"---\nlicense: apache-2.0\nlanguage: [en, id]\ntags:\n- chat\npipeline_tag: text-generation\nbase_model:\n- org/Base-1B-v2\n- https://example.org/other\n---\n# Card\nlicense: not this\n";
        let keys = general("place/my-model", Some(card), vec!["x/y".to_string()], 3_000_000);
        let get = |key: &str| keys.iter().find(|(name, _)| name == key).map(|(_, value)| value);
        let said = |key: &str| get(key).and_then(GgufValue::as_str);
        assert_eq!(said("general.license"), Some("apache-2.0"));
        assert_eq!(get("general.base_model.count"), Some(&GgufValue::U32(2)));
        assert_eq!(said("general.base_model.0.name"), Some("Base 1B v2"));
        assert_eq!(said("general.base_model.0.version"), Some("v2"));
        assert_eq!(said("general.base_model.0.organization"), Some("Org"));
        assert_eq!(said("general.base_model.0.repo_url"), Some("https://huggingface.co/org/Base-1B-v2"));
        assert_eq!(said("general.base_model.1.repo_url"), Some("https://example.org/other"));
        let list = |words: &[&str]| {
            GgufValue::Array(GgufArray::String(words.iter().map(|word| word.to_string()).collect()))
        };
        assert_eq!(get("general.languages"), Some(&list(&["en", "id"])));
        assert_eq!(get("general.tags"), Some(&list(&["chat", "text-generation"])));
        assert_eq!(said("general.name"), Some("My Model"));
        assert_eq!(said("general.size_label"), Some("3.0M"));
    }

    #[test]
    fn without_a_card_the_record_says_the_parents() {
        let count = |keys: &Keys| keys.iter().any(|(name, _)| name == "general.base_model.count");
        assert!(!count(&general("folder", None, Vec::new(), 1)));
        for card in [&b"---\n: [broken\n---\n"[..], b"no front matter", b"---\n- a list\n---\n", b""] {
            assert!(!count(&general("folder", Some(card), Vec::new(), 1)));
        }
        let has = |keys: &Keys, key: &str, wanted: &str| {
            keys.iter().any(|(name, value)| name == key && value.as_str() == Some(wanted))
        };
        let recorded = general("folder", None, vec!["a/b".to_string()], 1);
        assert!(has(&recorded, "general.base_model.0.repo_url", "https://huggingface.co/a/b"));
        let hub = general("hf:org/Name-7B@main", None, Vec::new(), 7_000_000_000);
        assert!(has(&hub, "general.organization", "Org") && has(&hub, "general.size_label", "7B"));
    }
}
