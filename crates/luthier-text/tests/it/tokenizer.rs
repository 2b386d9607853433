//! Reading folders, encoding, decoding, streaming.

use expect_test::expect;
use luthier_text::Tokenizer;
use proptest::prelude::*;

use crate::small::{Files, byte_level};

fn tokenizer() -> Tokenizer {
    Tokenizer::from_files(&byte_level()).unwrap()
}

#[test]
fn training_gives_gemma_ids_and_the_same_bytes_again() {
    let tokenizer = tokenizer();
    let ids = ["<pad>", "<eos>", "<bos>", "<unk>"].map(|token| tokenizer.id(token));
    assert_eq!(ids, [Some(0), Some(1), Some(2), Some(3)]);
    assert_eq!([tokenizer.pad(), tokenizer.eos(), tokenizer.bos(), tokenizer.unk()], ids);
    assert_eq!(tokenizer.vocab_size(), 300);
    assert_eq!(byte_level(), byte_level());
}

#[test]
fn only_the_prompt_gets_a_start_token_and_special_tokens_are_recognised() {
    let tokenizer = tokenizer();
    let bare = tokenizer.encode("the lute").unwrap();
    let prompt = tokenizer.encode_prompt("the lute").unwrap();
    assert_eq!(prompt, [vec![2], bare.clone()].concat());
    assert!(tokenizer.adds_bos() && !tokenizer.adds_eos());
    let with_special = tokenizer.encode("<bos>the lute<eos>").unwrap();
    assert_eq!(with_special, [vec![2], bare, vec![1]].concat());
    assert_eq!(tokenizer.decode(&with_special, false).unwrap(), "the lute");
    assert_eq!(tokenizer.decode(&with_special, true).unwrap(), "<bos>the lute<eos>");
    assert_eq!(tokenizer.encode("").unwrap(), Vec::<u32>::new());
}

#[test]
fn digits_stand_alone() {
    let tokenizer = tokenizer();
    let pieces: Vec<_> =
        tokenizer.encode("1682").unwrap().into_iter().map(|id| tokenizer.token(id)).collect();
    assert_eq!(pieces, ["1", "6", "8", "2"].map(|piece| Some(piece.to_owned())));
}

#[test]
fn a_token_of_tokenizer_config_that_tokenizer_json_lacks_is_added() {
    let mut files = byte_level();
    let config = br#"{"eos_token": {"content": "<eos>"}, "added_tokens_decoder":
        {"300": {"content": "<tool>", "special": true}, "0": {"content": "<pad>", "special": true}}}"#;
    files.insert("tokenizer_config.json".to_owned(), config.to_vec());
    let tokenizer = Tokenizer::from_files(&files).unwrap();
    assert_eq!((tokenizer.id("<tool>"), tokenizer.vocab_size()), (Some(300), 301));
    assert!(tokenizer.is_special(300) && !tokenizer.is_special(299));
}

#[test]
fn end_ids_come_from_generation_config_before_config() {
    let mut files = byte_level();
    files.insert("config.json".to_owned(), br#"{"eos_token_id": 7, "bos_token_id": 2}"#.to_vec());
    assert_eq!(Tokenizer::from_files(&files).unwrap().end_ids(), [1, 7]);
    files.insert("generation_config.json".to_owned(), br#"{"eos_token_id": [5, 1]}"#.to_vec());
    assert_eq!(Tokenizer::from_files(&files).unwrap().end_ids(), [1, 5]);
}

#[test]
fn refusals_name_file_and_way_out() {
    let error = |files: &Files| Tokenizer::from_files(files).unwrap_err().to_string();
    expect!["no tokenizer: looked for tokenizer.json, tokenizer.model, spiece.model, sentencepiece.bpe.model, spm.model, vocab.txt, found config.json; add one of them to the model folder"]
        .assert_eq(&error(&Files::from([("config.json".to_owned(), b"{}".to_vec())])));
    expect!["tokenizer.json: EOF while parsing an object at line 1 column 1"]
        .assert_eq(&error(&Files::from([("tokenizer.json".to_owned(), b"{".to_vec())])));
    let fits = tokenizer().check_fits(299).unwrap_err().to_string();
    assert!(fits.contains("highest token id is 299") && fits.contains("299 rows"), "{fits}");
    tokenizer().check_fits(300).unwrap();
}

#[test]
fn merges_of_unknown_or_overlong_tokens_are_refused_without_a_panic() {
    for merges in [r#"[["a", "b"]]"#, r#"["a b"]"#, r#"[["ab", "ab"]]"#, r#"[["x", "y"]]"#] {
        let json = format!(
            r#"{{"version": "1.0", "added_tokens": [], "model": {{"type": "BPE", "vocab": {{"a": 0, "b": 1}}, "merges": {merges}}}}}"#
        );
        let files = Files::from([("tokenizer.json".to_owned(), json.into_bytes())]);
        let error = Tokenizer::from_files(&files).unwrap_err().to_string();
        assert!(error.starts_with("tokenizer.json: model.merges"), "{error}");
    }
}

#[test]
fn templates_with_undefined_tokens_are_refused_without_a_panic() {
    let opened = |post_processor: &str| {
        let json = format!(
            r#"{{"version": "1.0", "added_tokens": [], "model": {{"type": "BPE", "vocab": {{"a": 0, "b": 1}}, "merges": []}},
                "post_processor": {post_processor}}}"#
        );
        let files = Files::from([("tokenizer.json".to_owned(), json.into_bytes())]);
        Tokenizer::from_files(&files).map(|tokenizer| tokenizer.encode_prompt("a").unwrap())
    };
    let template = |key: &str, defined: &str| {
        let piece =
            r##"{"SpecialToken": {"id": "b", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}"##;
        let other = if key == "single" { "pair" } else { "single" };
        let token = format!(r#"{{"id": "{defined}", "ids": [1], "tokens": ["{defined}"]}}"#);
        format!(
            r#"{{"type": "TemplateProcessing", "{key}": [{piece}], "{other}": [], "special_tokens": {{"{defined}": {token}}}}}"#
        )
    };
    for key in ["single", "pair"] {
        let wrong = template(key, "c");
        for wrong in [format!(r#"{{"type": "Sequence", "processors": [{wrong}]}}"#), wrong] {
            let error = opened(&wrong).unwrap_err().to_string();
            assert!(error.contains(&format!("post_processor.{key}: \"b\"")), "{error}");
        }
    }
    assert_eq!(opened(&template("single", "b")).unwrap(), [1, 0]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_text_survives_a_byte_level_tokenizer(text in "\\PC*|(?s).{0,40}") {
        let tokenizer = tokenizer();
        let ids = tokenizer.encode(&text).unwrap();
        prop_assert_eq!(tokenizer.decode(&ids, true).unwrap(), text);
    }

    #[test]
    fn streaming_gives_what_decoding_gives(ids in prop::collection::vec(0u32..310, 0..40), keep in any::<bool>()) {
        let tokenizer = tokenizer();
        let mut decoder = if keep { tokenizer.decoder_with_special() } else { tokenizer.decoder() };
        let mut text = String::new();
        for id in &ids {
            let piece = decoder.push(*id);
            prop_assert!(piece.as_deref() != Some(""));
            text.extend(piece);
        }
        text.extend(decoder.flush());
        prop_assert_eq!(text, tokenizer.decode(&ids, keep).unwrap());
    }
}
