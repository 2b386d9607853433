//! Which tokens end a text: what the model's files say, without asking for a tokenizer.

use luthier_text::Tokenizer;
use serde_json::{Map, Value};

/// The ids that end a text, sorted, each once: `eos_token_id` (a number or a list) of generation_config.json, or where
/// that has none of config.json, or of its `decoder` or `text_config`; and what the tokenizer ends a text with.
pub fn end_token_ids(
    config: &Map<String, Value>,
    generation_config: Option<&Map<String, Value>>,
    tokenizer: Option<&Tokenizer>,
) -> Vec<u32> {
    let part = |key: &str| config.get(key).and_then(Value::as_object);
    let sources = [generation_config, Some(config), part("decoder"), part("text_config")];
    let listed = sources.into_iter().flatten().map(listed_ids).find(|ids| !ids.is_empty());
    let mut ids = listed.unwrap_or_default();
    ids.extend(tokenizer.map(Tokenizer::end_ids).unwrap_or_default());
    ids.sort_unstable();
    ids.dedup();
    ids
}

fn listed_ids(config: &Map<String, Value>) -> Vec<u32> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match config.get("eos_token_id") {
        Some(Value::Array(ids)) => ids.iter().filter_map(id).collect(),
        Some(value) => id(value).into_iter().collect(),
        None => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(config: Value, generation_config: Option<Value>) -> Vec<u32> {
        let generation_config = generation_config.as_ref().and_then(Value::as_object);
        end_token_ids(config.as_object().unwrap(), generation_config, None)
    }

    #[test]
    fn generation_config_goes_before_config_and_its_parts() {
        use serde_json::json;
        assert_eq!(ids(json!({"eos_token_id": 2}), Some(json!({"eos_token_id": [107, 1, 1]}))), [1, 107]);
        assert_eq!(ids(json!({"eos_token_id": 2}), Some(json!({"eos_token_id": null}))), [2]);
        assert_eq!(ids(json!({"decoder": {"eos_token_id": [1, 106]}}), None), [1, 106]);
        assert_eq!(ids(json!({"text_config": {"eos_token_id": 5}, "eos_token_id": -1}), None), [5]);
        assert!(ids(json!({}), None).is_empty());
    }
}
