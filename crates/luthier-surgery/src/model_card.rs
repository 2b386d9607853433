//! `luthier card init|lint|diff`: the README.md that says what a model is, from what its files and record prove.
//!
//! Reads a model and writes text only. `init` states nothing that the files do not show: sizes from the weights, parents and
//! texts from the record; what only a person knows (licence, language, limits) is taken from options or left for `lint` to ask
//! for. `lint` finds what a card lacks and where it contradicts the model. Front matter as the hub reads it. Example:
//! `luthier card init runs/adapted --license apache-2.0 --language id`.

use std::fmt::Write;

use luthier_checkpoint::layout::StackKind;
use luthier_checkpoint::{Checkpoint, Lineage};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::convert::card::{front_matter, texts};
use crate::{Input, Result, info};

/// What only a person can say of a model.
#[derive(Clone, Debug, Default)]
pub struct Said {
    /// An identifier of the hub: `apache-2.0`, `mit`, `other`.
    pub license: Option<String>,
    /// Language codes.
    pub languages: Vec<String>,
    /// Data sets of the hub that it was trained on.
    pub datasets: Vec<String>,
    /// `1.2.0`.
    pub version: Option<String>,
}

/// One thing that a card lacks or gets wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// The front matter's key, or the section.
    pub field: String,
    /// What was wanted and what came.
    pub what: String,
}

/// One field of two cards.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[allow(missing_docs)]
pub struct FieldDifference {
    pub field: String,
    pub a: Option<Value>,
    pub b: Option<Value>,
}

/// Values of `base_model_relation` that the hub knows.
const RELATIONS: &[&str] = &["adapter", "merge", "quantized", "finetune"];

/// Sections that a reader looks for, each by the words that its heading may have.
const SECTIONS: &[(&str, &[&str])] = &[
    ("How it was made", &["made", "training", "method", "procedure", "merge", "trained"]),
    ("Use", &["use", "usage", "how to", "quick", "started"]),
    ("Limits", &["limit", "bias", "risk", "out-of-scope"]),
    ("Measurements", &["measure", "eval", "result", "benchmark", "performance"]),
];

/// The card of a model.
pub fn init(label: &str, checkpoint: &Checkpoint, lineage: Option<&Lineage>, said: &Said) -> Result<String> {
    let facts = info::run(checkpoint)?;
    let own = checkpoint.side_file("README.md").map(front_matter).unwrap_or_default();
    let mut text = String::from("---\n");
    let mut put = |key: &str, values: &[String]| put(&mut text, key, values);
    let or_own =
        |given: &[String], key: &str| if given.is_empty() { texts(own.get(key)) } else { given.to_vec() };
    let parents = parents(lineage);
    put("license", &or_own(said.license.as_slice(), "license"));
    put("language", &or_own(&said.languages, "language"));
    put(
        "library_name",
        &or_own(&[], "library_name")
            .into_iter()
            .chain(["transformers".to_string()])
            .take(1)
            .collect::<Vec<_>>(),
    );
    put("pipeline_tag", &[pipeline_tag(checkpoint).to_string()]);
    put("base_model", &if parents.is_empty() { or_own(&[], "base_model") } else { parents.clone() });
    if let (Some(relation), false) = (lineage.and_then(relation), parents.is_empty()) {
        put("base_model_relation", &[relation.to_string()]);
    }
    put("datasets", &or_own(&said.datasets, "datasets"));
    put("version", &or_own(said.version.as_slice(), "version"));
    put("tags", &tags(&facts, lineage));
    text.push_str("---\n");
    let name = label.strip_prefix("hf:").unwrap_or(label).trim_end_matches('/');
    let _ = writeln!(text, "# {}\n", name.rsplit('/').next().unwrap_or(name));
    describe(&mut text, &facts);
    if let Some(lineage) = lineage {
        how_it_was_made(&mut text, lineage);
    }
    let _ = writeln!(text, "## Use\n\n```sh\n{}\n```\n", usage(name, checkpoint));
    if let Some(lineage) = lineage.filter(|lineage| !lineage.measurements.is_empty()) {
        let _ = writeln!(text, "## Measurements\n\n| what | value |\n|---|---|");
        for (key, value) in &lineage.measurements {
            let _ = writeln!(text, "| {key} | {value} |");
        }
        text.push('\n');
    }
    Ok(text)
}

