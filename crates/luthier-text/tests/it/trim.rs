//! Tokenizers cut to some of their tokens.

use std::collections::{BTreeMap, BTreeSet};

use luthier_text::Tokenizer;
use luthier_text::sentencepiece::{Algorithm, Piece, PieceKind, SentencePieceModel};
use luthier_text::trim::Trimmer;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::small::{Files, TEXT, byte_level};

/// The tokens of a text, what must stay, and what all of these are made of.
fn closed(trimmer: &Trimmer, ids: impl IntoIterator<Item = u32>) -> Vec<u32> {
    let mut kept = BTreeSet::new();
    let mut open: Vec<u32> = trimmer.required().keys().copied().chain(ids).collect();
    while let Some(id) = open.pop() {
        if kept.insert(id) {
            open.extend(trimmer.parts(id));
        }
    }
    kept.into_iter().collect()
}

/// Trims to what `text` needs; every one of `texts` whose tokens are kept has the same ones.
fn check(files: &Files, text: &str, texts: &[&str]) -> (Files, Vec<u32>) {
    let trimmer = Trimmer::new(files).unwrap();
    let kept = closed(&trimmer, trimmer.tokenizer().encode(text).unwrap());
    let trimmed = trimmer.trim(&kept).unwrap();
    let after = Tokenizer::from_files(&trimmed).unwrap();
    let mut n_same = 0;
    for text in texts.iter().chain([&text]) {
        let old = trimmer.tokenizer().encode(text).unwrap();
        let wanted: Option<Vec<u32>> =
            old.iter().map(|id| kept.binary_search(id).ok().map(|at| at as u32)).collect();
        if let Some(wanted) = wanted {
            assert_eq!(after.encode(text).unwrap(), wanted, "{text}");
            assert_eq!(
                after.decode(&wanted, true).unwrap(),
                trimmer.tokenizer().decode(&old, true).unwrap(),
                "{text}"
            );
            n_same += 1;
        }
    }
    assert!(n_same > 0);
    assert!(kept.len() < trimmer.tokenizer().vocab_size());
    (trimmed, kept)
}

fn piece(text: &str, score: f32, kind: PieceKind) -> Piece {
    Piece { text: text.to_owned(), score, kind }
}

/// Pieces of words and their beginnings, with special ones and bytes.
fn pieces() -> Vec<Piece> {
    let mut pieces = vec![
        piece("<unk>", 0.0, PieceKind::Unknown),
        piece("<s>", 0.0, PieceKind::Control),
        piece("</s>", 0.0, PieceKind::Control),
    ];
    pieces.extend((0..=255).map(|byte| piece(&format!("<0x{byte:02X}>"), 0.0, PieceKind::Byte)));
    let mut seen = BTreeSet::new();
    let mut score = -1.0;
    for word in ["▁lute", "▁luthier", "▁old", "▁the", "▁sang", "▁tuned"] {
        for (end, _) in word.char_indices().skip(1).chain([(word.len(), ' ')]) {
            if seen.insert(word[..end].to_owned()) {
                pieces.push(piece(&word[..end], score, PieceKind::Normal));
                score -= 0.5;
            }
        }
    }
    for letter in "abcdefghilnorstu".chars().map(String::from).filter(|letter| seen.insert(letter.clone())) {
        pieces.push(piece(&letter, score, PieceKind::Normal));
        score -= 0.5;
    }
    pieces.push(piece("<user>", 0.0, PieceKind::UserDefined));
    pieces
}

