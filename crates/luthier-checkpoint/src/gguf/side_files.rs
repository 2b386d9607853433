//! Tokenizer, templates and the other small files of a model folder, to and from the metadata of a GGUF file.
//!
//! What llama.cpp reads stands under its own keys (`tokenizer.*`). Files that we write also carry every small file whole:
//! tokenizer.json under `tokenizer.huggingface.json`, the others under `luthier.file.NAME` (text, or an array of bytes), so
//! that the way back gives the same files.

use std::collections::BTreeMap;

use luthier_text::gguf::GgufTokenizer;
use luthier_text::{TextError, Tokenizer};
use sha2::{Digest, Sha256};

use super::write::put_entry;
use crate::gguf::{Gguf, GgufArray, GgufValue};
use crate::lineage::hex;
use crate::{Error, Result, SideFile};

/// What files of ours have beside llama.cpp's keys.
const CONFIG_KEY: &str = "luthier.config";
const FILE_KEY: &str = "luthier.file.";
const FINGERPRINT_KEY: &str = "luthier.tokenizer_sha256";
const MODEL_KEY: &str = "tokenizer.ggml.model";
const JSON_KEY: &str = "tokenizer.huggingface.json";
const TEMPLATE_KEY: &str = "tokenizer.chat_template";
const TOKENIZER_JSON: &str = "tokenizer.json";

/// What `tokenizer.ggml.model` says where llama.cpp has no tokenizer of the kind.
const NO_MODEL: &str = "none";

/// The small files of the folder that a GGUF file stands for. A tokenizer of a kind that is not known gives none, so that
/// what needs no text still works; broken metadata is refused.
pub fn side_files(gguf: &Gguf) -> Result<Vec<SideFile>> {
    let mut files = BTreeMap::new();
    for (key, value) in &gguf.metadata {
        let Some(name) = key.strip_prefix(FILE_KEY) else { continue };
        let bytes = match value {
            GgufValue::String(text) => text.as_bytes().to_vec(),
            GgufValue::Array(GgufArray::U8(bytes)) => bytes.clone(),
            _ => return Err(Error::format(gguf.path(), format!("metadata key {key}: wanted text or bytes"))),
        };
        files.insert(name.to_string(), bytes);
    }
    let model = gguf.get(MODEL_KEY).and_then(GgufValue::as_str).unwrap_or(NO_MODEL);
    let carried = gguf.get(JSON_KEY).and_then(GgufValue::as_str);
    let has_tokenizer = carried.is_some() || files.keys().any(|name| Tokenizer::is_made_of(name));
    if !has_tokenizer && model != NO_MODEL {
        match tokenizer(gguf, model).to_files() {
            // The ordinary keys are what is left to go by.
            Ok(derived) => files.extend(derived),
            Err(TextError::Unknown { .. }) => {}
            Err(problem) => return Err(Error::format(gguf.path(), problem.to_string())),
        }
    }
    if let Some(json) = carried {
        files.insert(TOKENIZER_JSON.to_string(), json.as_bytes().to_vec());
    }
    let is_ours = gguf.get(CONFIG_KEY).is_some();
    let written = gguf.get(FINGERPRINT_KEY).and_then(GgufValue::as_str);
    let is_as_written = written.is_some_and(|written| written == fingerprint(&gguf.metadata));
    if is_ours && has_tokenizer && model != NO_MODEL && !is_as_written {
        check_agreement(gguf, &files)?;
    }
    Ok(files.into_iter().map(|(name, bytes)| SideFile { name, bytes }).collect())
}

