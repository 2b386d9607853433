//! WordPiece tokenizers (arXiv:1609.08144): from a vocabulary file, as folders of BERT's first years have it, and the
//! pipeline that they all are.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use tokenizers::decoders::DecoderWrapper;
use tokenizers::decoders::wordpiece::WordPiece as WordPieceDecoder;
use tokenizers::models::bpe::Vocab;
use tokenizers::models::wordpiece::WordPiece;
use tokenizers::normalizers::bert::BertNormalizer;
use tokenizers::pre_tokenizers::bert::BertPreTokenizer;
use tokenizers::{ModelWrapper, Tokenizer as Pipeline};

use crate::error::{Result, TextError};
use crate::sentencepiece::pipeline::put_around;
use crate::special_tokens::json_file;
use crate::tokenizer::Tokenizer;

/// One token a line, the first being token 0.
pub(crate) const FILE: &str = "vocab.txt";

/// BERT's special tokens where no file names others.
const SPECIALS: [(&str, &str); 5] = [
    ("unk_token", "[UNK]"),
    ("sep_token", "[SEP]"),
    ("pad_token", "[PAD]"),
    ("cls_token", "[CLS]"),
    ("mask_token", "[MASK]"),
];

/// What is done to a text before it is cut.
pub(crate) struct Rules {
    /// Whether letters become small.
    pub(crate) lowercases: bool,
    /// Whether Chinese characters stand alone.
    pub(crate) splits_chinese: bool,
    /// Whether accents go; none: where letters become small.
    pub(crate) strips_accents: Option<bool>,
}

impl Rules {
    /// Those of BERT.
    pub(crate) const BERT: Rules = Rules { lowercases: true, splits_chinese: true, strips_accents: None };
}

/// The pipeline of a vocabulary, without special tokens.
pub(crate) fn pipeline(
    vocab: Vocab,
    unk: String,
    rules: &Rules,
) -> std::result::Result<Pipeline, tokenizers::Error> {
    let model = WordPiece::builder().vocab(vocab).unk_token(unk).build()?;
    let mut pipeline = Pipeline::new(ModelWrapper::WordPiece(model));
    let Rules { lowercases, splits_chinese, strips_accents } = *rules;
    pipeline.with_normalizer(Some(BertNormalizer::new(true, splits_chinese, strips_accents, lowercases)))?;
    pipeline.with_pre_tokenizer(Some(BertPreTokenizer));
    pipeline.with_decoder(Some(DecoderWrapper::WordPiece(WordPieceDecoder::default())));
    Ok(pipeline)
}

/// The tokenizer of a folder with vocab.txt: transformers' BertTokenizer, with the choices of tokenizer_config.json. Refuses
/// a vocabulary without the unknown token, and one that is not UTF-8.
pub(crate) fn from_files(files: &BTreeMap<String, Vec<u8>>) -> Result<Tokenizer> {
    let config = json_file(files, "tokenizer_config.json")?.unwrap_or_default();
    let flag = |key: &str| config.get(key).and_then(Value::as_bool);
    let rules = Rules {
        lowercases: flag("do_lower_case").unwrap_or(Rules::BERT.lowercases),
        splits_chinese: flag("tokenize_chinese_chars").unwrap_or(Rules::BERT.splits_chinese),
        strips_accents: flag("strip_accents"),
    };
    let mut files = files.clone();
    let specials = name_specials(&mut files)?;
    let bytes = files.get(FILE).map(Vec::as_slice).unwrap_or_default();
    let text = std::str::from_utf8(bytes).map_err(|error| TextError::broken(FILE, error))?;
    // A token that stands twice has its last place, as in transformers.
    let vocab: Vocab = text.lines().enumerate().map(|(id, token)| (token.to_owned(), id as u32)).collect();
    let token = |key: &str| specials.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    if !vocab.contains_key(&token("unk_token")) {
        let reason = format!("wanted the unknown token {:?}, which no line holds", token("unk_token"));
        return Err(TextError::broken(FILE, reason));
    }
    let ids = ["cls_token", "sep_token"].map(|key| Some((token(key), *vocab.get(&token(key))?)));
    let mut pipeline =
        pipeline(vocab, token("unk_token"), &rules).map_err(|error| TextError::broken(FILE, error))?;
    let [before, after] = ids;
    put_around(&mut pipeline, before, after)?;
    let kept = files.iter().filter(|(name, _)| *name != FILE && is_of_tokenizer(name));
    let kept = kept.map(|(name, bytes)| (name.clone(), bytes.clone())).collect();
    Tokenizer::from_pipeline(pipeline, &files, kept)
}

fn is_of_tokenizer(name: &str) -> bool {
    ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"].contains(&name)
}

/// Names BERT's special tokens in special_tokens_map.json where no file names them; gives all of them.
fn name_specials(files: &mut BTreeMap<String, Vec<u8>>) -> Result<Map<String, Value>> {
    const MAP: &str = "special_tokens_map.json";
    let text = |value: &Value| value.as_str().or_else(|| value.get("content")?.as_str()).map(str::to_owned);
    let config = json_file(files, "tokenizer_config.json")?;
    let map = json_file(files, MAP)?;
    let mut named = map.as_ref().and_then(Value::as_object).cloned().unwrap_or_default();
    let mut all = Map::new();
    for (key, standard) in SPECIALS {
        let known = [&config, &map].into_iter().flatten().find_map(|file| text(file.get(key)?));
        if known.is_none() {
            named.insert(key.to_owned(), json!(standard));
        }
        all.insert(key.to_owned(), json!(known.unwrap_or_else(|| standard.to_owned())));
    }
    files.insert(MAP.to_owned(), crate::gguf::pretty(&Value::Object(named)));
    Ok(all)
}
