//! Bench and logits: the same tokens and numbers as the decoding loop's.

use std::ops::ControlFlow;

use luthier_arch::model::{Model, TokenBatch};
use luthier_generate::{GenerateOptions, generate};
use luthier_measure::metrics::{BenchOptions, bench, bench_prompt, logits};

use crate::tiny::Tiny;

#[test]
fn bench_decodes_what_generate_decodes() {
    for encoder_decoder in [false, true] {
        let model = Tiny::new(41, 30, 64, encoder_decoder);
        let got = bench(
            &model,
            BenchOptions { prompt_tokens: 40, new_tokens: 9, batch: 1, runs: 3, kv_cache: None },
        )
        .unwrap();
        let prompt = bench_prompt(30, 40);
        assert_eq!(prompt[..3], [1, 7920 % 30, 15839 % 30]);
        let options = GenerateOptions { max_new_tokens: 9, ignore_eos: true, ..Default::default() };
        let want = generate(&model, &prompt, None, &options, &mut |_| ControlFlow::Continue(())).unwrap();
        assert_eq!((got.token_ids, got.prompt_token_ids), (want.token_ids, prompt));
        assert!(got.prefill_tokens_per_s > 0.0 && got.decode_tokens_per_s > 0.0);
        assert!(got.time_to_first_token_ms > 0.0 && got.peak_rss_bytes > 1 << 20);
    }
}

#[test]
fn bench_refuses_what_does_not_fit() {
    let model = Tiny::new(41, 30, 64, false);
    let refusal = |prompt_tokens, new_tokens, runs| {
        bench(&model, BenchOptions { prompt_tokens, new_tokens, batch: 1, runs, kv_cache: None })
            .unwrap_err()
            .to_string()
    };
    assert!(refusal(60, 5, 1).contains("the model's context of 64 tokens"));
    assert!(refusal(0, 5, 1).contains("option prompt_tokens: expected 1 or more, got 0"));
    assert!(refusal(5, 1, 1).contains("option new_tokens: expected 2 or more"));
    assert!(refusal(5, 5, 0).contains("option runs"));
    assert!(refusal(usize::MAX, 5, 1).contains("context"));
}

#[test]
fn logits_are_those_of_the_whole_sequence() {
    let ids: Vec<u32> = (0..300).map(|i| i * 7 % 30).collect();
    let model = Tiny::new(42, 30, 400, false);
    let got = logits(&model, &ids, None).unwrap();
    assert_eq!((got.tokens, got.vocabulary), (300, 30));
    let batch = TokenBatch { ids: ids.clone(), rows: 1, segments: None };
    let whole = model.logits(&model.hidden(&batch, None, None).unwrap()).unwrap();
    let whole: Vec<f32> = whole.flatten_all().unwrap().to_vec1().unwrap();
    assert!(got.values.iter().zip(&whole).all(|(a, b)| (a - b).abs() < 1e-6));
    assert!(logits(&model, &ids, Some(&[1])).unwrap_err().to_string().contains("decoder-only"));
    assert!(logits(&model, &[30], None).unwrap_err().to_string().contains("token id 30"));
    assert!(logits(&Tiny::new(42, 30, 64, false).with_nan_head(), &[1, 2], None).is_err());
}

#[test]
fn logits_of_an_encoder_decoder_have_a_row_for_each_decoder_token() {
    let model = Tiny::new(43, 30, 64, true);
    let start = logits(&model, &[4, 5, 6], None).unwrap();
    assert_eq!(start.tokens, 1);
    let given = logits(&model, &[4, 5, 6], Some(&[2, 9])).unwrap();
    assert_eq!(given.tokens, 2);
    assert!(start.values.iter().zip(&given.values).all(|(a, b)| (a - b).abs() < 1e-6));
}
