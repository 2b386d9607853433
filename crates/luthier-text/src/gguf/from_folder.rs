//! A Hugging Face tokenizer to the tokenizer metadata of a GGUF file.
//!
//! Token types, filler rows and names follow llama.cpp's converter (conversion/base.py).

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;
use tokenizers::Tokenizer as Pipeline;

use super::pre_tokenizer::{DIGIT, GPT2, PreTokenizer, canonical};
use super::{GgufTokenizer, filler, token_type};
use crate::base64;
use crate::chat::ChatTemplates;
use crate::error::{Result, TextError};
use crate::tokenizer::{Tokenizer, byte_tokens};

const FILE: &str = "tokenizer.json";

pub(super) fn describe(
    tokenizer: &Tokenizer,
    files: &BTreeMap<String, Vec<u8>>,
    vocab_size: usize,
) -> Result<GgufTokenizer> {
    let own_files = tokenizer.files();
    let text = own_files.get(FILE).map(Vec::as_slice).unwrap_or_default();
    let json: Value = serde_json::from_slice(text).map_err(|error| TextError::broken(FILE, error))?;
    let mut gguf = match json["model"]["type"].as_str().unwrap_or("BPE") {
        "BPE" if uses_bytes(&json) => byte_level_bpe(&json)?,
        "BPE" => sentencepiece_bpe(&json, tokenizer)?,
        "Unigram" => unigram(&json)?,
        "WordPiece" => GgufTokenizer { model: "bert".to_owned(), ..Default::default() },
        other => {
            return Err(TextError::Unknown {
                what: "tokenizer model (tokenizer.json: model.type)",
                name: other.to_owned(),
                known: "BPE, Unigram, WordPiece".to_owned(),
            });
        }
    };
    fill_tokens(&mut gguf, tokenizer, vocab_size);
    fill_scores(&mut gguf, &json);
    gguf.bos_id = tokenizer.bos();
    gguf.eos_id = tokenizer.eos();
    gguf.pad_id = tokenizer.pad();
    gguf.unk_id = tokenizer.unk();
    let named = tokenizer.special_tokens();
    let id = |token: &Option<String>| tokenizer.id(token.as_deref()?);
    (gguf.sep_id, gguf.cls_id, gguf.mask_id) = (id(&named.sep), id(&named.cls), id(&named.mask));
    if gguf.model == "bert" {
        // What llama.cpp puts before a text is the start token.
        gguf.bos_id = gguf.bos_id.or(gguf.cls_id);
    }
    gguf.eot_id =
        tokenizer.end_ids().into_iter().find(|id| Some(*id) != gguf.eos_id && !is_filler_id(&gguf, *id));
    gguf.add_bos = Some(tokenizer.adds_bos());
    gguf.add_eos = Some(tokenizer.adds_eos());
    let templates = ChatTemplates::from_files(files)?;
    gguf.chat_template = templates.default;
    gguf.named_chat_templates = templates.named;
    Ok(gguf)
}

/// The tokenizer.json of a tokenizer of which the keys do not say all.
pub(super) fn unsaid(gguf: &GgufTokenizer, tokenizer: &Tokenizer) -> Result<Option<String>> {
    let own_files = tokenizer.files();
    let text = own_files.get(FILE).map(Vec::as_slice).unwrap_or_default();
    let json: Value = serde_json::from_slice(text).map_err(|error| TextError::broken(FILE, error))?;
    Ok(if says_all(gguf, &json)? { None } else { Some(String::from_utf8_lossy(text).into_owned()) })
}

fn is_filler_id(gguf: &GgufTokenizer, id: u32) -> bool {
    gguf.tokens.get(id as usize).is_none() || gguf.is_filler(id as usize)
}

/// Whether the pieces are bytes written as GPT-2's printable characters.
pub(crate) fn uses_bytes(json: &Value) -> bool {
    parts(&json["decoder"], "decoders").iter().any(|step| step["type"] == "ByteLevel")
        || parts(&json["pre_tokenizer"], "pretokenizers").iter().any(|step| step["type"] == "ByteLevel")
}

/// The steps of a pipeline part: those of a sequence, or the part itself.
fn parts<'a>(part: &'a Value, list: &str) -> Vec<&'a Value> {
    match (part, part["type"].as_str()) {
        (Value::Null, _) => Vec::new(),
        (_, Some("Sequence")) => part[list].as_array().into_iter().flatten().collect(),
        _ => vec![part],
    }
}

