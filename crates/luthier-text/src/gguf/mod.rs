//! The tokenizer that a GGUF file carries in its metadata, to and from a Hugging Face tokenizer.
//!
//! Keys and meanings are those of llama.cpp (`tokenizer.ggml.*`); defaults where a key is absent are
//! llama.cpp's too. Whoever reads or writes the file fills or takes the plain struct below.

mod from_folder;
mod pipeline;
pub mod pre_tokenizer;

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::error::{Result, TextError};
use crate::tokenizer::Tokenizer;
pub(crate) use from_folder::uses_bytes;

/// Numbers of `tokenizer.ggml.token_type`.
pub mod token_type {
    /// Part of the ordinary vocabulary.
    pub const NORMAL: i32 = 1;
    /// The unknown token.
    pub const UNKNOWN: i32 = 2;
    /// A special token that does not appear in decoded text.
    pub const CONTROL: i32 = 3;
    /// A token that is recognised before all else and appears in decoded text.
    pub const USER_DEFINED: i32 = 4;
    /// A row of the embedding without a token.
    pub const UNUSED: i32 = 5;
    /// One byte, `<0x0A>`.
    pub const BYTE: i32 = 6;
}

/// `tokenizer.*` metadata of a GGUF file. Optional keys are `None` where the file lacks them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GgufTokenizer {
    /// `tokenizer.ggml.model`: `gpt2` (byte-level BPE), `llama` (SentencePiece BPE by scores), `t5`
    /// (SentencePiece unigram), `bert` (WordPiece) or `gemma4` (SentencePiece BPE by merges).
    pub model: String,
    /// `tokenizer.ggml.pre`: which rule cuts the text before BPE.
    pub pre: Option<String>,
    /// `tokenizer.ggml.tokens`, by id.
    pub tokens: Vec<String>,
    /// `tokenizer.ggml.scores`, by id; empty where the file has none.
    pub scores: Vec<f32>,
    /// `tokenizer.ggml.token_type`, by id, see [`token_type`]; empty where the file has none.
    pub token_types: Vec<i32>,
    /// `tokenizer.ggml.merges`, each "left right", most important first.
    pub merges: Vec<String>,
    /// `tokenizer.ggml.bos_token_id`.
    pub bos_id: Option<u32>,
    /// `tokenizer.ggml.eos_token_id`.
    pub eos_id: Option<u32>,
    /// `tokenizer.ggml.unknown_token_id`.
    pub unk_id: Option<u32>,
    /// `tokenizer.ggml.padding_token_id`.
    pub pad_id: Option<u32>,
    /// `tokenizer.ggml.eot_token_id`: ends a turn.
    pub eot_id: Option<u32>,
    /// `tokenizer.ggml.seperator_token_id` (spelled so).
    pub sep_id: Option<u32>,
    /// `tokenizer.ggml.cls_token_id`.
    pub cls_id: Option<u32>,
    /// `tokenizer.ggml.mask_token_id`.
    pub mask_id: Option<u32>,
    /// `tokenizer.ggml.add_bos_token`.
    pub add_bos: Option<bool>,
    /// `tokenizer.ggml.add_eos_token`.
    pub add_eos: Option<bool>,
    /// `tokenizer.ggml.add_space_prefix`.
    pub add_space_prefix: Option<bool>,
    /// `tokenizer.ggml.remove_extra_whitespaces`.
    pub remove_extra_whitespaces: Option<bool>,
    /// `tokenizer.ggml.precompiled_charsmap`; empty where the file has none.
    pub precompiled_charsmap: Vec<u8>,
    /// `tokenizer.chat_template`.
    pub chat_template: Option<String>,
    /// `tokenizer.chat_template.<name>`.
    pub named_chat_templates: BTreeMap<String, String>,
    /// `tokenizer.huggingface.json`: the whole tokenizer.json, where the keys above cannot say all of it.
    pub hf_json: Option<String>,
}

impl GgufTokenizer {
    /// The tokenizer itself, without the way through JSON. Refuses lists of different lengths, ids outside the
    /// vocabulary, merges of unknown tokens and pre-tokenizers that are not known, naming the key.
    pub fn to_tokenizer(&self) -> Result<Tokenizer> {
        self.check()?;
        let mut files = self.side_files();
        if let Some(json) = &self.hf_json {
            files.insert("tokenizer.json".to_owned(), json.as_bytes().to_vec());
            return Tokenizer::from_files(&files);
        }
        Tokenizer::from_pipeline(pipeline::build(self)?, &files, files.clone())
    }

    /// The files of a Hugging Face folder: tokenizer.json, tokenizer_config.json, special_tokens_map.json and,
    /// where there is a template, chat_template.jinja. transformers loads them. Refuses as
    /// [`GgufTokenizer::to_tokenizer`] does.
    pub fn to_files(&self) -> Result<BTreeMap<String, Vec<u8>>> {
        Ok(self.to_tokenizer()?.files())
    }

    /// From the side files of a Hugging Face folder, the token list filled up to `vocab_size` rows with unused
    /// tokens, as llama.cpp's converter does. What the keys cannot say goes along in `hf_json`. Refuses a
    /// tokenizer with more tokens than `vocab_size`, and one of a kind that GGUF has no name for.
    pub fn from_files(files: &BTreeMap<String, Vec<u8>>, vocab_size: usize) -> Result<GgufTokenizer> {
        let tokenizer = Tokenizer::from_files(files)?;
        tokenizer.check_fits(vocab_size)?;
        let mut gguf = from_folder::describe(&tokenizer, files, vocab_size)?;
        gguf.hf_json = from_folder::unsaid(&gguf, &tokenizer)?;
        Ok(gguf)
    }

