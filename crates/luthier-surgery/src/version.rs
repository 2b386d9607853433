//! `luthier version diff|bump|check A B`: what kind of change lies between two releases, and the version number that it asks for.
//!
//! Reads both models and writes nothing. Source of the question: arXiv:2409.10472, whose finding is that four in ten changes
//! of weights show in neither name nor documentation. The rule (ours): MAJOR where the contract changes (tokenizer,
//! vocabulary, architecture, special tokens, template, licence), MINOR where only weights or defaults of generation do, PATCH
//! where the same values are stored in other files or types, or words about them change. Example:
//! `luthier version bump release/v1.0.0 next`.

use std::collections::BTreeMap;

use luthier_checkpoint::Checkpoint;
use serde::Serialize;
use serde_json::{Map, Value};

use crate::convert::card::{front_matter, texts};
use crate::diff::{self, Difference, ValueDifference};
use crate::{Error, Result, fit, name};

/// Which part of a version number a change counts up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Nothing changed.
    None,
    /// The same model in other files or words.
    Patch,
    /// Other weights under the same contract.
    Minor,
    /// Another contract.
    Major,
}

/// One change.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// What it counts as.
    pub level: Level,
    /// `architecture`, `tokenizer`, `vocabulary`, `special tokens`, `chat template`, `licence`, `weights`, `precision`, `defaults`, `data`,
    /// `documentation`.
    pub aspect: &'static str,
    /// What changed.
    pub what: String,
}

/// All that changed between two models.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct VersionDiff {
    /// The highest level of all changes.
    pub level: Level,
    /// The changes, the highest first.
    pub changes: Vec<Change>,
}

/// Largest relative difference (Euclidean) of a tensor that storing it in 16 bits explains: half a unit of bf16's last place.
const ROUNDING: f64 = 1.0 / 256.0;

/// Config keys that say nothing about what the model computes.
const WORDS: &[&str] =
    &["_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache", "architectures"];

/// Keys of config.json and generation_config.json that say which tokens start and end a text.
const SPECIAL_IDS: &[&str] = &["bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"];

/// Compares two releases.
pub fn run(a: &Checkpoint, b: &Checkpoint) -> Result<VersionDiff> {
    let difference = diff::run(a, b)?;
    let mut changes = Vec::new();
    of_tensors(&difference, &mut changes);
    of_config(&difference, &mut changes);
    of_tokenizers(a, b, &mut changes)?;
    of_files(a, b, &difference, &mut changes);
    changes.sort_by_key(|change| std::cmp::Reverse(change.level));
    let level = changes.first().map_or(Level::None, |change| change.level);
    Ok(VersionDiff { level, changes })
}

fn push(changes: &mut Vec<Change>, level: Level, aspect: &'static str, what: String) {
    changes.push(Change { level, aspect, what });
}

