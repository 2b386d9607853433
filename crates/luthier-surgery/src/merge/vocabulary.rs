//! Which token stands in which row of the result's embeddings, and in which row of each model's: aligned by token string.
//!
//! The rules are mergekit 0.1.5's. A model that lacks a token gets the row that the recipe gives for it, else that of the only
//! model that has it, else the base's, else the mean of those that have it; a token that no model has gets zeros. Deviation:
//! rows that belong to no token (padding) are kept where mergekit cuts them off, unless `pad_to_multiple_of` says how many
//! there shall be; then each is the mean of the tokens' rows.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use luthier_text::Tokenizer;
use luthier_text::union::union;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::recipe::Recipe;
use crate::{Error, Input, Result, fit};

/// No row.
pub(super) const NONE: u32 = u32::MAX;

/// Moved tokens that a report spells out, for each model.
const EXAMPLES: usize = 5;

/// Rows of the result, token by token.
pub(super) struct Vocabulary {
    /// Rows of the result's embeddings.
    pub(super) rows: usize,
    /// The row that each model has for each row of the result, or [`NONE`].
    pub(super) own: Vec<Arc<Vec<u32>>>,
    /// Whether a token belongs to a row of the result.
    pub(super) is_token: Arc<Vec<bool>>,
    /// What the recipe says of single tokens, by row.
    pub(super) given: HashMap<u32, Given>,
    /// Rows where that holds for models that have the token too.
    pub(super) forced: Arc<HashSet<u32>>,
    /// Whether padding rows are the mean of the others.
    pub(super) mean_padding: bool,
    /// What to tell.
    pub(super) mapping: Mapping,
}

/// What the recipe says of a token's row.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Given {
    /// Zeros.
    Zero,
    /// A model's row for the same token: its number.
    Model(usize),
    /// That row of a model.
    Row(usize, u32),
}

/// Whose tokens went where.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Mapping {
    /// Rows of the result's embeddings.
    pub rows: usize,
    /// Rows that belong to no token.
    pub padding_rows: usize,
    /// Tokens that no model has: their rows are zero.
    pub zero: usize,
    /// Tokens that several models have and the base lacks: models without them get the mean.
    pub averaged: usize,
    /// Model by model.
    pub models: Vec<ModelMapping>,
}

/// What became of one model's tokens.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct ModelMapping {
    /// As the recipe names it.
    pub model: String,
    /// Tokens that keep their row.
    pub same_row: usize,
    /// Tokens that get another row.
    pub moved: usize,
    /// Tokens of the result that it lacks.
    pub lacking: usize,
    /// Its tokens that the result does not have.
    pub left_out: usize,
    /// Some that moved: the token, its row here, its row in the result.
    pub examples: Vec<(String, u32, u32)>,
}

/// The tokenizer of the result.
pub(super) struct Chosen {
    pub(super) tokenizer: Tokenizer,
    /// The model whose files it comes from.
    pub(super) donor: usize,
    /// Whether it has tokens that the donor's lacks.
    pub(super) is_extended: bool,
}

/// The entry of one token in a recipe.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenEntry {
    #[serde(default)]
    source: Option<Value>,
    #[serde(default)]
    force: bool,
}

/// A row of a model, named by its token or its number.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelToken {
    #[serde(rename = "kind", default)]
    _kind: Option<String>,
    model: String,
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    token_id: Option<u32>,
}

/// One model's tokens.
struct Tokens {
    tokenizer: Tokenizer,
    /// Rows of its embedding.
    rows: usize,
}

impl Tokens {
    fn row(&self, token: &str) -> Option<u32> {
        self.tokenizer.id(token).filter(|id| (*id as usize) < self.rows)
    }
}