/// Refuses a file whose ordinary tokenizer keys contradict the tokenizer that it carries whole, naming the first key that
/// does: a program that edits one of the two leaves a file that means two tokenizers, and neither is guessed.
fn check_agreement(gguf: &Gguf, files: &BTreeMap<String, Vec<u8>>) -> Result<()> {
    let n_rows = gguf.get(&key("tokens")).map_or(0, |tokens| tokens.as_strings().map_or(0, <[String]>::len));
    let expected = match GgufTokenizer::keys_of_files(files, n_rows) {
        Ok(tokenizer) => tokenizer_metadata(&tokenizer),
        Err(TextError::Unknown { .. }) => return Ok(()),
        Err(problem) => return Err(Error::format(gguf.path(), problem.to_string())),
    };
    let ordinary = |name: &str| name.starts_with("tokenizer.ggml.") || name.starts_with(TEMPLATE_KEY);
    let found = gguf.metadata.iter().filter(|(name, _)| ordinary(name));
    let known = |name: &String| expected.iter().any(|(known, _)| known == name);
    // A key that another program added says nothing that the tokenizer denies, unless we would read it.
    let read = tokenizer_metadata(&tokenizer(gguf, ""));
    let added =
        found.map(|(name, _)| name).find(|name| !known(name) && read.iter().any(|(key, _)| key == *name));
    let changed =
        expected.iter().find(|(name, wanted)| !gguf.get(name).is_some_and(|found| is_same(found, wanted)));
    let Some(name) = changed.map(|(name, _)| name).or(added) else { return Ok(()) };
    let what = format!(
        "metadata key {name}: contradicts the tokenizer that the file carries under {JSON_KEY} and {FILE_KEY}*; set the key \
         back, or remove those to go by the ordinary keys"
    );
    Err(Error::format(gguf.path(), what))
}

/// Other programs may write a number in another width.
fn is_same(found: &GgufValue, wanted: &GgufValue) -> bool {
    found == wanted || found.as_u64().is_some_and(|found| wanted.as_u64() == Some(found))
}

/// The metadata keys for the small files of a folder whose embedding has `vocab_size` rows. Refuses a broken tokenizer and
/// one that does not fit.
pub fn side_file_metadata(files: &[SideFile], vocab_size: usize) -> Result<Vec<(String, GgufValue)>> {
    let by_name: BTreeMap<String, Vec<u8>> =
        files.iter().map(|file| (file.name.clone(), file.bytes.clone())).collect();
    let mut metadata = match GgufTokenizer::from_files(&by_name, vocab_size) {
        Ok(tokenizer) => tokenizer_metadata(&tokenizer),
        Err(TextError::MissingTokenizer { .. } | TextError::Unknown { .. }) => {
            vec![(MODEL_KEY.to_string(), text(NO_MODEL))]
        }
        Err(problem) => return Err(Error::format("tokenizer", problem.to_string())),
    };
    for (name, bytes) in by_name {
        let key = if name == TOKENIZER_JSON { JSON_KEY.to_string() } else { format!("{FILE_KEY}{name}") };
        let value = match String::from_utf8(bytes) {
            Ok(file) => GgufValue::String(file),
            Err(problem) => GgufValue::Array(GgufArray::U8(problem.into_bytes())),
        };
        metadata.push((key, value));
    }
    metadata.push((FINGERPRINT_KEY.to_string(), GgufValue::String(fingerprint(&metadata))));
    Ok(metadata)
}

/// SHA-256 of the entries that say what the tokenizer is, in the file's order. Where it is still the one that was written,
/// the ordinary keys and the carried files need not be compared.
fn fingerprint(metadata: &[(String, GgufValue)]) -> String {
    let (mut hasher, mut bytes) = (Sha256::new(), Vec::new());
    for (key, value) in metadata {
        if key.starts_with("tokenizer.") || key.starts_with(FILE_KEY) {
            bytes.clear();
            put_entry(&mut bytes, key, value);
            hasher.update(&bytes);
        }
    }
    hex(&hasher.finalize())
}

fn text(value: &str) -> GgufValue {
    GgufValue::String(value.to_string())
}

fn key(name: &str) -> String {
    format!("tokenizer.ggml.{name}")
}

