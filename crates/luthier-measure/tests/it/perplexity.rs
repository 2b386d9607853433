//! Perplexities against sums over whole logits, and what is refused.

use std::collections::BTreeMap;

use luthier_arch::model::{Model, TokenBatch};
use luthier_measure::metrics::{Method, PrefixTarget, perplexity, perplexity_of_ids, prefix_loss};
use luthier_text::Tokenizer;

use crate::tiny::Tiny;

/// -ln p of each token of `ids` after the first, each from all before it, computed in f64 from whole logits.
fn nats(model: &Tiny, ids: &[u32]) -> Vec<f64> {
    let states = model.hidden(&batch(ids), None, None).unwrap();
    picked(model, &states, &ids[1..])
}

fn batch(ids: &[u32]) -> TokenBatch {
    TokenBatch { ids: ids.to_vec(), rows: 1, segments: None }
}

fn picked(model: &Tiny, states: &candle_core::Tensor, targets: &[u32]) -> Vec<f64> {
    let logits: Vec<Vec<f32>> = model.logits(states).unwrap().squeeze(0).unwrap().to_vec2().unwrap();
    let of = |(row, &target): (&Vec<f32>, &u32)| {
        let sum: f64 = row.iter().map(|&logit| f64::from(logit).exp()).sum();
        sum.ln() - f64::from(row[target as usize])
    };
    logits.iter().zip(targets).map(of).collect()
}

fn ids(n: u32) -> Vec<u32> {
    (0..n).map(|i| (i * i + 3 * i) % 29).collect()
}

fn close(a: f64, b: f64) {
    assert!((a - b).abs() < 1e-5 * b.abs().max(1.0), "{a} {b}");
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn measure(model: &Tiny, ids: &[u32], method: Method) -> luthier_measure::metrics::Perplexity {
    perplexity_of_ids(model, "ids", ids, None, Some(1), method).unwrap()
}

#[test]
fn strided_without_overlap_scores_each_window_alone() {
    let model = Tiny::new(31, 30, 64, false);
    let ids = ids(150);
    let got = measure(&model, &ids, Method::Strided { window: 16, stride: 16 });
    let want: Vec<f64> = ids.chunks(16).flat_map(|window| nats(&model, window)).collect();
    assert_eq!((got.tokens_scored, got.tokens), (want.len(), 150));
    close(got.nll_nats_per_token, mean(&want));
    close(got.perplexity, mean(&want).exp());
    assert_eq!((got.method, got.bits_per_byte), ("strided", None));
}

#[test]
fn strided_with_overlap_masks_the_context() {
    let model = Tiny::new(32, 30, 64, false);
    let ids = ids(40);
    let got = measure(&model, &ids, Method::Strided { window: 16, stride: 6 });
    let mut want = nats(&model, &ids[..16]);
    for (start, end) in [(6, 22), (12, 28), (18, 34), (24, 40)] {
        want.extend(&nats(&model, &ids[start..end])[9..]);
    }
    assert_eq!((got.tokens_scored, want.len()), (39, 39));
    close(got.nll_nats_per_token, mean(&want));
}

#[test]
fn llama_cpp_puts_the_start_token_first_in_each_window() {
    let model = Tiny::new(33, 30, 64, false);
    let ids = ids(35);
    let got = measure(&model, &ids, Method::LlamaCpp { window: 10 });
    let mut want = Vec::new();
    for window in ids.chunks_exact(10) {
        let window = [&[1], &window[1..]].concat();
        want.extend(&nats(&model, &window)[5..]);
    }
    assert_eq!((got.tokens_scored, want.len()), (12, 12));
    close(got.nll_nats_per_token, mean(&want));
}

#[test]
fn prefix_scores_targets_of_both_kinds_of_model() {
    let ids = ids(22);
    let model = Tiny::new(34, 30, 64, false);
    let mut want = Vec::new();
    for window in ids.chunks(8) {
        want.extend(&nats(&model, window)[window.len() / 2 - 1..]);
    }
    close(measure(&model, &ids, Method::Prefix { window: 8 }).nll_nats_per_token, mean(&want));

    let model = Tiny::new(34, 30, 64, true);
    let mut want = Vec::new();
    let mut windows = Vec::new();
    for window in ids.chunks(8) {
        let (prefix, target) = window.split_at(window.len() / 2);
        let encoded = model.encode(&batch(prefix)).unwrap();
        let input = [&[2], &target[..target.len() - 1]].concat();
        let states = model.hidden(&batch(&input), Some(&encoded), None).unwrap();
        want.extend(picked(&model, &states, target));
        windows.push(PrefixTarget { prefix: prefix.to_vec(), target: target.to_vec() });
    }
    let got = measure(&model, &ids, Method::Prefix { window: 8 });
    close(got.nll_nats_per_token, mean(&want));
    assert_eq!(got.tokens_scored, 11);
    let loss = prefix_loss(&model, &windows).unwrap();
    assert_eq!((loss.nats_per_token, loss.tokens_scored), (got.nll_nats_per_token, 11));
}

/// Each byte of a Latin letter or space is a token; ids 1 to 29.
fn letters(start_token: bool) -> Tokenizer {
    let mut vocab: serde_json::Map<String, serde_json::Value> =
        (0u8..26).map(|i| (char::from(b'a' + i).to_string(), (i + 2).into())).collect();
    vocab.insert("é".into(), 28.into());
    vocab.insert("<s>".into(), 1.into());
    let post = serde_json::json!({
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}
    });
    let json = serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null,
        "added_tokens": [{"id": 1, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
                          "normalized": false, "special": true}],
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": false},
        "post_processor": if start_token { post } else { serde_json::Value::Null },
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "z"}
    });
    Tokenizer::from_files(&BTreeMap::from([("tokenizer.json".into(), json.to_string().into_bytes())]))
        .unwrap()
}