fn sentencepiece(algorithm: Algorithm, byte_fallback: bool) -> Files {
    let mut pieces = pieces();
    if !byte_fallback {
        pieces.retain(|piece| piece.kind != PieceKind::Byte);
    }
    let mut model = SentencePieceModel::new(algorithm, pieces);
    model.byte_fallback = byte_fallback;
    let mut bytes = model.write();
    // trainer_spec goes on: vocab_size, and keys of another version.
    bytes.extend([0x12, 8, 0x20, 0xac, 0x02, 0xf8, 0x3f, 0x07, 0x50, 0x09]);
    let config = match algorithm {
        Algorithm::Unigram => r#"{"tokenizer_class": "T5Tokenizer", "extra_ids": 3, "add_eos_token": true}"#,
        _ => {
            r#"{"tokenizer_class": "LlamaTokenizer", "added_tokens_decoder": {"1": {"content": "<s>", "special": true}}}"#
        }
    };
    Files::from([
        ("tokenizer.model".to_owned(), bytes),
        ("tokenizer_config.json".to_owned(), config.as_bytes().to_vec()),
    ])
}

fn word_piece() -> Files {
    let words = [
        "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "l", "##u", "u", "##t", "t", "##e", "e", "lute", "##s",
        "s", "lut", "o", "##l", "##d", "d", "##o", "old", "##er",
    ];
    let vocab: serde_json::Map<String, Value> =
        words.iter().zip(0..).map(|(word, id)| (word.to_string(), json!(id))).collect();
    let special = |id: u32| {
        json!({"id": id, "content": words[id as usize], "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let json = json!({
        "version": "1.0", "truncation": null, "padding": {"strategy": "BatchLongest", "direction": "Right",
            "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"},
        "added_tokens": (0..5).map(special).collect::<Vec<_>>(), "normalizer": null,
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100, "vocab": vocab}
    });
    let lines: String = words.iter().map(|word| format!("{word}\n")).collect();
    Files::from([
        ("tokenizer.json".to_owned(), json.to_string().into_bytes()),
        ("vocab.txt".to_owned(), lines.into_bytes()),
    ])
}

#[test]
fn byte_level_bpe_keeps_bytes_and_the_merges_of_kept_tokens() {
    let (trimmed, kept) =
        check(&byte_level(), "The lute sang", &["lute", "The The", "lu te", "sang", "tuned 日本語"]);
    assert!(kept.len() >= 260, "256 bytes and 4 special tokens: {}", kept.len());
    let after = Tokenizer::from_files(&trimmed).unwrap();
    for text in [TEXT, "🎻 anything \u{7} at all"] {
        let ids = after.encode(text).unwrap();
        assert_eq!(after.decode(&ids, true).unwrap(), text);
    }
    let json: Value = serde_json::from_slice(&trimmed["tokenizer.json"]).unwrap();
    let vocab = json["model"]["vocab"].as_object().unwrap();
    for merge in json["model"]["merges"].as_array().unwrap() {
        let (left, right) = (merge[0].as_str().unwrap(), merge[1].as_str().unwrap());
        assert!(
            vocab.contains_key(left)
                && vocab.contains_key(right)
                && vocab.contains_key(&format!("{left}{right}"))
        );
    }
    assert_eq!(after.bos(), Some(2));
    assert_eq!(after.added_before(), [2]);
}

