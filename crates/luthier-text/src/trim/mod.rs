//! Cuts a tokenizer down to some of its tokens, so that text made of kept tokens is segmented as before.
//!
//! Kept tokens keep their order and are numbered from 0. Which tokens need others: byte-level and SentencePiece BPE put a
//! token together by merges, so all that stand between its first symbols and itself stay, with their merges ([`parts`]);
//! WordPiece, and unigram without byte tokens, spell what they do not know, so the characters of a kept token stay. Then
//! the old segmentation, where all its tokens are kept, is the new one: BPE makes the same merges in the same order,
//! unigram's best path is still the best (the piece of the lowest score is kept, which sets that of unknown characters),
//! WordPiece's longest match is still the longest.

mod files;
mod json;
mod parts;
mod required;

use std::collections::BTreeMap;

use serde_json::Value;

use crate::error::{Result, TextError};
use crate::tokenizer::Tokenizer;
use parts::Parts;
pub use required::Reason;

const FILE: &str = "tokenizer.json";

/// What cuts words into tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// BPE over bytes written as printable characters.
    ByteLevelBpe,
    /// BPE over characters, as SentencePiece makes it.
    Bpe,
    /// Most probable segmentation.
    Unigram,
    /// Longest match from the left.
    WordPiece,
    /// Whole words.
    WordLevel,
}

impl Kind {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Kind::ByteLevelBpe => "byte-level BPE",
            Kind::Bpe => "BPE",
            Kind::Unigram => "unigram",
            Kind::WordPiece => "WordPiece",
            Kind::WordLevel => "words",
        }
    }
}

/// A tokenizer whose tokens can be cut down.
pub struct Trimmer {
    files: BTreeMap<String, Vec<u8>>,
    tokenizer: Tokenizer,
    json: Value,
    kind: Kind,
    parts: Parts,
    required: BTreeMap<u32, Reason>,
}

impl Trimmer {
    /// `files`: a model folder's side files by name, config.json among them or not. Refuses a folder without a
    /// tokenizer, and kinds of tokenizers that it does not know.
    pub fn new(files: &BTreeMap<String, Vec<u8>>) -> Result<Trimmer> {
        if let Some(bytes) = files.get(FILE) {
            // Before the tokenizers crate, whose message does not name the kind.
            kind(&parse(bytes)?)?;
        }
        let tokenizer = Tokenizer::from_files(files)?;
        let json = parse(tokenizer.files().get(FILE).map(Vec::as_slice).unwrap_or_default())?;
        let kind = kind(&json)?;
        let parts = Parts::new(kind, &json)?;
        let required = required::required(files, &tokenizer, &json, kind)?;
        Ok(Trimmer { files: files.clone(), tokenizer, json, kind, parts, required })
    }

    /// The tokenizer as it is.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// How it cuts words.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Tokens that must stay whatever a corpus says, with the first reason found.
    pub fn required(&self) -> &BTreeMap<u32, Reason> {
        &self.required
    }

    /// Other tokens without which this one would not be found, or its characters not be known; sorted.
    pub fn parts(&self, id: u32) -> Vec<u32> {
        self.parts.of(id)
    }

    /// The files with the tokens `kept` alone (old ids, rising; ids without a token are rows without a name and leave a
    /// gap in the numbers). All files come back, those that hold no ids as they were. Refuses a set that is not closed
    /// under [`Trimmer::parts`] or lacks a required token, and whatever reads back as another tokenizer than was meant.
    pub fn trim(&self, kept: &[u32]) -> Result<BTreeMap<String, Vec<u8>>> {
        let map = IdMap::new(kept);
        self.check_set(&map)?;
        let n_tokens = self.tokenizer.vocab_size() as u32;
        if (0..n_tokens).all(|id| map.get(id) == Some(id) || self.tokenizer.token(id).is_none()) {
            return Ok(self.files.clone());
        }
        let trimmed = files::rewrite(self, &map)?;
        self.check_read_back(kept, &trimmed)?;
        Ok(trimmed)
    }