#[test]
fn bits_per_byte_count_the_bytes_of_the_scored_tokens() {
    let model = Tiny::new(35, 30, 64, false);
    let text = "abécdéfg";
    let bits = |got: &luthier_measure::metrics::Perplexity| {
        got.nll_nats_per_token * got.tokens_scored as f64 / std::f64::consts::LN_2
    };
    // With a start token all 10 bytes are scored; without, all but the first letter; in two windows, all but a and d.
    for (start, window, bytes, tokens) in [(true, 16, 10.0, 9), (false, 16, 9.0, 8), (false, 4, 8.0, 8)] {
        let got = perplexity(
            &model,
            &letters(start),
            "a.txt",
            text.as_bytes(),
            Method::Strided { window, stride: window },
        )
        .unwrap();
        assert_eq!(got.tokens, tokens);
        close(got.bits_per_byte.unwrap(), bits(&got) / bytes);
    }
}

#[test]
fn the_start_token_of_the_tokenizer_leads_the_text() {
    let model = Tiny::new(36, 30, 64, false);
    let strided = Method::Strided { window: 8, stride: 8 };
    let got = perplexity(&model, &letters(true), "a.txt", b"abcdefghij", strided).unwrap();
    let ids: Vec<u32> = [1].into_iter().chain(2..12).collect();
    close(got.nll_nats_per_token, measure(&model, &ids, strided).nll_nats_per_token);
    let llama = Method::LlamaCpp { window: 5 };
    let got = perplexity(&model, &letters(true), "a.txt", b"abcdefghij", llama).unwrap();
    close(got.nll_nats_per_token, measure(&model, &ids, llama).nll_nats_per_token);
}

#[test]
fn wrong_input_is_refused_with_its_place() {
    let model = Tiny::new(37, 30, 64, false);
    let refusal = |text: &[u8], method| {
        perplexity(&model, &letters(false), "a.txt", text, method).unwrap_err().to_string()
    };
    let strided = |window, stride| Method::Strided { window, stride };
    assert!(refusal(b"ab\xffc", strided(8, 8)).starts_with("a.txt: not UTF-8 at byte 2 (0xff)"));
    assert_eq!(
        refusal(b"a", strided(8, 8)),
        "a.txt: comes to 1 of the 2 tokens that are needed (one to read, one to score); give a longer text"
    );
    assert_eq!(
        refusal(b"abcdefg", Method::LlamaCpp { window: 8 }),
        "a.txt: comes to 7 of the 8 tokens that are needed (one full window); give a longer text or a smaller window"
    );
    assert!(
        refusal(b"abc", strided(65, 65))
            .contains("option window: expected at most what the model's context of 64")
    );
    assert!(refusal(b"abc", strided(8, 9)).contains("option stride: expected 1 to the window's 8"));
    assert!(refusal(b"abc", strided(8, 0)).contains("option stride"));
    assert!(refusal(b"abc", strided(1, 1)).contains("option window: expected 2 tokens or more"));
    let with_encoder = Tiny::new(37, 30, 64, true);
    let refused = perplexity_of_ids(&with_encoder, "ids", &ids(20), None, None, strided(8, 8)).unwrap_err();
    assert!(refused.to_string().contains("option method: expected prefix for an encoder-decoder"));
    let broken = Tiny::new(37, 30, 64, false).with_nan_head();
    let refused = perplexity_of_ids(&broken, "ids", &ids(20), None, None, strided(8, 8)).unwrap_err();
    assert!(refused.to_string().contains("NaN"), "{refused}");
    assert!(prefix_loss(&model, &[]).is_err());
}