fn of_tensors(difference: &Difference, changes: &mut Vec<Change>) {
    let (only_a, only_b) = (&difference.only_in_a, &difference.only_in_b);
    if let Some(name) = only_a.first().or(only_b.first()) {
        let what = format!("{} tensors are gone, {} are new, such as {name}", only_a.len(), only_b.len());
        push(changes, Level::Major, "architecture", what);
    }
    if let Some(shape) = difference.shapes.first() {
        let count = difference.shapes.len();
        let what = format!(
            "{count} tensors have another shape, such as {}: {:?}, then {:?}",
            shape.name, shape.a, shape.b
        );
        push(changes, Level::Major, "architecture", what);
    }
    let retyped: BTreeMap<&str, &diff::DtypeDifference> =
        difference.dtypes.iter().map(|one| (one.name.as_str(), one)).collect();
    // Rounding explains a change of values only where the type changed too.
    let is_rounding = |one: &ValueDifference| {
        retyped.contains_key(one.name.as_str())
            && one.relative_l2.is_some_and(|relative| relative <= ROUNDING)
    };
    let (rounded, other): (Vec<_>, Vec<_>) = difference.changed.iter().partition(|one| is_rounding(one));
    let (quantised, trained): (Vec<_>, Vec<_>) = other.into_iter().partition(|one| {
        retyped.get(one.name.as_str()).is_some_and(|one| is_coarse(&one.a) != is_coarse(&one.b))
    });
    let largest =
        |list: &[&ValueDifference]| list.iter().filter_map(|one| one.relative_l2).fold(0.0, f64::max);
    if !trained.is_empty() {
        let what = format!(
            "{} of {} tensors have other values, relative difference at most {:.1e}",
            trained.len(),
            trained.len() + difference.equal.len() + rounded.len() + quantised.len(),
            largest(&trained)
        );
        push(changes, Level::Minor, "weights", what);
    }
    if !quantised.is_empty() {
        let what = format!(
            "{} tensors are quantised, relative difference at most {:.1e}",
            quantised.len(),
            largest(&quantised)
        );
        push(changes, Level::Minor, "weights", what);
    }
    if let Some(one) = difference.dtypes.first() {
        let what = format!(
            "{} tensors are stored in another type, such as {}: {}, then {}",
            difference.dtypes.len(),
            one.name,
            one.a,
            one.b
        );
        push(changes, Level::Patch, "precision", what);
    }
}

/// A type of fewer than 16 bits.
fn is_coarse(dtype: &str) -> bool {
    !["F64", "F32", "F16", "BF16"].contains(&dtype)
}

fn of_config(difference: &Difference, changes: &mut Vec<Change>) {
    for key in &difference.config {
        let last = key.key.rsplit('.').next().unwrap_or(&key.key);
        let said = |value: &Option<Value>| value.as_ref().map_or("absent".to_string(), ToString::to_string);
        let what = format!("config key {}: {}, then {}", key.key, said(&key.a), said(&key.b));
        let (level, aspect) = match last {
            _ if WORDS.contains(&last) => (Level::Patch, "documentation"),
            "vocab_size" => (Level::Major, "vocabulary"),
            _ if SPECIAL_IDS.contains(&last) => (Level::Major, "special tokens"),
            _ => (Level::Major, "architecture"),
        };
        push(changes, level, aspect, what);
    }
}

fn of_tokenizers(a: &Checkpoint, b: &Checkpoint, changes: &mut Vec<Change>) -> Result<()> {
    let (first, second) = match (fit::tokenizer(a)?, fit::tokenizer(b)?) {
        (Some(first), Some(second)) => (first, second),
        (None, None) => return Ok(()),
        (first, _) => {
            let what = if first.is_some() { "the tokenizer is gone" } else { "there was no tokenizer" };
            push(changes, Level::Major, "tokenizer", what.to_string());
            return Ok(());
        }
    };
    let (size_a, size_b) = (first.vocab_size(), second.vocab_size());
    if let Some((id, [a, b])) = fit::first_token_difference(&first, &second) {
        let what = format!("{size_a} tokens, then {size_b}; token {id} is {a}, then {b}");
        push(changes, Level::Major, "vocabulary", what);
    } else if let Some(key) = pipeline_difference(a, b) {
        push(
            changes,
            Level::Major,
            "tokenizer",
            format!("tokenizer.json: {key} differs, so that texts fall into other tokens"),
        );
    }
    let named = |tokenizer: &luthier_text::Tokenizer| -> Vec<(String, String)> {
        let named = tokenizer.special_tokens().named();
        named.map(|(key, token)| (key.to_string(), token.to_string())).collect()
    };
    let (named_a, named_b) = (named(&first), named(&second));
    for (key, token) in named_a.iter().filter(|pair| !named_b.contains(pair)) {
        let now = named_b.iter().find(|(other, _)| other == key).map_or("absent", |(_, token)| token);
        push(changes, Level::Major, "special tokens", format!("{key}: {token:?}, then {now:?}"));
    }
    for (key, token) in named_b.iter().filter(|(key, _)| !named_a.iter().any(|(other, _)| other == key)) {
        push(changes, Level::Major, "special tokens", format!("{key}: absent, then {token:?}"));
    }
    let template = |checkpoint: &Checkpoint| {
        let files =
            checkpoint.side_files.iter().map(|file| (file.name.clone(), file.bytes.clone())).collect();
        luthier_text::chat::ChatTemplates::from_files(&files)
    };
    if template(a)? != template(b)? {
        push(changes, Level::Major, "chat template", "chats are written in another form".to_string());
    }
    Ok(())
}

