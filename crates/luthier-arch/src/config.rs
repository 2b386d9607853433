//! Reads values out of config.json by key, with limits, and remembers which keys were asked for.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use serde_json::{Map, Value};

use crate::{Error, Result};

/// Widths; small enough that no product of a model's sizes overflows.
pub const MAX_WIDTH: usize = 1 << 22;
/// Vocabulary entries.
pub const MAX_VOCABULARY: usize = 1 << 24;
/// Layers of one stack.
pub const MAX_LAYERS: usize = 1 << 12;
/// Heads of one attention.
pub const MAX_HEADS: usize = 1 << 14;
/// Positions, windows.
pub const MAX_POSITIONS: usize = 1 << 40;

/// Keys that say nothing about the computation in f32 without dropout.
const INERT: &[&str] = &[
    "_name_or_path",
    "architectures",
    "attention_dropout",
    "attention_probs_dropout_prob",
    "auto_map",
    "bos_token_id",
    "cache_implementation",
    "chunk_size_feed_forward",
    "classifier_dropout",
    "classifier_dropout_rate",
    "dropout_rate",
    "dtype",
    "eos_token_id",
    "gradient_checkpointing",
    "hidden_dropout_prob",
    "id2label",
    "is_decoder",
    "is_encoder_decoder",
    "is_llama_config",
    "label2id",
    "model_type",
    "output_attentions",
    "output_hidden_states",
    "pad_token_id",
    "pretraining_tp",
    "problem_type",
    "return_dict",
    "router_jitter_noise",
    "rope_interleaved",
    "torch_dtype",
    "transformers.js_config",
    "transformers_version",
    "unsloth_version",
    "use_cache",
];

/// Keys that change the computation in ways that no architecture here follows yet.
const REFUSED: &[&str] = &["block_configs", "quantization_config"];

/// What single layers have instead; refused where the architecture did not read it.
pub const PER_LAYER: &str = "per_layer_config";

/// A config.json, or one nested object of it, being read.
pub struct Keys<'a> {
    map: &'a Map<String, Value>,
    /// `encoder.` in front of the keys of a nested object.
    path: String,
    /// Full names, shared with the objects around and inside.
    asked: Rc<RefCell<BTreeSet<String>>>,
}

impl<'a> Keys<'a> {
    /// The top of config.json. An error for keys that change the computation in ways nobody here follows.
    pub fn new(map: &'a Map<String, Value>) -> Result<Keys<'a>> {
        Keys::at(map, String::new(), Rc::default())
    }

    fn at(
        map: &'a Map<String, Value>,
        path: String,
        asked: Rc<RefCell<BTreeSet<String>>>,
    ) -> Result<Keys<'a>> {
        for key in REFUSED {
            if map.get(*key).is_some_and(|value| !value.is_null()) {
                let what =
                    "changes the computation in a way that is not supported; remove it if it does not matter";
                return Err(Error::config(format!("{path}{key}"), what));
            }
        }
        Ok(Keys { map, path, asked })
    }

