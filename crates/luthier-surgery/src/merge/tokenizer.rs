//! Whose tokenizer and templates a merged model gets.

use std::collections::HashMap;

use luthier_checkpoint::SideFile;
use luthier_checkpoint::folder::TOKENIZER_FILES;

use super::recipe::Recipe;
use crate::{Error, Input, Result, fit};

const CHAT_TEMPLATE: &str = "chat_template.jinja";

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
    let is_tokenizer =
        |file: &SideFile| TOKENIZER_FILES.contains(&file.name.as_str()) || file.name == CHAT_TEMPLATE;
    let mut files: Vec<SideFile> = inputs[0].checkpoint.side_files.clone();
    if donor != 0 {
        files.retain(|file| !is_tokenizer(file));
        files.extend(inputs[donor].checkpoint.side_files.iter().filter(|file| is_tokenizer(file)).cloned());
    }
    match recipe.chat_template.as_deref() {
        None | Some("auto") => {}
        Some(template) if template.contains('{') => {
            files.retain(|file| file.name != CHAT_TEMPLATE);
            let bytes = template.as_bytes().to_vec();
            files.push(SideFile { name: CHAT_TEMPLATE.to_string(), bytes });
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
        if let Some((id, [a, b])) = fit::first_token_difference(&first, &other) {
            let (label, other) = (&inputs[0].label, &input.label);
            return Ok(Some(format!("token {id} is {a} in {label} and {b} in {other}")));
        }
    }
    Ok(None)
}
