//! The log of a run: one entry a step, in metrics.jsonl as it grows and in every checkpoint's trainer_state.json.
//!
//! Entries hold no clock time, so that a resumed run's log equals an undisturbed one's.

use serde::{Deserialize, Serialize};

/// One step's numbers; one line of metrics.jsonl.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// 1 is the first.
    pub step: u64,
    /// Epochs of the training text after the step.
    pub epoch: f64,
    /// Mean over the step's targets in nats, before the step moved the weights.
    pub loss: f64,
    /// How unevenly experts were asked (evenly: as many as a token goes through), where that counts in training.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub balance_loss: Option<f64>,
    /// Of the step.
    pub learning_rate: f64,
    /// Global norm before clipping.
    pub grad_norm: f64,
    /// Tokens of text read since the beginning.
    pub train_tokens: u64,
    /// Target tokens scored since the beginning.
    pub target_tokens: u64,
    /// After the step, in nats per target token, where it was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_loss_nats: Option<f64>,
}

impl Entry {
    /// The line, with its newline.
    pub fn line(&self) -> String {
        let mut line = serde_json::to_string(self).expect("an entry is plain data");
        line.push('\n');
        line
    }
}

/// All lines of a log.
pub fn lines(log: &[Entry]) -> String {
    log.iter().map(Entry::line).collect()
}
