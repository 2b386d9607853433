//! Recipes: YAML read into a verb's own struct, unknown keys refused with the nearest known one.

use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// What a recipe file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `luthier pretrain`.
    Training,
    /// `luthier run`.
    Chain,
    /// `luthier merge`.
    Merge,
}

/// A recipe as a verb is given it: the name of its file, or `{text: ...}` with what would stand there, as records hold it.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged)]
pub enum Written {
    /// The file's name.
    File(PathBuf),
    /// The text.
    Inline {
        /// YAML.
        text: String,
    },
}

impl std::str::FromStr for Written {
    type Err = std::convert::Infallible;

    fn from_str(name: &str) -> Result<Written, Self::Err> {
        Ok(Written::File(name.into()))
    }
}

impl Written {
    /// The text, and how messages call it.
    pub fn read(&self) -> anyhow::Result<(String, String)> {
        let path = match self {
            Written::Inline { text } => return Ok((text.clone(), "of the record".to_string())),
            Written::File(path) => path,
        };
        let name = path.display().to_string();
        let bytes = luthier_train::refuse_device(path).map_err(anyhow::Error::from);
        let bytes =
            bytes.and_then(|()| Ok(std::fs::read(path)?)).with_context(|| format!("recipe {name}"))?;
        let text = String::from_utf8(bytes).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            anyhow!("recipe {name}: not UTF-8 from byte {at} on")
        })?;
        Ok((text, name))
    }
}

/// Reads a recipe file of this kind; one of the other kind is refused with the command that it is for.
pub fn from_file<T: DeserializeOwned>(path: &Path, kind: Kind) -> anyhow::Result<T> {
    let (text, name) = Written::File(path.to_path_buf()).read()?;
    from_text(&text, &name, kind)
}

/// Reads the text of a recipe of this kind; messages call it `name`.
pub fn from_text<T: DeserializeOwned>(text: &str, name: &str, kind: Kind) -> anyhow::Result<T> {
    match kind_of(text).filter(|found| *found != kind) {
        Some(Kind::Training) => {
            bail!("recipe {name}: this is a training recipe; use luthier pretrain {name}")
        }
        Some(Kind::Chain) => bail!("recipe {name}: this is a chain of verbs; use luthier run {name}"),
        Some(Kind::Merge) => bail!("recipe {name}: this is a merge; use luthier merge {name} OUT"),
        None => from_yaml(text).with_context(|| format!("recipe {name}")),
    }
}

/// Reads a recipe's text.
pub fn from_yaml<T: DeserializeOwned>(text: &str) -> anyhow::Result<T> {
    if matches!(serde_saphyr::from_str::<Value>(text), Ok(Value::Null)) {
        bail!("holds nothing; see docs/recipes.md for the keys that it needs");
    }
    let mut key = String::new();
    let parsed = serde_saphyr::with_deserializer_from_str(text, |deserializer| {
        serde_path_to_error::deserialize(deserializer).map_err(|error| {
            key = error.path().to_string();
            error.into_inner()
        })
    });
    parsed.map_err(|error: serde_saphyr::Error| {
        let place = error.location().map_or(String::new(), |at| format!("line {}: ", at.line()));
        let came = serde_saphyr::from_str(text).ok().and_then(|value: Value| value_at(&value, &key));
        anyhow!("{place}{}", explained(&key, &error.without_snippet().to_string(), came.as_ref()))
    })
}

/// Reads the keys of one step of a chain.
pub fn from_value<T: DeserializeOwned>(keys: &Value) -> anyhow::Result<T> {
    if let Some(key) = empty_key(keys) {
        bail!("key {key}: wanted a value, came none (or .nan); give one, or remove the key");
    }
    serde_path_to_error::deserialize(keys.clone()).map_err(|error| {
        let key = error.path().to_string();
        let came = value_at(keys, &key);
        anyhow!("{}", explained(&key, &error.into_inner().to_string(), came.as_ref()))
    })
}

/// Words less alike than this are not taken for a misspelling of one another.
const ALIKE: f64 = 0.7;

/// Which of `known` was probably meant; none where nothing is near.
pub fn nearest<'a>(unknown: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let likeness = |word: &str| strsim::jaro_winkler(unknown, word);
    known.filter(|word| likeness(word) >= ALIKE).max_by(|a, b| likeness(a).total_cmp(&likeness(b)))
}

/// What a text is a recipe of; none where its keys do not say.
fn kind_of(text: &str) -> Option<Kind> {
    let keys: Map<String, Value> = serde_saphyr::from_str(text).ok()?;
    if keys.get("steps").is_some_and(Value::is_array) {
        return Some(Kind::Chain);
    }
    if keys.contains_key("merge_method") {
        return Some(Kind::Merge);
    }
    let of_training = ["model", "data", "objective", "optimizer", "schedule", "sequence_length"];
    of_training.iter().any(|key| keys.contains_key(*key)).then_some(Kind::Training)
}

