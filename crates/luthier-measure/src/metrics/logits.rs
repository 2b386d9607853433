//! The logits of every position, for comparing one program with another.

use candle_core::DType;
use luthier_arch::model::{Model, TokenBatch};
use luthier_generate::generate::check_ids;

use crate::Result;

// t tokens, v vocabulary

/// Positions that are projected together.
const CHUNK_TOKENS: usize = 256;

/// Logits of a sequence.
#[derive(Clone, Debug, PartialEq)]
pub struct Logits {
    /// `[tokens * vocabulary]`, row-major.
    pub values: Vec<f32>,
    /// Rows: the decoder's input tokens.
    pub tokens: usize,
    /// Columns.
    pub vocabulary: usize,
}

/// The logits after each token of the decoder's input: `ids` for a decoder-only model; for an encoder-decoder, whose
/// encoder reads `ids`, `decoder_ids` (none: its start token alone).
///
/// # Errors
/// Ids that the model cannot read, decoder tokens for a decoder-only model, logits that are NaN.
pub fn logits(model: &dyn Model, ids: &[u32], decoder_ids: Option<&[u32]>) -> Result<Logits> {
    check_ids(model, "tokens", ids)?;
    let batch = |ids: &[u32]| TokenBatch { ids: ids.to_vec(), rows: 1, segments: None };
    let start;
    let (input, encoded) = match (model.is_encoder_decoder(), decoder_ids) {
        (false, None) => (ids, None),
        (false, Some(_)) => {
            let model_type = model.config().get("model_type").and_then(|value| value.as_str());
            let model_type = model_type.unwrap_or("the model").to_string();
            return Err(luthier_generate::Error::DecoderTokens { model_type }.into());
        }
        (true, given) => {
            start = model.decoder_start_token();
            let input = match given {
                Some(given) => given,
                None => {
                    start.as_ref().map(std::slice::from_ref).ok_or(luthier_generate::Error::NoDecoderStart)?
                }
            };
            check_ids(model, "decoder tokens", input)?;
            (input, Some(model.encode(&batch(ids))?))
        }
    };
    let states_1tm = model.hidden(&batch(input), encoded.as_ref(), None)?;
    let tokens = input.len();
    let mut values = Vec::new();
    for first in (0..tokens).step_by(CHUNK_TOKENS) {
        let chunk = states_1tm.narrow(1, first, CHUNK_TOKENS.min(tokens - first))?.contiguous()?;
        let rows = model.logits(&chunk)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        if let Some(at) = rows.iter().position(|value| value.is_nan()) {
            let vocabulary = rows.len() / chunk.dim(1)?;
            return Err(luthier_generate::Error::Logits {
                position: first + at / vocabulary,
                id: at % vocabulary,
                value: rows[at],
            }
            .into());
        }
        values.extend(rows);
    }
    let vocabulary = values.len() / tokens;
    Ok(Logits { values, tokens, vocabulary })
}
