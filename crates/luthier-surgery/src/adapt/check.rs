//! The exact check of an adapted model: with cross-attention silent, its decoder is the decoder's parent.

use std::sync::Arc;

use candle_core::Device;
use luthier_arch::{LoadOptions, TokenBatch, load};
use luthier_checkpoint::{Checkpoint, TensorSource};

use crate::{Error, Result};

/// Largest difference of two logits that rounding explains.
pub(super) const TOLERANCE: f64 = 1e-5;

/// Tokens of the check's decoder input.
const N_TOKENS: usize = 24;

/// Runs the silenced encoder-decoder and the parent on one fixed sequence; the largest difference of their logits.
/// Refuses one above `TOLERANCE`.
pub(super) fn decoder_equals_parent(
    model: &Checkpoint,
    silenced: Arc<dyn TensorSource>,
    parent: &Checkpoint,
) -> Result<f64> {
    let options = LoadOptions { trainable: false, device: Device::Cpu };
    let (wanted, vocab_size) = {
        let parent = load(parent, &options)?;
        let tokens = fixed_tokens(parent.vocab_size());
        let states = parent.hidden(&tokens, None, None)?;
        (values(&parent.logits(&states)?)?, parent.vocab_size())
    };
    let child = load(&Checkpoint { tensors: silenced, ..model.clone() }, &options)?;
    let tokens = fixed_tokens(vocab_size);
    let encoded = child.encode(&fixed_tokens(vocab_size))?;
    let came = values(&child.logits(&child.hidden(&tokens, Some(&encoded), None)?)?)?;
    let check = "decoder with silent cross-attention against its parent";
    if came.len() != wanted.len() {
        let (wanted, came) = (format!("{} logits", wanted.len()), format!("{} logits", came.len()));
        return Err(Error::Check { check: check.to_string(), wanted, came });
    }
    let differences = wanted.iter().zip(&came).map(|(wanted, came)| f64::from(wanted - came).abs());
    // Not f64::max, which would let a NaN pass.
    let largest =
        differences.fold(0.0, |largest, difference| if difference <= largest { largest } else { difference });
    if largest <= TOLERANCE {
        return Ok(largest);
    }
    let (wanted, came) = (format!("logits equal to {TOLERANCE:e}"), format!("a difference of {largest:e}"));
    Err(Error::Check { check: check.to_string(), wanted, came })
}

/// The same tokens for every model of a vocabulary, spread over all of it.
pub(crate) fn fixed_tokens(vocab_size: usize) -> TokenBatch {
    let ids = (0..N_TOKENS as u64).map(|idx| ((idx + 1) * 2_654_435_761 % vocab_size as u64) as u32);
    TokenBatch { ids: ids.collect(), rows: 1, segments: None }
}

pub(crate) fn values(logits: &candle_core::Tensor) -> Result<Vec<f32>> {
    let flat = logits.flatten_all().and_then(|flat| flat.to_vec1::<f32>());
    Ok(flat.map_err(luthier_arch::Error::from)?)
}
