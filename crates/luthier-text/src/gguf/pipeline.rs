//! GGUF tokenizer metadata to a tokenizer pipeline, one function for each `tokenizer.ggml.model`.

use std::collections::HashMap;

use tokenizers::decoders::DecoderWrapper;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::models::unigram::Unigram;
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, ModelWrapper, Tokenizer};

use super::pre_tokenizer::PreTokenizer;
use super::{GgufTokenizer, token_type};
use crate::error::{Result, TextError};
use crate::sentencepiece::pipeline as spm;
use crate::word_piece::{self, Rules};

const TOKENS: &str = "tokenizer.ggml.tokens";

/// Named special tokens after llama.cpp's defaults for the model kind, and what is put around a text.
pub(super) struct SpecialIds {
    pub(super) bos: Option<u32>,
    pub(super) eos: Option<u32>,
    pub(super) unk: Option<u32>,
    pub(super) pad: Option<u32>,
    pub(super) sep: Option<u32>,
    pub(super) cls: Option<u32>,
    pub(super) mask: Option<u32>,
    pub(super) adds_bos: bool,
    pub(super) adds_eos: bool,
}

impl SpecialIds {
    pub(super) fn of(gguf: &GgufTokenizer) -> SpecialIds {
        let rule = PreTokenizer::of_name(gguf.pre.as_deref()).ok();
        let count = gguf.tokens.len();
        let default = |id: u32| Some(id).filter(|id| (*id as usize) < count);
        // (start, end, unknown, separator, padding, mask) where the file is silent.
        let (bos, eos, unk, sep, pad, mask) = match gguf.model.as_str() {
            "llama" => (default(1), default(2), default(0), None, None, None),
            "t5" => (None, default(1), default(2), None, default(0), None),
            "bert" => (default(101), None, default(100), default(102), default(0), default(103)),
            _ => (None, None, None, None, None, None),
        };
        let (adds_bos, adds_eos) = match gguf.model.as_str() {
            "llama" => (true, false),
            "t5" => (false, true),
            "bert" => (true, true),
            "gemma4" => (true, false),
            _ => (rule.is_some_and(|rule| rule.adds_bos), false),
        };
        let bos =
            if gguf.model == "bert" { gguf.cls_id.or(gguf.bos_id).or(bos) } else { gguf.bos_id.or(bos) };
        let eos = if gguf.model == "bert" { gguf.sep_id.or(sep) } else { gguf.eos_id.or(eos) };
        SpecialIds {
            bos,
            eos,
            unk: gguf.unk_id.or(unk),
            pad: gguf.pad_id.or(pad),
            sep: gguf.sep_id.or(sep),
            cls: gguf.cls_id.or(if gguf.model == "bert" { bos } else { None }),
            mask: gguf.mask_id.or(mask),
            adds_bos: gguf.add_bos.unwrap_or(adds_bos) && bos.is_some(),
            adds_eos: gguf.add_eos.unwrap_or(adds_eos) && eos.is_some(),
        }
    }
}

/// The pipeline of checked metadata.
pub(super) fn build(gguf: &GgufTokenizer) -> Result<Tokenizer> {
    let mut pipeline = match gguf.model.as_str() {
        "gpt2" => byte_level_bpe(gguf)?,
        "llama" => sentencepiece_bpe(gguf, None)?,
        "gemma4" => sentencepiece_bpe(gguf, Some(split_merges(gguf)?))?,
        "t5" => unigram(gguf)?,
        "bert" => word_piece_pipeline(gguf)?,
        other => {
            return Err(TextError::Unknown {
                what: "tokenizer model (tokenizer.ggml.model)",
                name: other.to_owned(),
                known: "gpt2, llama, t5, bert, gemma4".to_owned(),
            });
        }
    };
    add_special_tokens(gguf, &mut pipeline)?;
    let ids = SpecialIds::of(gguf);
    let around = |adds: bool, id: Option<u32>| {
        let id = id.filter(|_| adds)?;
        Some((spelling(gguf, id as usize), id))
    };
    spm::put_around(&mut pipeline, around(ids.adds_bos, ids.bos), around(ids.adds_eos, ids.eos))?;
    Ok(pipeline)
}

