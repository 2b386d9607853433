//! Validation loss: nats per target token over fixed windows, token-weighted, without a tape.

use luthier_arch::model::Model;

use crate::Result;
use crate::batch::{Batch, Row};
use crate::objectives::Objective;
use crate::random::{Purpose, Random};
use crate::step::batch_loss;
use crate::windows::TokenStream;

/// What a validation came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Validation {
    /// Mean over all target tokens.
    pub loss_nats: f64,
    /// Number of target tokens.
    pub target_tokens: u64,
}

/// The windows of a validation and how they are read.
pub struct Validator {
    rows: Vec<Row>,
    rows_a_pass: usize,
}

impl Validator {
    /// Whole windows from the beginning of the stream, as many as `max_tokens` reach, one at least. None where the
    /// stream has no window.
    pub fn new(
        stream: &TokenStream,
        objective: &dyn Objective,
        sequence_length: usize,
        max_tokens: u64,
        rows_a_pass: usize,
        seed: u64,
    ) -> Option<Validator> {
        let wanted = (max_tokens / sequence_length as u64).max(1);
        let n_windows = (stream.n_windows(sequence_length) as u64).min(wanted) as usize;
        let rows: Vec<Row> = (0..n_windows)
            .map(|index| {
                let mut sequence = Random::new(seed, Purpose::Validation, index as u64);
                objective.validation_row(&stream.window(index, sequence_length), &mut sequence)
            })
            .filter(|row| row.weights.iter().any(|&weight| weight > 0.0))
            .collect();
        (!rows.is_empty()).then_some(Validator { rows, rows_a_pass: rows_a_pass.max(1) })
    }

    /// The model's loss on them. The teacher has no part in it.
    pub fn loss(&self, model: &dyn Model) -> Result<Validation> {
        let (mut sum_nats, mut target_tokens) = (0.0, 0);
        for rows in self.rows.chunks(self.rows_a_pass) {
            let batch = Batch::stack(rows);
            let n_targets = batch.target_tokens();
            let loss = luthier_ops::without_tape(|| batch_loss(model, None, &batch, n_targets as f32))?;
            let mean = loss.to_scalar::<f32>()?;
            sum_nats += f64::from(mean) * n_targets as f64;
            target_tokens += n_targets;
        }
        Ok(Validation { loss_nats: sum_nats / target_tokens as f64, target_tokens })
    }
}