    fn check_set(&self, map: &IdMap) -> Result<()> {
        let spell = |id: u32| self.tokenizer.token(id).unwrap_or_default();
        for (id, reason) in &self.required {
            if map.get(*id).is_none() {
                let what = format!("token {id} ({:?}) must stay: {}", spell(*id), reason.describe());
                return Err(TextError::broken("kept tokens", what));
            }
        }
        for &id in &map.kept {
            if let Some(part) = self.parts(id).into_iter().find(|part| map.get(*part).is_none()) {
                let what = format!(
                    "token {id} ({:?}) is made of {part} ({:?}), which is not kept",
                    spell(id),
                    spell(part)
                );
                return Err(TextError::broken("kept tokens", what));
            }
        }
        Ok(())
    }

    /// Reads trimmed files back: every kept token has its new id and is found as before, its merges being there, and no
    /// other token is.
    pub fn check_read_back(&self, kept: &[u32], trimmed: &BTreeMap<String, Vec<u8>>) -> Result<()> {
        let map = IdMap::new(kept);
        let again = Trimmer::new(trimmed)?;
        let named = |id: &&u32| self.tokenizer.token(**id).is_some();
        let wanted = map.kept.iter().filter(named).count();
        let came = again.tokenizer.pipeline().get_vocab_size(true);
        if wanted != came {
            let what = format!("wanted {wanted} tokens after trimming, came {came} when it was read back");
            return Err(TextError::broken("trimmed tokenizer", what));
        }
        for (new, &old) in (0u32..).zip(&map.kept) {
            let (wanted, came) = (self.tokenizer.token(old), again.tokenizer.token(new));
            if wanted != came {
                let what = format!(
                    "token {new}: wanted {wanted:?} (once {old}), came {came:?} when it was read back"
                );
                return Err(TextError::broken("trimmed tokenizer", what));
            }
            if self.parts.is_found(old) && !again.parts.is_found(new) {
                let token = wanted.unwrap_or_default();
                let what =
                    format!("token {new} ({token:?}): its merges were dropped, so that it is never found");
                return Err(TextError::broken("trimmed tokenizer", what));
            }
        }
        let bare =
            |tokenizer: &Tokenizer| [tokenizer.added_before().to_vec(), tokenizer.added_after().to_vec()];
        let around =
            bare(&self.tokenizer).map(|ids| ids.iter().filter_map(|id| map.get(*id)).collect::<Vec<_>>());
        if around != bare(&again.tokenizer) {
            let what = "other tokens are put around a text than before".to_owned();
            return Err(TextError::broken("trimmed tokenizer", what));
        }
        Ok(())
    }
}

/// Old ids to new ones.
pub(crate) struct IdMap {
    kept: Vec<u32>,
    new: Vec<Option<u32>>,
}

impl IdMap {
    fn new(kept: &[u32]) -> IdMap {
        assert!(kept.is_sorted_by(|a, b| a < b), "kept ids rise");
        let mut new = vec![None; kept.last().map_or(0, |last| *last as usize + 1)];
        (0u32..).zip(kept).for_each(|(at, &id)| new[id as usize] = Some(at));
        IdMap { kept: kept.to_vec(), new }
    }

    pub(crate) fn get(&self, old: u32) -> Option<u32> {
        self.new.get(old as usize).copied().flatten()
    }

    /// The same for a number of a JSON file.
    pub(crate) fn value(&self, old: &Value) -> Option<Value> {
        self.get(u32::try_from(old.as_u64()?).ok()?).map(Value::from)
    }
}

fn parse(bytes: &[u8]) -> Result<Value> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    serde_json::from_slice(bytes).map_err(|error| TextError::broken(FILE, error))
}

/// The kind that model.type names; where old files leave it out, that which the other keys show.
fn kind(json: &Value) -> Result<Kind> {
    let model = &json["model"];
    let shown = if model.get("merges").is_some() {
        "BPE"
    } else if model["vocab"].is_array() {
        "Unigram"
    } else if model.get("max_input_chars_per_word").is_some() {
        "WordPiece"
    } else {
        "WordLevel"
    };
    match model["type"].as_str().unwrap_or(shown) {
        "BPE" if crate::gguf::uses_bytes(json) => Ok(Kind::ByteLevelBpe),
        "BPE" => Ok(Kind::Bpe),
        "Unigram" => Ok(Kind::Unigram),
        "WordPiece" => Ok(Kind::WordPiece),
        "WordLevel" => Ok(Kind::WordLevel),
        other => Err(TextError::Unknown {
            what: "tokenizer model (tokenizer.json: model.type)",
            name: other.to_owned(),
            known: "BPE, Unigram, WordPiece, WordLevel".to_owned(),
        }),
    }
}
