//! One tokenizer, whatever file it came from: Hugging Face's pipeline behind the few calls that we need.
//!
//! Behaves as transformers 5 does with the same folder: tokenizer.json decides, its post-processor says
//! whether a start token is added, and tokenizer_config.json adds the tokens that tokenizer.json lacks.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use serde_json::Value;
use tokenizers::AddedToken;

use crate::error::{Result, TextError};
use crate::sentencepiece;
use crate::special_tokens::{SpecialTokens, json_file};
use crate::stream_decoder::StreamDecoder;
use crate::{tokenizer_json, word_piece};

/// Text to token ids and back. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    pipeline: tokenizers::Tokenizer,
    named: SpecialTokens,
    special_ids: HashSet<u32>,
    byte_ids: HashSet<u32>,
    highest: u32,
    added_before: Vec<u32>,
    added_after: Vec<u32>,
    files: BTreeMap<String, Vec<u8>>,
}

/// The files that [`Tokenizer::files`] hands on as they came.
const KEPT_FILES: [&str; 5] = [
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "tokenizer.model",
];

/// Names under which SentencePiece models lie in a folder.
pub(crate) const SENTENCEPIECE_FILES: [&str; 4] =
    ["tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "spm.model"];

impl Tokenizer {
    /// `files`: name to bytes of a model folder's side files (tokenizer.json or tokenizer.model/spiece.model,
    /// tokenizer_config.json, special_tokens_map.json, config.json, generation_config.json, ...); names that
    /// have nothing to do with tokenizers are ignored. Refuses broken files by name, and a folder with none.
    pub fn from_files(files: &BTreeMap<String, Vec<u8>>) -> Result<Tokenizer> {
        if let Some(bytes) = files.get("tokenizer.json") {
            return Tokenizer::from_tokenizer_json(bytes, files);
        }
        if let Some(name) = SENTENCEPIECE_FILES.iter().find(|name| files.contains_key(**name)) {
            return sentencepiece::to_tokenizer(name, files);
        }
        if files.contains_key(word_piece::FILE) {
            return word_piece::from_files(files);
        }
        let found: Vec<&str> = files.keys().map(String::as_str).collect();
        Err(TextError::MissingTokenizer {
            wanted: format!("tokenizer.json, {}, {}", SENTENCEPIECE_FILES.join(", "), word_piece::FILE),
            found: if found.is_empty() { "no side files".to_owned() } else { found.join(", ") },
        })
    }

    /// Whether a file of this name holds a tokenizer.
    pub fn is_made_of(name: &str) -> bool {
        name == "tokenizer.json" || SENTENCEPIECE_FILES.contains(&name)
    }

    fn from_tokenizer_json(bytes: &[u8], files: &BTreeMap<String, Vec<u8>>) -> Result<Tokenizer> {
        let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
        tokenizer_json::check(bytes)?;
        let pipeline = tokenizers::Tokenizer::from_bytes(bytes)
            .map_err(|error| TextError::broken("tokenizer.json", error))?;
        let mut kept: BTreeMap<String, Vec<u8>> = KEPT_FILES
            .iter()
            .filter_map(|name| Some((name.to_string(), files.get(*name)?.clone())))
            .collect();
        kept.insert("tokenizer.json".to_owned(), bytes.to_vec());
        Tokenizer::from_pipeline(pipeline, files, kept)
    }

    /// `side_files` are read for the special tokens; `kept` is what [`Tokenizer::files`] gives.
    pub(crate) fn from_pipeline(
        mut pipeline: tokenizers::Tokenizer,
        side_files: &BTreeMap<String, Vec<u8>>,
        kept: BTreeMap<String, Vec<u8>>,
    ) -> Result<Tokenizer> {
        // Truncation and padding are a caller's wish of the day, which transformers too leaves off by default.
        pipeline.with_padding(None);
        pipeline.with_truncation(None).map_err(|error| TextError::broken("tokenizer.json", error))?;
        let named = SpecialTokens::from_files(side_files)?;
        add_missing_tokens(&mut pipeline, side_files, &named)?;

        let vocab = pipeline.get_vocab(true);
        let Some(highest) = vocab.values().copied().max() else {
            return Err(TextError::broken(
                "tokenizer.json",
                "wanted at least one token, the vocabulary is empty",
            ));
        };
        let added = pipeline.get_added_tokens_decoder();
        let special_ids = added.iter().filter(|(_, token)| token.special).map(|(id, _)| *id).collect();
        let byte_ids = byte_tokens().filter_map(|token| vocab.get(&token).copied()).collect();
        let (added_before, added_after) = tokens_around(&pipeline)?;
        let inner =
            Inner { pipeline, named, special_ids, byte_ids, highest, added_before, added_after, files: kept };
        Ok(Tokenizer { inner: Arc::new(inner) })
    }

    /// Ids of the text: special tokens in it are recognised, no start or end token is added.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_as(text, false)
    }

    /// Ids of the text, literally, plus the start (and end) token where the tokenizer says that it adds one.
    pub fn encode_prompt(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_as(text, true)
    }

    /// [`Tokenizer::encode`], and for each id the byte of the text at which its token ends: rising, the same as the
    /// one before where a token ends within a character that an earlier token has reached.
    pub fn encode_with_ends(&self, text: &str) -> Result<(Vec<u32>, Vec<usize>)> {
        let encoding = self.inner.pipeline.encode(text, false);
        let encoding = encoding
            .map_err(|error| TextError::Tokenizing { action: "encode", reason: error.to_string() })?;
        let reach = |end: &mut usize, &(_, token_end): &(usize, usize)| {
            *end = token_end.max(*end);
            Some(*end)
        };
        let ends = encoding.get_offsets().iter().scan(0, reach).collect();
        Ok((encoding.get_ids().to_vec(), ends))
    }

    fn encode_as(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        let encoding = self.inner.pipeline.encode_fast(text, add_special_tokens);
        let encoding = encoding
            .map_err(|error| TextError::Tokenizing { action: "encode", reason: error.to_string() })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Text of the ids. Ids that the tokenizer lacks (padding rows of an embedding) give nothing.
    /// `keep_special`: whether special tokens appear in the text.
    pub fn decode(&self, ids: &[u32], keep_special: bool) -> Result<String> {
        let text = self.inner.pipeline.decode(ids, !keep_special);
        text.map_err(|error| TextError::Tokenizing { action: "decode", reason: error.to_string() })
    }

    /// A decoder for tokens that come one by one; it leaves special tokens out.
    pub fn decoder(&self) -> StreamDecoder {
        StreamDecoder::new(self.clone(), false)
    }

    /// A decoder for tokens that come one by one; it writes special tokens out.
    pub fn decoder_with_special(&self) -> StreamDecoder {
        StreamDecoder::new(self.clone(), true)
    }

    /// Highest id plus one, added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.inner.highest as usize + 1
    }

    /// Refuses a model whose embedding table has fewer than [`Tokenizer::vocab_size`] rows.
    pub fn check_fits(&self, vocab_size: usize) -> Result<()> {
        if self.vocab_size() <= vocab_size {
            return Ok(());
        }
        let highest = self.inner.highest;
        Err(TextError::DoesNotFit { highest, token: self.token(highest).unwrap_or_default(), vocab_size })
    }

    /// The token as the vocabulary spells it (`Ġthe`, `▁the`, `<0x0A>`).
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.pipeline.id_to_token(id)
    }

    /// The id of a token as the vocabulary spells it.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.pipeline.token_to_id(token)
    }

    /// Start token, where the tokenizer or the model's config names one.
    pub fn bos(&self) -> Option<u32> {
        self.named_id(&self.inner.named.bos).or(self.inner.named.bos_id)
    }

    /// End token, where the tokenizer or the model's config names one.
    pub fn eos(&self) -> Option<u32> {
        self.named_id(&self.inner.named.eos).or(self.inner.named.eos_ids.first().copied())
    }

    /// Every token that ends a generated text: those of generation_config.json (or config.json), and the
    /// end token; sorted, each once.
    pub fn end_ids(&self) -> Vec<u32> {
        let mut ids = self.inner.named.eos_ids.clone();
        ids.extend(self.eos());
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// Padding token, where the tokenizer or the model's config names one.
    pub fn pad(&self) -> Option<u32> {
        self.named_id(&self.inner.named.pad).or(self.inner.named.pad_id)
    }

    /// Unknown token, where the tokenizer names one.
    pub fn unk(&self) -> Option<u32> {
        self.named_id(&self.inner.named.unk)
    }

    /// The named special tokens as strings.
    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.inner.named
    }

    fn named_id(&self, token: &Option<String>) -> Option<u32> {
        self.id(token.as_deref()?)
    }

    /// What [`Tokenizer::encode_prompt`] puts before a text.
    pub fn added_before(&self) -> &[u32] {
        &self.inner.added_before
    }

    /// What [`Tokenizer::encode_prompt`] puts after a text.
    pub fn added_after(&self) -> &[u32] {
        &self.inner.added_after
    }

    /// Whether [`Tokenizer::encode_prompt`] puts a start token before the text.
    pub fn adds_bos(&self) -> bool {
        !self.inner.added_before.is_empty()
    }

    /// Whether [`Tokenizer::encode_prompt`] puts an end token after the text.
    pub fn adds_eos(&self) -> bool {
        !self.inner.added_after.is_empty()
    }

    /// Whether the token is special: recognised before all else in a text, left out when decoding.
    pub fn is_special(&self, id: u32) -> bool {
        self.inner.special_ids.contains(&id)
    }

    /// Whether the token stands for one byte (`<0x0A>`).
    pub(crate) fn is_byte_token(&self, id: u32) -> bool {
        self.inner.byte_ids.contains(&id)
    }

    /// Added token by id, and the whole vocabulary, for conversions.
    pub(crate) fn pipeline(&self) -> &tokenizers::Tokenizer {
        &self.inner.pipeline
    }

    /// The files of a Hugging Face folder that hold this tokenizer: tokenizer.json, tokenizer_config.json,
    /// special_tokens_map.json and what came with them, byte for byte where they came as files.
    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let mut files = self.inner.files.clone();
        files.entry("tokenizer.json".to_owned()).or_insert_with(|| {
            let json =
                self.inner.pipeline.to_string(true).expect("a pipeline that was built has a JSON form");
            json.into_bytes()
        });
        files
    }
}

