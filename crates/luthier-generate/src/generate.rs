//! The decoding loop: read the prompt, then one token at a time over a cache.
//!
//! A decoder-only model continues the prompt. An encoder-decoder reads the prompt in its encoder; its decoder starts
//! from `decoder_start_token_id`, or from exactly the decoder tokens that the caller gives.
//!
//! The decoder reads its input in chunks of [`PREFILL_CHUNK_TOKENS`], so that memory beyond the cache does not grow
//! with the prompt. An encoder reads its input at once, since each position sees all others. The context does not
//! slide: a longer input is refused, and decoding ends (`length`) when the context is full.

use std::ops::ControlFlow;
use std::time::Instant;

use candle_core::{DType, Tensor};
use luthier_arch::model::{Cache, Encoded, Model, TokenBatch, check_predicts_next};
use luthier_ops::attention::CacheType;
use luthier_ops::{Weight, profile};

use crate::options::{FinishReason, GenerateOptions, Generation};
use crate::prompt_memory::{PromptMemory, check_keeps_prompts};
use crate::random::Random;
use crate::sampling::{choose, penalize};
use crate::speculate::{Drafted, Drafter, judge};
use crate::{Error, Result};

/// Tokens of the decoder's input that are read in one pass.
pub const PREFILL_CHUNK_TOKENS: usize = 96;

/// Continues `prompt_ids`, calling `on_token` with each new token as it is decided; `Break` ends decoding.
///
/// `decoder_ids` is the complete decoder input of an encoder-decoder (none: its start token); an error for a
/// decoder-only model. Stop strings need text, see [`crate::generate_text`]; they are refused here. The same arguments
/// give the same tokens for the same number of threads.
///
/// # Errors
/// Options out of range, an empty prompt, ids outside of the vocabulary, more tokens than the context holds, logits
/// that are NaN or infinite.
pub fn generate(
    model: &dyn Model,
    prompt_ids: &[u32],
    decoder_ids: Option<&[u32]>,
    options: &GenerateOptions,
    on_token: &mut dyn FnMut(u32) -> ControlFlow<()>,
) -> Result<Generation> {
    generate_with(model, prompt_ids, decoder_ids, options, Aids::default(), on_token)
}

/// What drafts, and how many tokens a step.
pub type WithDrafts<'d> = Option<(&'d mut dyn Drafter, usize)>;

/// What makes a continuation come sooner and changes nothing in it.
#[derive(Default)]
pub struct Aids<'a> {
    /// A drafter whose tokens the model only confirms: the same tokens where decoding is greedy, up to rounding, and the
    /// same distribution otherwise.
    pub drafts: WithDrafts<'a>,
    /// What was computed of a prompt before; of a decoder-only model, see [`crate::check_keeps_prompts`].
    pub memory: Option<&'a mut PromptMemory>,
}