/// A token as tokenizer.json spells it: GGUF marks word starts of WordPiece where BERT marks word continuations.
pub(super) fn spelling(gguf: &GgufTokenizer, id: usize) -> String {
    let token = gguf.tokens[id].as_str();
    let is_special = matches!(gguf.token_type(id), token_type::CONTROL | token_type::UNKNOWN);
    let is_marker = |token: &str| token.len() > 2 && token.starts_with('[') && token.ends_with(']');
    match (gguf.model.as_str(), token.strip_prefix('▁')) {
        ("bert", _) if is_special => token.to_owned(),
        ("bert", Some(word)) => word.to_owned(),
        ("bert", None) if !is_marker(token) => format!("##{token}"),
        _ => token.to_owned(),
    }
}

/// Token to id, without the rows that only fill the embedding up. Refuses the same token twice.
fn vocabulary(gguf: &GgufTokenizer) -> Result<Vocab> {
    let mut vocab = Vocab::with_capacity(gguf.tokens.len());
    for (id, token) in gguf.tokens.iter().enumerate().filter(|(id, _)| !gguf.is_filler(*id)) {
        let name = if token.is_empty() { format!("[EMPTY_{id}]") } else { spelling(gguf, id) };
        if let Some(before) = vocab.insert(name, id as u32) {
            let reason = format!("token {token:?} stands at {before} and at {id}; each may stand once");
            return Err(TextError::broken(TOKENS, reason));
        }
    }
    Ok(vocab)
}

fn split_merges(gguf: &GgufTokenizer) -> Result<Vec<(String, String)>> {
    let split = |(index, merge): (usize, &String)| {
        // A token may itself begin with a space, so the space that parts the two is looked for behind it.
        let first = merge.chars().next().map_or(0, char::len_utf8);
        let at = merge.get(first..).and_then(|rest| rest.find(' ')).map(|at| at + first);
        let pair = at.map(|at| (merge[..at].to_owned(), merge[at + 1..].to_owned()));
        pair.filter(|(_, right)| !right.is_empty()).ok_or_else(|| {
            let reason = format!("entry {index}: wanted two tokens with a space between, came {merge:?}");
            TextError::broken("tokenizer.ggml.merges", reason)
        })
    };
    gguf.merges.iter().enumerate().map(split).collect()
}

fn byte_level_bpe(gguf: &GgufTokenizer) -> Result<Tokenizer> {
    let rule = PreTokenizer::of_name(gguf.pre.as_deref())?;
    let vocab = vocabulary(gguf)?;
    let merges = split_merges(gguf)?;
    spm::check_merges(&vocab, &merges)
        .map_err(|reason| TextError::broken("tokenizer.ggml.merges", reason))?;
    let model = BPE::builder().vocab_and_merges(vocab, merges).ignore_merges(rule.ignores_merges).build();
    let model = model.map_err(|error| TextError::broken("tokenizer.ggml.merges", error))?;
    let mut pipeline = Tokenizer::new(ModelWrapper::BPE(model));
    if rule.nfc {
        pipeline
            .with_normalizer(Some(NFC))
            .map_err(|error| TextError::broken("tokenizer.ggml.pre", error))?;
    }
    pipeline.with_pre_tokenizer(Some(rule.to_step()?));
    pipeline.with_decoder(Some(DecoderWrapper::ByteLevel(ByteLevel::new(true, true, true))));
    Ok(pipeline)
}

