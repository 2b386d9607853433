//! A tokenizer with the tokens of others after its own: for models whose embeddings are put together by token.
//!
//! The first tokenizer keeps its ids and its pipeline. New tokens follow in the order of their tokenizers and ids: those of
//! the vocabularies, then added ones. A new token of a BPE vocabulary brings the merges that lead to it, after all merges of
//! the first, and a new Unigram piece its score. mergekit 0.1.5 gives the same tokens, but turns each into an added token,
//! which is cut out of every word that contains it; here text is cut as each vocabulary's own rules say.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde_json::{Map, Value, json};
use tokenizers::AddedToken;

use crate::error::{Result, TextError};
use crate::tokenizer::Tokenizer;

const FILE: &str = "tokenizer.json";

/// Files that hold a vocabulary a second time, and would contradict a tokenizer.json with more tokens.
pub const OTHER_VOCABULARIES: [&str; 7] = [
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
];

/// What came of it.
pub struct Union {
    /// The tokenizer.
    pub tokenizer: Tokenizer,
    /// Tokens that the first lacked.
    pub n_new: usize,
    /// Merges that lead to them.
    pub n_merges: usize,
}

/// `base` with the tokens of `others` whose ids are below the number that stands beside each, and then `more`, as added
/// tokens. Refuses vocabularies of other kinds, which spell the same text otherwise.
pub fn union(base: &Tokenizer, others: &[(&Tokenizer, usize)], more: &[&str]) -> Result<Union> {
    let mut files = base.files();
    let mut json = parsed(&files)?;
    let plan = Plan::new(base, others, more);
    let mut n_merges = 0;
    if plan.is_empty() {
        return Ok(Union { tokenizer: base.clone(), n_new: 0, n_merges });
    }
    if !plan.pieces.is_empty() {
        let others: Vec<Value> =
            others.iter().map(|(other, _)| parsed(&other.files())).collect::<Result<_>>()?;
        for other in &others {
            same_spelling(&json, other)?;
        }
        n_merges = add_pieces(&mut json, base, &plan, &others)?;
    }
    let is_dense = base.pipeline().get_vocab_size(true) == base.vocab_size();
    if !plan.pieces.is_empty() || !is_dense {
        keep_ids(&mut json, base, &plan);
    }
    list_added(&mut json, base, &plan.added);
    files.insert(FILE.to_owned(), json.to_string().into_bytes());
    list_in_config(&mut files, &plan.added)?;
    files.retain(|name, _| !OTHER_VOCABULARIES.contains(&name.as_str()));
    let tokenizer = Tokenizer::from_files(&files)?;
    plan.check(base, &tokenizer)?;
    Ok(Union { tokenizer, n_new: plan.n_new, n_merges })
}

/// Ids of tokens; new ones get the next.
struct Ids {
    known: HashMap<String, u32>,
    next: u32,
}

impl Ids {
    fn of(&mut self, token: &str) -> u32 {
        *self.known.entry(token.to_owned()).or_insert_with(|| {
            self.next += 1;
            self.next - 1
        })
    }
}

/// Which tokens get which ids.
struct Plan {
    /// Vocabulary entries that the base lacks, with their ids.
    pieces: Vec<(String, u32)>,
    /// Added tokens that the base lacks, or has as entries of its vocabulary.
    added: Vec<(u32, AddedToken)>,
    n_new: usize,
}

impl Plan {
    fn new(base: &Tokenizer, others: &[(&Tokenizer, usize)], more: &[&str]) -> Plan {
        let mut ids = Ids { known: base.pipeline().get_vocab(true), next: base.vocab_size() as u32 };
        let before = ids.next;
        let mut seen: HashSet<String> = added_tokens(base).into_values().map(|token| token.content).collect();
        let of_others: Vec<BTreeMap<u32, AddedToken>> = others
            .iter()
            .map(|(other, rows)| {
                added_tokens(other).into_iter().filter(|(id, _)| (*id as usize) < *rows).collect()
            })
            .collect();
        let is_added: HashSet<&str> =
            of_others.iter().flat_map(BTreeMap::values).map(|token| token.content.as_str()).collect();
        let mut pieces = Vec::new();
        for (other, rows) in others {
            for id in 0..other.vocab_size().min(*rows) as u32 {
                let token = other.token(id).filter(|token| !is_added.contains(token.as_str()));
                if let Some(token) = token.filter(|token| !ids.known.contains_key(token)) {
                    let given = ids.of(&token);
                    pieces.push((token, given));
                }
            }
        }
        let mut added: Vec<(u32, AddedToken)> = Vec::new();
        for token in of_others.into_iter().flat_map(BTreeMap::into_values) {
            if seen.insert(token.content.clone()) {
                added.push((ids.of(&token.content), token));
            }
        }
        for token in more {
            if !ids.known.contains_key(*token) {
                added.push((ids.of(token), AddedToken::from(*token, false)));
            }
        }
        let next = ids.next;
        let n_new = (next - before) as usize;
        Plan { pieces, added, n_new }
    }

