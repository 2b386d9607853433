//! That text made of kept tokens is segmented as before, and that its logits are those of the input.

use std::collections::BTreeMap;
use std::path::PathBuf;

use candle_core::Device;
use luthier_arch::{LoadOptions, Model, TokenBatch, load};
use luthier_checkpoint::Checkpoint;
use luthier_checkpoint::layout::{Part, StackKind};
use luthier_text::Tokenizer;
use luthier_text::corpus::{self, Source};
use serde::Serialize;

use super::Prepared;
use super::count::encode_all;
use crate::{Error, Result};

/// Largest difference of two logits that rounding explains, as a share of the largest logit (or of 1).
const TOLERANCE: f64 = 1e-5;

/// Tokens whose logits are compared.
const N_TOKENS: usize = 48;

/// What the proof found.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Proof {
    /// Lines of the texts.
    pub lines: usize,
    /// Those that are segmented as before.
    pub unchanged_lines: usize,
    /// Their share.
    pub unchanged_line_share: f64,
    /// Tokens of all lines with the tokenizer as it was.
    pub tokens_before: usize,
    /// And as it is.
    pub tokens_after: usize,
    /// Tokens of the unchanged lines, as a share of `tokens_before`.
    pub unchanged_token_share: f64,
    /// Tokens whose logits were compared, from unchanged lines.
    pub compared_tokens: usize,
    /// Logits of kept tokens that were compared.
    pub compared_logits: usize,
    /// Values of final states that were compared instead, of an encoder without a head over the vocabulary.
    pub compared_states: usize,
    /// Largest difference between them and the input's.
    pub max_abs_difference: f64,
    /// Whether they are the same, bit for bit.
    pub bitwise_equal: bool,
}

/// Measures on the held texts, or for want of them on those that were counted. Refuses a line of kept tokens that is cut
/// otherwise, and logits that differ by more than rounding.
pub(super) fn prove(prepared: &Prepared, made: &Checkpoint) -> Result<Proof> {
    let files: BTreeMap<String, Vec<u8>> =
        made.side_files.iter().map(|file| (file.name.clone(), file.bytes.clone())).collect();
    let after = Tokenizer::from_files(&files)?;
    let texts = texts(prepared)?;
    let lines: Vec<&str> =
        texts.iter().flat_map(|text| text.lines()).filter(|line| !line.trim().is_empty()).collect();
    let (old, new) = (encode_all(prepared.trimmer.tokenizer(), &lines)?, encode_all(&after, &lines)?);
    let kept = &prepared.selection.kept;
    let mut unchanged: Vec<&[u32]> = Vec::new();
    for (line, (old, new)) in lines.iter().zip(old.iter().zip(&new)) {
        let wanted: Option<Vec<u32>> =
            old.iter().map(|id| kept.binary_search(id).ok().map(|at| at as u32)).collect();
        if wanted.as_deref() == Some(new) {
            unchanged.push(old);
        } else if wanted.is_some() {
            let shown: String = line.chars().take(80).collect();
            return Err(Error::Check {
                check: format!("segmentation of a line whose tokens are all kept ({shown:?})"),
                wanted: format!("the tokens {:?}", wanted.unwrap_or_default()),
                came: format!("{new:?}"),
            });
        }
    }
    let count = |lines: &[Vec<u32>]| lines.iter().map(Vec::len).sum::<usize>();
    let n_unchanged_tokens: usize = unchanged.iter().map(|line| line.len()).sum();
    let share = |part: usize, whole: usize| part as f64 / whole.max(1) as f64;
    let sample = sample(&unchanged, kept);
    let (max_abs_difference, n_compared, bitwise_equal) = compare(prepared, made, &sample)?;
    Ok(Proof {
        lines: lines.len(),
        unchanged_lines: unchanged.len(),
        unchanged_line_share: share(unchanged.len(), lines.len()),
        tokens_before: count(&old),
        tokens_after: count(&new),
        unchanged_token_share: share(n_unchanged_tokens, count(&old)),
        compared_tokens: sample.len(),
        compared_logits: if has_head(prepared) { n_compared } else { 0 },
        compared_states: if has_head(prepared) { 0 } else { n_compared },
        max_abs_difference,
        bitwise_equal,
    })
}

/// Bytes that the logits of both models take.
pub(super) fn memory_bytes(prepared: &Prepared) -> usize {
    let columns = prepared.n_rows + prepared.selection.kept.len();
    2 * 4 * N_TOKENS * columns
}

fn texts(prepared: &Prepared) -> Result<Vec<String>> {
    let options = prepared.options;
    let counted = options.corpus.iter().chain(options.also.iter().map(|also| &also.file));
    let paths: Vec<&PathBuf> =
        if options.held.is_empty() { counted.collect() } else { options.held.iter().collect() };
    let sources: Vec<Source> = paths.into_iter().cloned().map(Source::File).collect();
    Ok(corpus::read_all(&sources)?)
}