/// The tokenizer of the result and its rows, where the recipe names a source. `rows` are those of each model's embedding;
/// the first `n_merged` models are merged, one more may bring nothing but its tokenizer.
pub(super) fn align(
    recipe: &Recipe,
    inputs: &[Input],
    rows: &[usize],
    n_merged: usize,
    numbers: &HashMap<String, usize>,
    notes: &mut Vec<String>,
) -> Result<Option<(Chosen, Vocabulary)>> {
    let Some(source) = recipe.tokenizer_choice()? else { return Ok(None) };
    let models = tokens_of(inputs, rows, notes)?;
    let entries = recipe.token_entries();
    let more: Vec<&str> = entries.iter().map(|(token, _)| token.as_str()).collect();
    let donor = match source {
        "base" | "union" => 0,
        model => numbers[model],
    };
    let others: Vec<(&Tokenizer, usize)> = match source {
        "union" => models[1..n_merged].iter().map(|model| (&model.tokenizer, model.rows)).collect(),
        _ => Vec::new(),
    };
    let donor_tokens = &models[donor];
    donor_tokens.tokenizer.check_fits(donor_tokens.rows)?;
    let made = union(&donor_tokens.tokenizer, &others, &more)?;
    if made.n_new > 0 {
        notes.push(format!(
            "tokenizer: {} tokens and {} merges follow those of {}",
            made.n_new, made.n_merges, inputs[donor].label
        ));
    }
    let tokenizer = made.tokenizer;
    let n_tokens = tokenizer.vocab_size();
    let padding = recipe.tokenizer.as_ref().and_then(|choice| choice.pad_to_multiple_of);
    let n_rows = match padding {
        Some(0) => {
            return Err(Error::Use("tokenizer.pad_to_multiple_of: wanted 1 or more, came 0".to_string()));
        }
        Some(step) => n_tokens.next_multiple_of(step),
        None => n_tokens.max(donor_tokens.rows),
    };
    let token_of: Vec<Option<String>> = (0..n_rows as u32)
        .map(|row| tokenizer.token(row).filter(|token| tokenizer.id(token) == Some(row)))
        .collect();
    let own: Vec<Arc<Vec<u32>>> =
        models.iter().map(|model| Arc::new(own_rows(model, &token_of, padding.is_none()))).collect();
    let (given, forced) = given(&entries, &tokenizer, &models, numbers)?;
    let mapping = mapping(inputs, n_merged, &models, &token_of, &own, &given);
    let is_token = Arc::new(token_of.iter().map(Option::is_some).collect());
    let vocabulary = Vocabulary {
        rows: n_rows,
        own,
        is_token,
        given,
        forced: Arc::new(forced),
        mean_padding: padding.is_some(),
        mapping,
    };
    let chosen = Chosen { tokenizer, donor, is_extended: made.n_new > 0 };
    Ok(Some((chosen, vocabulary)))
}

/// The tokenizer of every model; the first's where a model has none.
fn tokens_of(inputs: &[Input], rows: &[usize], notes: &mut Vec<String>) -> Result<Vec<Tokens>> {
    let mut models: Vec<Tokens> = Vec::new();
    for (input, rows) in inputs.iter().zip(rows) {
        let tokenizer = match (fit::tokenizer(&input.checkpoint)?, models.first()) {
            (Some(tokenizer), _) => tokenizer,
            (None, Some(first)) => {
                let label = &input.label;
                notes.push(format!("{label} has no tokenizer: its rows are those of {}", inputs[0].label));
                first.tokenizer.clone()
            }
            (None, None) => {
                return Err(Error::Use(format!(
                    "tokenizer: {} has no tokenizer to align tokens with; add its tokenizer.json, or leave the key out",
                    input.label
                )));
            }
        };
        if tokenizer.vocab_size() > *rows {
            let n =
                (*rows..tokenizer.vocab_size()).filter(|id| tokenizer.token(*id as u32).is_some()).count();
            notes.push(format!(
                "{n} tokens of {} lie beyond its {rows} rows and count as lacking",
                input.label
            ));
        }
        models.push(Tokens { tokenizer, rows: *rows });
    }
    Ok(models)
}

/// A model's row for each row of the result; padding rows by number, where they are kept.
fn own_rows(model: &Tokens, token_of: &[Option<String>], keeps_padding: bool) -> Vec<u32> {
    let row = |(row, token): (usize, &Option<String>)| match token {
        Some(token) => model.row(token).unwrap_or(NONE),
        None if keeps_padding && row < model.rows && model.tokenizer.token(row as u32).is_none() => {
            row as u32
        }
        None => NONE,
    };
    token_of.iter().enumerate().map(row).collect()
}