    fn is_empty(&self) -> bool {
        self.pieces.is_empty() && self.added.is_empty()
    }

    /// Asserts that every token has the id that it was given, and every old one its own.
    fn check(&self, base: &Tokenizer, made: &Tokenizer) -> Result<()> {
        let given = self.pieces.iter().map(|(token, id)| (token.as_str(), *id));
        let given = given.chain(self.added.iter().map(|(id, token)| (token.content.as_str(), *id)));
        for (token, id) in given {
            same_id(made, token, id)?;
        }
        for id in 0..base.vocab_size() as u32 {
            if let Some(token) = base.token(id).filter(|token| base.id(token) == Some(id)) {
                same_id(made, &token, id)?;
            }
        }
        Ok(())
    }
}

fn same_id(made: &Tokenizer, token: &str, id: u32) -> Result<()> {
    match made.id(token) {
        Some(came) if came == id && made.token(id).as_deref() == Some(token) => Ok(()),
        came => {
            let came = came.map_or("none".to_owned(), |came| came.to_string());
            Err(TextError::Union(format!("token {token:?} was given id {id}, the tokenizer made has {came}")))
        }
    }
}

/// Added tokens by id, those of tokenizer_config.json included.
fn added_tokens(tokenizer: &Tokenizer) -> BTreeMap<u32, AddedToken> {
    tokenizer.pipeline().get_added_tokens_decoder().into_iter().collect()
}

fn parsed(files: &BTreeMap<String, Vec<u8>>) -> Result<Value> {
    let bytes = files.get(FILE).map(Vec::as_slice).unwrap_or_default();
    serde_json::from_slice(bytes).map_err(|error| TextError::broken(FILE, error))
}

/// Refuses a vocabulary of another kind, or whose tokens are spelled in another alphabet.
fn same_spelling(base: &Value, other: &Value) -> Result<()> {
    let (a, b) = (spelling(base), spelling(other));
    if a == b {
        return Ok(());
    }
    Err(TextError::Union(format!(
        "one vocabulary is {a}, another is {b}, and such tokens are not comparable; take the tokenizer of one model"
    )))
}

/// The model's type and how its tokens spell a space.
fn spelling(json: &Value) -> String {
    let model = &json["model"];
    let kind =
        model["type"].as_str().unwrap_or(if model["merges"].is_array() { "BPE" } else { "of no type" });
    let mentions = |part: &str, what: &str| json[part].to_string().contains(what);
    let alphabet = if ["pre_tokenizer", "decoder"].iter().any(|part| mentions(part, "\"ByteLevel\"")) {
        " of bytes"
    } else if ["pre_tokenizer", "decoder", "normalizer"].iter().any(|part| mentions(part, "\u{2581}")) {
        " with \u{2581} for a space"
    } else {
        ""
    };
    format!("{kind}{alphabet}")
}

/// Writes new pieces into the model, and the merges that lead to them; their number.
fn add_pieces(json: &mut Value, base: &Tokenizer, plan: &Plan, others: &[Value]) -> Result<usize> {
    let broken = |reason: &str| TextError::broken(FILE, reason);
    match &mut json["model"]["vocab"] {
        Value::Object(vocab) => {
            vocab.extend(plan.pieces.iter().map(|(token, id)| (token.clone(), Value::from(*id))));
        }
        Value::Array(vocab) => add_scored(vocab, base, plan, others)?,
        _ => return Err(broken("model.vocab: wanted tokens and ids, or pieces and scores")),
    }
    if !json["model"]["merges"].is_array() {
        return Ok(0);
    }
    let new: HashSet<&str> = plan.pieces.iter().map(|(token, _)| token.as_str()).collect();
    let vocab = json["model"]["vocab"].as_object().ok_or_else(|| broken("model.vocab: wanted an object"))?;
    let mut seen = HashSet::new();
    let mut merges = Vec::new();
    for other in others {
        for merge in other["model"]["merges"].as_array().into_iter().flatten() {
            let Some((left, right)) = halves(merge) else { continue };
            let known = vocab.contains_key(left) && vocab.contains_key(right);
            if known && new.contains(format!("{left}{right}").as_str()) && seen.insert((left, right)) {
                merges.push((left.to_owned(), right.to_owned()));
            }
        }
    }
    let n_merges = merges.len();
    let own = json["model"]["merges"].as_array_mut().ok_or_else(|| broken("model.merges: wanted a list"))?;
    let has_space = |(left, right): &(String, String)| left.contains(' ') || right.contains(' ');
    let in_lists = own.first().is_none_or(Value::is_array) || merges.iter().any(has_space);
    if in_lists {
        for merge in own.iter_mut() {
            let pair = halves(merge).map(|(left, right)| json!([left, right]));
            *merge = pair.ok_or_else(|| broken("model.merges: wanted two tokens in each"))?;
        }
        own.extend(merges.into_iter().map(|(left, right)| json!([left, right])));
    } else {
        own.extend(merges.into_iter().map(|(left, right)| Value::from(format!("{left} {right}"))));
    }
    Ok(n_merges)
}

