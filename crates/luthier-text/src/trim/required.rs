//! Tokens that stay whatever a corpus says.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::parts::tokens_by_id;
use super::{FILE, Kind};
use crate::chat::ChatTemplates;
use crate::error::{Result, TextError};
use crate::sentencepiece::{PieceKind, SentencePieceModel};
use crate::special_tokens::json_file;
use crate::tokenizer::{SENTENCEPIECE_FILES, Tokenizer, byte_tokens};

/// Why a token stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// It is an added or special token.
    Added,
    /// It stands for one byte.
    Byte,
    /// It stands for what is unknown.
    Unknown,
    /// It stands in the place of spaces.
    Space,
    /// It is one of T5's sentinels.
    Sentinel,
    /// Its score sets that of unknown characters.
    LowestScore,
    /// A chat template writes it.
    Template,
}

impl Reason {
    /// For people.
    pub fn describe(self) -> &'static str {
        match self {
            Reason::Added => "added and special tokens",
            Reason::Byte => "bytes",
            Reason::Unknown => "the unknown token",
            Reason::Space => "the sign for spaces",
            Reason::Sentinel => "sentinels",
            Reason::LowestScore => "the lowest score, which sets that of unknown characters",
            Reason::Template => "tokens of chat templates",
        }
    }
}

/// Roles that templates take from the messages.
const ROLES: [&str; 4] = ["system", "user", "assistant", "tool"];

pub(super) fn required(
    files: &BTreeMap<String, Vec<u8>>,
    tokenizer: &Tokenizer,
    json: &Value,
    kind: Kind,
) -> Result<BTreeMap<u32, Reason>> {
    let mut required = BTreeMap::new();
    let mut add = |id: Option<u32>, reason: Reason| {
        if let Some(id) = id {
            required.entry(id).or_insert(reason);
        }
    };
    tokenizer.pipeline().get_added_tokens_decoder().into_keys().for_each(|id| add(Some(id), Reason::Added));
    named_tokens(files, tokenizer)?.into_iter().for_each(|token| add(tokenizer.id(&token), Reason::Added));
    for id in [tokenizer.added_before(), tokenizer.added_after()].into_iter().flatten() {
        add(Some(*id), Reason::Added);
    }
    for piece in sentencepiece_pieces(files)? {
        add(tokenizer.id(&piece), Reason::Added);
    }
    let model = &json["model"];
    add(model["unk_id"].as_u64().and_then(|id| u32::try_from(id).ok()), Reason::Unknown);
    add(model["unk_token"].as_str().and_then(|token| tokenizer.id(token)), Reason::Unknown);
    if kind == Kind::ByteLevelBpe {
        byte_letters().for_each(|letter| add(tokenizer.id(&letter.to_string()), Reason::Byte));
    } else if model["byte_fallback"] == true {
        byte_tokens().for_each(|token| add(tokenizer.id(&token), Reason::Byte));
    }
    if matches!(kind, Kind::Bpe | Kind::Unigram) {
        add(tokenizer.id("▁"), Reason::Space);
    }
    let tokens = tokens_by_id(model)?;
    (0u32..)
        .zip(&tokens)
        .filter(|(_, token)| is_sentinel(token))
        .for_each(|(id, _)| add(Some(id), Reason::Sentinel));
    if kind == Kind::Unigram {
        add(lowest_score(model), Reason::LowestScore);
    }
    for text in template_texts(files)? {
        tokenizer.encode(&text)?.into_iter().for_each(|id| add(Some(id), Reason::Template));
    }
    Ok(required)
}

/// Special tokens that side files name, whether tokenizer.json lists them or not.
fn named_tokens(files: &BTreeMap<String, Vec<u8>>, tokenizer: &Tokenizer) -> Result<BTreeSet<String>> {
    let mut tokens: BTreeSet<String> =
        tokenizer.special_tokens().named().map(|(_, token)| token.to_owned()).collect();
    let text = |value: &Value| value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned);
    for name in ["tokenizer_config.json", "special_tokens_map.json"] {
        let file = json_file(files, name)?.unwrap_or_default();
        for key in ["additional_special_tokens", "extra_special_tokens"] {
            tokens.extend(file[key].as_array().into_iter().flatten().filter_map(text));
            tokens.extend(file[key].as_object().into_iter().flatten().filter_map(|(_, token)| text(token)));
        }
    }
    let added = json_file(files, "added_tokens.json")?.unwrap_or_default();
    tokens.extend(added.as_object().into_iter().flatten().map(|(token, _)| token.clone()));
    Ok(tokens)
}