/// What the recipe says of single tokens, by row, and where it is forced.
fn given(
    entries: &[(String, Value)],
    tokenizer: &Tokenizer,
    models: &[Tokens],
    numbers: &HashMap<String, usize>,
) -> Result<(HashMap<u32, Given>, HashSet<u32>)> {
    let (mut given, mut forced) = (HashMap::new(), HashSet::new());
    for (token, entry) in entries {
        let wrong = |what: String| Error::Use(format!("tokenizer.tokens: {token:?}: {what}"));
        let entry: TokenEntry = serde_json::from_value(entry.clone()).map_err(|e| wrong(e.to_string()))?;
        let row = tokenizer.id(token).ok_or_else(|| wrong("is not in the result's tokenizer".to_string()))?;
        let number = |model: &str| {
            let found = numbers.get(model).copied();
            found.ok_or_else(|| wrong(format!("model {model} is not part of the merge")))
        };
        let source = match &entry.source {
            None | Some(Value::Null) if entry.force => {
                return Err(wrong("force: wanted a source too".to_string()));
            }
            None | Some(Value::Null) => continue,
            Some(Value::String(model)) => {
                let number = number(model)?;
                if models[number].row(token).is_none() {
                    return Err(wrong(format!("{model} does not have it; name another source")));
                }
                Given::Model(number)
            }
            Some(Value::Object(keys)) if keys.get("kind").is_some_and(|kind| kind == "zero") => {
                if let Some(other) = keys.keys().find(|key| *key != "kind") {
                    return Err(wrong(format!("kind zero has no key {other}")));
                }
                Given::Zero
            }
            Some(Value::Object(keys)) if keys.get("kind").is_none_or(|kind| kind == "model_token") => {
                let keys = Value::Object(keys.clone());
                let named: ModelToken = serde_json::from_value(keys).map_err(|e| wrong(e.to_string()))?;
                let number = number(&named.model)?;
                let rows = models[number].rows;
                let row = match (&named.token, named.token_id) {
                    (Some(other), None) => models[number]
                        .row(other)
                        .ok_or_else(|| wrong(format!("{} has no token {other:?}", named.model)))?,
                    (None, Some(id)) if (id as usize) < rows => id,
                    (None, Some(id)) => {
                        return Err(wrong(format!("token_id {id}: {} has {rows} rows", named.model)));
                    }
                    _ => return Err(wrong("wanted either token or token_id".to_string())),
                };
                Given::Row(number, row)
            }
            Some(other) => {
                return Err(wrong(format!(
                    "source: wanted a model, {{kind: zero}} or {{kind: model_token, model, token | token_id}}, came {other}"
                )));
            }
        };
        if entry.force {
            forced.insert(row);
        }
        given.insert(row, source);
    }
    Ok((given, forced))
}

/// What became of the tokens, in numbers.
fn mapping(
    inputs: &[Input],
    n_merged: usize,
    models: &[Tokens],
    token_of: &[Option<String>],
    own: &[Arc<Vec<u32>>],
    given: &HashMap<u32, Given>,
) -> Mapping {
    let tokens = || token_of.iter().enumerate().filter(|(_, token)| token.is_some());
    let mut mapping = Mapping {
        rows: token_of.len(),
        padding_rows: token_of.len() - tokens().count(),
        zero: 0,
        averaged: 0,
        models: Vec::new(),
    };
    for (row, _) in tokens().filter(|(row, _)| !given.contains_key(&(*row as u32))) {
        let n_has = own[..n_merged].iter().filter(|own| own[row] != NONE).count();
        mapping.zero += usize::from(n_has == 0);
        mapping.averaged += usize::from(n_has > 1 && n_has < n_merged && own[0][row] == NONE);
    }
    let kept: BTreeMap<&str, usize> =
        tokens().filter_map(|(row, token)| Some((token.as_deref()?, row))).collect();
    for ((input, own), model) in inputs[..n_merged].iter().zip(own).zip(models) {
        let mut one = ModelMapping {
            model: input.label.clone(),
            same_row: 0,
            moved: 0,
            lacking: 0,
            left_out: 0,
            examples: Vec::new(),
        };
        for (row, token) in tokens() {
            match own[row] {
                NONE => one.lacking += 1,
                same if same as usize == row => one.same_row += 1,
                other => {
                    one.moved += 1;
                    if one.examples.len() < EXAMPLES {
                        one.examples.push((token.clone().unwrap_or_default(), other, row as u32));
                    }
                }
            }
        }
        let of_model = (0..model.tokenizer.vocab_size().min(model.rows) as u32)
            .filter_map(|id| model.tokenizer.token(id));
        one.left_out = of_model.filter(|token| !kept.contains_key(token.as_str())).count();
        mapping.models.push(one);
    }
    mapping
}

impl Mapping {
    /// A line for the result, one for each model.
    pub fn lines(&self) -> Vec<String> {
        let mut first = format!("vocabulary: {} rows", self.rows);
        for (count, what) in [
            (self.padding_rows, "without a token"),
            (self.averaged, "where a model gets the mean of the others"),
            (self.zero, "of tokens that no model has, which are zero"),
        ] {
            if count > 0 {
                first.push_str(&format!(", {count} {what}"));
            }
        }
        let mut lines = vec![first];
        for model in &self.models {
            let mut line = format!(
                "vocabulary of {}: {} tokens keep their row, {} move, {} are lacking, {} are left out",
                model.model, model.same_row, model.moved, model.lacking, model.left_out
            );
            for (token, from, to) in &model.examples {
                line.push_str(&format!("; {token:?} {from} -> {to}"));
            }
            lines.push(line);
        }
        lines
    }
}