/// The first key without a value; NaN has none here.
fn empty_key(keys: &Value) -> Option<&str> {
    keys.as_object()?.iter().find(|(_, value)| value.is_null()).map(|(key, _)| key.as_str())
}

/// The value at a path such as `data.train[0]`.
fn value_at(value: &Value, path: &str) -> Option<Value> {
    let pointer = path.replace('[', ".").replace(']', "").replace('.', "/");
    value.pointer(&format!("/{pointer}")).cloned()
}

/// A parser's message in the words of recipes: the key, what was wanted, what came.
fn explained(key: &str, message: &str, came: Option<&Value>) -> String {
    let message = without_place(message);
    let quoted = |start: &str| message.strip_prefix(start)?.split_once('`');
    if let Some((unknown, rest)) = quoted("unknown field `") {
        return unknown_word("key", unknown, rest);
    }
    if let Some((unknown, rest)) = quoted("unknown variant `") {
        return format!("key {key}: {}", unknown_word("value", unknown, rest));
    }
    if let Some((missing, _)) = quoted("missing field `") {
        let inside = if key == "." || key.is_empty() { String::new() } else { format!("{key}.") };
        let inside = inside.strip_suffix(&format!("{missing}.")).unwrap_or(&inside);
        return format!("key {inside}{missing} is missing; add it");
    }
    for start in ["duplicate mapping key: ", "duplicate field "] {
        if let Some(rest) = message.strip_prefix(start) {
            let twice = rest.split([',', ' ']).next().unwrap_or(rest).trim_matches('`');
            return format!("key {twice} stands there twice; keep one");
        }
    }
    let wanted = match message.rsplit_once("expected ") {
        _ if message == "invalid floating point" => "a number",
        Some((_, wanted)) => plain_words(wanted),
        None => "",
    };
    let at = if key == "." || key.is_empty() { String::new() } else { format!("key {key}: ") };
    match (wanted, came) {
        ("", _) => format!("{at}{message}"),
        (wanted, Some(came)) => format!("{at}wanted {wanted}, came {}", shortened(came)),
        (wanted, None) => format!("{at}wanted {wanted}"),
    }
}

/// The first line without the `error: line 3 column 15: ` that parsers put before it.
fn without_place(message: &str) -> &str {
    let line = message.lines().next().unwrap_or("").trim_start_matches("error: ");
    let rest = line.strip_prefix("line ").and_then(|rest| rest.split_once(": "));
    let rest = rest.filter(|(place, _)| place.contains("column")).map_or(line, |(_, rest)| rest);
    rest.split(" at line ").next().unwrap_or(rest)
}

/// `rest` of the parsers' "unknown field `x`, expected one of a, b", with the one that was probably meant.
fn unknown_word(what: &str, unknown: &str, rest: &str) -> String {
    let known = rest.trim_start_matches(", expected ").trim_start_matches("one of ").replace(" or ", ", ");
    let known: Vec<&str> =
        known.split(", ").map(|word| word.trim().trim_matches('`')).filter(|word| !word.is_empty()).collect();
    match nearest(unknown, known.iter().copied()) {
        Some(nearest) => {
            format!("unknown {what} {unknown}: did you mean {nearest}? known: {}", known.join(", "))
        }
        None if known.is_empty() => format!("unknown {what} {unknown}"),
        None => format!("unknown {what} {unknown}; known: {}", known.join(", ")),
    }
}

/// What the parsers call types, in words.
fn plain_words(wanted: &str) -> &str {
    match wanted {
        "sequence start" | "a sequence" => "a list, such as [a, b]",
        "mapping start" | "a map" => "keys with values, such as {key: value}",
        "usize" | "u64" | "u32" | "i64" => "a whole number",
        "f64" | "f32" => "a number",
        "a boolean" => "true or false",
        "a string" | "path string" | "string" => "a text",
        "an array of length 2" => "a list of 2",
        _ if wanted.starts_with("struct ") => "keys with values, such as {key: value}",
        _ => wanted,
    }
}

fn shortened(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code)]
    struct Small {
        steps: Option<u64>,
        seed: u64,
        lr_peak: f64,
    }

    #[test]
    fn an_unknown_key_names_the_nearest_known_one() {
        let error = super::from_yaml::<Small>("seed: 1\nlr_peak: 1\nstpes: 3\n").unwrap_err().to_string();
        assert!(error.contains("did you mean steps?"), "{error}");
    }

    #[test]
    fn numbers_may_carry_underscores_and_exponents() {
        let small: Small = super::from_yaml("seed: 1\nlr_peak: 3.0e-4\nsteps: 1_000_000\n").unwrap();
        assert_eq!(small.steps, Some(1_000_000));
        assert!((small.lr_peak - 3.0e-4).abs() < 1e-12);
    }
}
