//! The loop: cached equals uncached, ends where it should, refuses what it should.

use std::ops::ControlFlow;

use luthier_arch::model::{Model, TokenBatch};
use luthier_generate::generate::PREFILL_CHUNK_TOKENS;
use luthier_generate::{Error, FinishReason, GenerateOptions, Generation, generate};

use crate::tiny::Tiny;

fn options(max_new_tokens: usize) -> GenerateOptions {
    GenerateOptions { max_new_tokens, ..GenerateOptions::default() }
}

fn run(model: &Tiny, prompt: &[u32], options: &GenerateOptions) -> Generation {
    generate(model, prompt, None, options, &mut |_| ControlFlow::Continue(())).unwrap()
}

fn refusal(model: &Tiny, prompt: &[u32], decoder: Option<&[u32]>, options: &GenerateOptions) -> String {
    generate(model, prompt, decoder, options, &mut |_| ControlFlow::Continue(())).unwrap_err().to_string()
}

/// Greedy decoding that runs the whole input again for each token.
fn uncached(model: &Tiny, prompt: &[u32], decoder: Option<&[u32]>, new_tokens: usize) -> Vec<u32> {
    let batch = |ids: &[u32]| TokenBatch { ids: ids.to_vec(), rows: 1, segments: None };
    let encoded = decoder.map(|_| model.encode(&batch(prompt)).unwrap());
    let mut ids = decoder.unwrap_or(prompt).to_vec();
    let given = ids.len();
    for _ in 0..new_tokens {
        let states = model.hidden(&batch(&ids), encoded.as_ref(), None).unwrap();
        let logits: Vec<Vec<f32>> = model.logits(&states).unwrap().squeeze(0).unwrap().to_vec2().unwrap();
        let last = logits.last().unwrap();
        let top = last.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        ids.push(last.iter().position(|&logit| logit == top).unwrap() as u32);
    }
    ids.split_off(given)
}

#[test]
fn cached_greedy_equals_uncached() {
    for seed in 0..4 {
        let model = Tiny::new(seed, 50, 64, false);
        let prompt = [3, 1, 4, 1, 5];
        assert_eq!(run(&model, &prompt, &options(20)).token_ids, uncached(&model, &prompt, None, 20));
    }
}

#[test]
fn chunked_prefill_equals_uncached() {
    let length = PREFILL_CHUNK_TOKENS * 2 + 7;
    let model = Tiny::new(5, 50, length + 8, false);
    let prompt: Vec<u32> = (0..length as u32).map(|i| i * i % 47).collect();
    assert_eq!(run(&model, &prompt, &options(4)).token_ids, uncached(&model, &prompt, None, 4));
}

#[test]
fn encoder_decoder_starts_from_its_start_token() {
    let model = Tiny::new(6, 50, 64, true);
    let prompt = [7, 8, 9];
    let generation = run(&model, &prompt, &options(12));
    assert_eq!(generation.token_ids, uncached(&model, &prompt, Some(&[2]), 12));
    assert_eq!(generation.prompt_tokens, 4);
    assert_ne!(generation.token_ids, run(&model, &[9, 8], &options(12)).token_ids);
}

