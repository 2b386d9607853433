//! SentencePiece `.model` files.

use luthier_text::Tokenizer;
use luthier_text::sentencepiece::{Algorithm, Piece, PieceKind, SentencePieceModel};
use proptest::prelude::*;

use crate::small::Files;

fn piece(text: &str, score: f32, kind: PieceKind) -> Piece {
    Piece { text: text.to_owned(), score, kind }
}

fn special() -> Vec<Piece> {
    vec![
        piece("<unk>", 0.0, PieceKind::Unknown),
        piece("<s>", 0.0, PieceKind::Control),
        piece("</s>", 0.0, PieceKind::Control),
    ]
}

fn folder(model: &SentencePieceModel, config: &str) -> Files {
    Files::from([
        ("tokenizer.model".to_owned(), model.write()),
        ("tokenizer_config.json".to_owned(), config.as_bytes().to_vec()),
    ])
}

fn bpe() -> SentencePieceModel {
    let mut pieces = special();
    pieces.extend((0..=255).map(|byte| piece(&format!("<0x{byte:02X}>"), 0.0, PieceKind::Byte)));
    for (text, score) in [("▁a", -0.0), ("▁ab", -1.0), ("▁", -5.0), ("a", -6.0), ("b", -7.0)] {
        pieces.push(piece(text, score, PieceKind::Normal));
    }
    let mut model = SentencePieceModel::new(Algorithm::Bpe, pieces);
    model.byte_fallback = true;
    model
}

#[test]
fn a_bpe_model_becomes_llamas_tokenizer() {
    let tokenizer =
        Tokenizer::from_files(&folder(&bpe(), r#"{"tokenizer_class": "LlamaTokenizer"}"#)).unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.unk()), (Some(1), Some(2), Some(0)));
    assert_eq!(tokenizer.encode_prompt("ab a").unwrap(), [1, 260, 259]);
    assert_eq!(tokenizer.encode("a\n").unwrap(), [259, 3 + 10]);
    assert_eq!(tokenizer.decode(&[1, 260, 259], false).unwrap(), "ab a");
    // The files that it gives hold the same tokenizer as tokenizer.json.
    let again = Tokenizer::from_files(&tokenizer.files()).unwrap();
    assert_eq!(again.encode_prompt("ab\u{e9} a").unwrap(), tokenizer.encode_prompt("ab\u{e9} a").unwrap());
}

#[test]
fn the_config_says_what_stands_around_a_text() {
    let config = r#"{"tokenizer_class": "LlamaTokenizer", "add_bos_token": false, "add_eos_token": true}"#;
    let tokenizer = Tokenizer::from_files(&folder(&bpe(), config)).unwrap();
    assert_eq!(tokenizer.encode_prompt("a").unwrap(), [259, 2]);
    assert!(!tokenizer.adds_bos() && tokenizer.adds_eos());
}

#[test]
fn a_unigram_model_takes_the_most_probable_pieces() {
    let mut pieces = special();
    for (text, score) in [("▁", -2.0), ("▁a", -2.5), ("b", -3.0), ("ab", -1.0), ("▁ab", -3.2)] {
        pieces.push(piece(text, score, PieceKind::Normal));
    }
    let model = SentencePieceModel::new(Algorithm::Unigram, pieces);
    let tokenizer =
        Tokenizer::from_files(&folder(&model, r#"{"tokenizer_class": "T5Tokenizer", "extra_ids": 2}"#))
            .unwrap();
    // "▁ab": -3.2 as a whole; "▁" + "ab" is -3.0, "▁a" + "b" is -5.5. T5 adds its end token.
    assert_eq!(tokenizer.encode_prompt("ab").unwrap(), [3, 6, 2]);
    assert_eq!((tokenizer.id("<extra_id_1>"), tokenizer.id("<extra_id_0>")), (Some(8), Some(9)));
    assert_eq!(tokenizer.encode("ab<extra_id_0>").unwrap().last(), Some(&9));
}

#[test]
fn classes_that_renumber_pieces_are_refused() {
    let error =
        Tokenizer::from_files(&folder(&bpe(), r#"{"tokenizer_class": "XLMRobertaTokenizer"}"#)).unwrap_err();
    assert!(error.to_string().contains("\"XLMRobertaTokenizer\" is not known"), "{error}");
}

#[test]
fn a_lying_character_map_is_refused() {
    // Tries: none at all; one that claims more than there is; one whose root leads outside.
    for charsmap in
        [vec![0, 0, 0, 0], vec![255, 255, 255, 255, 1], [&[4, 0, 0, 0][..], &[0, 255, 255, 255]].concat()]
    {
        let mut model = SentencePieceModel::new(Algorithm::Unigram, special());
        model.precompiled_charsmap = charsmap;
        let error = Tokenizer::from_files(&folder(&model, "{}")).unwrap_err().to_string();
        assert!(error.contains("precompiled_charsmap"), "{error}");
    }
}

#[test]
fn a_cut_file_is_refused() {
    let bytes = bpe().write();
    let error =
        SentencePieceModel::parse("tokenizer.model", &bytes[..bytes.len() / 2]).unwrap_err().to_string();
    assert!(error.starts_with("tokenizer.model: cut short or not protobuf"), "{error}");
}

fn any_model() -> impl Strategy<Value = SentencePieceModel> {
    let kinds =
        [PieceKind::Normal, PieceKind::Unknown, PieceKind::Control, PieceKind::UserDefined, PieceKind::Byte];
    let piece = ("\\PC{0,6}", -1e6f32..1e6, prop::sample::select(kinds.to_vec()))
        .prop_map(|(text, score, kind)| Piece { text, score, kind });
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    (
        prop::collection::vec(piece, 1..20),
        any::<bool>(),
        flags,
        -1i64..9,
        prop::collection::vec(any::<u8>(), 0..9),
    )
        .prop_map(
            |(pieces, is_bpe, (byte_fallback, add_dummy_prefix, remove_extra_whitespaces), bos_id, map)| {
                let algorithm = if is_bpe { Algorithm::Bpe } else { Algorithm::Unigram };
                let mut model = SentencePieceModel::new(algorithm, pieces);
                (model.byte_fallback, model.add_dummy_prefix) = (byte_fallback, add_dummy_prefix);
                (model.remove_extra_whitespaces, model.bos_id) = (remove_extra_whitespaces, bos_id);
                model.precompiled_charsmap = map;
                model
            },
        )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn writing_and_reading_gives_the_same_model(model in any_model()) {
        prop_assert_eq!(SentencePieceModel::parse("m", &model.write()).unwrap(), model);
    }
}
