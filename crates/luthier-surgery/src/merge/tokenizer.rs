//! The tokenizer, templates and token ids that a merged model gets.

use std::collections::BTreeMap;

use luthier_checkpoint::folder::TOKENIZER_FILES;
use luthier_checkpoint::{SideFile, json};
use luthier_text::Tokenizer;
use luthier_text::chat::ChatTemplates;
use luthier_text::union::OTHER_VOCABULARIES;
use serde_json::{Map, Value};

use super::recipe::Recipe;
use super::vocabulary::Chosen;
use crate::{Error, Input, Result, fit};

const CHAT_TEMPLATE: &str = "chat_template.jinja";
const GENERATION: &str = "generation_config.json";

/// The side files of the result: the first model's, with the tokenizer and the template that the recipe asks for.
pub(super) fn side_files(
    recipe: &Recipe,
    inputs: &[Input],
    chosen: Option<&Chosen>,
    notes: &mut Vec<String>,
) -> Result<Vec<SideFile>> {
    let mut files: Vec<SideFile> = inputs[0].checkpoint.side_files.clone();
    match chosen {
        Some(chosen) => put_tokenizer(&mut files, inputs, chosen, notes)?,
        None => {
            if let Some(difference) = difference(inputs)? {
                notes.push(format!(
                    "{difference}; rows are merged by number, without looking at tokens (tokenizer_source: union aligns them)"
                ));
            }
        }
    }
    match recipe.chat_template.as_deref() {
        None => {}
        Some("auto") => match most_common_template(inputs)? {
            Some(template) => put_template(&mut files, &template)?,
            None => notes.push("chat_template auto: no model has one".to_string()),
        },
        Some(template) if template.contains('{') => put_template(&mut files, template)?,
        Some(name) => {
            return Err(Error::Use(format!(
                "chat_template {name}: wanted auto, or a template in Jinja itself; mergekit's named templates are not part of \
                 luthier, put the text of the one that you mean into the recipe"
            )));
        }
    }
    Ok(files)
}

/// Replaces tokenizer files by those of the model whose tokenizer it is, or by the extended one's.
fn put_tokenizer(
    files: &mut Vec<SideFile>,
    inputs: &[Input],
    chosen: &Chosen,
    notes: &mut Vec<String>,
) -> Result<()> {
    let is_tokenizer =
        |file: &SideFile| TOKENIZER_FILES.contains(&file.name.as_str()) || file.name == CHAT_TEMPLATE;
    if chosen.donor != 0 {
        files.retain(|file| !is_tokenizer(file));
        let donor = inputs[chosen.donor].checkpoint.side_files.iter();
        files.extend(donor.filter(|file| is_tokenizer(file)).cloned());
    }
    if chosen.is_extended {
        let stale: Vec<String> = files.iter().map(|file| file.name.clone()).collect();
        let stale: Vec<String> =
            stale.into_iter().filter(|name| OTHER_VOCABULARIES.contains(&name.as_str())).collect();
        if !stale.is_empty() {
            let stale_list = stale.join(", ");
            notes.push(format!("{stale_list}: left out, tokenizer.json holds the longer vocabulary"));
        }
        files.retain(|file| !stale.contains(&file.name));
        for (name, bytes) in chosen.tokenizer.files() {
            put(files, &name, bytes);
        }
    }
    Ok(())
}

fn put(files: &mut Vec<SideFile>, name: &str, bytes: Vec<u8>) {
    match files.iter_mut().find(|file| file.name == name) {
        Some(file) => file.bytes = bytes,
        None => files.push(SideFile { name: name.to_string(), bytes }),
    }
}

/// Makes that the one template of the model, wherever it had one.
fn put_template(files: &mut Vec<SideFile>, template: &str) -> Result<()> {
    if templates(files)?.default.is_some_and(|own| own.trim() == template.trim()) {
        return Ok(());
    }
    for name in ["tokenizer_config.json", "chat_template.json"] {
        let Some(file) = files.iter_mut().find(|file| file.name == name) else { continue };
        let Ok(mut keys) = serde_json::from_slice::<Map<String, Value>>(&file.bytes) else { continue };
        if keys.shift_remove("chat_template").is_some() {
            file.bytes = json::to_text(&keys).into_bytes();
        }
    }
    put(files, CHAT_TEMPLATE, template.as_bytes().to_vec());
    Ok(())
}

fn templates(files: &[SideFile]) -> Result<ChatTemplates> {
    let files: BTreeMap<String, Vec<u8>> =
        files.iter().map(|file| (file.name.clone(), file.bytes.clone())).collect();
    Ok(ChatTemplates::from_files(&files)?)
}

/// The template that most models have; of those that equally many have the first.
fn most_common_template(inputs: &[Input]) -> Result<Option<String>> {
    let mut counts: Vec<(String, usize)> = Vec::new();
    for input in inputs {
        let Some(template) = templates(&input.checkpoint.side_files)?.default else { continue };
        let template = template.trim();
        match counts.iter_mut().find(|(known, _)| known == template) {
            Some((_, count)) => *count += 1,
            None => counts.push((template.to_string(), 1)),
        }
    }
    let most = counts.iter().map(|(_, count)| *count).max();
    Ok(counts.into_iter().find(|(_, count)| Some(*count) == most).map(|(template, _)| template))
}

