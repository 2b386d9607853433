//! Streamed text and stop strings over a word tokenizer.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use luthier_generate::{Aids, FinishReason, GenerateOptions, generate_text};
use luthier_text::Tokenizer;

use crate::tiny::Tiny;

/// Words a to t (ids 0 to 19), decoded without spaces between them.
fn letters() -> Tokenizer {
    let vocab: serde_json::Map<String, serde_json::Value> =
        (0u8..20).map(|id| (char::from(b'a' + id).to_string(), id.into())).collect();
    let json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": false},
        "post_processor": null, "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "a"}
    });
    Tokenizer::from_files(&BTreeMap::from([("tokenizer.json".into(), json.to_string().into_bytes())]))
        .unwrap()
}

fn run(model: &Tiny, options: &GenerateOptions) -> (Vec<u32>, FinishReason, String, String) {
    let mut streamed = String::new();
    let (generation, text) =
        generate_text(model, &letters(), &[1, 2], None, options, Aids::default(), &mut |piece| {
            streamed.push_str(piece);
            ControlFlow::Continue(())
        })
        .unwrap();
    (generation.token_ids, generation.finish_reason, text, streamed)
}

#[test]
fn streamed_text_is_the_text_of_the_tokens() {
    let model = Tiny::new(21, 20, 64, false);
    let options = GenerateOptions { max_new_tokens: 12, temperature: 2.0, seed: 3, ..Default::default() };
    let (ids, finish, text, streamed) = run(&model, &options);
    assert_eq!(text, letters().decode(&ids, false).unwrap());
    assert_eq!((text.len(), finish), (12, FinishReason::Length));
    assert_eq!(streamed, text);
}

#[test]
fn a_stop_string_across_tokens_ends_and_is_cut_off() {
    let model = Tiny::new(21, 20, 64, false);
    let options = GenerateOptions { max_new_tokens: 12, temperature: 2.0, seed: 3, ..Default::default() };
    let (all_ids, _, all, _) = run(&model, &options);
    let stop = all[4..7].to_string();
    let at = all.find(&stop).unwrap();
    let stopping = GenerateOptions { stop: vec![stop], ..options };
    let (ids, finish, text, streamed) = run(&model, &stopping);
    assert_eq!(text, all[..at]);
    assert_eq!(streamed, text);
    assert_eq!(ids, all_ids[..at + 3]);
    assert_eq!(finish, FinishReason::StopString);
}

#[test]
fn the_end_token_is_no_text() {
    let model = Tiny::new(22, 20, 64, false);
    let options = GenerateOptions { max_new_tokens: 12, temperature: 2.0, seed: 3, ..Default::default() };
    let (all_ids, _, all, _) = run(&model, &options);
    let end = all_ids[5];
    let at = all_ids.iter().position(|&id| id == end).unwrap();
    let (ids, finish, text, _) = run(&model, &GenerateOptions { eos_token_ids: vec![end], ..options });
    assert_eq!((ids, text.as_str(), finish), (all_ids[..=at].to_vec(), &all[..at], FinishReason::EndToken));
}