/// The spelling of the 256 byte tokens, `<0x00>` to `<0xFF>`.
pub(crate) fn byte_tokens() -> impl Iterator<Item = String> {
    (0..=255u8).map(|byte| format!("<0x{byte:02X}>"))
}

/// Adds what tokenizer_config.json lists and tokenizer.json lacks, and makes the named special tokens special.
/// A named token that no vocabulary holds is not added: it would get an id without an embedding.
fn add_missing_tokens(
    pipeline: &mut tokenizers::Tokenizer,
    files: &BTreeMap<String, Vec<u8>>,
    named: &SpecialTokens,
) -> Result<()> {
    let known: HashSet<String> =
        pipeline.get_added_tokens_decoder().into_values().map(|token| token.content).collect();
    let mut listed = BTreeMap::new();
    if let Some(Value::Object(entries)) =
        json_file(files, "tokenizer_config.json")?.as_ref().and_then(|file| file.get("added_tokens_decoder"))
    {
        for (id, entry) in entries {
            let place = || format!("tokenizer_config.json: added_tokens_decoder.{id}");
            let number: u32 =
                id.parse().map_err(|_| TextError::broken(place(), "wanted a token id as the key"))?;
            let token: AddedToken =
                serde_json::from_value(with_defaults(entry)).map_err(|e| TextError::broken(place(), e))?;
            listed.insert(number, token);
        }
    }
    let listed = listed.into_values().filter(|token| !known.contains(&token.content));
    let mut tokens: Vec<AddedToken> = listed.collect();
    for (_, token) in named.named() {
        let is_listed = known.contains(token) || tokens.iter().any(|listed| listed.content == token);
        if !is_listed && pipeline.token_to_id(token).is_some() {
            tokens.push(AddedToken::from(token, true));
        }
    }
    pipeline.add_tokens(tokens).map_err(|error| TextError::broken("tokenizer_config.json", error))?;
    Ok(())
}