    /// As [`GgufTokenizer::from_files`], without asking whether the keys say all: `hf_json` is none.
    pub fn keys_of_files(files: &BTreeMap<String, Vec<u8>>, vocab_size: usize) -> Result<GgufTokenizer> {
        let tokenizer = Tokenizer::from_files(files)?;
        tokenizer.check_fits(vocab_size)?;
        from_folder::describe(&tokenizer, files, vocab_size)
    }

    /// Type of a token; NORMAL where the file has no types.
    pub(crate) fn token_type(&self, id: usize) -> i32 {
        self.token_types.get(id).copied().unwrap_or(token_type::NORMAL)
    }

    /// Whether the token only fills the embedding up: `[PAD151700]`, as converters write it.
    pub(crate) fn is_filler(&self, id: usize) -> bool {
        let number = self.tokens[id].strip_prefix("[PAD").and_then(|rest| rest.strip_suffix(']'));
        let is_number = number.is_some_and(|number| number.bytes().all(|byte| byte.is_ascii_digit()));
        is_number && self.token_type(id) == token_type::UNUSED
    }

    fn check(&self) -> Result<()> {
        let count = self.tokens.len();
        if count == 0 {
            return Err(TextError::broken("tokenizer.ggml.tokens", "wanted at least one token, came none"));
        }
        for (key, len) in [
            ("tokenizer.ggml.scores", self.scores.len()),
            ("tokenizer.ggml.token_type", self.token_types.len()),
        ] {
            if len != 0 && len < count {
                let reason = format!("wanted {count} entries, one for each token, came {len}");
                return Err(TextError::broken(key, reason));
            }
        }
        if let Some(at) = self.scores.iter().position(|score| score.is_nan()) {
            let reason = format!("the score of token {at} is NaN; take the file from its source again");
            return Err(TextError::broken("tokenizer.ggml.scores", reason));
        }
        for (key, id) in self.named_ids() {
            if id.is_some_and(|id| id as usize >= count) {
                let reason = format!("id {} is outside the {count} tokens", id.unwrap_or_default());
                return Err(TextError::broken(key, reason));
            }
        }
        Ok(())
    }

    fn named_ids(&self) -> [(&'static str, Option<u32>); 8] {
        [
            ("tokenizer.ggml.bos_token_id", self.bos_id),
            ("tokenizer.ggml.eos_token_id", self.eos_id),
            ("tokenizer.ggml.unknown_token_id", self.unk_id),
            ("tokenizer.ggml.padding_token_id", self.pad_id),
            ("tokenizer.ggml.eot_token_id", self.eot_id),
            ("tokenizer.ggml.seperator_token_id", self.sep_id),
            ("tokenizer.ggml.cls_token_id", self.cls_id),
            ("tokenizer.ggml.mask_token_id", self.mask_id),
        ]
    }

    /// tokenizer_config.json, special_tokens_map.json, chat_template.jinja.
    fn side_files(&self) -> BTreeMap<String, Vec<u8>> {
        let ids = pipeline::SpecialIds::of(self);
        let mut named = Map::new();
        for (key, id) in [
            ("bos_token", ids.bos),
            ("eos_token", ids.eos),
            ("unk_token", ids.unk),
            ("sep_token", ids.sep),
            ("pad_token", ids.pad),
            ("cls_token", ids.cls),
            ("mask_token", ids.mask),
        ] {
            // What stands around BERT's texts is named by its last two keys.
            let is_around = self.model == "bert" && matches!(key, "bos_token" | "eos_token");
            if let Some(id) = id.filter(|id| !is_around && (*id as usize) < self.tokens.len()) {
                named.insert(key.to_owned(), json!(pipeline::spelling(self, id as usize)));
            }
        }
        // The class that takes tokenizer.json as it stands; others rebuild the pipeline to their own idea.
        let mut config = Map::new();
        config.insert("add_bos_token".to_owned(), json!(ids.adds_bos));
        config.insert("add_eos_token".to_owned(), json!(ids.adds_eos));
        config.extend(named.clone());
        config.insert("clean_up_tokenization_spaces".to_owned(), json!(false));
        config.insert("tokenizer_class".to_owned(), json!("PreTrainedTokenizerFast"));
        let mut files = BTreeMap::from([
            ("tokenizer_config.json".to_owned(), pretty(&Value::Object(config))),
            ("special_tokens_map.json".to_owned(), pretty(&Value::Object(named))),
        ]);
        if let Some(template) = &self.chat_template {
            files.insert("chat_template.jinja".to_owned(), template.as_bytes().to_vec());
        }
        for (name, template) in &self.named_chat_templates {
            files.insert(format!("additional_chat_templates/{name}.jinja"), template.as_bytes().to_vec());
        }
        files
    }
}

/// Name of a row without a token, as llama.cpp's converter writes it.
pub(crate) fn filler(id: usize) -> String {
    format!("[PAD{id}]")
}

/// JSON as transformers writes it: two spaces, a newline at the end.
pub(crate) fn pretty(value: &Value) -> Vec<u8> {
    format!("{value:#}\n").into_bytes()
}