/// The front matter of a merge: licence and languages are the base's, as far as its card says them.
pub(crate) fn inherited(base: &Input, inputs: &[Input]) -> String {
    let own = base.checkpoint.side_file("README.md").map(front_matter).unwrap_or_default();
    let mut text = String::from("---\n");
    for key in ["license", "license_name", "license_link", "language", "library_name", "pipeline_tag"] {
        put(&mut text, key, &texts(own.get(key)));
    }
    let hub = inputs.iter().filter_map(|input| input.label.strip_prefix("hf:"));
    let parents: Vec<String> = hub.filter_map(|place| place.split('@').next()).map(str::to_string).collect();
    put(&mut text, "base_model", &parents);
    if !parents.is_empty() {
        put(&mut text, "base_model_relation", &["merge".to_string()]);
    }
    put(&mut text, "tags", &["merge".to_string(), "luthier".to_string()]);
    text + "---\n"
}

/// One key with its value, or its list of them; nothing without any.
fn put(text: &mut String, key: &str, values: &[String]) {
    match values {
        [] => {}
        [one] => _ = writeln!(text, "{key}: {}", quoted(one)),
        many => {
            let _ = writeln!(text, "{key}:");
            many.iter().for_each(|value| _ = writeln!(text, "- {}", quoted(value)));
        }
    }
}

/// A YAML scalar that is read as text.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    let is_word = text.starts_with(|c: char| c.is_ascii_alphabetic()) && text.chars().all(plain);
    // Norwegian would be a truth value.
    let is_value =
        ["no", "yes", "on", "off", "true", "false", "null", "y", "n"].contains(&text.to_lowercase().as_str());
    if is_word && !is_value { text.to_string() } else { Value::String(text.to_string()).to_string() }
}

fn describe(text: &mut String, facts: &info::Info) {
    let size = |value: Option<usize>| value.map_or("unknown".to_string(), |value| value.to_string());
    let _ = writeln!(
        text,
        "A model of architecture `{}` with {} parameters, {} layers{}, a vocabulary of {} and a context of {} tokens.\n",
        facts.model_type,
        facts.parameters,
        size(facts.layers),
        facts.encoder_layers.map_or(String::new(), |layers| format!(" ({layers} of them in the encoder)")),
        size(facts.vocab_size),
        size(facts.context_length)
    );
    let types: Vec<String> =
        facts.types.iter().map(|(name, share)| format!("{name} ({} tensors)", share.tensors)).collect();
    let _ = writeln!(text, "Stored as {}; {:.1} MB.\n", types.join(", "), facts.file_bytes as f64 / 1e6);
}

fn how_it_was_made(text: &mut String, lineage: &Lineage) {
    let _ = writeln!(text, "## How it was made\n");
    let _ = writeln!(text, "By `luthier {}` (version {}):\n", lineage.verb, lineage.luthier_version);
    let recipe = serde_json::to_string_pretty(&lineage.recipe).unwrap_or_default();
    let _ = writeln!(text, "```json\n{recipe}\n```\n");
    if !lineage.parents.is_empty() {
        let _ = writeln!(text, "From:\n");
        for parent in &lineage.parents {
            let weights = parent.files.iter().max_by_key(|file| file.size_bytes);
            let hash =
                weights.map_or(String::new(), |file| format!(": {} has SHA-256 {}", file.name, file.sha256));
            let _ = writeln!(text, "- {}{hash}", parent.place);
        }
        text.push('\n');
    }
    let ledger = &lineage.ledger;
    let _ = writeln!(
        text,
        "Of {} tensors {} are an input's byte for byte, {} changed, {} made; {} of the inputs' were dropped. `luthier replay` makes \
         it again from this record.\n",
        ledger.output_tensors,
        ledger.copied,
        ledger.changed.values().sum::<usize>(),
        ledger.made.values().sum::<usize>(),
        ledger.dropped.len()
    );
}

fn usage(name: &str, checkpoint: &Checkpoint) -> String {
    match pipeline_tag(checkpoint) {
        "fill-mask" | "feature-extraction" => {
            format!("luthier embed {name} --text sentences.txt --out embeddings.safetensors")
        }
        _ => format!("luthier generate {name} --prompt \"...\""),
    }
}

