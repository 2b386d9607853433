//! Whose tokenizer and templates a merged model gets.

use std::collections::HashMap;

use luthier_checkpoint::SideFile;

use super::recipe::Recipe;
use crate::{Error, Input, Result, fit};

/// Side files that belong to a tokenizer.
const TOKENIZER_FILES: [&str; 11] = [
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
];

/// The side files of the result: the first model's, with the tokenizer that the recipe names.
pub(crate) fn side_files(
    recipe: &Recipe,
    inputs: &[Input],
    numbers: &HashMap<String, usize>,
    notes: &mut Vec<String>,
) -> Result<Vec<SideFile>> {
    if recipe.tokenizer.is_some() && recipe.tokenizer_source.is_some() {
        return Err(Error::Use("wanted tokenizer_source or tokenizer, not both".to_string()));
    }
    let choice = recipe.tokenizer.as_ref();
    if choice.is_some_and(|choice| choice.tokens.as_ref().is_some_and(|tokens| !tokens.is_empty())) {
        return Err(Error::Use(
            "tokenizer.tokens: single tokens cannot be given an embedding yet; remove it".to_string(),
        ));
    }
    if choice.is_some_and(|choice| choice.pad_to_multiple_of.is_some()) {
        return Err(Error::Use(
            "tokenizer.pad_to_multiple_of: rows are kept as they are; remove it".to_string(),
        ));
    }
    let source = choice.map(|choice| choice.source.as_str()).or(recipe.tokenizer_source.as_deref());
    if let Some(difference) = difference(inputs)? {
        if source.is_some() {
            return Err(Error::Use(format!(
                "{difference}; vocabularies that differ cannot be aligned yet, merge models of one tokenizer"
            )));
        }
        notes.push(format!("{difference}; rows are merged by number, without looking at tokens"));
    }
    let donor = match source {
        None | Some("base" | "union") => 0,
        Some(model) => *numbers.get(model).ok_or_else(|| {
            Error::Use(format!(
                "tokenizer source {model}: wanted base, union, or a model that the recipe merges"
            ))
        })?,
    };
    let is_tokenizer = |file: &SideFile| TOKENIZER_FILES.contains(&file.name.as_str());
    let mut files: Vec<SideFile> = inputs[0].checkpoint.side_files.clone();
    if donor != 0 {
        files.retain(|file| !is_tokenizer(file));
        files.extend(inputs[donor].checkpoint.side_files.iter().filter(|file| is_tokenizer(file)).cloned());
    }
    match recipe.chat_template.as_deref() {
        None | Some("auto") => {}
        Some(template) if template.contains('{') => {
            files.retain(|file| file.name != "chat_template.jinja");
            let bytes = template.as_bytes().to_vec();
            files.push(SideFile { name: "chat_template.jinja".to_string(), bytes });
        }
        Some(name) => {
            return Err(Error::Use(format!(
                "chat_template {name}: wanted auto, or a template in Jinja itself"
            )));
        }
    }
    Ok(files)
}

/// The first token that two of the models spell differently.
fn difference(inputs: &[Input]) -> Result<Option<String>> {
    let Some(first) = fit::tokenizer(&inputs[0].checkpoint)? else { return Ok(None) };
    for input in &inputs[1..] {
        let Some(other) = fit::tokenizer(&input.checkpoint)? else { continue };
        for id in 0..first.vocab_size().max(other.vocab_size()) as u32 {
            if first.token(id) != other.token(id) {
                let spelled =
                    |token: Option<String>| token.map_or("none".to_string(), |token| format!("{token:?}"));
                return Ok(Some(format!(
                    "token {id} is {} in {} and {} in {}",
                    spelled(first.token(id)),
                    inputs[0].label,
                    spelled(other.token(id)),
                    input.label
                )));
            }
        }
    }
    Ok(None)
}
