//! Whether two models compute the same: their logits on one fixed sequence of tokens.

use candle_core::Device;
use luthier_arch::{LoadOptions, Model, TokenBatch, load};
use luthier_checkpoint::Checkpoint;
use luthier_checkpoint::layout::{Layout, Part, StackKind};
use serde::Serialize;

use crate::{Error, Result};

/// Tokens of the sequence.
pub(crate) const N_TOKENS: usize = 24;

/// How far the logits of two models lie apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Difference {
    /// Largest |a - b|.
    pub max_abs: f64,
    /// The same over the largest |a|.
    pub relative: f64,
}

/// The logits of a model after every token of the sequence; an encoder reads the same one.
pub(crate) fn logits(model: &Checkpoint) -> Result<Vec<f32>> {
    let model = load(model, &LoadOptions { trainable: false, device: Device::Cpu })?;
    let tokens = fixed_tokens(model.as_ref());
    let encoded = match model.is_encoder_decoder() {
        true => Some(model.encode(&tokens)?),
        false => None,
    };
    let states = model.hidden(&tokens, encoded.as_ref(), None)?;
    let logits = model.logits(&states)?;
    let flat = logits.flatten_all().and_then(|flat| flat.to_vec1::<f32>());
    Ok(flat.map_err(luthier_arch::Error::from)?)
}

/// Whether a model has logits: an encoder may come without the head for masked tokens.
pub(crate) fn gives_logits(layout: &Layout) -> bool {
    layout.has_stack(StackKind::Decoder) || layout.tensors.iter().any(|spec| spec.role.part == Part::HeadBias)
}

/// An encoder's states after every token of the sequence: their width, and of each the first `width_max` values.
pub(crate) fn states(model: &Checkpoint, width_max: usize) -> Result<(usize, Vec<f32>)> {
    let model = load(model, &LoadOptions { trainable: false, device: Device::Cpu })?;
    let states = model.hidden(&fixed_tokens(model.as_ref()), None, None)?;
    let read = || -> candle_core::Result<(usize, Vec<f32>)> {
        let width = states.dim(2)?.min(width_max);
        Ok((width, states.narrow(2, 0, width)?.flatten_all()?.to_vec1::<f32>()?))
    };
    Ok(read().map_err(luthier_arch::Error::from)?)
}

/// How far `came` lies from `wanted`; `check` names the comparison where they are not of one length.
pub(crate) fn difference(check: &str, wanted: &[f32], came: &[f32]) -> Result<Difference> {
    if came.len() != wanted.len() {
        let (wanted, came) = (format!("{} logits", wanted.len()), format!("{} logits", came.len()));
        return Err(Error::Check { check: check.to_string(), wanted, came });
    }
    let differences = wanted.iter().zip(came).map(|(wanted, came)| f64::from(wanted - came).abs());
    // Not f64::max, which would let a NaN pass.
    let larger = |a: f64, b: f64| if a.is_nan() || b <= a { a } else { b };
    let max_abs = differences.fold(0.0, larger);
    let largest = wanted.iter().fold(0.0f64, |largest, value| largest.max(f64::from(value.abs())));
    let relative = if max_abs <= 0.0 { 0.0 } else { max_abs / largest };
    Ok(Difference { max_abs, relative })
}

/// The same tokens for every model of a vocabulary and a context, spread over all of it.
fn fixed_tokens(model: &dyn Model) -> TokenBatch {
    let n_tokens = model.context_length().map_or(N_TOKENS, |length| length.min(N_TOKENS)) as u64;
    let vocab_size = model.vocab_size() as u64;
    let ids = (0..n_tokens).map(|idx| ((idx + 1) * 2_654_435_761 % vocab_size) as u32);
    TokenBatch { ids: ids.collect(), rows: 1, segments: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_measured_and_no_number_is_no_zero() {
        let found = difference("x", &[1.0, -4.0], &[1.5, -4.0]).unwrap();
        assert_eq!(found, Difference { max_abs: 0.5, relative: 0.125 });
        assert_eq!(difference("x", &[0.0], &[0.0]).unwrap(), Difference::default());
        assert!(difference("x", &[1.0, 2.0], &[f32::NAN, 2.0]).unwrap().max_abs.is_nan());
        assert!(difference("x", &[1.0], &[1.0, 2.0]).is_err());
    }
}