/// config.json and generation_config.json where the tokenizer is another model's: ids of special tokens are that model's,
/// where it names them, else those of the same tokens; ids of tokens that the tokenizer lacks are left out.
pub(super) fn with_token_ids(
    config: &mut Map<String, Value>,
    files: &mut [SideFile],
    inputs: &[Input],
    chosen: &Chosen,
    notes: &mut Vec<String>,
) -> Result<()> {
    if chosen.donor == 0 {
        return Ok(());
    }
    let Some(from) = fit::tokenizer(&inputs[0].checkpoint)? else { return Ok(()) };
    let donor = &inputs[chosen.donor].checkpoint;
    let ids = Ids { from: &from, to: &chosen.tokenizer };
    ids.renumber(config, "config.json", Some(&donor.config), notes);
    let parsed = |bytes: &[u8]| serde_json::from_slice::<Map<String, Value>>(bytes).ok();
    if let Some(file) = files.iter_mut().find(|file| file.name == GENERATION)
        && let Some(mut keys) = parsed(&file.bytes)
    {
        let before = keys.clone();
        let own = donor.side_file(GENERATION).and_then(parsed).unwrap_or_else(|| donor.config.clone());
        ids.renumber(&mut keys, GENERATION, Some(&own), notes);
        if keys != before {
            file.bytes = json::to_text(&keys).into_bytes();
        }
    }
    Ok(())
}

/// From the ids of one tokenizer to those of another.
struct Ids<'t> {
    from: &'t Tokenizer,
    to: &'t Tokenizer,
}

impl Ids<'_> {
    fn renumber(
        &self,
        keys: &mut Map<String, Value>,
        place: &str,
        donor: Option<&Map<String, Value>>,
        notes: &mut Vec<String>,
    ) {
        for (key, value) in keys.iter_mut() {
            if let Value::Object(nested) = value {
                let donor = donor.and_then(|donor| donor.get(key)).and_then(Value::as_object);
                self.renumber(nested, &format!("{place}: {key}"), donor, notes);
                continue;
            }
            let names_tokens = ["_token_id", "_token_ids", "suppress_tokens"];
            if value.is_null() || !names_tokens.iter().any(|ending| key.ends_with(ending)) {
                continue;
            }
            let theirs = donor.and_then(|donor| donor.get(key)).filter(|theirs| !theirs.is_null());
            let new = theirs.cloned().unwrap_or_else(|| self.same(value));
            if new != *value {
                notes.push(format!("{place}: {key} was {value}, is {new} in the tokenizer of the result"));
                *value = new;
            }
        }
    }

    /// The same tokens by the other's ids; null where it lacks them.
    fn same(&self, value: &Value) -> Value {
        match value {
            Value::Array(items) => {
                items.iter().map(|item| self.same(item)).filter(|item| !item.is_null()).collect()
            }
            Value::Number(id) => {
                let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
                id.and_then(|id| self.to.id(&self.from.token(id)?)).map_or(Value::Null, Value::from)
            }
            other => other.clone(),
        }
    }
}

/// The config with that many tokens, in every part that counts them.
pub(super) fn with_vocab_size(config: &mut Map<String, Value>, rows: usize) {
    for (key, value) in config.iter_mut() {
        match value {
            Value::Object(nested) if ["encoder", "decoder", "text_config"].contains(&key.as_str()) => {
                with_vocab_size(nested, rows);
            }
            Value::Number(_) if key == "vocab_size" => *value = Value::from(rows),
            _ => {}
        }
    }
}

/// Refuses to move rows of tokens where nobody says which tensors have them.
pub(super) fn by_number(recipe: &Recipe, inputs: &[Input]) -> Result<()> {
    let Some(source) = recipe.tokenizer_choice()? else { return Ok(()) };
    let padded = recipe.tokenizer.as_ref().is_some_and(|choice| choice.pad_to_multiple_of.is_some());
    if !padded && recipe.token_entries().is_empty() && difference(inputs)?.is_none() {
        return Ok(());
    }
    Err(Error::Use(format!(
        "tokenizer source {source}: the architecture is not known, so that nothing says which tensors have a row for each \
         token; leave the key out to merge rows by number"
    )))
}

/// The first token that two of the models spell differently.
fn difference(inputs: &[Input]) -> Result<Option<String>> {
    let others: Vec<&Input> = inputs[1..].iter().filter(|input| !same_files(&inputs[0], input)).collect();
    if others.is_empty() {
        return Ok(None);
    }
    let Some(first) = fit::tokenizer(&inputs[0].checkpoint)? else { return Ok(None) };
    for input in others {
        let Some(other) = fit::tokenizer(&input.checkpoint)? else { continue };
        if let Some((id, [a, b])) = fit::first_token_difference(&first, &other) {
            let (label, other) = (&inputs[0].label, &input.label);
            return Ok(Some(format!("token {id} is {a} in {label} and {b} in {other}")));
        }
    }
    Ok(None)
}

/// Whether two models' tokenizers are the same byte for byte: large ones take more memory than a merge.
fn same_files(a: &Input, b: &Input) -> bool {
    TOKENIZER_FILES.iter().all(|name| a.checkpoint.side_file(name) == b.checkpoint.side_file(name))
}
