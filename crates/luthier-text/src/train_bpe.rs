//! Trains a byte-level BPE tokenizer on texts: digits apart, GPT-2's pattern, then merges by frequency.
//!
//! The rule before the merges is the one that GGUF calls `smollm`, so the result goes into a GGUF file as it
//! is, and every text can be written: the 256 bytes are pieces. Same texts and options, same bytes.

use std::collections::{BTreeMap, HashSet};

use serde_json::{Map, Value, json};
use tokenizers::decoders::DecoderWrapper;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, ModelWrapper, Tokenizer as Pipeline};

use crate::error::{Result, TextError};
use crate::gguf::{pre_tokenizer::PreTokenizer, pretty};
use crate::sentencepiece::pipeline::put_around;

/// What to train.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BpeTraining {
    /// Pieces in all: special tokens, 256 bytes, merges.
    pub vocab_size: usize,
    /// The special tokens in the order of their ids: role in tokenizer_config.json (`pad_token`, `eos_token`,
    /// `bos_token`, `unk_token`, ...; anything else is merely special) and spelling.
    pub special_tokens: Vec<(String, String)>,
    /// Whether a start token is put before every text.
    pub add_bos: bool,
    /// Pairs that are seen less often are not merged.
    pub min_frequency: u64,
}

impl BpeTraining {
    /// Gemma's special tokens under Gemma's ids: `<pad>` 0, `<eos>` 1, `<bos>` 2, `<unk>` 3; a start token is
    /// put before every text, as Gemma's tokenizers do.
    pub fn gemma_like(vocab_size: usize) -> BpeTraining {
        let tokens =
            [("pad_token", "<pad>"), ("eos_token", "<eos>"), ("bos_token", "<bos>"), ("unk_token", "<unk>")];
        BpeTraining {
            vocab_size,
            special_tokens: tokens.map(|(role, token)| (role.to_owned(), token.to_owned())).to_vec(),
            add_bos: true,
            min_frequency: 2,
        }
    }
}

/// Trains on `texts` and gives the files of a model folder: tokenizer.json, tokenizer_config.json,
/// special_tokens_map.json. Refuses a vocabulary too small for the bytes and special tokens, and texts that
/// give too few merges to fill it.
pub fn train_bpe(texts: &[&str], training: &BpeTraining) -> Result<BTreeMap<String, Vec<u8>>> {
    let fixed = 256 + training.special_tokens.len();
    if training.vocab_size < fixed {
        let what =
            format!("vocab_size {} is below the {fixed} bytes and special tokens", training.vocab_size);
        return Err(TextError::Corpus(what));
    }
    let spelled: HashSet<&str> = training.special_tokens.iter().map(|(_, token)| token.as_str()).collect();
    if spelled.len() < training.special_tokens.len() {
        return Err(TextError::Corpus("the same special token stands twice".to_owned()));
    }
    let failed = |error: tokenizers::Error| TextError::Corpus(format!("training a tokenizer: {error}"));
    let mut pipeline = Pipeline::new(ModelWrapper::BPE(BPE::default()));
    pipeline.with_pre_tokenizer(Some(PreTokenizer::of_name(Some("smollm"))?.to_step()?));
    pipeline.with_decoder(Some(DecoderWrapper::ByteLevel(ByteLevel::new(true, true, true))));
    let special = training.special_tokens.iter().map(|(_, token)| AddedToken::from(token.clone(), true));
    let mut trainer: TrainerWrapper = BpeTrainer::builder()
        .vocab_size(training.vocab_size)
        .min_frequency(training.min_frequency)
        .show_progress(false)
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .special_tokens(special.collect())
        .build()
        .into();
    // Paragraph by paragraph, because the trainer keeps positions for every byte of what it is given at once.
    let paragraphs = texts.iter().flat_map(|text| text.split_inclusive("\n\n"));
    pipeline.train(&mut trainer, paragraphs).map_err(failed)?;
    let came = pipeline.get_vocab_size(true);
    if came < training.vocab_size {
        let what = format!(
            "the texts give {came} pieces, wanted {}; add text or ask for fewer",
            training.vocab_size
        );
        return Err(TextError::Corpus(what));
    }
    let bos =
        training.special_tokens.iter().position(|(role, _)| role == "bos_token").filter(|_| training.add_bos);
    let bos = bos.map(|id| (training.special_tokens[id].1.clone(), id as u32));
    put_around(&mut pipeline, bos, None)?;
    let json = pipeline.to_string(true).map_err(failed)?;
    let mut files = side_files(training);
    files.insert("tokenizer.json".to_owned(), json.into_bytes());
    Ok(files)
}

fn side_files(training: &BpeTraining) -> BTreeMap<String, Vec<u8>> {
    let roles = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
    let named = training.special_tokens.iter().filter(|(role, _)| roles.contains(&role.as_str()));
    let named: Map<String, Value> = named.map(|(role, token)| (role.clone(), json!(token))).collect();
    let mut config = Map::new();
    config.insert("add_bos_token".to_owned(), json!(training.add_bos));
    config.extend(named.clone());
    config.insert("clean_up_tokenization_spaces".to_owned(), json!(false));
    config.insert("tokenizer_class".to_owned(), json!("PreTrainedTokenizerFast"));
    BTreeMap::from([
        ("tokenizer_config.json".to_owned(), pretty(&Value::Object(config))),
        ("special_tokens_map.json".to_owned(), pretty(&Value::Object(named))),
    ])
}
