//! A `.model` file with its tokenizer_config.json to a tokenizer, as transformers 5's classes build it.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tokenizers::AddedToken;
use tokenizers::models::bpe::Vocab;
use tokenizers::models::unigram::Unigram;

use super::pipeline::{self, SpacePrefix};
use super::{Algorithm, PieceKind, SentencePieceModel};
use crate::error::{Result, TextError};
use crate::gguf::pretty;
use crate::special_tokens::json_file;
use crate::tokenizer::Tokenizer;

/// Families whose ids are the file's own places; others (XLM-RoBERTa, ...) renumber them.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    Llama,
    Gemma,
    T5,
}

/// Builds the tokenizer of `files[name]`, a `.model` file. Refuses tokenizer classes that renumber the pieces.
pub(crate) fn to_tokenizer(name: &str, files: &BTreeMap<String, Vec<u8>>) -> Result<Tokenizer> {
    let model = SentencePieceModel::parse(name, &files[name])?;
    let config = json_file(files, "tokenizer_config.json")?.unwrap_or_else(|| json!({}));
    let family = family(&model, &config, files)?;
    let mut pipeline = match model.algorithm {
        Algorithm::Bpe => bpe(name, &model, family, &config)?,
        Algorithm::Unigram => unigram(name, &model, family, &config)?,
        Algorithm::Word | Algorithm::Char => {
            let reason = "wanted a unigram or BPE model, came a word or character model";
            return Err(TextError::broken(name, reason));
        }
    };
    let is_turn = |text: &str| family == Family::Gemma && matches!(text, "<start_of_turn>" | "<end_of_turn>");
    let mut added: Vec<AddedToken> = Vec::new();
    for piece in &model.pieces {
        let special = match piece.kind {
            PieceKind::Control | PieceKind::Unknown => true,
            PieceKind::UserDefined => is_turn(&piece.text),
            _ => continue,
        };
        added.push(AddedToken::from(piece.text.clone(), special).normalized(false));
    }
    let extra_ids = extra_ids(family, &config);
    added.extend((0..extra_ids).rev().map(|id| AddedToken::from(format!("<extra_id_{id}>"), true)));
    pipeline.add_tokens(added).map_err(|error| TextError::broken(name, error))?;

    let flag = |key: &str, default: bool| config.get(key).and_then(Value::as_bool).unwrap_or(default);
    let at = |id: i64| {
        let id = usize::try_from(id).ok()?;
        Some((model.pieces.get(id)?.text.clone(), id as u32))
    };
    let before = at(model.bos_id).filter(|_| flag("add_bos_token", family != Family::T5));
    let after = at(model.eos_id).filter(|_| flag("add_eos_token", family == Family::T5));
    pipeline::put_around(&mut pipeline, before, after)?;
    let (side_files, kept) = side_files(&model, &config, files, name);
    Tokenizer::from_pipeline(pipeline, &side_files, kept)
}

fn family(model: &SentencePieceModel, config: &Value, files: &BTreeMap<String, Vec<u8>>) -> Result<Family> {
    let class =
        config.get("tokenizer_class").and_then(Value::as_str).map(|class| class.trim_end_matches("Fast"));
    let by_algorithm = if model.algorithm == Algorithm::Unigram { Family::T5 } else { Family::Llama };
    Ok(match class {
        Some("LlamaTokenizer" | "CodeLlamaTokenizer") => Family::Llama,
        Some("GemmaTokenizer") => Family::Gemma,
        Some("T5Tokenizer" | "MT5Tokenizer") => Family::T5,
        None | Some("PreTrainedTokenizer" | "TokenizersBackend" | "") => {
            let model_config = json_file(files, "config.json")?;
            match model_config.as_ref().and_then(|config| config.get("model_type")?.as_str()) {
                Some(kind) if kind.starts_with("gemma") || kind.starts_with("t5gemma") => Family::Gemma,
                _ => by_algorithm,
            }
        }
        Some(other) => {
            return Err(TextError::Unknown {
                what: "tokenizer_class (tokenizer_config.json) for a SentencePiece model",
                name: other.to_owned(),
                known: "LlamaTokenizer, CodeLlamaTokenizer, GemmaTokenizer, T5Tokenizer".to_owned(),
            });
        }
    })
}

