//! The formula in plain candle.

use candle_core::{D, Result, Tensor};

use super::{Targets, Teaching};
use crate::Weight;
use crate::project::biased_project;

pub(super) fn reference(
    hidden: &Tensor,
    head: &Weight,
    bias: Option<&Weight>,
    softcap: Option<f64>,
    targets: &Targets,
) -> Result<Tensor> {
    let device = hidden.device();
    let n = targets.ids.len();
    let logits = biased_project(hidden, head, bias, softcap)?;
    let log_p = log_softmax(&logits)?;
    // Positions that are not scored may carry any id.
    let ids = targets.ids.iter().zip(&targets.weights);
    let ids: Vec<u32> = ids.map(|(&id, &weight)| if weight == 0.0 { 0 } else { id }).collect();
    let ids = Tensor::from_slice(&ids, (n, 1), device)?;
    let weights = Tensor::from_slice(&targets.weights, n, device)?;
    let mut nll = log_p.gather(&ids, 1)?.squeeze(1)?.neg()?;
    if let Some(Teaching { logits: teacher, shares, temperature }) = &targets.teacher {
        let p = log_softmax(&(teacher / *temperature)?)?.exp()?.detach();
        let log_q = log_softmax(&(logits / *temperature)?)?;
        let soft = p.mul(&log_q)?.sum(D::Minus1)?.neg()?;
        let shares = Tensor::from_slice(shares, n, device)?;
        let (own, taught) = (nll.mul(&shares.affine(-1.0, 1.0)?)?, soft.mul(&shares)?);
        nll = (own + (taught * (temperature * temperature))?)?;
    }
    nll.mul(&weights)?.sum_all()? / f64::from(targets.normalizer)
}

fn log_softmax(logits: &Tensor) -> Result<Tensor> {
    let top = logits.max_keepdim(D::Minus1)?.detach();
    let shifted = logits.broadcast_sub(&top)?;
    shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(D::Minus1)?.log()?)
}