/// What the hub files the model under, by what its layout can do.
fn pipeline_tag(checkpoint: &Checkpoint) -> &'static str {
    use luthier_checkpoint::layout::Part;
    let Ok(layout) = luthier_arch::layout_of(checkpoint) else { return "text-generation" };
    let has_head = layout.tensors.iter().any(|spec| spec.role.part == Part::Head)
        || layout.ties.iter().any(|tie| tie.name.contains("head") || tie.name.contains("decoder"));
    match (layout.has_stack(StackKind::Encoder), layout.has_stack(StackKind::Decoder)) {
        (true, true) => "text2text-generation",
        (true, false) if has_head => "fill-mask",
        (true, false) => "feature-extraction",
        _ => "text-generation",
    }
}

fn tags(facts: &info::Info, lineage: Option<&Lineage>) -> Vec<String> {
    let mut tags = vec![facts.model_type.clone()];
    tags.extend(lineage.map(|lineage| lineage.verb.clone()));
    tags.push("luthier".to_string());
    tags
}

/// Models of the hub first; a place of somebody's disk says nothing to others.
fn parents(lineage: Option<&Lineage>) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for parent in lineage.into_iter().flat_map(|lineage| &lineage.parents) {
        let hub = parent
            .place
            .strip_prefix("hf:")
            .map(|place| place.split('@').next().unwrap_or(place).to_string());
        // A parent without a name on the hub may have been made of one that has.
        let names = hub.map_or_else(|| parents(parent.lineage.as_deref()), |name| vec![name]);
        for name in names {
            if !found.contains(&name) {
                found.push(name);
            }
        }
    }
    found
}

/// What the model is to its parents; none where it was made of nothing.
fn relation(lineage: &Lineage) -> Option<&'static str> {
    if lineage.ledger.input_tensors == 0 {
        return None;
    }
    match lineage.verb.as_str() {
        "merge" => Some("merge"),
        "quantize" => Some("quantized"),
        "extract-adapter" => Some("adapter"),
        "convert" => None,
        _ => Some("finetune"),
    }
}

/// What the card of a model lacks, and where it contradicts the model.
pub fn lint(checkpoint: &Checkpoint, lineage: Option<&Lineage>) -> Vec<Problem> {
    let Some(bytes) = checkpoint.side_file("README.md") else {
        let what = "there is none; `luthier card init` writes what the files prove".to_string();
        return vec![Problem { field: "README.md".to_string(), what }];
    };
    let text = String::from_utf8_lossy(bytes);
    let card = front_matter(bytes);
    let mut problems = Vec::new();
    let mut problem = |field: &str, what: String| problems.push(Problem { field: field.to_string(), what });
    if card.is_empty() {
        let what = "wanted YAML between two lines --- at the top, came none that can be read".to_string();
        problem("front matter", what);
    }
    for (key, why) in [
        ("license", "nobody may use a model without one"),
        ("language", "which languages it reads and writes"),
        ("pipeline_tag", "what it is for, by which the hub finds it"),
        ("library_name", "which program opens it"),
        ("tags", "words by which it is found"),
        ("datasets", "what it was trained on; write other where no data set of the hub"),
    ] {
        if texts(card.get(key)).is_empty() {
            problem(key, format!("missing: {why}"));
        }
    }
    of_values(&card, checkpoint, lineage, &mut problem);
    let headings: Vec<String> =
        text.lines().filter(|line| line.starts_with('#')).map(str::to_lowercase).collect();
    for (section, words) in SECTIONS {
        if !headings.iter().any(|heading| words.iter().any(|word| heading.contains(word))) {
            problem(&format!("section {section}"), format!("no heading with one of: {}", words.join(", ")));
        }
    }
    problems
}

