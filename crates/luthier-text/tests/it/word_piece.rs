//! WordPiece: from vocab.txt, and through a GGUF file's metadata.

use std::collections::BTreeMap;

use luthier_text::Tokenizer;
use luthier_text::gguf::{GgufTokenizer, token_type};

const VOCAB: &str = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n[unused1]\nthe\nlut\n##e\n##s\nwas\nold\n.\nü\n##ber\nuber\n日\n[\n]\nThe\n";

fn files(more: &[(&str, &str)]) -> BTreeMap<String, Vec<u8>> {
    let all = [&[("vocab.txt", VOCAB)], more].concat();
    all.into_iter().map(|(name, text)| (name.to_owned(), text.as_bytes().to_vec())).collect()
}

/// As transformers' BertTokenizer cuts it.
#[test]
fn a_vocabulary_file_is_berts_tokenizer() {
    let tokenizer = Tokenizer::from_files(&files(&[])).unwrap();
    assert_eq!(
        tokenizer.encode_prompt("The lutes was OLD. Über 日日").unwrap(),
        [2, 6, 7, 8, 9, 10, 11, 12, 15, 16, 16, 3]
    );
    assert_eq!(tokenizer.encode("[MASK] xyz").unwrap(), [4, 1]);
    assert_eq!((tokenizer.pad(), tokenizer.unk(), tokenizer.vocab_size()), (Some(0), Some(1), 20));
    assert_eq!((tokenizer.added_before(), tokenizer.added_after()), (&[2][..], &[3][..]));
    assert_eq!(tokenizer.encode_prompt("").unwrap(), [2, 3]);
    let cased =
        Tokenizer::from_files(&files(&[("tokenizer_config.json", r#"{"do_lower_case": false}"#)])).unwrap();
    assert_eq!(cased.encode("The über").unwrap(), [19, 13, 14]);
    let again = Tokenizer::from_files(&tokenizer.files()).unwrap();
    assert_eq!(again.encode_prompt("lutes [SEP]").unwrap(), tokenizer.encode_prompt("lutes [SEP]").unwrap());
}

#[test]
fn a_vocabulary_without_its_unknown_token_is_refused() {
    let error = Tokenizer::from_files(&files(&[("special_tokens_map.json", r#"{"unk_token": "<unk>"}"#)]));
    assert!(error.unwrap_err().to_string().contains("vocab.txt: wanted the unknown token \"<unk>\""));
    let broken = BTreeMap::from([("vocab.txt".to_owned(), vec![0xff])]);
    assert!(Tokenizer::from_files(&broken).unwrap_err().to_string().contains("vocab.txt"));
}

/// llama.cpp marks the starts of words where BERT marks what goes on, special tokens apart.
#[test]
fn gguf_marks_the_starts_of_words() {
    let gguf = GgufTokenizer::from_files(&files(&[]), 21).unwrap();
    assert_eq!(gguf.model, "bert");
    assert_eq!(gguf.tokens[2..9], ["[CLS]", "[SEP]", "[MASK]", "▁[unused1]", "▁the", "▁lut", "e"]);
    assert_eq!(gguf.token_types[..6], [3, 3, 3, 3, 3, token_type::NORMAL]);
    assert_eq!((gguf.bos_id, gguf.cls_id, gguf.sep_id, gguf.mask_id), (Some(2), Some(2), Some(3), Some(4)));
    let back = GgufTokenizer { hf_json: None, ..gguf.clone() }.to_tokenizer().unwrap();
    let tokenizer = Tokenizer::from_files(&files(&[])).unwrap();
    for text in ["The lutes was OLD. Über 日", "[ x ] [MASK]", ""] {
        assert_eq!(back.encode_prompt(text).unwrap(), tokenizer.encode_prompt(text).unwrap(), "{text}");
    }
    // As other versions write it: names in brackets stay as they are.
    let mut other = GgufTokenizer { hf_json: None, ..gguf };
    other.tokens[5] = "[unused1]".to_owned();
    assert_eq!(other.to_tokenizer().unwrap().token(5).as_deref(), Some("[unused1]"));
}
