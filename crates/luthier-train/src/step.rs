//! One training step: rows in micro-batches, gradients summed, clipped, and handed to the optimizer.

use candle_core::Tensor;
use luthier_arch::model::Model;
use luthier_ops::cross_entropy::Targets;
use luthier_ops::{Weight, profile};

use crate::batch::{Batch, Row};
use crate::masters::Masters;
use crate::optimizers::Optimizer;
use crate::parameters;
use crate::teacher::{Teacher, select_rows};
use crate::{Error, Result};

/// What a step came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Mean over the step's target tokens, in nats, before the step moved the weights.
    pub loss_nats: f64,
    /// How unevenly experts were asked (evenly: as many as a token goes through), where it counts; the gradient holds it times its coefficient.
    pub balance_loss: Option<f64>,
    /// Global norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Target tokens.
    pub target_tokens: u64,
}

/// What moves the weights.
pub struct Mover<'a> {
    /// The weights that are trained.
    pub weights: &'a [Weight],
    /// The optimizer over them.
    pub optimizer: &'a mut dyn Optimizer,
    /// Their f32 masters, where the passes see bf16.
    pub masters: Option<&'a mut Masters>,
    /// Learning rate of this step.
    pub lr: f64,
    /// How much the loss that keeps experts evenly busy counts; none: not at all.
    pub balance: Option<f64>,
    /// Largest global norm.
    pub gradient_clip: Option<f64>,
}

/// Trains on the rows once, in `n_parts` passes one after the other. Each part's loss is divided by the whole step's
/// target tokens, so that the summed gradient is the full batch's. A loss or gradient that is no number is an error
/// and leaves weights and optimizer as they were.
pub fn train_step(
    model: &dyn Model,
    teacher: Option<&Teacher>,
    rows: &[Row],
    n_parts: usize,
    step: u64,
    mover: Mover,
) -> Result<StepReport> {
    let batches: Vec<Batch> = rows.chunks(rows.len().div_ceil(n_parts)).map(Batch::stack).collect();
    let target_tokens: u64 = batches.iter().map(Batch::target_tokens).sum();
    if target_tokens == 0 {
        let what = format!(
            "step {step} has no token to predict; its documents are too short, or the batch too small"
        );
        return Err(Error::data(what));
    }
    mover.weights.iter().for_each(Weight::zero_grad);
    let (mut loss_nats, mut balance_loss) = (0.0, None);
    for batch in batches.iter().filter(|batch| batch.target_tokens() > 0) {
        let span = profile::part("forward");
        let (mut loss, balance) =
            losses(model, teacher, batch, target_tokens as f32, mover.balance.is_some())?;
        loss_nats += f64::from(loss.to_scalar::<f32>()?);
        if let (Some(coefficient), Some(balance)) = (mover.balance, balance) {
            // The mean over the parts, as the other loss is one over their targets.
            let share = batch.target_tokens() as f64 / target_tokens as f64;
            *balance_loss.get_or_insert(0.0) += share * f64::from(balance.to_scalar::<f32>()?);
            loss = (loss + (balance * (coefficient * share))?)?;
        }
        drop(span);
        let _span = profile::part("backward");
        luthier_ops::weight::collect(mover.weights, &loss.backward()?)?;
    }
    let diverged = |what, value| Error::Diverged { step, what, value, kept: String::new() };
    if !loss_nats.is_finite() {
        return Err(diverged("loss", loss_nats));
    }
    let _span = profile::part("optimizer");
    let grad_norm = parameters::gradient_norm(mover.weights);
    if !grad_norm.is_finite() {
        return Err(diverged("gradient norm", grad_norm));
    }
    let scale = mover.gradient_clip.map_or(1.0, |clip| if grad_norm > clip { clip / grad_norm } else { 1.0 });
    match mover.masters {
        None => mover.optimizer.step(mover.weights, mover.lr, scale)?,
        Some(masters) => {
            masters.restore(mover.weights)?;
            mover.optimizer.step(mover.weights, mover.lr, scale)?;
            masters.round(mover.weights)?;
        }
    }
    Ok(StepReport { loss_nats, balance_loss, grad_norm, target_tokens })
}

/// Sum of the losses of a batch's scored positions over `normalizer`, on the tape.
pub fn batch_loss(
    model: &dyn Model,
    teacher: Option<&Teacher>,
    batch: &Batch,
    normalizer: f32,
) -> Result<Tensor> {
    Ok(losses(model, teacher, batch, normalizer, false)?.0)
}

/// The same, and with `balanced` how unevenly the model's experts were asked, where it has some.
fn losses(
    model: &dyn Model,
    teacher: Option<&Teacher>,
    batch: &Batch,
    normalizer: f32,
    balanced: bool,
) -> Result<(Tensor, Option<Tensor>)> {
    let scored: Vec<u32> =
        (0..batch.weights.len() as u32).filter(|&at| batch.weights[at as usize] > 0.0).collect();
    let teacher = teacher.map(|teacher| teacher.targets(batch, &scored)).transpose()?;
    let encoded = batch.encoder.as_ref().map(|tokens| model.encode(tokens)).transpose()?;
    let (states, balance) = match balanced {
        true => model.hidden_balanced(&batch.decoder, encoded.as_ref())?,
        false => (model.hidden(&batch.decoder, encoded.as_ref(), None)?, None),
    };
    let targets = Targets {
        ids: scored.iter().map(|&at| batch.targets[at as usize]).collect(),
        weights: vec![1.0; scored.len()],
        normalizer,
        teacher,
    };
    Ok((model.loss(&select_rows(&states, &scored)?, &targets)?, balance))
}