/// Values that contradict the model or that the hub does not know.
fn of_values(
    card: &Map<String, Value>,
    checkpoint: &Checkpoint,
    lineage: Option<&Lineage>,
    problem: &mut dyn FnMut(&str, String),
) {
    for language in texts(card.get("language")) {
        let is_code = (2..=3).contains(&language.split('-').next().map_or(0, str::len))
            && language.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
        if !is_code && language != "multilingual" && language != "code" {
            problem("language", format!("wanted a code of two or three letters, came {language:?}"));
        }
    }
    let names = texts(card.get("base_model"));
    let made_of = parents(lineage);
    if names.is_empty() && lineage.is_some_and(|lineage| lineage.ledger.input_tensors > 0) {
        let known = if made_of.is_empty() { String::new() } else { format!(": {}", made_of.join(", ")) };
        problem("base_model", format!("missing, but the record names what it was made of{known}"));
    }
    for name in made_of.iter().filter(|name| !names.is_empty() && !names.contains(name)) {
        problem("base_model", format!("the record says {name}, the card {}", names.join(", ")));
    }
    let said = card.get("base_model_relation").and_then(Value::as_str);
    match (said, lineage.and_then(relation)) {
        (Some(said), _) if !RELATIONS.contains(&said) => {
            problem("base_model_relation", format!("wanted one of {}, came {said:?}", RELATIONS.join(", ")));
        }
        (Some(said), Some(wanted)) if said != wanted => {
            problem("base_model_relation", format!("the record says {wanted}, the card {said}"));
        }
        (None, Some(wanted)) if !names.is_empty() => {
            problem("base_model_relation", format!("missing; by the record it is {wanted}"));
        }
        _ => {}
    }
    let wanted = pipeline_tag(checkpoint);
    let fits = |said: &str| match wanted {
        "text2text-generation" => !["text-generation", "fill-mask"].contains(&said),
        "text-generation" => !["text2text-generation", "fill-mask"].contains(&said),
        _ => !["text-generation", "text2text-generation"].contains(&said),
    };
    if let Some(said) = card.get("pipeline_tag").and_then(Value::as_str).filter(|said| !fits(said)) {
        problem("pipeline_tag", format!("the model is one for {wanted}, the card says {said}"));
    }
}

/// Fields of the front matter and headings that two cards do not share.
pub fn difference(a: &Checkpoint, b: &Checkpoint) -> Vec<FieldDifference> {
    let bytes = |checkpoint: &Checkpoint| checkpoint.side_file("README.md").unwrap_or_default().to_vec();
    let (card_a, card_b) = (bytes(a), bytes(b));
    let (keys_a, keys_b) = (front_matter(&card_a), front_matter(&card_b));
    let only_b = keys_b.keys().filter(|key| !keys_a.contains_key(*key));
    let mut found: Vec<FieldDifference> = keys_a
        .keys()
        .chain(only_b)
        .filter(|key| keys_a.get(*key) != keys_b.get(*key))
        .map(|key| FieldDifference {
            field: key.clone(),
            a: keys_a.get(key).cloned(),
            b: keys_b.get(key).cloned(),
        })
        .collect();
    let (sections_a, sections_b) = (sections(&card_a), sections(&card_b));
    let only_b = sections_b.iter().filter(|(name, _)| !sections_a.iter().any(|(other, _)| other == name));
    let of = |sections: &[(String, String)], name: &str| {
        sections.iter().find(|(other, _)| other == name).map(|(_, text)| text.clone())
    };
    for (name, _) in sections_a.iter().chain(only_b) {
        let (text_a, text_b) = (of(&sections_a, name), of(&sections_b, name));
        if text_a != text_b {
            let said =
                |text: Option<String>| text.map(|text| Value::String(format!("{} characters", text.len())));
            found.push(FieldDifference {
                field: format!("section {name}"),
                a: said(text_a),
                b: said(text_b),
            });
        }
    }
    found
}

/// Headings with the text below each; what stands before the first belongs to none and is called so.
fn sections(card: &[u8]) -> Vec<(String, String)> {
    let text = String::from_utf8_lossy(card);
    let body = match text.strip_prefix("---\n").and_then(|rest| rest.split_once("\n---\n")) {
        Some((_, body)) => body,
        None => &text,
    };
    let mut found = vec![("(before the first heading)".to_string(), String::new())];
    for line in body.lines() {
        match line.strip_prefix('#') {
            Some(heading) => found.push((heading.trim_start_matches('#').trim().to_string(), String::new())),
            None => {
                let last = found.last_mut().expect("there is always one");
                last.1.push_str(line);
                last.1.push('\n');
            }
        }
    }
    found.retain(|(_, text)| !text.trim().is_empty());
    found
}
