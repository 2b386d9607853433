//! GGUF metadata to a folder and back.

use luthier_text::Tokenizer;
use luthier_text::gguf::{GgufTokenizer, token_type};

use crate::small::{TEXT, byte_level};

#[test]
fn a_folder_goes_into_gguf_and_comes_back_with_the_same_ids() {
    let files = byte_level();
    let gguf = GgufTokenizer::from_files(&files, 304).unwrap();
    assert_eq!((gguf.model.as_str(), gguf.pre.as_deref()), ("gpt2", Some("smollm")));
    assert_eq!((gguf.bos_id, gguf.eos_id, gguf.pad_id, gguf.unk_id), (Some(2), Some(1), Some(0), Some(3)));
    assert_eq!((gguf.add_bos, gguf.add_eos), (Some(true), Some(false)));
    assert_eq!((gguf.tokens.len(), gguf.tokens[303].as_str()), (304, "[PAD303]"));
    assert_eq!(gguf.token_types[303], token_type::UNUSED);
    assert_eq!(gguf.token_types[..5], [3, 3, 3, 3, 1]);
    assert_eq!(gguf.hf_json, None, "the keys say all of it");

    let back = gguf.to_files().unwrap();
    assert_eq!(back["tokenizer.json"], files["tokenizer.json"]);
    let (before, after) = (Tokenizer::from_files(&files).unwrap(), Tokenizer::from_files(&back).unwrap());
    assert_eq!(before.encode_prompt(TEXT).unwrap(), after.encode_prompt(TEXT).unwrap());
    assert_eq!(after.vocab_size(), 300, "filler rows are no tokens");
    assert_eq!(gguf.to_tokenizer().unwrap().encode(TEXT).unwrap(), before.encode(TEXT).unwrap());
}

#[test]
fn what_the_keys_cannot_say_goes_along_whole() {
    let mut files = byte_level();
    let json = String::from_utf8(files["tokenizer.json"].clone()).unwrap();
    let json = json.replacen("\"normalizer\": null", "\"normalizer\": {\"type\": \"NFC\"}", 1);
    files.insert("tokenizer.json".to_owned(), json.into_bytes());
    let gguf = GgufTokenizer::from_files(&files, 300).unwrap();
    assert!(gguf.hf_json.is_some());
    assert_eq!(gguf.to_files().unwrap()["tokenizer.json"], files["tokenizer.json"]);
}

/// Three letters and one merge.
fn tiny() -> GgufTokenizer {
    GgufTokenizer {
        model: "gpt2".to_owned(),
        pre: Some("gpt-2".to_owned()),
        tokens: ["<s>", "a", "b", "ab"].map(str::to_owned).to_vec(),
        token_types: vec![3, 1, 1, 1],
        merges: vec!["a b".to_owned()],
        bos_id: Some(0),
        ..Default::default()
    }
}

#[test]
fn broken_metadata_is_refused_by_key() {
    assert_eq!(tiny().to_tokenizer().unwrap().encode("<s>ab").unwrap(), [0, 3]);
    type Edit = fn(&mut GgufTokenizer);
    let edits: [(&str, Edit); 8] = [
        ("tokenizer.ggml.tokens", |gguf| gguf.tokens.clear()),
        ("tokenizer.ggml.tokens", |gguf| gguf.tokens[1] = "b".to_owned()),
        ("tokenizer.ggml.scores", |gguf| gguf.scores = vec![0.0]),
        ("tokenizer.ggml.token_type", |gguf| gguf.token_types.truncate(2)),
        ("tokenizer.ggml.bos_token_id", |gguf| gguf.bos_id = Some(4)),
        ("tokenizer.ggml.merges", |gguf| gguf.merges.push("b a".to_owned())),
        ("tokenizer.ggml.merges", |gguf| gguf.merges.push("ab".to_owned())),
        ("tokenizer.ggml.pre", |gguf| gguf.pre = Some("martian".to_owned())),
    ];
    for (key, edit) in edits {
        let mut gguf = tiny();
        edit(&mut gguf);
        let error = gguf.to_tokenizer().unwrap_err().to_string();
        assert!(error.contains(key), "{key}: {error}");
    }
    let unknown = GgufTokenizer { model: "rwkv".to_owned(), ..tiny() };
    assert!(
        unknown.to_tokenizer().unwrap_err().to_string().contains("\"rwkv\" is not known; known: gpt2, llama")
    );
}

#[test]
fn every_known_pre_tokenizer_compiles() {
    for rule in luthier_text::gguf::pre_tokenizer::PRE_TOKENIZERS {
        for name in rule.names {
            let gguf = GgufTokenizer { pre: Some((*name).to_owned()), ..tiny() };
            let tokenizer = gguf.to_tokenizer().unwrap_or_else(|error| panic!("{name}: {error}"));
            assert_eq!(tokenizer.encode("ab").unwrap(), [3], "{name}");
        }
    }
}

#[test]
fn sentencepiece_scores_order_the_merges() {
    let pieces =
        [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0), ("▁", -9.0), ("a", -9.0), ("b", -9.0), ("ab", -2.0)];
    let more = [("▁a", -1.0), ("▁ab", -3.0)];
    let mut tokens: Vec<(String, f32)> =
        pieces.iter().chain(&more).map(|(piece, score)| ((*piece).to_owned(), *score)).collect();
    tokens.extend((0..=255).map(|byte| (format!("<0x{byte:02X}>"), 0.0)));
    let gguf = GgufTokenizer {
        model: "llama".to_owned(),
        token_types: tokens
            .iter()
            .enumerate()
            .map(|(id, (token, _))| match id {
                0 => token_type::UNKNOWN,
                1 | 2 => token_type::CONTROL,
                _ if token.starts_with("<0x") => token_type::BYTE,
                _ => token_type::NORMAL,
            })
            .collect(),
        scores: tokens.iter().map(|(_, score)| *score).collect(),
        tokens: tokens.into_iter().map(|(token, _)| token).collect(),
        ..Default::default()
    };
    let tokenizer = gguf.to_tokenizer().unwrap();
    // "▁ab": "▁a" (-1) merges before "ab" (-2), then "▁a" + "b" gives "▁ab"; the tab falls back to its byte.
    assert_eq!(tokenizer.encode("ab").unwrap(), [8]);
    assert_eq!(tokenizer.encode_prompt("ab ab\t").unwrap(), [1, 8, 8, 9 + 9]);
    assert_eq!(tokenizer.decode(&[1, 8, 8, 18], false).unwrap(), "ab ab\t");
    let again = GgufTokenizer::from_files(&gguf.to_files().unwrap(), gguf.tokens.len()).unwrap();
    assert_eq!(
        (again.model.as_str(), &again.tokens, again.add_space_prefix),
        ("llama", &gguf.tokens, Some(true))
    );
    let unicode = "a\u{1F3BB}b é";
    let ids = tokenizer.encode(unicode).unwrap();
    assert_eq!(again.to_tokenizer().unwrap().encode(unicode).unwrap(), ids);
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), unicode);
    let mut decoder = tokenizer.decoder();
    let mut text: String = ids.iter().filter_map(|id| decoder.push(*id)).collect();
    text.extend(decoder.flush());
    assert_eq!(text, unicode);
}
