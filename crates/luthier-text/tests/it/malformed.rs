//! Bytes from anywhere give an error or a tokenizer, never a panic.

use luthier_text::Tokenizer;
use luthier_text::sentencepiece::SentencePieceModel;
use proptest::prelude::*;

use crate::small::{Files, byte_level};

/// Opens the file and uses what opened.
fn open(name: &str, bytes: Vec<u8>) {
    if let Ok(tokenizer) = Tokenizer::from_files(&Files::from([(name.to_owned(), bytes)])) {
        let ids = tokenizer.encode_prompt("The lute, 1682 \u{1F3BB}").unwrap_or_default();
        let _ = tokenizer.decode(&ids, true);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn any_bytes_as_model(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = SentencePieceModel::parse("m", &bytes);
        open("tokenizer.model", bytes);
    }

    #[test]
    fn a_tokenizer_json_with_a_few_bytes_changed(at in prop::collection::vec((0usize..20_000, 32u8..127), 1..4)) {
        let mut json = byte_level().remove("tokenizer.json").unwrap();
        for (place, byte) in at {
            let place = place % json.len();
            json[place] = byte;
        }
        open("tokenizer.json", json);
    }

    #[test]
    fn a_tokenizer_json_with_one_value_changed(pick in any::<prop::sample::Index>(), with in 0usize..8) {
        let json = String::from_utf8(byte_level().remove("tokenizer.json").unwrap()).unwrap();
        let values = ["null", "-1", "1e300", "{}", "[]", "\"\"", "\"\\u0120\"", "4294967295"];
        let lines: Vec<&str> = json.lines().collect();
        let line = pick.index(lines.len());
        let changed: Vec<String> = lines.iter().enumerate().map(|(number, text)| match text.split_once(": ") {
            Some((key, value)) if number == line && !value.ends_with(['{', '[']) => {
                format!("{key}: {}{}", values[with], if value.ends_with(',') { "," } else { "" })
            }
            _ => (*text).to_owned(),
        }).collect();
        open("tokenizer.json", changed.join("\n").into_bytes());
    }
}
