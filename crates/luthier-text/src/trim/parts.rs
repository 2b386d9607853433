//! Which other tokens a token cannot do without.

use std::collections::{BTreeSet, HashMap};

use serde_json::Value;

use super::{FILE, Kind};
use crate::error::{Result, TextError};

/// The vocabulary of a model, and how tokens come from others.
pub(super) struct Parts {
    ids: HashMap<String, u32>,
    tokens: Vec<String>,
    how: How,
}

enum How {
    /// A token is found as it stands.
    Whole,
    /// A token is made of its characters by merges: of two neighbours, the rank of their merge and what they become.
    Merged { merges: HashMap<(u32, u32), (u32, u32)>, prefix: String, suffix: String },
    /// What is not found whole is spelled in characters, with this in front of all but a word's first.
    Spelled { prefix: String },
}

impl Parts {
    pub(super) fn new(kind: Kind, json: &Value) -> Result<Parts> {
        let model = &json["model"];
        let tokens = tokens_by_id(model)?;
        let named = (0u32..).zip(&tokens).filter(|(_, token)| !token.is_empty());
        let ids: HashMap<String, u32> = named.map(|(id, token)| (token.clone(), id)).collect();
        let text = |key: &str| model[key].as_str().unwrap_or_default().to_owned();
        let how = match kind {
            Kind::ByteLevelBpe | Kind::Bpe => {
                let prefix = text("continuing_subword_prefix");
                let merges = ranked(model, &ids, &prefix)?;
                How::Merged { merges, prefix, suffix: text("end_of_word_suffix") }
            }
            Kind::Unigram if model["byte_fallback"] == true => How::Whole,
            Kind::Unigram => How::Spelled { prefix: String::new() },
            Kind::WordPiece => How::Spelled {
                prefix: model["continuing_subword_prefix"].as_str().unwrap_or("##").to_owned(),
            },
            Kind::WordLevel => How::Whole,
        };
        Ok(Parts { ids, tokens, how })
    }

    /// The tokens that must stay with this one; sorted.
    pub(super) fn of(&self, id: u32) -> Vec<u32> {
        let Some(token) = self.tokens.get(id as usize).filter(|token| !token.is_empty()) else {
            return Vec::new();
        };
        let mut parts = match &self.how {
            How::Whole => BTreeSet::new(),
            How::Merged { .. } => {
                self.merged(token).filter(|(last, _)| last == &[id]).map(|all| all.1).unwrap_or_default()
            }
            How::Spelled { prefix } => {
                let word = token.strip_prefix(prefix.as_str()).unwrap_or(token);
                let forms = word.chars().flat_map(|char| [char.to_string(), format!("{prefix}{char}")]);
                forms.filter_map(|form| self.ids.get(&form).copied()).collect()
            }
        };
        parts.remove(&id);
        parts.into_iter().collect()
    }

    /// Whether a text can be cut into this token at all.
    pub(super) fn is_found(&self, id: u32) -> bool {
        let Some(token) = self.tokens.get(id as usize).filter(|token| !token.is_empty()) else {
            return false;
        };
        match &self.how {
            How::Merged { .. } => self.merged(token).is_some_and(|(last, _)| last == [id]),
            _ => true,
        }
    }

    /// What BPE makes of a token's text: the symbols at the end, and all that it came by. None where a character is no
    /// token.
    fn merged(&self, token: &str) -> Option<(Vec<u32>, BTreeSet<u32>)> {
        let How::Merged { merges, prefix, suffix } = &self.how else { return None };
        let mut symbols = self.first_symbols(token, prefix, suffix)?;
        let mut all: BTreeSet<u32> = symbols.iter().copied().collect();
        loop {
            let pairs = symbols.windows(2).enumerate();
            let found = pairs.filter_map(|(at, pair)| Some((*merges.get(&(pair[0], pair[1]))?, at)));
            let Some(((_, whole), at)) = found.min_by_key(|((rank, _), at)| (*rank, *at)) else { break };
            symbols.splice(at..at + 2, [whole]);
            all.insert(whole);
        }
        Some((symbols, all))
    }

    /// The characters of a token as BPE starts with them.
    fn first_symbols(&self, token: &str, prefix: &str, suffix: &str) -> Option<Vec<u32>> {
        let continues = !prefix.is_empty() && token.starts_with(prefix);
        let word = if continues { &token[prefix.len()..] } else { token };
        let ends = !suffix.is_empty() && word.len() > suffix.len() && word.ends_with(suffix);
        let word = if ends { &word[..word.len() - suffix.len()] } else { word };
        let n_chars = word.chars().count();
        let symbol = |(at, char): (usize, char)| {
            let before = if at > 0 || continues { prefix } else { "" };
            let after = if ends && at + 1 == n_chars { suffix } else { "" };
            self.ids.get(&format!("{before}{char}{after}")).copied()
        };
        word.chars().enumerate().map(symbol).collect()
    }
}

/// The model's tokens by id; empty where there is none.
pub(super) fn tokens_by_id(model: &Value) -> Result<Vec<String>> {
    let broken = |what: String| TextError::broken(FILE, format!("model.vocab: {what}"));
    match &model["vocab"] {
        Value::Array(pieces) => {
            let text = |piece: &Value| piece[0].as_str().map(str::to_owned);
            let texts =
                pieces.iter().map(|piece| text(piece).ok_or_else(|| broken(format!("{piece} is no piece"))));
            texts.collect()
        }
        Value::Object(vocab) => {
            let mut tokens = vec![String::new(); vocab.len()];
            for (token, id) in vocab {
                let id = id.as_u64().and_then(|id| usize::try_from(id).ok()).filter(|id| *id < 1 << 24);
                let id = id.ok_or_else(|| broken(format!("{token:?} has no id below 16777216")))?;
                if tokens.len() <= id {
                    tokens.resize(id + 1, String::new());
                }
                tokens[id] = token.clone();
            }
            Ok(tokens)
        }
        other => Err(broken(format!("wanted tokens, came {}", kind_of(other)))),
    }
}

fn kind_of(value: &Value) -> &'static str {
    if value.is_null() { "nothing" } else { "something else" }
}

/// The two halves of an entry of model.merges.
pub(super) fn halves(entry: &Value) -> Option<(&str, &str)> {
    match entry {
        Value::String(both) => both.split_once(' '),
        Value::Array(both) => Some((both.first()?.as_str()?, both.get(1)?.as_str()?)),
        _ => None,
    }
}

fn ranked(
    model: &Value,
    ids: &HashMap<String, u32>,
    prefix: &str,
) -> Result<HashMap<(u32, u32), (u32, u32)>> {
    let entries = model["merges"].as_array().map(Vec::as_slice).unwrap_or_default();
    let mut merges = HashMap::with_capacity(entries.len());
    for (rank, entry) in (0u32..).zip(entries) {
        let known = halves(entry).and_then(|(left, right)| {
            let whole = format!("{left}{}", right.get(prefix.len()..)?);
            Some(((*ids.get(left)?, *ids.get(right)?), (rank, *ids.get(&whole)?)))
        });
        let (pair, merged) = known.ok_or_else(|| {
            TextError::broken(FILE, format!("model.merges: entry {rank} is no merge of tokens"))
        })?;
        // The crate takes the last of equal pairs.
        merges.insert(pair, merged);
    }
    Ok(merges)
}