fn byte_level_bpe(json: &Value) -> Result<GgufTokenizer> {
    let normalizers = parts(&json["normalizer"], "normalizers");
    if let Some(other) = normalizers.iter().find(|step| step["type"] != "NFC") {
        return Err(unsayable("normalizer", other));
    }
    let mut patterns = Vec::new();
    for step in parts(&json["pre_tokenizer"], "pretokenizers") {
        match step["type"].as_str().unwrap_or_default() {
            "ByteLevel" if step["add_prefix_space"] == true => return Err(unsayable("pre_tokenizer", step)),
            "ByteLevel" if step["use_regex"] != false => patterns.push(GPT2.to_owned()),
            "ByteLevel" => {}
            "Digits" if step["individual_digits"] == true => patterns.push(DIGIT.to_owned()),
            "Digits" => patterns.push(r"\p{N}+".to_owned()),
            "Punctuation" if step["behavior"] == "Contiguous" => {
                patterns.push(r"[\p{P}\$\+<=>\^~\|`]+".to_owned())
            }
            "Split" if step["behavior"] == "Isolated" || step["invert"] == true => {
                let pattern = step["pattern"]["Regex"].as_str();
                patterns.push(canonical(pattern.ok_or_else(|| unsayable("pre_tokenizer", step))?));
            }
            _ => return Err(unsayable("pre_tokenizer", step)),
        }
    }
    // Falcon's own file cuts numbers once more before its last step, which changes nothing.
    patterns.dedup();
    let ignores_merges = json["model"]["ignore_merges"] == true;
    let rule = PreTokenizer::of_patterns(&patterns, ignores_merges, !normalizers.is_empty());
    let rule = rule.ok_or_else(|| unsayable("pre_tokenizer", &json["pre_tokenizer"]))?;
    Ok(GgufTokenizer {
        model: "gpt2".to_owned(),
        pre: Some(rule.names[0].to_owned()),
        merges: merges(json)?.into_iter().map(|(left, right)| format!("{left} {right}")).collect(),
        ..Default::default()
    })
}

fn sentencepiece_bpe(json: &Value, tokenizer: &Tokenizer) -> Result<GgufTokenizer> {
    if byte_tokens().any(|token| tokenizer.id(&token).is_none()) {
        return Err(unsayable("model", &Value::from("BPE without byte tokens")));
    }
    let prepends = |part: &str, list: &str| {
        parts(&json[part], list).iter().any(|step| match step["type"].as_str() {
            Some("Prepend") => true,
            Some("Metaspace") => step["prepend_scheme"] != "never" && step["add_prefix_space"] != false,
            _ => false,
        })
    };
    let prefix = prepends("normalizer", "normalizers") || prepends("pre_tokenizer", "pretokenizers");
    Ok(GgufTokenizer {
        model: "llama".to_owned(),
        pre: Some("default".to_owned()),
        add_space_prefix: Some(prefix),
        ..Default::default()
    })
}

fn unigram(json: &Value) -> Result<GgufTokenizer> {
    let steps = parts(&json["normalizer"], "normalizers");
    let mut charsmap = Vec::new();
    if let Some(map) = steps.iter().find_map(|step| step["precompiled_charsmap"].as_str()) {
        charsmap = base64::decode(map)
            .ok_or_else(|| TextError::broken(FILE, "precompiled_charsmap is not base64"))?;
    }
    let joins = steps.iter().any(|step| step["type"] == "Replace" && step["pattern"]["Regex"] == " {2,}");
    let prefix = parts(&json["pre_tokenizer"], "pretokenizers");
    let prefix = prefix.iter().any(|step| step["type"] == "Metaspace" && step["prepend_scheme"] != "never");
    Ok(GgufTokenizer {
        model: "t5".to_owned(),
        pre: Some("default".to_owned()),
        precompiled_charsmap: charsmap,
        add_space_prefix: Some(prefix),
        remove_extra_whitespaces: Some(joins),
        ..Default::default()
    })
}

/// Merges of either form: "left right" or ["left", "right"].
fn merges(json: &Value) -> Result<Vec<(String, String)>> {
    let list = json["model"]["merges"].as_array().map(Vec::as_slice).unwrap_or_default();
    let pair = |merge: &Value| match merge {
        Value::String(text) => text.split_once(' ').map(|(left, right)| (left.to_owned(), right.to_owned())),
        _ => Some((merge[0].as_str()?.to_owned(), merge[1].as_str()?.to_owned())),
    };
    let broken =
        |index| TextError::broken(FILE, format!("model.merges: entry {index} is not a pair of tokens"));
    list.iter().enumerate().map(|(index, merge)| pair(merge).ok_or_else(|| broken(index))).collect()
}

