//! Every file of a folder that holds token ids or lists tokens.

use std::collections::{BTreeMap, HashSet};

use serde_json::{Map, Value};

use super::{FILE, IdMap, Trimmer, json};
use crate::error::{Result, TextError};
use crate::sentencepiece::{self, SentencePieceModel};
use crate::tokenizer::SENTENCEPIECE_FILES;

/// The trimmer's files with the kept tokens.
pub(super) fn rewrite(trimmer: &Trimmer, map: &IdMap) -> Result<BTreeMap<String, Vec<u8>>> {
    let tokens: HashSet<String> = map.kept.iter().filter_map(|id| trimmer.tokenizer.token(*id)).collect();
    let mut files = BTreeMap::new();
    for (name, bytes) in &trimmer.files {
        let new = match name.as_str() {
            FILE => written(&json::trimmed(&trimmer.json, map), bytes),
            "tokenizer_config.json" => edit(name, bytes, |file| tokenizer_config(file, map))?,
            "added_tokens.json" | "vocab.json" => edit(name, bytes, |file| token_map(file, map))?,
            "vocab.txt" => vocab_lines(bytes, map),
            "merges.txt" => merge_lines(bytes, &tokens),
            _ if SENTENCEPIECE_FILES.contains(&name.as_str()) => pieces(trimmer, name, bytes, map, &tokens)?,
            _ => bytes.clone(),
        };
        files.insert(name.clone(), new);
    }
    Ok(files)
}

/// JSON in the form that the file had: on one line, or indented; with a newline at the end, or none.
fn written(json: &Value, old: &[u8]) -> Vec<u8> {
    let is_indented = old.iter().find(|byte| !b"{ \xef\xbb\xbf".contains(byte)) == Some(&b'\n');
    let mut text = if is_indented { format!("{json:#}") } else { json.to_string() };
    if old.ends_with(b"\n") {
        text.push('\n');
    }
    text.into_bytes()
}

fn edit(name: &str, bytes: &[u8], change: impl FnOnce(&mut Map<String, Value>)) -> Result<Vec<u8>> {
    let plain = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let mut file: Value = serde_json::from_slice(plain).map_err(|error| TextError::broken(name, error))?;
    let before = file.clone();
    if let Some(keys) = file.as_object_mut() {
        change(keys);
    }
    Ok(if file == before { bytes.to_vec() } else { written(&file, bytes) })
}

/// Ids as keys of `added_tokens_decoder`, and under `pad_token_id` and the like.
fn tokenizer_config(file: &mut Map<String, Value>, map: &IdMap) {
    if let Some(Value::Object(entries)) = file.get_mut("added_tokens_decoder") {
        let renumbered = std::mem::take(entries).into_iter().filter_map(|(id, token)| {
            let new = map.get(id.parse().ok()?)?;
            Some((new.to_string(), token))
        });
        *entries = renumbered.collect();
    }
    for (_, value) in file.iter_mut().filter(|(key, _)| key.ends_with("_token_id")) {
        if let Some(new) = map.value(value) {
            *value = new;
        }
    }
}

/// An object of tokens and ids.
fn token_map(file: &mut Map<String, Value>, map: &IdMap) {
    let kept = std::mem::take(file).into_iter().filter_map(|(token, id)| Some((token, map.value(&id)?)));
    *file = kept.collect();
}

/// One token a line; the line's number is its id.
fn vocab_lines(bytes: &[u8], map: &IdMap) -> Vec<u8> {
    let lines = (0u32..).zip(bytes.split_inclusive(|byte| *byte == b'\n'));
    lines.filter(|(id, _)| map.get(*id).is_some()).flat_map(|(_, line)| line.iter().copied()).collect()
}

/// "left right" a line, behind a line that says the version.
fn merge_lines(bytes: &[u8], tokens: &HashSet<String>) -> Vec<u8> {
    let keeps = |line: &[u8]| {
        let line = String::from_utf8_lossy(line);
        match line.trim_end_matches(['\n', '\r']).split_once(' ') {
            Some(_) if line.starts_with("#version") => true,
            Some((left, right)) => {
                [left, right, &format!("{left}{right}")].iter().all(|token| tokens.contains(*token))
            }
            None => true,
        }
    };
    bytes.split_inclusive(|byte| *byte == b'\n').filter(|line| keeps(line)).flatten().copied().collect()
}

/// A SentencePiece model. Its pieces have the tokenizer's ids, or all of them ids that are further on by one number; what
/// trimming would tear apart is refused.
fn pieces(
    trimmer: &Trimmer,
    name: &str,
    bytes: &[u8],
    map: &IdMap,
    tokens: &HashSet<String>,
) -> Result<Vec<u8>> {
    let model = SentencePieceModel::parse(name, bytes)?;
    let id = |text: &str| trimmer.tokenizer.id(text);
    // Where ids are places, they decide: a piece that tokenizer.json spells otherwise is still the same row.
    let is_kept = |at: usize, text: &str| match id(text) {
        Some(_) => tokens.contains(text),
        None => map.get(at as u32).is_some(),
    };
    let mut new = 0i64;
    for (old, piece) in (0i64..).zip(&model.pieces) {
        if !is_kept(old as usize, &piece.text) {
            continue;
        }
        let ids = id(&piece.text).and_then(|id| Some((i64::from(id), i64::from(map.get(id)?))));
        if let Some((old_id, new_id)) = ids
            && old_id - old != new_id - new
        {
            let what = format!(
                "piece {old} ({:?}) has id {old_id} in the tokenizer; trimmed to place {new} it would need id {new_id}, which \
                 is no equal distance: remove {name} if tokenizer.json says all",
                piece.text
            );
            return Err(TextError::broken(name, what));
        }
        new += 1;
    }
    sentencepiece::trim::trimmed(name, bytes, is_kept)
}
