//! Several sequences decoded side by side: each weight is read once for all of them.

use std::time::Instant;

use luthier_arch::model::{Encoded, Model, TokenBatch, check_predicts_next};
use luthier_ops::profile;

use crate::generate::{check_ids, check_logits, new_cache, next_logits, prefill};
use crate::options::{FinishReason, GenerateOptions, Generation};
use crate::random::Random;
use crate::sampling::{choose, penalize};
use crate::{Error, Result};

/// Continues prompts of one length, each as [`crate::generate()`] would on its own, up to rounding; row `n` draws from the
/// random numbers of `options.seed + n`. A sequence that has ended waits for the others.
///
/// # Errors
/// Those of [`crate::generate()`], and for prompts of different lengths or stop strings.
pub fn generate_together(
    model: &dyn Model,
    prompts: &[Vec<u32>],
    options: &GenerateOptions,
) -> Result<Vec<Generation>> {
    options.check_without_text("none for sequences decoded together")?;
    let started = Instant::now();
    let (mut contexts, encoded) = read_inputs(model, prompts)?;
    let length = contexts.first().map_or(0, Vec::len);
    let prompt_tokens = if encoded.is_some() { prompts[0].len() + length } else { length };
    let budget = options.max_new_tokens.min(model.context_length().map_or(usize::MAX, |all| all - length));
    let mut generations = vec![Generation::begun(prompt_tokens); prompts.len()];
    if budget == 0 {
        return Ok(generations);
    }
    let mut cache = new_cache(model, options.kv_cache, length.saturating_add(budget));
    let mut randoms: Vec<Random> =
        (0..prompts.len() as u64).map(|row| Random::new(options.seed.wrapping_add(row))).collect();
    let mut ended = vec![false; prompts.len()];
    let mut logits = prefill(model, &contexts, encoded.as_ref(), &mut cache)?;
    for step in 1..=budget {
        let elapsed = started.elapsed();
        let rows = logits.iter_mut().zip(&mut contexts).zip(&mut randoms).zip(&mut generations);
        for ((((logits, context), random), generation), ended) in rows.zip(&mut ended) {
            check_logits(logits, context.len() - 1)?;
            penalize(logits, context, options.repetition_penalty);
            let id = choose(logits, options, random);
            context.push(id);
            if *ended {
                continue;
            }
            generation.push(id, elapsed);
            if options.is_end(id) {
                generation.finish_reason = FinishReason::EndToken;
                *ended = true;
            }
        }
        if step == budget || ended.iter().all(|ended| *ended) {
            break;
        }
        let last: Vec<&[u32]> = contexts.iter().map(|context| &context[context.len() - 1..]).collect();
        let _span = profile::part("decoding");
        logits = next_logits(model, &last, encoded.as_ref(), &mut cache)?;
    }
    Ok(generations)
}

/// What the decoder reads of each prompt, and what the encoder made of them where there is one; all checked.
fn read_inputs(model: &dyn Model, prompts: &[Vec<u32>]) -> Result<(Vec<Vec<u32>>, Option<Encoded>)> {
    check_predicts_next(model, "generating text")?;
    if prompts.is_empty() {
        return Err(Error::Empty { input: "prompts" });
    }
    for prompt in prompts {
        check_ids(model, "prompt", prompt)?;
        if prompt.len() != prompts[0].len() {
            return Err(Error::Option {
                name: "prompts",
                expected: "prompts of one length",
                got: format!("{} and {} tokens", prompts[0].len(), prompt.len()),
            });
        }
    }
    if !model.is_encoder_decoder() {
        return Ok((prompts.to_vec(), None));
    }
    let start = model.decoder_start_token().ok_or(Error::NoDecoderStart)?;
    let tokens = TokenBatch { ids: prompts.concat(), rows: prompts.len(), segments: None };
    Ok((vec![vec![start]; prompts.len()], Some(model.encode(&tokens)?)))
}