/// transformers leaves fields of an added token out where they have their default.
fn with_defaults(entry: &Value) -> Value {
    let mut entry = entry.clone();
    if let Some(fields) = entry.as_object_mut() {
        let special = fields.get("special").and_then(Value::as_bool).unwrap_or(false);
        for (key, default) in [
            ("single_word", false),
            ("lstrip", false),
            ("rstrip", false),
            ("normalized", !special),
            ("special", false),
        ] {
            fields.entry(key).or_insert(Value::Bool(default));
        }
    }
    entry
}

/// What the post-processor puts before and after a text, found by asking it.
fn tokens_around(pipeline: &tokenizers::Tokenizer) -> Result<(Vec<u32>, Vec<u32>)> {
    let encode = |special: bool| {
        let encoding = pipeline.encode_fast("a", special);
        encoding.map_err(|error| TextError::broken("tokenizer.json", error))
    };
    let (bare, full) = (encode(false)?, encode(true)?);
    let (bare, full) = (bare.get_ids(), full.get_ids());
    if bare.is_empty() {
        return Ok((full.to_vec(), Vec::new()));
    }
    let start = full.windows(bare.len()).position(|window| window == bare).unwrap_or(0);
    Ok((full[..start].to_vec(), full[(start + bare.len()).min(full.len())..].to_vec()))
}
