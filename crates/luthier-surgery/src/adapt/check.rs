//! The exact check of an adapted model: with cross-attention silent, its decoder is the decoder's parent.

use std::sync::Arc;

use luthier_checkpoint::{Checkpoint, TensorSource};

use crate::function_check::{difference, logits};
use crate::{Error, Result};

/// Largest difference of two logits that rounding explains.
pub(super) const TOLERANCE: f64 = 1e-5;

/// Runs the silenced encoder-decoder and the parent on one fixed sequence; the largest difference of their logits.
/// Refuses one above `TOLERANCE`.
pub(super) fn decoder_equals_parent(
    model: &Checkpoint,
    silenced: Arc<dyn TensorSource>,
    parent: &Checkpoint,
) -> Result<f64> {
    const CHECK: &str = "decoder with silent cross-attention against its parent";
    let wanted = logits(parent)?;
    let came = logits(&Checkpoint { tensors: silenced, ..model.clone() })?;
    let largest = difference(CHECK, &wanted, &came)?.max_abs;
    if largest <= TOLERANCE {
        return Ok(largest);
    }
    let (wanted, came) = (format!("logits equal to {TOLERANCE:e}"), format!("a difference of {largest:e}"));
    Err(Error::Check { check: CHECK.to_string(), wanted, came })
}