#[test]
fn decoder_tokens_are_the_complete_decoder_input() {
    let model = Tiny::new(7, 50, 64, true);
    let (prompt, decoder) = ([7, 8, 9], [11, 12]);
    let generation =
        generate(&model, &prompt, Some(&decoder), &options(9), &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(generation.token_ids, uncached(&model, &prompt, Some(&decoder), 9));
}

#[test]
fn an_end_token_is_the_last_one_unless_ignored() {
    let model = Tiny::new(8, 50, 64, false);
    let all = run(&model, &[1, 2], &options(10));
    assert_eq!((all.token_ids.len(), all.finish_reason), (10, FinishReason::Length));
    let end = all.token_ids[3];
    let first = all.token_ids.iter().position(|&id| id == end).unwrap();
    let ending = GenerateOptions { eos_token_ids: vec![end], ..options(10) };
    let ended = run(&model, &[1, 2], &ending);
    assert_eq!(ended.token_ids, all.token_ids[..=first]);
    assert_eq!((ended.finish_reason, ended.finish_reason.as_str()), (FinishReason::EndToken, "stop"));
    let ignoring = GenerateOptions { ignore_eos: true, ..ending };
    assert_eq!(run(&model, &[1, 2], &ignoring).token_ids, all.token_ids);
}

#[test]
fn decoding_ends_when_the_context_is_full() {
    let model = Tiny::new(9, 50, 12, false);
    let generation = run(&model, &[1; 10], &options(5));
    assert_eq!((generation.token_ids.len(), generation.finish_reason), (2, FinishReason::Length));
    assert!(run(&model, &[1; 12], &options(5)).token_ids.is_empty());
    assert_eq!(
        refusal(&model, &[1; 13], None, &options(5)),
        "prompt has 13 tokens, but the model's context holds 12; shorten it"
    );
}

#[test]
fn the_caller_can_end_it() {
    let model = Tiny::new(10, 50, 64, false);
    let mut seen = Vec::new();
    let generation = generate(&model, &[1], None, &options(10), &mut |id| {
        seen.push(id);
        if seen.len() == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })
    .unwrap();
    assert_eq!(generation.token_ids, seen);
    assert_eq!((seen.len(), generation.finish_reason), (3, FinishReason::Cancelled));
}

#[test]
fn a_seed_gives_the_same_tokens_and_another_seed_others() {
    let model = Tiny::new(11, 50, 64, false);
    let sampled = |seed| GenerateOptions { temperature: 1.5, top_k: 30, seed, ..options(30) };
    let first = run(&model, &[1, 2], &sampled(1)).token_ids;
    assert_eq!(first, run(&model, &[1, 2], &sampled(1)).token_ids);
    assert_ne!(first, run(&model, &[1, 2], &sampled(2)).token_ids);
}

#[test]
fn penalty_covers_prompt_and_continuation() {
    let model = Tiny::new(12, 12, 64, false);
    let ids = run(&model, &[1, 2], &GenerateOptions { repetition_penalty: 1e6, ..options(10) }).token_ids;
    let mut all = [vec![1, 2], ids].concat();
    all.sort_unstable();
    // Positive logits all but vanish and negative ones grow without bound once seen; the tokens that have a positive
    // logit come first, each once.
    let distinct = all.windows(2).filter(|pair| pair[0] != pair[1]).count() + 1;
    let plain = [vec![1, 2], run(&model, &[1, 2], &options(10)).token_ids].concat();
    let plain_distinct = plain.iter().collect::<std::collections::BTreeSet<_>>().len();
    assert!(distinct > plain_distinct, "{distinct} {plain_distinct}");
}

#[test]
fn wrong_input_is_refused_with_its_place() {
    let model = Tiny::new(13, 50, 64, false);
    assert_eq!(
        refusal(&model, &[1, 50], None, &options(1)),
        "prompt: token id 50 at position 1 is outside of the model's vocabulary of 50"
    );
    assert!(refusal(&model, &[], None, &options(1)).starts_with("prompt holds no token"));
    assert_eq!(
        refusal(&model, &[1], Some(&[1]), &options(1)),
        "decoder tokens were given, but tiny is decoder-only; put them into the prompt"
    );
    let with_encoder = Tiny::new(13, 50, 64, true);
    assert!(
        refusal(&with_encoder, &[1], Some(&[]), &options(1)).starts_with("decoder tokens holds no token")
    );
    for wrong in [
        GenerateOptions { temperature: -1.0, ..options(1) },
        GenerateOptions { temperature: f64::NAN, ..options(1) },
        GenerateOptions { top_p: 1.5, ..options(1) },
        GenerateOptions { min_p: -0.1, ..options(1) },
        GenerateOptions { repetition_penalty: 0.0, ..options(1) },
        GenerateOptions { stop: vec![String::new()], ..options(1) },
    ] {
        assert!(refusal(&model, &[1], None, &wrong).starts_with("option "), "{wrong:?}");
    }
}

#[test]
fn nan_logits_are_an_error() {
    let model = Tiny::new(14, 50, 64, false).with_nan_head();
    let result = generate(&model, &[1, 2], None, &options(1), &mut |_| ControlFlow::Continue(()));
    assert!(matches!(result, Err(Error::Logits { position: 1, id: 0, .. })), "{result:?}");
}