#[test]
fn sentencepiece_models_of_both_kinds_keep_what_stands_beside_the_pieces() {
    for (algorithm, byte_fallback) in
        [(Algorithm::Bpe, true), (Algorithm::Unigram, true), (Algorithm::Unigram, false)]
    {
        let files = sentencepiece(algorithm, byte_fallback);
        let (trimmed, kept) = check(&files, "old lute", &["the lute", "lute", "sang <user>", "old old"]);
        let (old, new) = (
            SentencePieceModel::parse("old", &files["tokenizer.model"]).unwrap(),
            SentencePieceModel::parse("new", &trimmed["tokenizer.model"]).unwrap(),
        );
        let texts = |model: &SentencePieceModel| {
            model.pieces.iter().map(|piece| piece.text.clone()).collect::<Vec<_>>()
        };
        let places: Vec<usize> =
            kept.iter().map(|id| *id as usize).filter(|at| *at < old.pieces.len()).collect();
        assert_eq!(texts(&new), places.iter().map(|at| old.pieces[*at].text.clone()).collect::<Vec<_>>());
        assert!(places.iter().zip(&new.pieces).all(|(at, piece)| old.pieces[*at] == *piece));
        // vocab_size follows; the keys of another version are where they were.
        assert!(trimmed["tokenizer.model"].ends_with(&[0xf8, 0x3f, 0x07, 0x50, 0x09]));
        let (mut size, mut rest) = (vec![0x20], new.pieces.len());
        while rest >= 0x80 {
            size.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        size.push(rest as u8);
        let end = trimmed["tokenizer.model"].len() - 5;
        assert!(trimmed["tokenizer.model"][..end].ends_with(&size));
        let after = Tokenizer::from_files(&trimmed).unwrap();
        if algorithm == Algorithm::Unigram {
            let n = new.pieces.len() as u32;
            assert_eq!((after.id("<extra_id_2>"), after.id("<extra_id_0>")), (Some(n), Some(n + 2)));
        }
        assert!(kept.len() < old.pieces.len());
    }
}

#[test]
fn word_piece_keeps_the_characters_of_kept_words() {
    let (trimmed, kept) = check(&word_piece(), "lutes", &["lute s", "old", "lut", "us"]);
    assert_eq!(kept, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 17]);
    let after = Tokenizer::from_files(&trimmed).unwrap();
    assert_eq!(after.encode_prompt("lutes tell").unwrap(), [2, 12, 13, 9, 10, 15, 15, 3]);
    let words = String::from_utf8(trimmed["vocab.txt"].clone()).unwrap();
    assert_eq!(words.lines().count(), kept.len());
    assert_eq!(words.lines().last(), Some("##l"));
}

#[test]
fn all_tokens_kept_is_the_same_files_byte_for_byte() {
    for files in [
        byte_level(),
        sentencepiece(Algorithm::Bpe, true),
        sentencepiece(Algorithm::Unigram, false),
        word_piece(),
    ] {
        let trimmer = Trimmer::new(&files).unwrap();
        let all: Vec<u32> = (0..trimmer.tokenizer().vocab_size() as u32).collect();
        assert!(trimmer.trim(&all).unwrap() == files);
    }
}

#[test]
fn a_set_that_is_not_closed_and_one_without_a_special_token_are_refused() {
    let trimmer = Trimmer::new(&byte_level()).unwrap();
    let whole =
        (0..trimmer.tokenizer().vocab_size() as u32).find(|id| !trimmer.parts(*id).is_empty()).unwrap();
    let long = (whole..)
        .find(|id| trimmer.parts(*id).iter().any(|part| !trimmer.required().contains_key(part)))
        .unwrap();
    let mut kept: BTreeSet<u32> = trimmer.required().keys().copied().collect();
    kept.insert(long);
    let kept: Vec<u32> = kept.into_iter().collect();
    let refused = trimmer.trim(&kept).unwrap_err().to_string();
    assert!(refused.contains("is made of") && refused.contains("not kept"), "{refused}");
    let all: Vec<u32> = (1..trimmer.tokenizer().vocab_size() as u32).collect();
    let refused = trimmer.trim(&all).unwrap_err().to_string();
    assert!(refused.contains("token 0 (\"<pad>\") must stay"), "{refused}");
}

#[test]
fn a_kept_token_whose_merges_were_dropped_is_refused_when_it_is_read_back() {
    let files = byte_level();
    let trimmer = Trimmer::new(&files).unwrap();
    let kept = closed(&trimmer, trimmer.tokenizer().encode("The lute sang").unwrap());
    let mut trimmed = trimmer.trim(&kept).unwrap();
    trimmer.check_read_back(&kept, &trimmed).unwrap();
    let mut json: Value = serde_json::from_slice(&trimmed["tokenizer.json"]).unwrap();
    json["model"]["merges"].as_array_mut().unwrap().pop().unwrap();
    trimmed.insert("tokenizer.json".to_owned(), json.to_string().into_bytes());
    let refused = trimmer.check_read_back(&kept, &trimmed).unwrap_err().to_string();
    assert!(refused.contains("its merges were dropped"), "{refused}");
}

