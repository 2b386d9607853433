//! Output projection and cross-entropy in one operation, optionally against a teacher's distribution.
//!
//! `loss = sum_i w_i * (-log softmax(cap(h_i E^T))[y_i]) / sum_i w_i`; with a teacher the one-hot target is replaced
//! by `p_i` (knowledge distillation, arXiv:1503.02531, at temperature 1) and mixed by `teacher_share`.

use candle_core::{D, Result, Tensor};

use crate::Weight;

// n positions, m width, v vocabulary

/// What each position should predict.
#[derive(Clone, Debug)]
pub struct Targets {
    /// `[n]` token ids; ignored where the weight is 0.
    pub ids: Vec<u32>,
    /// `[n]` weights, 0 for positions that are not scored.
    pub weights: Vec<f32>,
    /// What the weighted sum is divided by; the batch's total weight, so that accumulated micro-batches add up to the
    /// mean over all tokens.
    pub normalizer: f32,
    /// `[n, v]` logits of a teacher and the share of its distribution in the target, in 0..=1.
    pub teacher: Option<(Tensor, f64)>,
}

/// hidden: [n, m], head: [v, m] -> the loss, a scalar.
pub fn projected_cross_entropy(
    hidden: &Tensor,
    head: &Weight,
    softcap: Option<f64>,
    targets: &Targets,
) -> Result<Tensor> {
    reference(hidden, head, softcap, targets)
}

/// hidden: [.., m] -> logits [.., v], soft-capped.
pub fn project(hidden: &Tensor, head: &Weight, softcap: Option<f64>) -> Result<Tensor> {
    let logits = crate::linear::linear(hidden, head, None)?;
    match softcap {
        Some(cap) => (logits / cap)?.tanh()? * cap,
        None => Ok(logits),
    }
}

fn reference(hidden: &Tensor, head: &Weight, softcap: Option<f64>, targets: &Targets) -> Result<Tensor> {
    let device = hidden.device();
    let n = targets.ids.len();
    let log_p = log_softmax(&project(hidden, head, softcap)?)?;
    let ids = Tensor::from_slice(&targets.ids, (n, 1), device)?;
    let weights = Tensor::from_slice(&targets.weights, n, device)?;
    let mut nll = log_p.gather(&ids, 1)?.squeeze(1)?.neg()?;
    if let Some((teacher, share)) = &targets.teacher {
        let p = log_softmax(teacher)?.exp()?.detach();
        let soft = p.mul(&log_p)?.sum(D::Minus1)?.neg()?;
        nll = ((nll * (1.0 - share))? + (soft * *share)?)?;
    }
    nll.mul(&weights)?.sum_all()? / f64::from(targets.normalizer)
}

fn log_softmax(logits: &Tensor) -> Result<Tensor> {
    let top = logits.max_keepdim(D::Minus1)?.detach();
    let shifted = logits.broadcast_sub(&top)?;
    shifted.broadcast_sub(&shifted.exp()?.sum_keepdim(D::Minus1)?.log()?)
}