fn tokenizer(gguf: &Gguf, model: &str) -> GgufTokenizer {
    let get = |name: &str| gguf.get(&key(name));
    let id = |name: &str| get(name).and_then(GgufValue::as_u64).and_then(|id| u32::try_from(id).ok());
    let flag = |name: &str| get(name).and_then(GgufValue::as_bool);
    let strings = |name: &str| get(name).and_then(GgufValue::as_strings).unwrap_or_default().to_vec();
    let numbers = |name: &str| get(name).and_then(GgufValue::as_numbers).unwrap_or_default();
    let whole = |value: Option<&GgufValue>| value.and_then(GgufValue::as_str).map(str::to_string);
    let named = gguf.metadata.iter().filter_map(|(name, value)| {
        let name = name.strip_prefix(TEMPLATE_KEY)?.strip_prefix('.')?;
        Some((name.to_string(), value.as_str()?.to_string()))
    });
    GgufTokenizer {
        model: model.to_string(),
        pre: whole(get("pre")),
        tokens: strings("tokens"),
        scores: numbers("scores").into_iter().map(|score| score as f32).collect(),
        token_types: numbers("token_type").into_iter().map(|kind| kind as i32).collect(),
        merges: strings("merges"),
        bos_id: id("bos_token_id"),
        eos_id: id("eos_token_id"),
        unk_id: id("unknown_token_id"),
        pad_id: id("padding_token_id"),
        eot_id: id("eot_token_id"),
        sep_id: id("seperator_token_id"),
        cls_id: id("cls_token_id"),
        mask_id: id("mask_token_id"),
        add_bos: flag("add_bos_token"),
        add_eos: flag("add_eos_token"),
        add_space_prefix: flag("add_space_prefix"),
        remove_extra_whitespaces: flag("remove_extra_whitespaces"),
        precompiled_charsmap: numbers("precompiled_charsmap").into_iter().map(|byte| byte as u8).collect(),
        chat_template: whole(gguf.get(TEMPLATE_KEY)),
        named_chat_templates: named.collect(),
        hf_json: whole(gguf.get(JSON_KEY)),
    }
}

fn tokenizer_metadata(tokenizer: &GgufTokenizer) -> Vec<(String, GgufValue)> {
    let mut metadata = vec![(MODEL_KEY.to_string(), text(&tokenizer.model))];
    let mut set = |name: &str, value: GgufValue| metadata.push((key(name), value));
    if let Some(pre) = &tokenizer.pre {
        set("pre", text(pre));
    }
    set("tokens", GgufValue::Array(GgufArray::String(tokenizer.tokens.clone())));
    if !tokenizer.scores.is_empty() {
        set("scores", GgufValue::Array(GgufArray::F32(tokenizer.scores.clone())));
    }
    if !tokenizer.token_types.is_empty() {
        set("token_type", GgufValue::Array(GgufArray::I32(tokenizer.token_types.clone())));
    }
    if !tokenizer.merges.is_empty() {
        set("merges", GgufValue::Array(GgufArray::String(tokenizer.merges.clone())));
    }
    for (name, id) in [
        ("bos_token_id", tokenizer.bos_id),
        ("eos_token_id", tokenizer.eos_id),
        ("unknown_token_id", tokenizer.unk_id),
        ("padding_token_id", tokenizer.pad_id),
        ("eot_token_id", tokenizer.eot_id),
        ("seperator_token_id", tokenizer.sep_id),
        ("cls_token_id", tokenizer.cls_id),
        ("mask_token_id", tokenizer.mask_id),
    ] {
        if let Some(id) = id {
            set(name, GgufValue::U32(id));
        }
    }
    for (name, flag) in [
        ("add_bos_token", tokenizer.add_bos),
        ("add_eos_token", tokenizer.add_eos),
        ("add_space_prefix", tokenizer.add_space_prefix),
        ("remove_extra_whitespaces", tokenizer.remove_extra_whitespaces),
    ] {
        if let Some(flag) = flag {
            set(name, GgufValue::Bool(flag));
        }
    }
    if !tokenizer.precompiled_charsmap.is_empty() {
        set("precompiled_charsmap", GgufValue::Array(GgufArray::U8(tokenizer.precompiled_charsmap.clone())));
    }
    if let Some(template) = &tokenizer.chat_template {
        metadata.push((TEMPLATE_KEY.to_string(), text(template)));
    }
    for (name, template) in &tokenizer.named_chat_templates {
        metadata.push((format!("{TEMPLATE_KEY}.{name}"), text(template)));
    }
    metadata
}