#[test]
fn unknown_kinds_are_refused_by_name() {
    let mut json: Value = serde_json::from_slice(&word_piece()["tokenizer.json"]).unwrap();
    json["model"]["type"] = json!("Syllables");
    let files = Files::from([("tokenizer.json".to_owned(), json.to_string().into_bytes())]);
    let refused = Trimmer::new(&files).err().unwrap().to_string();
    assert!(refused.contains("\"Syllables\" is not known") && refused.contains("WordPiece"), "{refused}");
    assert!(Trimmer::new(&BTreeMap::new()).err().unwrap().to_string().contains("no tokenizer"));
}

#[test]
fn a_model_file_that_numbers_otherwise_than_the_json_is_refused() {
    let mut files = sentencepiece(Algorithm::Bpe, true);
    let json = Tokenizer::from_files(&files).unwrap().files()["tokenizer.json"].clone();
    files.insert("tokenizer.json".to_owned(), json);
    check(&files, "old lute", &["lute"]);
    let mut model = SentencePieceModel::parse("old", &files["tokenizer.model"]).unwrap();
    model.pieces.swap(260, 290);
    files.insert("tokenizer.model".to_owned(), model.write());
    let trimmer = Trimmer::new(&files).unwrap();
    let kept = closed(&trimmer, trimmer.tokenizer().encode("old lute").unwrap());
    let refused = trimmer.trim(&kept).unwrap_err().to_string();
    assert!(refused.starts_with("tokenizer.model: ") && refused.contains("no equal distance"), "{refused}");
}

#[test]
fn templates_keep_what_they_write() {
    let mut files = byte_level();
    let template =
        "{% for m in messages %}<|{{ m.role }}|>{{ 'The lute' if x }}{# luthier #}{% endfor %}sang.";
    files.insert("chat_template.jinja".to_owned(), template.as_bytes().to_vec());
    let trimmer = Trimmer::new(&files).unwrap();
    let (trimmed, tokenizer) = (trimmer.trim(&closed(&trimmer, [])).unwrap(), trimmer.tokenizer());
    assert_eq!(trimmed["chat_template.jinja"], files["chat_template.jinja"]);
    let after = Tokenizer::from_files(&trimmed).unwrap();
    for text in ["The lute", "sang.", "user"] {
        assert_eq!(after.encode(text).unwrap().len(), tokenizer.encode(text).unwrap().len(), "{text}");
    }
    assert!(after.encode(" luthier").unwrap().len() > tokenizer.encode(" luthier").unwrap().len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever is kept: text of kept tokens is cut as before, all other text can still be read back.
    #[test]
    fn any_closed_set_segments_alike(chosen in proptest::collection::vec(260u32..300, 0..20), words in "(lute|luthier|The|old| |s|ing|1|é|\n){1,12}") {
        let trimmer = Trimmer::new(&byte_level()).unwrap();
        let n = trimmer.tokenizer().vocab_size() as u32;
        let kept = closed(&trimmer, chosen.into_iter().filter(|id| *id < n));
        let after = Tokenizer::from_files(&trimmer.trim(&kept).unwrap()).unwrap();
        let old = trimmer.tokenizer().encode(&words).unwrap();
        let new = after.encode(&words).unwrap();
        let wanted: Option<Vec<u32>> = old.iter().map(|id| kept.binary_search(id).ok().map(|at| at as u32)).collect();
        if let Some(wanted) = wanted {
            prop_assert_eq!(&new, &wanted);
        }
        prop_assert_eq!(after.decode(&new, true).unwrap(), words);
    }

    /// A SentencePiece file of any bytes is cut or refused.
    #[test]
    fn broken_model_files_are_refused(at in 0usize..400, byte in any::<u8>()) {
        let mut files = sentencepiece(Algorithm::Unigram, false);
        let bytes = files.get_mut("tokenizer.model").unwrap();
        let at = at % bytes.len();
        bytes[at] = byte;
        if let Ok(trimmer) = Trimmer::new(&files) {
            let _ = trimmer.trim(&closed(&trimmer, trimmer.tokenizer().encode("old lute").unwrap()));
        }
    }
}
