//! Training steps on one fixed batch, timed: what `luthier bench --train` measures.

use std::time::Instant;

use luthier_arch::model::Model;
use luthier_checkpoint::byte_count::Bytes;
use luthier_ops::Weight;
use luthier_ops::profile::{Profile, record};
use serde::Serialize;

use crate::adapter::{self, Adapter};
use crate::batch::Row;
use crate::memory::{MemoryPlan, StepSize};
use crate::optimizers::adamw::{AdamW, Settings};
use crate::random::{Purpose, Random};
use crate::recipe::AdapterRecipe;
use crate::step::{Mover, train_step};
use crate::{Error, Result};

/// Steps before the clock counts.
pub const WARM_UP_STEPS: usize = 2;

/// Constant learning rate: small enough that a fixed batch's loss falls from the first step on.
const LR: f64 = 1e-4;

/// What timed training steps came to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepTimes {
    /// Of every step, warm-up included, before it moved the weights.
    pub losses: Vec<f64>,
    /// Median over the steps after the warm-up.
    pub step_ms: f64,
    /// Tokens of the batch over the median.
    pub train_tokens_per_s: f64,
    /// How it kept to its memory budget, where one was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryPlan>,
}

/// Trains every weight, or an adapter alone, with AdamW (betas 0.9 and 0.95, decay 0.1) in f32 for the warm-up and `n_steps`
/// steps on `batch` rows of `sequence_length` seeded random tokens. A decoder-only model predicts each next token of a row;
/// an encoder-decoder reads the first half of it and predicts the second. The model's weights must be trainable, beside an
/// adapter frozen. With a memory budget the process keeps to it by computing layers again.
pub fn bench_step(
    model: &mut dyn Model,
    adapter: Option<&AdapterRecipe>,
    budget: Option<Bytes>,
    batch: usize,
    sequence_length: usize,
    n_steps: usize,
) -> Result<StepTimes> {
    let mut trial = Trial::new(model, adapter, budget, [batch, sequence_length, n_steps])?;
    let (mut losses, mut times_ms) = (Vec::new(), Vec::new());
    for step in 0..WARM_UP_STEPS + n_steps {
        let begun = Instant::now();
        losses.push(trial.step()?);
        if step >= WARM_UP_STEPS {
            times_ms.push(begun.elapsed().as_secs_f64() * 1e3);
        }
    }
    let step_ms = median(times_ms);
    let train_tokens_per_s = (batch * sequence_length) as f64 / step_ms * 1e3;
    Ok(StepTimes { losses, step_ms, train_tokens_per_s, memory: trial.memory })
}

/// Where the time of such steps goes, after the warm-up.
pub fn profile_steps(
    model: &mut dyn Model,
    batch: usize,
    sequence_length: usize,
    n_steps: usize,
) -> Result<Profile> {
    let mut trial = Trial::new(model, None, None, [batch, sequence_length, n_steps])?;
    (0..WARM_UP_STEPS).try_for_each(|_| trial.step().map(drop))?;
    let (outcome, profile) = record(|| (0..n_steps).try_for_each(|_| trial.step().map(drop)));
    outcome.map(|()| profile)
}

/// Steps on one fixed batch.
struct Trial<'m> {
    model: &'m dyn Model,
    rows: Vec<Row>,
    weights: Vec<Weight>,
    optimizer: AdamW,
    memory: Option<MemoryPlan>,
    steps: u64,
}

impl Trial<'_> {
    fn new<'m>(
        model: &'m mut dyn Model,
        adapter: Option<&AdapterRecipe>,
        budget: Option<Bytes>,
        [batch, sequence_length, n_steps]: [usize; 3],
    ) -> Result<Trial<'m>> {
        if batch == 0 || sequence_length < 2 || n_steps == 0 {
            let what = format!(
                "a batch of {batch} rows of {sequence_length} tokens for {n_steps} steps trains nothing; \
                 give 1 row, 2 tokens and 1 step at least"
            );
            return Err(Error::data(what));
        }
        if let Some(context_length) = model.context_length().filter(|&context| context < sequence_length) {
            return Err(Error::data(format!(
                "{sequence_length} tokens do not fit the model's {context_length} positions"
            )));
        }
        luthier_arch::check_tokens(&*model, batch.saturating_mul(sequence_length))?;
        let rows = random_rows(&*model, batch, sequence_length);
        let adapter = adapter.map(|how| Adapter::attach(&*model, "", how, 0)).transpose()?;
        let weights = adapter::trained(&*model, adapter.as_ref(), &[], &[])?;
        let size = StepSize { tokens: (batch * sequence_length) as u64, parts: 1, has_teacher: false };
        let plan = |Bytes(budget)| MemoryPlan::new(&*model, &weights, size, budget);
        let memory = budget.map(plan).transpose()?;
        model.set_recomputed_layers(memory.map_or(0, |plan| plan.recomputed_layers));
        let settings = Settings { betas: [0.9, 0.95], weight_decay: 0.1, eps: 1e-8 };
        let optimizer = AdamW::new(settings, &weights);
        Ok(Trial { model, rows, weights, optimizer, memory, steps: 0 })
    }

    /// The loss before the step.
    fn step(&mut self) -> Result<f64> {
        self.steps += 1;
        let mover = Mover {
            weights: &self.weights,
            optimizer: &mut self.optimizer,
            masters: None,
            lr: LR,
            balance: self.model.balance_coefficient(),
            gradient_clip: None,
        };
        Ok(train_step(self.model, None, &self.rows, 1, self.steps, mover)?.loss_nats)
    }
}

fn random_rows(model: &dyn Model, batch: usize, sequence_length: usize) -> Vec<Row> {
    let mut random = Random::new(0, Purpose::Sequence, 0);
    let start = model.decoder_start_token().filter(|_| model.is_encoder_decoder());
    let n_tokens = sequence_length + usize::from(start.is_none());
    (0..batch)
        .map(|_| {
            let ids: Vec<u32> =
                (0..n_tokens).map(|_| random.below(model.vocab_size() as u64) as u32).collect();
            let mut row = Row::default();
            match start {
                None => ids.windows(2).for_each(|pair| row.push(pair[0], 0, pair[1], true)),
                Some(start) => {
                    let (input, target) = ids.split_at(n_tokens / 2);
                    input.iter().for_each(|&id| row.encoder.push(id, 0));
                    let inputs = [start].into_iter().chain(target.iter().copied());
                    inputs.zip(target).for_each(|(id, &target)| row.push(id, 0, target, true));
                }
            }
            row
        })
        .collect()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), 2.5);
    }
}