/// Pieces of a SentencePiece model that are no ordinary vocabulary.
fn sentencepiece_pieces(files: &BTreeMap<String, Vec<u8>>) -> Result<Vec<String>> {
    let Some(name) = SENTENCEPIECE_FILES.iter().find(|name| files.contains_key(**name)) else {
        return Ok(Vec::new());
    };
    let model = SentencePieceModel::parse(name, &files[*name])?;
    let is_ordinary = |kind: PieceKind| matches!(kind, PieceKind::Normal | PieceKind::Unused);
    Ok(model.pieces.into_iter().filter(|piece| !is_ordinary(piece.kind)).map(|piece| piece.text).collect())
}

/// The 256 printable characters in which GPT-2 writes bytes: those that print as they are, then the rest from U+0100 on.
fn byte_letters() -> impl Iterator<Item = char> {
    let prints = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let n_others = (0..256u32).filter(|byte| !prints(*byte)).count() as u32;
    let others = (0..n_others).map(|at| 0x100 + at);
    (0..256).filter(move |byte| prints(*byte)).chain(others).filter_map(char::from_u32)
}

/// `<extra_id_0>`, and as mT5 spells it.
fn is_sentinel(token: &str) -> bool {
    let token = token.strip_prefix('▁').unwrap_or(token);
    let number = token.strip_prefix("<extra_id_").and_then(|rest| rest.strip_suffix('>'));
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

fn lowest_score(model: &Value) -> Option<u32> {
    let pieces = model["vocab"].as_array()?;
    let scores = (0u32..).zip(pieces).filter_map(|(id, piece)| Some((id, piece[1].as_f64()?)));
    scores.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(id, _)| id)
}

/// What chat templates write literally: the text outside of tags, the strings inside, and the roles.
fn template_texts(files: &BTreeMap<String, Vec<u8>>) -> Result<BTreeSet<String>> {
    let templates = ChatTemplates::from_files(files).map_err(|error| match error {
        TextError::Broken { .. } => error,
        other => TextError::broken(FILE, other),
    })?;
    let mut texts = BTreeSet::new();
    let all: Vec<&String> = templates.default.iter().chain(templates.named.values()).collect();
    if !all.is_empty() {
        texts.extend(ROLES.map(str::to_owned));
    }
    for template in all {
        collect_literals(template, &mut texts);
    }
    Ok(texts)
}

fn collect_literals(template: &str, texts: &mut BTreeSet<String>) {
    let mut rest = template;
    loop {
        let open = ["{{", "{%", "{#"].iter().filter_map(|tag| Some((rest.find(tag)?, *tag))).min();
        let Some((at, tag)) = open else { break };
        texts.insert(rest[..at].to_owned());
        let close = match tag {
            "{{" => "}}",
            "{%" => "%}",
            _ => "#}",
        };
        let inside = &rest[at + tag.len()..];
        let end = inside.find(close).unwrap_or(inside.len());
        if tag != "{#" {
            collect_strings(&inside[..end], texts);
        }
        rest = inside.get(end + close.len()..).unwrap_or_default();
    }
    texts.insert(rest.to_owned());
}

/// String literals of an expression, the usual escapes read.
fn collect_strings(code: &str, texts: &mut BTreeSet<String>) {
    let mut chars = code.chars();
    while let Some(quote) = chars.find(|char| matches!(char, '\'' | '"')) {
        let mut text = String::new();
        while let Some(char) = chars.next().filter(|char| *char != quote) {
            match (char, char == '\\') {
                (_, true) => match chars.next() {
                    Some('n') => text.push('\n'),
                    Some('t') => text.push('\t'),
                    Some('r') => text.push('\r'),
                    Some(other) => text.push(other),
                    None => {}
                },
                (char, false) => text.push(char),
            }
        }
        texts.insert(text);
    }
}
