//! The loop: cached equals uncached, ends where it should, refuses what it should.

use std::ops::ControlFlow;

use luthier_arch::model::{Model, TokenBatch};
use luthier_generate::generate::PREFILL_CHUNK_TOKENS;
use luthier_generate::{
    Aids, DraftModel, Drafter, Error, FinishReason, GenerateOptions, Generation, Lookup, generate,
    generate_together, generate_with,
};

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

#[test]
fn sequences_decoded_together_are_those_decoded_alone() {
    for encoder_decoder in [false, true] {
        let model = Tiny::new(8, 50, 64, encoder_decoder);
        let prompts = [vec![3, 1, 4], vec![1, 5, 9], vec![2, 6, 5]];
        let mut options = options(20);
        let together = generate_together(&model, &prompts, &options).unwrap();
        for (prompt, together) in prompts.iter().zip(&together) {
            assert_eq!(run(&model, prompt, &options).token_ids, together.token_ids);
        }
        // One that ends early keeps what it has, and the others go on.
        let end = together[1].token_ids[4];
        options.eos_token_ids = vec![end];
        let ended = generate_together(&model, &prompts, &options).unwrap();
        for (prompt, ended) in prompts.iter().zip(&ended) {
            let alone = run(&model, prompt, &options);
            assert_eq!(
                (alone.token_ids, alone.finish_reason),
                (ended.token_ids.clone(), ended.finish_reason)
            );
        }
    }
    let model = Tiny::new(8, 50, 64, false);
    let error = generate_together(&model, &[vec![1, 2], vec![3]], &options(2)).unwrap_err().to_string();
    assert!(error.contains("one length"), "{error}");
}

fn drafted(model: &Tiny, prompt: &[u32], options: &GenerateOptions, drafter: &mut dyn Drafter) -> Generation {
    let mut go_on = |_| ControlFlow::Continue(());
    let aids = Aids { drafts: Some((drafter, 4)), memory: None };
    generate_with(model, prompt, None, options, aids, &mut go_on).unwrap()
}

#[test]
fn drafts_change_nothing_of_greedy_decoding() {
    let model = Tiny::new(5, 20, 128, false);
    for seed in [5, 6, 7] {
        let other = Tiny::new(seed, 20, 128, false);
        for prompt in [vec![3, 1, 4, 1, 5, 9, 3, 1], vec![7]] {
            let options = options(100);
            let alone = run(&model, &prompt, &options);
            let by_model = drafted(&model, &prompt, &options, &mut DraftModel::new(&other, 20).unwrap());
            let by_lookup = drafted(&model, &prompt, &options, &mut Lookup { longest: 3 });
            assert_eq!(alone.token_ids, by_model.token_ids);
            assert_eq!(alone.token_ids, by_lookup.token_ids);
            // The model drafts for itself what it then keeps.
            if seed == 5 {
                assert_eq!(by_model.drafted_tokens, by_model.accepted_tokens);
                assert!(by_model.accepted_tokens > 70, "{by_model:?}");
            }
        }
    }
    // An end token, a full context and a short budget end it as ever.
    let mut options = options(9);
    let all = run(&model, &[3, 1, 4], &options).token_ids;
    options.eos_token_ids = vec![all[6]];
    let alone = run(&model, &[3, 1, 4], &options);
    let by_model = drafted(&model, &[3, 1, 4], &options, &mut DraftModel::new(&model, 20).unwrap());
    assert_eq!((alone.token_ids, alone.finish_reason), (by_model.token_ids, by_model.finish_reason));
    let options = GenerateOptions { max_new_tokens: 500, ..GenerateOptions::default() };
    let by_model = drafted(&model, &[3, 1, 4], &options, &mut DraftModel::new(&model, 20).unwrap());
    assert_eq!(by_model.token_ids, run(&model, &[3, 1, 4], &options).token_ids);
}

#[test]
fn drafts_leave_the_distribution_as_it_is() {
    const VOCAB: usize = 6;
    const DRAWS: u64 = 2_500;
    let (model, other) = (Tiny::new(11, VOCAB, 16, false), Tiny::new(12, VOCAB, 16, false));
    let counts = |drafts: bool| {
        let mut counts = vec![0f64; VOCAB * VOCAB];
        for seed in 0..DRAWS {
            let options = GenerateOptions {
                temperature: 1.5,
                seed: seed + if drafts { DRAWS } else { 0 },
                ..options(3)
            };
            let generation = match drafts {
                true => drafted(&model, &[1, 2], &options, &mut DraftModel::new(&other, VOCAB).unwrap()),
                false => run(&model, &[1, 2], &options),
            };
            // The first token is the model's own; the second and the third may be drafted.
            counts[generation.token_ids[1] as usize * VOCAB + generation.token_ids[2] as usize] += 1.0;
        }
        counts
    };
    let (with, without) = (counts(true), counts(false));
    // Two samples of equal size: the sum of (a - b)^2 / (a + b) is chi-square with 35 degrees of freedom, whose 99.9% point is
    // 66.6.
    let square: f64 = with
        .iter()
        .zip(&without)
        .filter(|(a, b)| *a + *b > 0.0)
        .map(|(a, b)| (a - b).powi(2) / (a + b))
        .sum();
    assert!(square < 66.6, "{square}: {with:?} {without:?}");
}