/// The first part of two tokenizer.json files that is not the same, formatting apart.
fn pipeline_difference(a: &Checkpoint, b: &Checkpoint) -> Option<String> {
    let parsed = |checkpoint: &Checkpoint| -> Option<Map<String, Value>> {
        serde_json::from_slice(checkpoint.side_file("tokenizer.json")?).ok()
    };
    let (a, b) = (parsed(a)?, parsed(b)?);
    let meant = |key: &&String| !["version", "truncation", "padding"].contains(&key.as_str());
    a.keys().chain(b.keys()).filter(meant).find(|key| a.get(*key) != b.get(*key)).cloned()
}

fn of_files(a: &Checkpoint, b: &Checkpoint, difference: &Difference, changes: &mut Vec<Change>) {
    let card =
        |checkpoint: &Checkpoint| checkpoint.side_file("README.md").map(front_matter).unwrap_or_default();
    let (card_a, card_b) = (card(a), card(b));
    for (key, level, aspect) in [
        ("license", Level::Major, "licence"),
        ("license_name", Level::Major, "licence"),
        ("license_link", Level::Major, "licence"),
        ("datasets", Level::Patch, "data"),
    ] {
        let (before, now) = (texts(card_a.get(key)), texts(card_b.get(key)));
        if before != now {
            push(
                changes,
                level,
                aspect,
                format!("{key} of the card: {}, then {}", listed(&before), listed(&now)),
            );
        }
    }
    for file in &difference.side_files {
        let name = file.name.as_str();
        if name == "generation_config.json" {
            of_generation_config(&file.keys, file.a_bytes.is_some() && file.b_bytes.is_some(), changes);
        } else if name == "README.md" {
            push(changes, Level::Patch, "documentation", "README.md differs".to_string());
        } else if !luthier_checkpoint::folder::TOKENIZER_FILES.contains(&name)
            && !name.contains("chat_template")
        {
            push(changes, Level::Patch, "documentation", format!("{name} differs"));
        }
    }
}

fn of_generation_config(keys: &[diff::KeyDifference], in_both: bool, changes: &mut Vec<Change>) {
    if !in_both {
        let what = "generation_config.json is in one of the two only".to_string();
        push(changes, Level::Minor, "defaults", what);
    }
    for key in keys {
        let said = |value: &Option<Value>| value.as_ref().map_or("absent".to_string(), ToString::to_string);
        let what = format!("generation_config.json {}: {}, then {}", key.key, said(&key.a), said(&key.b));
        match key.key.as_str() {
            "transformers_version" => push(changes, Level::Patch, "documentation", what),
            id if SPECIAL_IDS.contains(&id) => push(changes, Level::Major, "special tokens", what),
            _ => push(changes, Level::Minor, "defaults", what),
        }
    }
}

fn listed(texts: &[String]) -> String {
    if texts.is_empty() { "none".to_string() } else { texts.join(", ") }
}

/// A version number of one to three parts, kept in the form in which it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    prefix: String,
    parts: Vec<u64>,
}