/// As [`generate`], with aids.
///
/// # Errors
/// Those of [`generate`], of the drafter, and a memory for a model with an encoder.
pub fn generate_with(
    model: &dyn Model,
    prompt_ids: &[u32],
    decoder_ids: Option<&[u32]>,
    options: &GenerateOptions,
    aids: Aids,
    on_token: &mut dyn FnMut(u32) -> ControlFlow<()>,
) -> Result<Generation> {
    let Aids { drafts: mut drafter, memory } = aids;
    if memory.is_some() {
        check_keeps_prompts(model)?;
    }
    options.check_without_text("none without a tokenizer")?;
    let started = Instant::now();
    let (mut context, encoded) = read_inputs(model, prompt_ids, decoder_ids)?;
    let prompt_tokens = if encoded.is_some() { prompt_ids.len() + context.len() } else { context.len() };
    let room = model.context_length().map_or(usize::MAX, |length| length - context.len());
    let budget_tokens = options.max_new_tokens.min(room);
    let mut generation = Generation::begun(prompt_tokens);
    if budget_tokens == 0 {
        return Ok(generation);
    }
    let mut cache = new_cache(model, options.kv_cache, context.len().saturating_add(budget_tokens));
    let mut random = Random::new(options.seed);
    let mut drafted: Vec<Drafted> = Vec::new();
    let mut logits = match memory {
        Some(memory) => vec![memory.read(model, &context, &mut cache)?],
        None => prefill(model, std::slice::from_ref(&context), encoded.as_ref(), &mut cache)?,
    };
    loop {
        // One row for each drafted token, and one for the token after them.
        for (row, logits) in logits.iter_mut().enumerate() {
            check_logits(logits, context.len() - 1)?;
            penalize(logits, &context, options.repetition_penalty);
            let (id, is_kept) = match drafted.get(row) {
                Some(drafted) => judge(drafted, logits, options, &mut random),
                None => (choose(logits, options, &mut random), false),
            };
            context.push(id);
            generation.push(id, started.elapsed());
            generation.accepted_tokens += usize::from(is_kept);
            let flow = on_token(id);
            if options.is_end(id) {
                generation.finish_reason = FinishReason::EndToken;
                return Ok(generation);
            }
            if flow.is_break() {
                generation.finish_reason = FinishReason::Cancelled;
                return Ok(generation);
            }
            if generation.token_ids.len() == budget_tokens {
                return Ok(generation);
            }
            if !is_kept {
                break;
            }
        }
        // What was drafted and not kept is forgotten.
        cache.truncate(context.len() - 1)?;
        drafted = match &mut drafter {
            // The model itself gives the token after the drafted ones.
            Some((drafter, count)) => {
                let count = (*count).min(budget_tokens - generation.token_ids.len() - 1);
                drafter.draft(&context, count, options, &mut random)?
            }
            None => Vec::new(),
        };
        generation.drafted_tokens += drafted.len();
        let mut next = vec![context[context.len() - 1]];
        next.extend(drafted.iter().map(|drafted| drafted.id));
        logits = each_logits(model, &next, encoded.as_ref(), &mut cache)?;
    }
}

/// The decoder's input, and what the encoder made of the prompt where there is an encoder; all checked.
fn read_inputs(
    model: &dyn Model,
    prompt_ids: &[u32],
    decoder_ids: Option<&[u32]>,
) -> Result<(Vec<u32>, Option<Encoded>)> {
    check_predicts_next(model, "generating text")?;
    check_ids(model, "prompt", prompt_ids)?;
    if !model.is_encoder_decoder() {
        if decoder_ids.is_some() {
            let model_type = model.config().get("model_type").and_then(|value| value.as_str());
            return Err(Error::DecoderTokens { model_type: model_type.unwrap_or("the model").to_string() });
        }
        return Ok((prompt_ids.to_vec(), None));
    }
    let decoder_ids = match decoder_ids {
        Some(ids) => ids.to_vec(),
        None => vec![model.decoder_start_token().ok_or(Error::NoDecoderStart)?],
    };
    check_ids(model, "decoder tokens", &decoder_ids)?;
    let tokens = TokenBatch { ids: prompt_ids.to_vec(), rows: 1, segments: None };
    let encoded = model.encode(&tokens)?;
    Ok((decoder_ids, Some(encoded)))
}

/// An error where `ids` is empty, holds an id that the model lacks, or does not fit into its context.
pub fn check_ids(model: &dyn Model, input: &'static str, ids: &[u32]) -> Result<()> {
    if ids.is_empty() {
        return Err(Error::Empty { input });
    }
    let vocab_size = model.vocab_size();
    if let Some(position) = ids.iter().position(|&id| id as usize >= vocab_size) {
        return Err(Error::TokenId { input, id: ids[position], position, vocab_size });
    }
    match model.context_length() {
        Some(context_length) if ids.len() > context_length => {
            Err(Error::ContextLength { input, tokens: ids.len(), context_length })
        }
        _ => Ok(()),
    }
}

/// Tokens that room is made for before they come; few continuations are as long as they may be.
const EXPECTED_TOKENS_MAX: usize = 1024;