/// A merge as a list, or with a space between.
fn halves(merge: &Value) -> Option<(&str, &str)> {
    match merge {
        Value::String(text) => text.split_once(' '),
        Value::Array(pair) => Some((pair.first()?.as_str()?, pair.get(1)?.as_str()?)),
        _ => None,
    }
}

/// A Unigram vocabulary is a list whose places are the ids: added tokens that lie between get a place too.
fn add_scored(vocab: &mut Vec<Value>, base: &Tokenizer, plan: &Plan, others: &[Value]) -> Result<()> {
    let scores = |vocab: &[Value]| -> Vec<(String, f64)> {
        let pair = |piece: &Value| Some((piece.get(0)?.as_str()?.to_owned(), piece.get(1)?.as_f64()?));
        vocab.iter().filter_map(pair).collect()
    };
    let lowest = scores(vocab).into_iter().map(|(_, score)| score).fold(0.0, f64::min);
    for id in vocab.len()..base.vocab_size() {
        let token = base.token(id as u32).ok_or_else(|| {
            TextError::Union(format!("the vocabulary has no token {id}, and such gaps cannot be kept"))
        })?;
        vocab.push(json!([token, lowest]));
    }
    let mut known: HashMap<String, f64> = HashMap::new();
    for other in others {
        for (token, score) in scores(other["model"]["vocab"].as_array().map_or(&[], Vec::as_slice)) {
            known.entry(token).or_insert(score);
        }
    }
    for (token, _) in &plan.pieces {
        vocab.push(json!([token, known.get(token).copied().unwrap_or(lowest)]));
    }
    // Added tokens that are new follow these, and get the next ids by themselves.
    Ok(())
}

/// Writes added tokens into the vocabulary too: the tokenizers crate gives others the next free ids, not those listed.
fn keep_ids(json: &mut Value, base: &Tokenizer, plan: &Plan) {
    let Some(vocab) = json["model"]["vocab"].as_object_mut() else { return };
    let known: Vec<(u32, String)> =
        added_tokens(base).into_iter().map(|(id, token)| (id, token.content)).collect();
    let new = plan.added.iter().map(|(id, token)| (*id, token.content.clone()));
    for (id, token) in known.into_iter().chain(new) {
        vocab.entry(token).or_insert_with(|| Value::from(id));
    }
}

/// Lists every added token in tokenizer.json: those that only tokenizer_config.json named would get other ids otherwise.
fn list_added(json: &mut Value, base: &Tokenizer, new: &[(u32, AddedToken)]) {
    let mut all: BTreeMap<u32, Value> = BTreeMap::new();
    for (id, token) in added_tokens(base).into_iter().chain(new.iter().cloned()) {
        let mut entry = Map::new();
        entry.insert("id".to_owned(), Value::from(id));
        entry.extend(fields(&token));
        all.insert(id, Value::Object(entry));
    }
    json["added_tokens"] = Value::Array(all.into_values().collect());
}

/// The same in tokenizer_config.json, where it lists added tokens.
fn list_in_config(files: &mut BTreeMap<String, Vec<u8>>, new: &[(u32, AddedToken)]) -> Result<()> {
    const CONFIG: &str = "tokenizer_config.json";
    let Some(mut config) = crate::special_tokens::json_file(files, CONFIG)? else { return Ok(()) };
    let Some(listed) = config.get_mut("added_tokens_decoder").and_then(Value::as_object_mut) else {
        return Ok(());
    };
    listed.extend(new.iter().map(|(id, token)| (id.to_string(), Value::Object(fields(token)))));
    let text = serde_json::to_string_pretty(&config).map_err(|error| TextError::broken(CONFIG, error))?;
    files.insert(CONFIG.to_owned(), text.into_bytes());
    Ok(())
}

fn fields(token: &AddedToken) -> Map<String, Value> {
    let fields = json!({
        "content": token.content, "single_word": token.single_word, "lstrip": token.lstrip,
        "rstrip": token.rstrip, "normalized": token.normalized, "special": token.special
    });
    fields.as_object().cloned().unwrap_or_default()
}