    /// The nested object under `key`; none when absent or null.
    pub fn object(&self, key: &'static str) -> Result<Option<Keys<'a>>> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Object(map)) => {
                Ok(Some(Keys::at(map, format!("{}{key}.", self.path), Rc::clone(&self.asked))?))
            }
            Some(other) => Err(self.wrong(key, "an object", other)),
        }
    }

    /// The objects that `per_layer_config` holds for single layers of `n_layers`.
    pub fn layer_objects(&self, n_layers: usize) -> Result<BTreeMap<usize, Keys<'a>>> {
        let mut layers = BTreeMap::new();
        let Some(all) = self.object(PER_LAYER)? else { return Ok(layers) };
        for (key, value) in all.map {
            let name = all.name(key);
            // transformers pads the numbers with zeros.
            let layer = key.parse::<usize>().ok().filter(|layer| *layer < n_layers);
            let Some(layer) = layer.filter(|_| key.bytes().all(|byte| byte.is_ascii_digit())) else {
                let what = format!("expected the number of a layer from 0 to {}", n_layers - 1);
                return Err(Error::config(name, what));
            };
            let Value::Object(map) = value else { return Err(all.wrong(key, "an object", value)) };
            self.asked.borrow_mut().insert(name.clone());
            let keys = Keys::at(map, format!("{name}."), Rc::clone(&self.asked))?;
            if layers.insert(layer, keys).is_some() {
                return Err(Error::config(name, format!("layer {layer} stands there twice")));
            }
        }
        Ok(layers)
    }

    /// Refuses sizes of single layers that nobody has asked for, here and in objects that were asked for.
    pub fn refuse_unread_layers(&self) -> Result<()> {
        let asked = self.asked.borrow();
        match unread_layers(self.map, &self.path, &asked) {
            None => Ok(()),
            Some(name) => {
                let what = "changes the computation in a way that this architecture does not follow; remove it if it does \
                            not matter";
                Err(Error::config(name, what))
            }
        }
    }

    /// The object itself.
    pub fn map(&self) -> &'a Map<String, Value> {
        self.map
    }

    /// The key as messages name it, with the objects it is nested in.
    pub fn name(&self, key: &str) -> String {
        format!("{}{key}", self.path)
    }

    /// Keys that were neither asked for nor are known to be inert, those of nested objects included.
    pub fn unknown(&self) -> Vec<String> {
        let mut unknown = Vec::new();
        collect_unknown(self.map, &self.path, &self.asked.borrow(), &mut unknown);
        unknown
    }

    fn value(&self, key: &'static str) -> Option<&'a Value> {
        self.asked.borrow_mut().insert(self.name(key));
        self.map.get(key).filter(|value| !value.is_null())
    }

    fn wrong(&self, key: &str, wanted: &str, got: &Value) -> Error {
        let mut got = got.to_string();
        if got.chars().count() > 80 {
            got = got.chars().take(80).chain("...".chars()).collect();
        }
        Error::config(self.name(key), format!("expected {wanted}, found {got}"))
    }

    /// A whole number in 1..=max; none when absent or null.
    pub fn optional_size(&self, key: &'static str, max: usize) -> Result<Option<usize>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let size = value.as_u64().and_then(|size| usize::try_from(size).ok());
        match size {
            Some(size) if (1..=max).contains(&size) => Ok(Some(size)),
            _ => Err(self.wrong(key, &format!("a whole number from 1 to {max}"), value)),
        }
    }

    /// A whole number in 1..=max that must be there.
    pub fn size(&self, key: &'static str, max: usize) -> Result<usize> {
        let missing =
            || Error::config(self.name(key), format!("missing; expected a whole number from 1 to {max}"));
        self.optional_size(key, max)?.ok_or_else(missing)
    }

    /// A whole number in 1..=max, `default` when absent or null.
    pub fn size_or(&self, key: &'static str, max: usize, default: usize) -> Result<usize> {
        Ok(self.optional_size(key, max)?.unwrap_or(default))
    }

    /// A whole number from 0 on, none when absent or null.
    pub fn optional_count(&self, key: &'static str) -> Result<Option<usize>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let count = value.as_u64().and_then(|count| usize::try_from(count).ok());
        count.map(Some).ok_or_else(|| self.wrong(key, "a whole number from 0 on", value))
    }

    /// A list of whole numbers from 0 on; none when absent or null.
    pub fn optional_counts(&self, key: &'static str) -> Result<Option<Vec<usize>>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let count = |value: &Value| value.as_u64().and_then(|count| usize::try_from(count).ok());
        let list = value.as_array().and_then(|list| list.iter().map(count).collect());
        list.map(Some).ok_or_else(|| self.wrong(key, "a list of whole numbers from 0 on", value))
    }

    /// A token id, or the first of a list of them; none when absent or null.
    pub fn optional_token(&self, key: &'static str) -> Result<Option<u32>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let first = value.as_array().map_or(Some(value), |list| list.first());
        let token = first.and_then(Value::as_u64).and_then(|token| u32::try_from(token).ok());
        token.map(Some).ok_or_else(|| self.wrong(key, "a token id", value))
    }

    /// A token id, `default` when absent, none when null.
    pub fn optional_token_or(&self, key: &'static str, default: u32) -> Result<Option<u32>> {
        if self.map.contains_key(key) { self.optional_token(key) } else { Ok(Some(default)) }
    }

    /// A positive, finite number; none when absent or null.
    pub fn optional_positive(&self, key: &'static str) -> Result<Option<f64>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        match value.as_f64() {
            Some(number) if number > 0.0 && number.is_finite() => Ok(Some(number)),
            _ => Err(self.wrong(key, "a number above 0", value)),
        }
    }

    /// A finite number from 0 on, `default` when absent. Null is refused: it is what a NaN becomes in JSON.
    pub fn number_or(&self, key: &'static str, default: f64) -> Result<f64> {
        self.asked.borrow_mut().insert(self.name(key));
        let Some(value) = self.map.get(key) else { return Ok(default) };
        match value.as_f64() {
            Some(number) if number >= 0.0 && number.is_finite() => Ok(number),
            _ => Err(self.wrong(key, "a number from 0 on", value)),
        }
    }

    /// true or false, `default` when absent or null.
    pub fn flag_or(&self, key: &'static str, default: bool) -> Result<bool> {
        let Some(value) = self.value(key) else { return Ok(default) };
        value.as_bool().ok_or_else(|| self.wrong(key, "true or false", value))
    }

    /// A string; none when absent or null.
    pub fn optional_text(&self, key: &'static str) -> Result<Option<&'a str>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.wrong(key, "a string", value))
    }

    /// A string, `default` when absent; null is refused.
    pub fn text_or(&self, key: &'static str, default: &'a str) -> Result<&'a str> {
        self.asked.borrow_mut().insert(self.name(key));
        let Some(value) = self.map.get(key) else { return Ok(default) };
        value.as_str().ok_or_else(|| self.wrong(key, "a string", value))
    }

    /// A list of strings; none when absent or null.
    pub fn optional_texts(&self, key: &'static str) -> Result<Option<Vec<&'a str>>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let list: Option<Vec<&str>> =
            value.as_array().and_then(|list| list.iter().map(Value::as_str).collect());
        list.map(Some).ok_or_else(|| self.wrong(key, "a list of strings", value))
    }

    /// Finite positive numbers; none when absent or null.
    pub fn optional_positives(&self, key: &'static str) -> Result<Option<Vec<f64>>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let list: Option<Vec<f64>> =
            value.as_array().and_then(|list| list.iter().map(Value::as_f64).collect());
        match list {
            Some(list) if list.iter().all(|number| number.is_finite() && *number > 0.0) => Ok(Some(list)),
            _ => Err(self.wrong(key, "a list of numbers above 0", value)),
        }
    }
}

fn unread_layers(map: &Map<String, Value>, path: &str, asked: &BTreeSet<String>) -> Option<String> {
    map.iter().find_map(|(key, value)| {
        let name = format!("{path}{key}");
        match value {
            Value::Null => None,
            _ if key == PER_LAYER => (!asked.contains(&name)).then_some(name),
            Value::Object(nested) if asked.contains(&name) => {
                unread_layers(nested, &format!("{name}."), asked)
            }
            _ => None,
        }
    })
}

fn collect_unknown(
    map: &Map<String, Value>,
    path: &str,
    asked: &BTreeSet<String>,
    unknown: &mut Vec<String>,
) {
    for (key, value) in map {
        let name = format!("{path}{key}");
        match value {
            Value::Object(nested) if asked.contains(&name) => {
                collect_unknown(nested, &format!("{name}."), asked, unknown);
            }
            _ if asked.contains(&name) || INERT.contains(&key.as_str()) => {}
            _ => unknown.push(name),
        }
    }
}
