//! tokenizer.json with fewer tokens.

use serde_json::{Map, Value};

use super::IdMap;
use super::parts::halves;

/// The file with the kept tokens under their new ids; whatever holds no ids stays as it is.
pub(super) fn trimmed(json: &Value, map: &IdMap) -> Value {
    let mut json = json.clone();
    if let Some(model) = json.get_mut("model").and_then(Value::as_object_mut) {
        trim_model(model, map);
    }
    if let Some(Value::Array(tokens)) = json.get_mut("added_tokens") {
        for token in tokens {
            renumber(&mut token["id"], map);
        }
    }
    if let Some(processor) = json.get_mut("post_processor") {
        renumber_processor(processor, map);
    }
    if let Some(Value::Object(padding)) = json.get_mut("padding")
        && let Some(id) = padding.get_mut("pad_id")
    {
        renumber(id, map);
    }
    json
}

fn trim_model(model: &mut Map<String, Value>, map: &IdMap) {
    let vocab = match model.get_mut("vocab").map(Value::take).unwrap_or_default() {
        Value::Array(pieces) => {
            let kept = (0u32..).zip(pieces).filter(|(id, _)| map.get(*id).is_some());
            Value::Array(kept.map(|(_, piece)| piece).collect())
        }
        Value::Object(vocab) => {
            let kept = vocab.into_iter().filter_map(|(token, id)| Some((token, map.value(&id)?)));
            Value::Object(kept.collect())
        }
        other => other,
    };
    let prefix = model.get("continuing_subword_prefix").and_then(Value::as_str).unwrap_or_default().len();
    if let (Some(Value::Array(merges)), Value::Object(vocab)) = (model.get_mut("merges"), &vocab) {
        merges.retain(|entry| is_kept(entry, prefix, vocab));
    }
    if let Some(id) = model.get_mut("unk_id") {
        renumber(id, map);
    }
    model["vocab"] = vocab;
}

/// Whether both halves of a merge and the whole are tokens still.
fn is_kept(entry: &Value, prefix: usize, vocab: &Map<String, Value>) -> bool {
    let Some((left, right)) = halves(entry) else { return false };
    let whole = right.get(prefix..).map(|rest| format!("{left}{rest}"));
    vocab.contains_key(left)
        && vocab.contains_key(right)
        && whole.is_some_and(|whole| vocab.contains_key(&whole))
}

fn renumber(id: &mut Value, map: &IdMap) {
    if let Some(new) = map.value(id) {
        *id = new;
    }
}

/// Template, BERT's and RoBERTa's processors, and sequences of them.
fn renumber_processor(processor: &mut Value, map: &IdMap) {
    if let Some(Value::Object(tokens)) = processor.get_mut("special_tokens") {
        for (_, token) in tokens {
            if let Some(Value::Array(ids)) = token.get_mut("ids") {
                ids.iter_mut().for_each(|id| renumber(id, map));
            }
        }
    }
    for key in ["sep", "cls"] {
        if let Some(Value::Array(pair)) = processor.get_mut(key)
            && let Some(id) = pair.get_mut(1)
        {
            renumber(id, map);
        }
    }
    if let Some(Value::Array(steps)) = processor.get_mut("processors") {
        steps.iter_mut().for_each(|step| renumber_processor(step, map));
    }
}