impl Version {
    /// `1.2.3`, `v1.2`, `2`. The error says what was wanted.
    pub fn parse(text: &str) -> Result<Version> {
        let wanted =
            || Error::Use(format!("version {text:?}: wanted one to three numbers, such as 1.2.3 or v1.2"));
        let (prefix, numbers) = match text.strip_prefix(['v', 'V']) {
            Some(rest) => (text[..1].to_string(), rest),
            None => (String::new(), text),
        };
        let parts: Vec<u64> =
            numbers.split('.').map(|part| part.parse().map_err(|_| wanted())).collect::<Result<_>>()?;
        if parts.len() > 3 { Err(wanted()) } else { Ok(Version { prefix, parts }) }
    }

    /// The next version after a change of that level; no part is dropped, missing ones are added where they are needed.
    pub fn bumped(&self, level: Level) -> Version {
        let at = match level {
            Level::None => return self.clone(),
            Level::Major => 0,
            Level::Minor => 1,
            Level::Patch => 2,
        };
        let mut parts = self.parts.clone();
        parts.resize(parts.len().max(at + 1), 0);
        parts[at] += 1;
        parts[at + 1..].fill(0);
        Version { prefix: self.prefix.clone(), parts }
    }

    /// The level of the step from this version to `later`; none where it is the same, an error where it is earlier.
    pub fn step_to(&self, later: &Version) -> Result<Level> {
        let part = |version: &Version, at: usize| version.parts.get(at).copied().unwrap_or(0);
        for (at, level) in [Level::Major, Level::Minor, Level::Patch].into_iter().enumerate() {
            let (before, now) = (part(self, at), part(later, at));
            if now < before {
                return Err(Error::Use(format!(
                    "version {later} is earlier than {self}; name the older release first"
                )));
            }
            if now > before {
                return Ok(level);
            }
        }
        Ok(Level::None)
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts: Vec<String> = self.parts.iter().map(u64::to_string).collect();
        write!(to, "{}{}", self.prefix, parts.join("."))
    }
}

/// The version that a model says of itself: its card's `version`, else the version in the name of its place.
pub fn declared(label: &str, checkpoint: &Checkpoint) -> Option<Version> {
    let card = checkpoint.side_file("README.md").map(front_matter).unwrap_or_default();
    let said = match card.get("version") {
        Some(Value::String(text)) => Some(text.clone()),
        Some(Value::Number(number)) => Some(number.to_string()),
        _ => None,
    };
    if let Some(version) = said.and_then(|text| Version::parse(&text).ok()) {
        return Some(version);
    }
    // A folder may be called after its version alone.
    let place = label.strip_prefix("hf:").unwrap_or(label).split('@').next().unwrap_or(label);
    let last = place.trim_end_matches('/').rsplit('/').next().unwrap_or(place).trim_end_matches(".gguf");
    let segments = name::parse(last);
    let segment = segments.iter().rev().find(|segment| segment.kind == name::Kind::Version);
    Version::parse(segment.map_or(last, |segment| &segment.text)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_count_up_and_keep_their_form() {
        let bumped = |text: &str, level| Version::parse(text).unwrap().bumped(level).to_string();
        assert_eq!(bumped("1.2.3", Level::Major), "2.0.0");
        assert_eq!(bumped("v1.2", Level::Minor), "v1.3");
        assert_eq!(bumped("v1.2", Level::Patch), "v1.2.1");
        assert_eq!(bumped("2", Level::Minor), "2.1");
        assert_eq!(bumped("2", Level::None), "2");
        for wrong in ["", "v", "1.2.3.4", "one", "1..2", "-1"] {
            assert!(Version::parse(wrong).unwrap_err().to_string().contains("wanted"), "{wrong}");
        }
        let step = |a: &str, b: &str| Version::parse(a).unwrap().step_to(&Version::parse(b).unwrap());
        assert_eq!(step("1.2", "1.2.0").unwrap(), Level::None);
        assert_eq!(step("1.2", "1.3").unwrap(), Level::Minor);
        assert!(step("1.3", "1.2").unwrap_err().to_string().contains("earlier"));
    }
}