/// Old ids to run the models on: unchanged lines from all over the texts, or for want of them kept tokens.
fn sample(unchanged: &[&[u32]], kept: &[u32]) -> Vec<u32> {
    // Few lines from many places say more than many from one.
    let step = (unchanged.len() / 6).max(1);
    let lines = unchanged.iter().step_by(step).chain(unchanged);
    let mut ids: Vec<u32> =
        lines.flat_map(|line| line.iter().take(N_TOKENS / 4).copied()).take(N_TOKENS).collect();
    if ids.is_empty() {
        ids = kept.iter().step_by((kept.len() / N_TOKENS).max(1)).take(N_TOKENS).copied().collect();
    }
    ids
}

/// Whether the model has logits: all have but encoders that came without the head that fills masks.
fn has_head(prepared: &Prepared) -> bool {
    let layout = &prepared.layout;
    layout.has_stack(StackKind::Decoder)
        || layout.tensors.iter().any(|spec| spec.role.part == Part::HeadTransform)
}

/// The largest difference of kept tokens' logits, or of states where there are none, how many there were, and whether all are the same bits.
fn compare(prepared: &Prepared, made: &Checkpoint, sample: &[u32]) -> Result<(f64, usize, bool)> {
    let kept = &prepared.selection.kept;
    let has_head = has_head(prepared);
    let options = LoadOptions { trainable: false, device: Device::Cpu };
    let new_id = |id: &u32| kept.binary_search(id).map_or(0, |at| at as u32);
    let (wanted, start) = {
        let parent = load(&prepared.input.checkpoint, &options)?;
        let sample = within_context(parent.as_ref(), sample);
        let start = parent.decoder_start_token();
        (values(parent.as_ref(), sample, start, has_head)?, start)
    };
    let child = load(made, &options)?;
    let ids: Vec<u32> = within_context(child.as_ref(), sample).iter().map(new_id).collect();
    let came = values(child.as_ref(), &ids, start.as_ref().map(new_id), has_head)?;
    let check = if has_head { "logits of kept tokens" } else { "final states" };
    if start.as_ref().map(new_id) != child.decoder_start_token() {
        let (wanted, came) =
            (format!("{:?}", start.as_ref().map(new_id)), format!("{:?}", child.decoder_start_token()));
        return Err(Error::Check { check: "the decoder's start token".to_string(), wanted, came });
    }
    let pairs: Vec<(f32, f32)> = match has_head {
        true => {
            let rows = wanted.chunks_exact(prepared.n_rows).zip(came.chunks_exact(kept.len()));
            rows.flat_map(|(wanted, came)| {
                kept.iter().map(|id| wanted[*id as usize]).zip(came.iter().copied())
            })
            .collect()
        }
        false => wanted.into_iter().zip(came).collect(),
    };
    let (mut largest, mut scale, mut is_same) = (0f64, 1f64, true);
    for &(wanted, came) in &pairs {
        let difference = f64::from(wanted - came).abs();
        // Not f64::max, which would let a NaN pass.
        largest = if largest.is_nan() || difference <= largest { largest } else { difference };
        scale = scale.max(f64::from(wanted.abs()));
        is_same &= wanted.to_bits() == came.to_bits();
    }
    if largest <= TOLERANCE * scale {
        return Ok((largest, pairs.len(), is_same));
    }
    let (wanted, came) =
        (format!("equal to {:e}", TOLERANCE * scale), format!("a difference of {largest:e}"));
    Err(Error::Check { check: format!("{check} against the input's"), wanted, came })
}

fn within_context<'s>(model: &dyn Model, sample: &'s [u32]) -> &'s [u32] {
    &sample[..sample.len().min(model.context_length().unwrap_or(usize::MAX))]
}

/// Logits, or for want of a head final states, at every token; an encoder-decoder's encoder reads them all, and its decoder behind its start token.
fn values(model: &dyn Model, ids: &[u32], start: Option<u32>, has_head: bool) -> Result<Vec<f32>> {
    let batch = |ids: Vec<u32>| TokenBatch { ids, rows: 1, segments: None };
    let states = if model.is_encoder_decoder() {
        let encoded = model.encode(&batch(ids.to_vec()))?;
        let read = start.into_iter().chain(ids.iter().copied()).take(ids.len());
        model.hidden(&batch(read.collect()), Some(&encoded), None)?
    } else {
        model.hidden(&batch(ids.to_vec()), None, None)?
    };
    let values = if has_head { model.logits(&states)? } else { states };
    let flat = values.flatten_all().and_then(|flat| flat.to_vec1::<f32>());
    Ok(flat.map_err(luthier_arch::Error::from)?)
}