/// Tokens and their types by id, rows without a token filled.
fn fill_tokens(gguf: &mut GgufTokenizer, tokenizer: &Tokenizer, vocab_size: usize) {
    let added = tokenizer.pipeline().get_added_tokens_decoder();
    let mut bytes: Vec<Option<u32>> = byte_tokens().map(|token| tokenizer.id(&token)).collect();
    if gguf.model == "gpt2" || gguf.model == "bert" {
        bytes.clear();
    }
    let unk = tokenizer.unk();
    gguf.tokens = (0..vocab_size).map(filler).collect();
    gguf.token_types = vec![token_type::UNUSED; vocab_size];
    for (token, id) in tokenizer.pipeline().get_vocab(true) {
        let kind = match added.get(&id) {
            // llama.cpp's converter has BERT's unknown token among the special ones.
            _ if unk == Some(id) && gguf.model == "bert" => token_type::CONTROL,
            _ if unk == Some(id) && gguf.model != "gpt2" => token_type::UNKNOWN,
            Some(token) if token.special || looks_special(&token.content) => token_type::CONTROL,
            Some(_) => token_type::USER_DEFINED,
            None if bytes.contains(&Some(id)) => token_type::BYTE,
            None => token_type::NORMAL,
        };
        gguf.tokens[id as usize] = spelling(&gguf.model, token, kind);
        gguf.token_types[id as usize] = kind;
    }
}

/// A token as GGUF spells it: spaces of user-defined tokens as spaces, word starts of WordPiece with `▁`.
fn spelling(model: &str, token: String, kind: i32) -> String {
    if model == "bert" && kind == token_type::CONTROL {
        return token;
    }
    if model == "bert" {
        return match token.strip_prefix("##") {
            Some(rest) => rest.to_owned(),
            None => format!("▁{token}"),
        };
    }
    if kind == token_type::USER_DEFINED { token.replace('▁', " ") } else { token }
}

/// Tokens that models forgot to mark as special, after llama.cpp's converter.
fn looks_special(token: &str) -> bool {
    let between = |start: &str, end: &str| token.starts_with(start) && token.ends_with(end);
    matches!(token, "<pad>" | "<mask>" | "<2mass>" | "[@BOS@]")
        || between("<|", "|>")
        || between("<｜", "｜>")
        || between("<unused", ">")
}

/// Scores: the file's own for unigram, the order of merging for BPE.
fn fill_scores(gguf: &mut GgufTokenizer, json: &Value) {
    // What llama.cpp's converter gives tokens that are never found by score.
    const UNUSED_SCORE: f32 = -10_000.0;
    const ADDED_SCORE: f32 = -1_000.0;
    let default = |kind: &i32| match *kind {
        token_type::UNUSED => UNUSED_SCORE,
        token_type::CONTROL | token_type::USER_DEFINED => ADDED_SCORE,
        _ => 0.0,
    };
    if gguf.model == "t5" {
        gguf.scores = gguf.token_types.iter().map(default).collect();
        for (id, piece) in json["model"]["vocab"].as_array().into_iter().flatten().enumerate() {
            if let (Some(score), Some(place)) = (piece[1].as_f64(), gguf.scores.get_mut(id)) {
                *place = score as f32;
            }
        }
    } else if gguf.model == "llama" {
        let mut ranks: HashMap<String, usize> = HashMap::new();
        for (left, right) in merges(json).unwrap_or_default() {
            let next = ranks.len();
            ranks.entry(format!("{left}{right}")).or_insert(next);
        }
        let last = ranks.len() as f32;
        let tokens = gguf.tokens.iter().zip(&gguf.token_types);
        let score = |(token, kind): (&String, &i32)| match (*kind, ranks.get(token)) {
            (token_type::NORMAL, Some(rank)) => -(*rank as f32),
            (token_type::NORMAL, None) => -last,
            _ => default(kind),
        };
        gguf.scores = tokens.map(score).collect();
    }
}

/// Whether reading the metadata back gives the same pipeline.
fn says_all(gguf: &GgufTokenizer, json: &Value) -> Result<bool> {
    let Ok(again) = super::pipeline::build(gguf) else { return Ok(false) };
    let written = |pipeline: &Pipeline| -> Result<Value> {
        let text = pipeline.to_string(false).map_err(|error| TextError::broken(FILE, error))?;
        serde_json::from_str(&text).map_err(|error| TextError::broken(FILE, error))
    };
    let original: Pipeline =
        serde_json::from_value(json.clone()).map_err(|error| TextError::broken(FILE, error))?;
    Ok(written(&again)? == written(&original)?)
}

fn unsayable(part: &str, came: &Value) -> TextError {
    let came: String = came.to_string().chars().take(400).collect();
    TextError::broken(FILE, format!("{part}: GGUF has no name for {came}; keep this model as a folder"))
}
