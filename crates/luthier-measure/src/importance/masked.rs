//! What an encoder loses: the cross-entropy of tokens that it reads masked, with the rest of their window to tell them by.
//! Every seventh token is masked at once, so that a text is read once; BERT learnt with 15% (arXiv:1810.04805).

use candle_core::{DType, Tensor};
use luthier_arch::Model;
use luthier_ops::cross_entropy::Targets;

use crate::scoring::{Window, batches, states};
use crate::{Error, Result};

// b rows, t tokens, m width, n scored tokens

/// One masked token in so many.
const EVERY: usize = 7;

/// How windows are masked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Masked {
    /// What stands in a masked token's place.
    pub(super) mask: u32,
    /// Tokens at the start of every window that the tokenizer added.
    pub(super) before: usize,
    /// The same at its end.
    pub(super) after: usize,
}

impl Masked {
    /// Mean nats of a masked token.
    pub(super) fn loss(&self, model: &dyn Model, windows: &[Window]) -> Result<f64> {
        let (mut nats, mut scored) = (0.0, 0);
        for batch in batches(windows) {
            let t = batch[0].input_ids.len();
            let places: Vec<usize> = (self.before..t.saturating_sub(self.after))
                .filter(|place| place % EVERY == EVERY / 2)
                .collect();
            if places.is_empty() {
                continue;
            }
            let masked: Vec<Window> = batch.iter().map(|window| self.masked(window, &places)).collect();
            let rows = (0..batch.len()).flat_map(|row| places.iter().map(move |place| row * t + place));
            let rows: Vec<u32> = rows.map(|row| row as u32).collect();
            let ids =
                batch.iter().flat_map(|window| places.iter().map(|place| window.input_ids[*place])).collect();
            let states_btm = states(model, &masked)?;
            let (b, t, m) = states_btm.dims3()?;
            let states_nm = states_btm.contiguous()?.reshape((b * t, m))?.detach();
            let states_nm = states_nm.index_select(&Tensor::new(&rows[..], states_nm.device())?, 0)?;
            nats += f64::from(mean_nats(model, &masked[0], &states_nm, ids)?) * rows.len() as f64;
            scored += rows.len();
        }
        if scored == 0 {
            return Err(Error::TooShort {
                source_name: "the text".to_string(),
                got_tokens: windows.iter().map(|window| window.input_ids.len()).sum(),
                wanted_tokens: EVERY + self.before + self.after,
                why: " (every seventh is masked)",
                hint: "",
            });
        }
        Ok(nats / scored as f64)
    }

    fn masked(&self, window: &Window, places: &[usize]) -> Window {
        let mut masked = window.clone();
        places.iter().for_each(|place| masked.input_ids[*place] = self.mask);
        masked
    }
}

/// Lets a model with a head read windows of one shape, head and all: the head window by window, since whoever looks on
/// takes what it reads at a time for one.
pub(super) fn read(model: &dyn Model, windows: &[Window]) -> Result<()> {
    let states_btm = states(model, windows)?;
    for (row, window) in windows.iter().enumerate() {
        let states_tm = states_btm.get(row)?.contiguous()?.detach();
        mean_nats(model, window, &states_tm, window.input_ids.clone())?;
    }
    Ok(())
}

/// Mean nats of these targets from states [n, m]; `first` is the first window that they are of.
fn mean_nats(model: &dyn Model, first: &Window, states_nm: &Tensor, ids: Vec<u32>) -> Result<f32> {
    let n = ids.len();
    let targets = Targets { ids, weights: vec![1.0; n], normalizer: n as f32, teacher: None };
    let mean = model.loss(states_nm, &targets)?.to_dtype(DType::F32)?.to_vec0::<f32>()?;
    match mean.is_finite() {
        true => Ok(mean),
        false => Err(Error::NotFinite { first_token: first.first_token, value: f64::from(mean) }),
    }
}
