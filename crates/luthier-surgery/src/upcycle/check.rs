//! Runs a model with experts and its parent on one fixed sequence.

use luthier_checkpoint::Checkpoint;

use crate::function_check::{difference, logits};
use crate::{Error, Result};

/// Largest difference that rounding in f32 explains, for logits up to 1; in proportion for larger ones.
const TOLERANCE: f64 = 1e-4;

/// The largest difference of the logits of `made` and `parent`. Where the function is kept, refuses one that rounding does
/// not explain.
pub(super) fn against_parent(made: &Checkpoint, parent: &Checkpoint, keeps_function: bool) -> Result<f64> {
    const CHECK: &str = "logits of the model with experts against its parent's";
    let wanted = logits(parent)?;
    let largest = difference(CHECK, &wanted, &logits(made)?)?.max_abs;
    let scale = wanted.iter().fold(1.0, |scale: f64, logit| scale.max(f64::from(logit.abs())));
    if !keeps_function && largest.is_finite() || largest <= TOLERANCE * scale {
        return Ok(largest);
    }
    Err(Error::Check {
        check: CHECK.to_string(),
        wanted: if keeps_function {
            format!("equal to {:e}", TOLERANCE * scale)
        } else {
            "numbers".to_string()
        },
        came: format!("a difference of {largest:e}"),
    })
}