/// What a model's cache rounds to unless the caller says otherwise: f16 where weights are stored in that or quantised, which
/// loses less than they have lost already and is read in half the time, f32 otherwise.
pub fn standard_cache(model: &dyn Model) -> CacheType {
    let is_narrow = model.weights().iter().any(Weight::is_narrow);
    if is_narrow { CacheType::F16 } else { CacheType::F32 }
}

/// A cache of that many tokens for the model.
pub(crate) fn new_cache(model: &dyn Model, kind: Option<CacheType>, tokens: usize) -> Cache {
    let kind = kind.unwrap_or_else(|| standard_cache(model));
    Cache::of(kind).expecting(tokens.min(EXPECTED_TOKENS_MAX))
}

/// Reads the decoder's inputs, which are equally long, into the cache; the logits (`[v]` each) after their last tokens.
pub(crate) fn prefill(
    model: &dyn Model,
    rows: &[Vec<u32>],
    encoded: Option<&Encoded>,
    cache: &mut Cache,
) -> Result<Vec<Vec<f32>>> {
    let length = rows.first().map_or(0, Vec::len);
    let _span = profile::part("prompt");
    let mut start = 0;
    while start < length {
        let end = length.min(start + PREFILL_CHUNK_TOKENS);
        let chunk: Vec<&[u32]> = rows.iter().map(|ids| &ids[start..end]).collect();
        if end == length {
            return next_logits(model, &chunk, encoded, cache);
        }
        run(model, &chunk, encoded, cache)?;
        start = end;
    }
    Err(Error::Empty { input: "decoder tokens" })
}

/// Reads more tokens of each row, equally many; the logits (`[v]` each) after the last.
pub(crate) fn next_logits(
    model: &dyn Model,
    rows: &[&[u32]],
    encoded: Option<&Encoded>,
    cache: &mut Cache,
) -> Result<Vec<Vec<f32>>> {
    let states_btm = run(model, rows, encoded, cache)?;
    let last_b1m = states_btm.narrow(1, rows[0].len() - 1, 1)?.contiguous()?;
    let logits = model.logits(&last_b1m)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    if rows.len() == 1 {
        return Ok(vec![logits]);
    }
    Ok(logits.chunks(logits.len() / rows.len()).map(<[f32]>::to_vec).collect())
}

/// Reads more tokens of the only row; the logits (`[v]`) after each of them.
fn each_logits(
    model: &dyn Model,
    ids: &[u32],
    encoded: Option<&Encoded>,
    cache: &mut Cache,
) -> Result<Vec<Vec<f32>>> {
    let _span = profile::part("decoding");
    let states_btm = run(model, &[ids], encoded, cache)?;
    let logits = model.logits(&states_btm)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    if ids.len() == 1 {
        return Ok(vec![logits]);
    }
    Ok(logits.chunks(logits.len() / ids.len()).map(<[f32]>::to_vec).collect())
}

fn run(model: &dyn Model, rows: &[&[u32]], encoded: Option<&Encoded>, cache: &mut Cache) -> Result<Tensor> {
    let tokens = TokenBatch { ids: rows.concat(), rows: rows.len(), segments: None };
    Ok(model.hidden(&tokens, encoded, Some(cache))?)
}

/// An error for NaN, for positive infinity, and where nothing is finite; negative infinity is a masked token.
pub(crate) fn check_logits(logits: &[f32], position: usize) -> Result<()> {
    // Whether there is one at all is asked of all, which is quicker than to stop at the first.
    let is_wrong = |logit: f32| logit.is_nan() || logit == f32::INFINITY;
    let any_wrong = logits.iter().fold(false, |any, &logit| any | is_wrong(logit));
    let wrong = if any_wrong { logits.iter().position(|&logit| is_wrong(logit)) } else { None };
    let wrong = wrong.or_else(|| logits.iter().all(|&logit| logit == f32::NEG_INFINITY).then_some(0));
    match wrong {
        Some(id) => Err(Error::Logits { position, id, value: logits.get(id).copied().unwrap_or(f32::NAN) }),
        None => Ok(()),
    }
}