fn bpe(
    name: &str,
    model: &SentencePieceModel,
    family: Family,
    config: &Value,
) -> Result<tokenizers::Tokenizer> {
    let mut vocab = Vocab::new();
    for (id, piece) in model.pieces.iter().enumerate() {
        if let Some(before) = vocab.insert(piece.text.clone(), id as u32) {
            return Err(twice(name, &piece.text, before as usize, id));
        }
    }
    let is_part = |kind: PieceKind| matches!(kind, PieceKind::Normal | PieceKind::UserDefined);
    let parts = model.pieces.iter().filter(|piece| is_part(piece.kind));
    let merges = pipeline::merges_from_scores(&vocab, parts.map(|piece| (piece.text.as_str(), piece.score)));
    let flag = |key: &str| config.get(key).and_then(Value::as_bool);
    let prefix = flag("add_prefix_space").unwrap_or(model.add_dummy_prefix && family != Family::Gemma);
    let prefix = match (prefix, flag("legacy").unwrap_or(false)) {
        (false, _) => SpacePrefix::None,
        (true, true) => SpacePrefix::EveryPart,
        (true, false) => SpacePrefix::Start,
    };
    pipeline::bpe(vocab, merges, unk(model), prefix)
}

fn unigram(
    name: &str,
    model: &SentencePieceModel,
    family: Family,
    config: &Value,
) -> Result<tokenizers::Tokenizer> {
    let mut pieces: Vec<(String, f64)> =
        model.pieces.iter().map(|piece| (piece.text.clone(), f64::from(piece.score))).collect();
    pieces.extend((0..extra_ids(family, config)).rev().map(|id| (format!("<extra_id_{id}>"), 0.0)));
    let mut seen = BTreeMap::new();
    for (id, (text, _)) in pieces.iter().enumerate() {
        if let Some(before) = seen.insert(text.as_str(), id) {
            return Err(twice(name, text, before, id));
        }
    }
    let unk = usize::try_from(model.unk_id).ok();
    let unigram =
        Unigram::from(pieces, unk, model.byte_fallback).map_err(|error| TextError::broken(name, error))?;
    pipeline::unigram(
        unigram,
        &model.precompiled_charsmap,
        model.add_dummy_prefix,
        model.remove_extra_whitespaces,
    )
}

/// T5 has 100 sentinel tokens behind the file's pieces where its config does not say otherwise.
fn extra_ids(family: Family, config: &Value) -> u64 {
    let default = if family == Family::T5 { 100 } else { 0 };
    config.get("extra_ids").and_then(Value::as_u64).unwrap_or(default).min(100_000)
}

fn unk(model: &SentencePieceModel) -> Option<String> {
    Some(model.pieces.get(usize::try_from(model.unk_id).ok()?)?.text.clone())
}

fn twice(file: &str, piece: &str, before: usize, id: usize) -> TextError {
    TextError::broken(file, format!("piece {piece:?} stands at {before} and at {id}; each may stand once"))
}

/// The side files that name the special tokens: the folder's own, and what the model says where they are silent.
fn side_files(
    model: &SentencePieceModel,
    config: &Value,
    files: &BTreeMap<String, Vec<u8>>,
    name: &str,
) -> (BTreeMap<String, Vec<u8>>, BTreeMap<String, Vec<u8>>) {
    let mut config = config.clone();
    if let Some(keys) = config.as_object_mut() {
        let ids = [
            ("bos_token", model.bos_id),
            ("eos_token", model.eos_id),
            ("unk_token", model.unk_id),
            ("pad_token", model.pad_id),
        ];
        for (key, id) in ids {
            let piece = usize::try_from(id).ok().and_then(|id| model.pieces.get(id));
            if let (false, Some(piece)) = (keys.contains_key(key), piece) {
                keys.insert(key.to_owned(), json!(piece.text));
            }
        }
        keys.insert("tokenizer_class".to_owned(), json!("PreTrainedTokenizerFast"));
    }
    let mut side = files.clone();
    side.insert("tokenizer_config.json".to_owned(), pretty(&config));
    let kept = ["tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", name];
    let kept = kept.iter().filter_map(|name| Some(((*name).to_owned(), side.get(*name)?.clone()))).collect();
    (side, kept)
}
