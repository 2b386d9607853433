//! Cross-entropy of many windows, in batches that suit a CPU, without whole logits.

use candle_core::{DType, Tensor};
use luthier_arch::model::{Model, TokenBatch};
use luthier_ops::cross_entropy::Targets;

use crate::{Error, Result};

// b rows, t tokens, m width

/// Tokens that run through the model together; one window where it alone is longer.
pub const BATCH_TOKENS: usize = 2048;

/// A stretch of tokens and which of them to score.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// What the encoder reads; empty for a decoder-only model.
    pub encoder_ids: Vec<u32>,
    /// What the decoder reads.
    pub input_ids: Vec<u32>,
    /// What each position should predict; as many as inputs.
    pub target_ids: Vec<u32>,
    /// Positions before this one are context only.
    pub first_scored: usize,
    /// Number of the window's first token in its text, for messages.
    pub first_token: usize,
}

impl Window {
    /// The window of a decoder-only model over `ids`: each predicts the next; `ids[..first]` are not scored.
    /// `first` is at least 1, since nothing predicts the first.
    pub fn next_token(ids: &[u32], first: usize, first_token: usize) -> Window {
        Window {
            encoder_ids: Vec::new(),
            input_ids: ids[..ids.len() - 1].to_vec(),
            target_ids: ids[1..].to_vec(),
            first_scored: first - 1,
            first_token,
        }
    }

    /// The window in which `target` follows `prefix`, all of the target scored: the prefix goes to the encoder where
    /// there is one (the decoder then reads its start token and the target), and into the context otherwise.
    pub fn prefixed(model: &dyn Model, prefix: &[u32], target: &[u32], first_token: usize) -> Result<Window> {
        if !model.is_encoder_decoder() {
            return Ok(Window::next_token(&[prefix, target].concat(), prefix.len(), first_token));
        }
        let start = model.decoder_start_token().ok_or(luthier_generate::Error::NoDecoderStart)?;
        let mut input_ids = vec![start];
        input_ids.extend(&target[..target.len() - 1]);
        Ok(Window {
            encoder_ids: prefix.to_vec(),
            input_ids,
            target_ids: target.to_vec(),
            first_scored: 0,
            first_token,
        })
    }

    /// Tokens that are scored.
    pub fn scored_tokens(&self) -> usize {
        self.input_ids.len() - self.first_scored
    }

    fn shape(&self) -> (usize, usize, usize) {
        (self.encoder_ids.len(), self.input_ids.len(), self.first_scored)
    }

    fn tokens(&self) -> usize {
        self.encoder_ids.len() + self.input_ids.len()
    }
}

/// Nats of all scored tokens of the windows together. Windows that follow each other and have equal lengths share
/// batches.
///
/// # Errors
/// Ids outside of the vocabulary, a loss that is NaN or infinite.
pub fn total_nats(model: &dyn Model, windows: &[Window]) -> Result<f64> {
    batches(windows).map(|batch| batch_nats(model, batch)).sum()
}

/// Windows that follow each other and run through the model together.
pub(crate) fn batches(windows: &[Window]) -> impl Iterator<Item = &[Window]> {
    let mut rest = windows;
    std::iter::from_fn(move || {
        let first = rest.first()?;
        let rows_max = (BATCH_TOKENS / first.tokens().max(1)).max(1);
        let rows = rest.iter().take(rows_max).take_while(|window| window.shape() == first.shape()).count();
        let (batch, after) = rest.split_at(rows);
        rest = after;
        Some(batch)
    })
}

/// windows: of one shape.
fn batch_nats(model: &dyn Model, windows: &[Window]) -> Result<f64> {
    let scored = windows[0].scored_tokens();
    if scored == 0 {
        return Ok(0.0);
    }
    let rows = windows.len();
    let states_btm = states(model, windows)?;
    let width = states_btm.dim(2)?;
    let states_btm = states_btm.narrow(1, windows[0].first_scored, scored)?;
    let states_nm = states_btm.contiguous()?.reshape((rows * scored, width))?.detach();
    let targets = Targets {
        ids: windows.iter().flat_map(|window| window.target_ids[window.first_scored..].to_vec()).collect(),
        weights: vec![1.0; rows * scored],
        normalizer: (rows * scored) as f32,
        teacher: None,
    };
    let mean = model.loss(&states_nm, &targets)?.to_dtype(DType::F32)?.to_vec0::<f32>()?;
    if !mean.is_finite() {
        return Err(Error::NotFinite { first_token: windows[0].first_token, value: f64::from(mean) });
    }
    Ok(f64::from(mean) * (rows * scored) as f64)
}

/// Final states [b, t, m] of the decoder after windows of one shape.
pub(crate) fn states(model: &dyn Model, windows: &[Window]) -> Result<Tensor> {
    let rows = windows.len();
    for window in windows {
        for ids in [&window.encoder_ids, &window.input_ids, &window.target_ids] {
            if !ids.is_empty() {
                luthier_generate::generate::check_ids(model, "text", ids)?;
            }
        }
    }
    let joined = |of: fn(&Window) -> &[u32]| TokenBatch {
        ids: windows.iter().flat_map(|window| of(window).to_vec()).collect(),
        rows,
        segments: None,
    };
    let encoded = match model.is_encoder_decoder() {
        true => Some(model.encode(&joined(|window| &window.encoder_ids))?),
        false => None,
    };
    Ok(model.hidden(&joined(|window| &window.input_ids), encoded.as_ref(), None)?)
}