/// SentencePiece BPE: by the scores (`llama`), or by the merges where the file gives them (`gemma4`).
fn sentencepiece_bpe(gguf: &GgufTokenizer, merges: Option<Vec<(String, String)>>) -> Result<Tokenizer> {
    let vocab = vocabulary(gguf)?;
    let merges = match merges {
        Some(merges) => merges,
        None if gguf.scores.is_empty() => {
            return Err(TextError::broken(
                "tokenizer.ggml.scores",
                "model \"llama\" needs a score for each token",
            ));
        }
        None => {
            let is_piece =
                |id: usize| matches!(gguf.token_type(id), token_type::NORMAL | token_type::USER_DEFINED);
            let pieces = gguf.tokens.iter().enumerate().filter(|(id, _)| is_piece(*id));
            spm::merges_from_scores(&vocab, pieces.map(|(id, token)| (token.as_str(), gguf.scores[id])))
        }
    };
    spm::check_merges(&vocab, &merges)
        .map_err(|reason| TextError::broken("tokenizer.ggml.merges", reason))?;
    let unk = SpecialIds::of(gguf).unk.map(|id| gguf.tokens[id as usize].clone());
    let prefix = gguf.add_space_prefix.unwrap_or(gguf.model == "llama");
    let prefix = if prefix { spm::SpacePrefix::EveryPart } else { spm::SpacePrefix::None };
    spm::bpe(vocab, merges, unk, prefix)
}

fn unigram(gguf: &GgufTokenizer) -> Result<Tokenizer> {
    let count = gguf.tokens.len();
    if gguf.scores.len() < count {
        return Err(TextError::broken("tokenizer.ggml.scores", "model \"t5\" needs a score for each token"));
    }
    let mut pieces: Vec<(String, f64)> =
        gguf.tokens.iter().cloned().zip(gguf.scores.iter().map(|score| f64::from(*score))).collect();
    while pieces.len() > 1 && gguf.is_filler(pieces.len() - 1) {
        pieces.pop();
    }
    let mut seen = HashMap::new();
    for (id, (token, _)) in pieces.iter().enumerate() {
        if let Some(before) = seen.insert(token.as_str(), id) {
            let reason = format!("token {token:?} stands at {before} and at {id}; each may stand once");
            return Err(TextError::broken(TOKENS, reason));
        }
    }
    let byte_fallback = (0..count).any(|id| gguf.token_type(id) == token_type::BYTE);
    let unk = SpecialIds::of(gguf).unk.map(|id| id as usize);
    let model =
        Unigram::from(pieces, unk, byte_fallback).map_err(|error| TextError::broken(TOKENS, error))?;
    spm::unigram(
        model,
        &gguf.precompiled_charsmap,
        gguf.add_space_prefix.unwrap_or(true),
        gguf.remove_extra_whitespaces.unwrap_or(true),
    )
}

fn word_piece_pipeline(gguf: &GgufTokenizer) -> Result<Tokenizer> {
    let vocab = vocabulary(gguf)?;
    let unk = SpecialIds::of(gguf).unk.map_or_else(|| "[UNK]".to_owned(), |id| spelling(gguf, id as usize));
    word_piece::pipeline(vocab, unk, &Rules::BERT).map_err(|error| TextError::broken(TOKENS, error))
}

/// Control, unknown and user-defined tokens are recognised in a text before all else.
fn add_special_tokens(gguf: &GgufTokenizer, pipeline: &mut Tokenizer) -> Result<()> {
    let ids = SpecialIds::of(gguf);
    let named = [ids.bos, ids.eos, ids.unk, ids.pad, ids.sep, ids.cls, ids.mask];
    let added =
        gguf.tokens.iter().enumerate().filter(|(_, token)| !token.is_empty()).filter_map(|(id, _)| {
            let is_named = named.contains(&Some(id as u32));
            let special = match gguf.token_type(id) {
                token_type::CONTROL | token_type::UNKNOWN => true,
                token_type::USER_DEFINED => is_named,
                _ if is_named => true,
                _ => return None,
            };
            Some(AddedToken::from(spelling(gguf, id), special).normalized(false))
        });
    let added: Vec<AddedToken> = added.collect();
    pipeline.add_tokens(added).map_err(|error| TextError::broken(TOKENS, error))?;
    Ok(())
}
