//! Which tokens start, end, pad: read from a model folder's side files, in transformers' order of precedence.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::error::{Result, TextError};

/// The named special tokens of a tokenizer, as strings, and the ids that config.json and
/// generation_config.json add to them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Start token.
    pub bos: Option<String>,
    /// End token.
    pub eos: Option<String>,
    /// Padding token.
    pub pad: Option<String>,
    /// Unknown token.
    pub unk: Option<String>,
    /// Separator token (encoders).
    pub sep: Option<String>,
    /// Classification token (encoders).
    pub cls: Option<String>,
    /// Mask token (encoders).
    pub mask: Option<String>,
    /// Ids of generation_config.json or config.json that end a text, in that order of precedence.
    pub eos_ids: Vec<u32>,
    /// bos_token_id of generation_config.json or config.json.
    pub bos_id: Option<u32>,
    /// pad_token_id of generation_config.json or config.json.
    pub pad_id: Option<u32>,
}

impl SpecialTokens {
    /// Reads tokenizer_config.json, then special_tokens_map.json for what the first lacks, and the ids of
    /// generation_config.json, then config.json. A file that is not JSON is an error that names it.
    pub fn from_files(files: &BTreeMap<String, Vec<u8>>) -> Result<SpecialTokens> {
        let tokenizer_config = json_file(files, "tokenizer_config.json")?;
        let map = json_file(files, "special_tokens_map.json")?;
        let named = |key: &str| {
            [&tokenizer_config, &map].into_iter().flatten().find_map(|file| token_text(file.get(key)?))
        };
        let generation = json_file(files, "generation_config.json")?;
        let config = json_file(files, "config.json")?;
        let ids = |key: &str| -> Vec<u32> {
            let sources = [&generation, &config].into_iter().flatten();
            sources.map(|file| token_ids(file.get(key))).find(|ids| !ids.is_empty()).unwrap_or_default()
        };
        Ok(SpecialTokens {
            bos: named("bos_token"),
            eos: named("eos_token"),
            pad: named("pad_token"),
            unk: named("unk_token"),
            sep: named("sep_token"),
            cls: named("cls_token"),
            mask: named("mask_token"),
            eos_ids: ids("eos_token_id"),
            bos_id: ids("bos_token_id").first().copied(),
            pad_id: ids("pad_token_id").first().copied(),
        })
    }

    /// The names that are set, with their keys as tokenizer_config.json spells them.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, &str)> {
        [
            ("bos_token", &self.bos),
            ("eos_token", &self.eos),
            ("unk_token", &self.unk),
            ("sep_token", &self.sep),
            ("pad_token", &self.pad),
            ("cls_token", &self.cls),
            ("mask_token", &self.mask),
        ]
        .into_iter()
        .filter_map(|(key, token)| Some((key, token.as_deref()?)))
    }
}

/// One side file as JSON; `None` where the folder has no such file.
pub(crate) fn json_file(files: &BTreeMap<String, Vec<u8>>, name: &str) -> Result<Option<Value>> {
    let Some(bytes) = files.get(name) else { return Ok(None) };
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    serde_json::from_slice(bytes).map(Some).map_err(|error| TextError::broken(name, error))
}

/// A special token stands as a string or as an object with `content`.
fn token_text(value: &Value) -> Option<String> {
    value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned)
}

/// One id or a list of ids.
fn token_ids(value: Option<&Value>) -> Vec<u32> {
    let one = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match value {
        Some(Value::Array(ids)) => ids.iter().filter_map(one).collect(),
        Some(value) => one(value).into_iter().collect(),
        None => Vec::new(),
    }
}
