//! Runs a model with experts and its parent on one fixed sequence.

use candle_core::Device;
use luthier_arch::{LoadOptions, load};
use luthier_checkpoint::Checkpoint;

use crate::adapt::check::{fixed_tokens, values};
use crate::{Error, Result};

/// Largest difference that rounding in f32 explains, for logits up to 1; in proportion for larger ones.
const TOLERANCE: f64 = 1e-4;

/// The largest difference of the logits of `made` and `parent`. Where the function is kept, refuses one that rounding does
/// not explain.
pub(super) fn against_parent(made: &Checkpoint, parent: &Checkpoint, keeps_function: bool) -> Result<f64> {
    let run = |checkpoint: &Checkpoint| -> Result<Vec<f32>> {
        let model = load(checkpoint, &LoadOptions { trainable: false, device: Device::Cpu })?;
        let states = model.hidden(&fixed_tokens(model.vocab_size()), None, None)?;
        values(&model.logits(&states)?)
    };
    let (wanted, came) = (run(parent)?, run(made)?);
    let differences = wanted.iter().zip(&came).map(|(wanted, came)| f64::from(wanted - came).abs());
    // Not f64::max, which would let a NaN pass.
    let largest =
        differences.fold(0.0, |largest, difference| if difference <= largest { largest } else { difference });
    let scale = wanted.iter().fold(1.0, |scale: f64, logit| scale.max(f64::from(logit.abs())));
    if !keeps_function && largest.is_finite() || largest <= TOLERANCE * scale {
        return Ok(largest);
    }
    Err(Error::Check {
        check: "logits of the model with experts against its parent's".to_string(),
        wanted: if keeps_function {
            format!("equal to {:e}", TOLERANCE * scale)
        } else {
            "numbers".to_string()
        },
        came: format!("a difference of {largest:e}"),
    })
}
