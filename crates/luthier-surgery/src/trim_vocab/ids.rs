//! Token ids in config.json and generation_config.json.

use std::collections::BTreeSet;

use luthier_checkpoint::{Error, SideFile, json};
use serde_json::{Map, Value};

use crate::Result;

const GENERATION: &str = "generation_config.json";

/// What stands under a key.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Holds {
    /// Ids that mean something: their tokens must stay.
    Ids,
    /// Pairs of a position and an id that must stay.
    PositionAndId,
    /// Ids that are held back: where a token goes, nothing is left to hold back.
    HeldBack,
    /// Lists of ids, or of ids and a number, of no use once one of their tokens is gone.
    Sequences,
    /// A table from words to ids that must stay.
    Table,
}

/// Keys of transformers' configs and generation settings.
fn holds(key: &str) -> Option<Holds> {
    match key {
        "suppress_tokens" | "begin_suppress_tokens" => Some(Holds::HeldBack),
        "forced_decoder_ids" => Some(Holds::PositionAndId),
        "bad_words_ids" | "sequence_bias" => Some(Holds::Sequences),
        "force_words_ids" => Some(Holds::Ids),
        "lang_to_id" | "task_to_id" => Some(Holds::Table),
        _ => {
            let endings = ["token_id", "token_ids", "_token_index"];
            endings.iter().any(|ending| key.ends_with(ending)).then_some(Holds::Ids)
        }
    }
}

/// Ids that config and generation settings need, below the number of rows.
pub(super) fn named(config: &Map<String, Value>, files: &[SideFile], n_rows: usize) -> BTreeSet<u32> {
    let mut ids = BTreeSet::new();
    collect(config, &mut ids);
    let generation = files.iter().find(|file| file.name == GENERATION);
    if let Some(Ok(generation)) =
        generation.map(|file| serde_json::from_slice::<Map<String, Value>>(&file.bytes))
    {
        collect(&generation, &mut ids);
    }
    ids.retain(|id| (*id as usize) < n_rows);
    ids
}

fn collect(map: &Map<String, Value>, ids: &mut BTreeSet<u32>) {
    for (key, value) in map {
        match (holds(key), value) {
            (Some(Holds::Ids), value) => numbers(value, ids),
            (Some(Holds::PositionAndId), Value::Array(pairs)) => {
                pairs.iter().for_each(|pair| numbers(&pair[1], ids))
            }
            (Some(Holds::Table), Value::Object(table)) => table.values().for_each(|id| numbers(id, ids)),
            (None, Value::Object(nested)) => collect(nested, ids),
            _ => {}
        }
    }
}

/// All whole numbers of a value, however deep its lists.
fn numbers(value: &Value, ids: &mut BTreeSet<u32>) {
    match value {
        Value::Array(list) => list.iter().for_each(|value| numbers(value, ids)),
        other => ids.extend(other.as_u64().and_then(|id| u32::try_from(id).ok())),
    }
}

/// The config of the trimmed model, and what fell out of its lists.
pub(super) fn config(
    config: &Map<String, Value>,
    n_rows: usize,
    kept: &[u32],
) -> (Map<String, Value>, Vec<String>) {
    let mut config = config.clone();
    let mut renumbering = Renumbering { file: "config.json", n_rows, kept, notes: Vec::new() };
    renumbering.map(&mut config, "");
    resize(&mut config, n_rows, kept.len());
    (config, renumbering.notes)
}

/// generation_config.json of the trimmed model; the same bytes where no id moved.
pub(super) fn generation(bytes: &[u8], n_rows: usize, kept: &[u32]) -> Result<(Vec<u8>, Vec<String>)> {
    let mut map: Map<String, Value> = serde_json::from_slice(bytes)
        .map_err(|problem| Error::format(GENERATION, format!("wanted a JSON object: {problem}")))?;
    let before = map.clone();
    let mut renumbering = Renumbering { file: GENERATION, n_rows, kept, notes: Vec::new() };
    renumbering.map(&mut map, "");
    let bytes = if map == before { bytes.to_vec() } else { json::to_text(&map).into_bytes() };
    Ok((bytes, renumbering.notes))
}

/// `vocab_size` of the model and of its stacks.
fn resize(config: &mut Map<String, Value>, n_rows: usize, n_kept: usize) {
    for (key, value) in config.iter_mut() {
        match value {
            Value::Object(nested) => resize(nested, n_rows, n_kept),
            value if key == "vocab_size" && value.as_u64() == Some(n_rows as u64) => {
                *value = Value::from(n_kept)
            }
            _ => {}
        }
    }
}

struct Renumbering<'r> {
    file: &'static str,
    n_rows: usize,
    kept: &'r [u32],
    notes: Vec<String>,
}

impl Renumbering<'_> {
    fn map(&mut self, map: &mut Map<String, Value>, path: &str) {
        for (key, value) in map.iter_mut() {
            let name = format!("{path}{key}");
            match (holds(key), &mut *value) {
                (Some(Holds::Ids), value) => self.ids(value, &name),
                (Some(Holds::PositionAndId), Value::Array(pairs)) => {
                    pairs.iter_mut().filter_map(|pair| pair.get_mut(1)).for_each(|id| self.ids(id, &name));
                }
                (Some(Holds::Table), Value::Object(table)) => {
                    table.iter_mut().for_each(|(_, id)| self.ids(id, &name));
                }
                (Some(Holds::HeldBack | Holds::Sequences), value) => self.held_back(value, &name),
                (None, Value::Object(nested)) => self.map(nested, &format!("{name}.")),
                _ => {}
            }
        }
    }

    /// The new id; none where its token is gone. Ids that no row has mean nothing here and stay.
    fn new_id(&self, id: &Value) -> Option<Value> {
        match id.as_u64().filter(|id| *id < self.n_rows as u64) {
            Some(id) => self.kept.binary_search(&(id as u32)).ok().map(Value::from),
            None => Some(id.clone()),
        }
    }

    fn ids(&mut self, value: &mut Value, name: &str) {
        match value {
            Value::Array(list) => list.iter_mut().for_each(|value| self.ids(value, name)),
            Value::Number(_) => {
                if value.as_u64().is_some_and(|id| id >= self.n_rows as u64) {
                    self.notes
                        .push(format!("{} {name}: {value} is no row of the model and stays", self.file));
                }
                *value = self.new_id(value).expect("ids that the config names are kept");
            }
            _ => {}
        }
    }

    /// Lists of ids, of lists of ids, or of lists of ids with a number; an entry with a token that is gone goes.
    fn held_back(&mut self, value: &mut Value, name: &str) {
        let Value::Array(entries) = value else { return };
        let before = entries.len();
        let kept: Vec<Value> = entries.iter().filter_map(|entry| self.entry(entry)).collect();
        if kept.len() < before {
            let gone = before - kept.len();
            self.notes
                .push(format!("{} {name}: {gone} of {before} entries named tokens that are gone", self.file));
        }
        *entries = kept;
    }

    fn entry(&self, entry: &Value) -> Option<Value> {
        match entry {
            Value::Array(list) => {
                // `[[ids], bias]`: a whole bias is no id.
                let is_biased = matches!(list.as_slice(), [Value::Array(_), Value::Number(_)]);
                let n_ids = if is_biased { 1 } else { list.len() };
                let ids = list[..n_ids].iter().map(|entry| self.entry(entry)).collect::<Option<Vec<_>>>()?;
                Some(Value::Array(ids.into_iter().chain(list[n_ids..].iter().cloned()).collect()))
            }
            id => self.new_id(id),
        }
    }
}
