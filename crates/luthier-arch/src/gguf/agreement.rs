//! Whether a GGUF file's ordinary keys still say what the config.json inside it says.
//!
//! Files of ours say it twice: under llama.cpp's keys and, whole, under [`CONFIG_KEY`]. A program that edits one of the two
//! leaves a file that means two models; neither is guessed.

use luthier_checkpoint::gguf::{Gguf, GgufValue};
use serde_json::{Map, Value};

use super::{CONFIG_KEY, NAMES_KEY, write};
use crate::{Error, Result};

/// Keys that change what is computed, which a file of ours holds only where its config says so.
const OPTIONAL: &[&str] = &[
    "attention.sliding_window",
    "attn_logit_softcapping",
    "context_length",
    "expert_count",
    "expert_feed_forward_length",
    "expert_shared_feed_forward_length",
    "expert_used_count",
    "final_logit_softcapping",
    "logit_scale",
    "rope.scale_linear",
    "rope.scaling.attn_factor",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "rope.scaling.yarn_attn_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
];

/// Refuses a file whose keys contradict the config that it carries, naming the first key that does.
pub(super) fn check(config: &Map<String, Value>, gguf: &Gguf) -> Result<()> {
    let expected: Vec<(String, GgufValue)> = write::plan(config)?
        .metadata
        .into_iter()
        .filter(|(key, _)| key != CONFIG_KEY && key != NAMES_KEY)
        .collect();
    for (key, wanted) in &expected {
        let found = gguf.get(key);
        if !found.is_some_and(|found| is_same(found, wanted)) {
            return Err(contradiction(key, found, Some(wanted)));
        }
    }
    let architecture = expected.iter().find(|(key, _)| key == "general.architecture");
    let architecture = architecture.and_then(|(_, value)| value.as_str()).unwrap_or_default();
    for key in OPTIONAL.iter().map(|key| format!("{architecture}.{key}")) {
        if let Some(found) = gguf.get(&key)
            && !expected.iter().any(|(known, _)| *known == key)
        {
            return Err(contradiction(&key, Some(found), None));
        }
    }
    Ok(())
}

/// Other programs may write a number in another width.
fn is_same(found: &GgufValue, wanted: &GgufValue) -> bool {
    match (found.as_f64(), wanted.as_f64()) {
        // Written in f32, whatever its type is now.
        (Some(found), Some(wanted)) => found as f32 == wanted as f32,
        _ => found == wanted,
    }
}

fn contradiction(key: &str, found: Option<&GgufValue>, wanted: Option<&GgufValue>) -> Error {
    let said = |value: Option<&GgufValue>| value.map_or("nothing".to_string(), in_words);
    let what = format!(
        "the file says {}, but the config.json that it carries under {CONFIG_KEY} amounts to {}; set the key back, or \
         remove {CONFIG_KEY} to go by the ordinary keys",
        said(found),
        said(wanted)
    );
    Error::config(key, what)
}

/// A value as messages say it.
pub(super) fn in_words(value: &GgufValue) -> String {
    match (value, value.as_i64(), value.as_f64(), value.as_str()) {
        (GgufValue::F32(number), ..) => number.to_string(),
        (_, Some(number), ..) => number.to_string(),
        (_, _, Some(number), _) => number.to_string(),
        (_, _, _, Some(text)) => format!("{text:?}"),
        _ => "a value of another type".to_string(),
    }
}
