//! Speed of reading a prompt and of decoding, by the loop that `generate` uses.
//!
//! The prompt is `id[i] = (7919 * i + 1) mod vocab_size`. Decoding is greedy and goes on past end tokens, so that the
//! tokens are those that `generate` gives for the same prompt with `--ignore-eos`. After one warm-up run, which brings
//! the weights into memory, the medians of the timed runs count.

use std::ops::ControlFlow;

use luthier_arch::model::Model;
use luthier_generate::generate::standard_cache;
use luthier_generate::{GenerateOptions, Generation, generate, generate_together};
use luthier_ops::attention::CacheType;

use crate::energy::EnergyMeter;
use crate::memory::peak_rss_bytes;
use crate::{Error, Result};

/// What to time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BenchOptions {
    /// Tokens of the prompt (an encoder-decoder's encoder reads them), at least 1.
    pub prompt_tokens: usize,
    /// Tokens to decode, at least 2, so that there is a time between two.
    pub new_tokens: usize,
    /// Sequences that are decoded together, at least 1. Each prompt begins one id later than the one before.
    pub batch: usize,
    /// Timed runs, at least 1.
    pub runs: usize,
    /// What keys and values are rounded to; none: as `generate` does on its own.
    pub kv_cache: Option<CacheType>,
}

/// The speed of one model on this machine.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Bench {
    /// What was decoded, of the first sequence.
    pub token_ids: Vec<u32>,
    /// What was read for it.
    pub prompt_token_ids: Vec<u32>,
    /// Prompt tokens of all sequences over the time to the first new one.
    pub prefill_tokens_per_s: f64,
    /// New tokens of all sequences after the first, a second.
    pub decode_tokens_per_s: f64,
    /// From the call to the first new token.
    pub time_to_first_token_ms: f64,
    /// Of the process so far, mapped file pages included.
    pub peak_rss_bytes: u64,
    /// Sequences decoded together.
    pub batch: usize,
    /// Timed runs.
    pub runs: usize,
    /// What keys and values were rounded to.
    pub kv_cache: &'static str,
    /// What the processors took in the timed runs, where they tell.
    pub joules: Option<f64>,
}

/// The ids of the prompt that [`bench`] reads.
pub fn bench_prompt(vocab_size: usize, prompt_tokens: usize) -> Vec<u32> {
    (0..prompt_tokens as u64).map(|i| ((7919 * i + 1) % vocab_size.max(1) as u64) as u32).collect()
}

/// Those of every sequence.
pub(super) fn bench_prompts(vocab_size: usize, options: BenchOptions) -> Vec<Vec<u32>> {
    let first = bench_prompt(vocab_size, options.prompt_tokens);
    let size = vocab_size.max(1) as u32;
    (0..options.batch as u32).map(|row| first.iter().map(|id| (id + row) % size).collect()).collect()
}

/// Times `model`.
///
/// # Errors
/// Options too small, a prompt and continuation that the context does not hold, and those of [`generate`].
pub fn bench(model: &dyn Model, options: BenchOptions) -> Result<Bench> {
    check(model, options)?;
    let prompts = bench_prompts(model.vocab_size(), options);
    let decoding = GenerateOptions {
        max_new_tokens: options.new_tokens,
        ignore_eos: true,
        kv_cache: options.kv_cache,
        ..GenerateOptions::default()
    };
    let run = |decoding: &GenerateOptions| -> Result<Generation> {
        if options.batch == 1 {
            return Ok(generate(model, &prompts[0], None, decoding, &mut |_| ControlFlow::Continue(()))?);
        }
        let mut generations = generate_together(model, &prompts, decoding)?;
        Ok(generations.swap_remove(0))
    };
    run(&GenerateOptions { max_new_tokens: 2, ..decoding.clone() })?;
    let energy = EnergyMeter::start();
    let timed = (0..options.runs).map(|_| run(&decoding)).collect::<Result<Vec<Generation>>>()?;
    let joules = energy.and_then(|energy| energy.joules());
    let all = options.batch as f64;
    let first_ms = |run: &Generation| run.time_to_first_token.map_or(0.0, |time| time.as_secs_f64() * 1e3);
    Ok(Bench {
        token_ids: timed[0].token_ids.clone(),
        prompt_token_ids: prompts[0].clone(),
        prefill_tokens_per_s: all * median(&timed, |run| run.prefill_tokens_per_s().unwrap_or(0.0)),
        decode_tokens_per_s: all * median(&timed, |run| run.decode_tokens_per_s().unwrap_or(0.0)),
        time_to_first_token_ms: median(&timed, first_ms),
        peak_rss_bytes: peak_rss_bytes()?,
        batch: options.batch,
        runs: options.runs,
        kv_cache: options.kv_cache.unwrap_or_else(|| standard_cache(model)).as_str(),
        joules,
    })
}

/// Options that are too small, or more than the context holds.
pub(super) fn check(model: &dyn Model, options: BenchOptions) -> Result<()> {
    let BenchOptions { prompt_tokens, new_tokens, batch, runs, .. } = options;
    for (name, least, got) in [
        ("prompt_tokens", 1, prompt_tokens),
        ("new_tokens", 2, new_tokens),
        ("batch", 1, batch),
        ("runs", 1, runs),
    ] {
        if got < least {
            return Err(Error::Option { name, expected: format!("{least} or more"), got: got.to_string() });
        }
    }
    let Some(context_length) = model.context_length() else { return Ok(()) };
    // An encoder-decoder's decoder holds its start token and the new ones.
    let (decoder, encoder) = if model.is_encoder_decoder() { (1, prompt_tokens) } else { (prompt_tokens, 0) };
    if decoder.saturating_add(new_tokens) > context_length || encoder > context_length {
        return Err(Error::Option {
            name: "prompt_tokens and new_tokens",
            expected: format!("together at most what the model's context of {context_length} tokens holds"),
            got: format!("{prompt_tokens} and {new_tokens}"),
        });
    }
    Ok(())
}

/// The middle value, or the mean of the two middle ones.
fn median(runs: &[Generation], of: impl Fn(&Generation) -> f64) -> f64 {
    let mut values: Vec<f64> = runs.iter().map(of).collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}
