//! What a run tells while it works; the program draws bars, lines or JSON of it. Nothing of it enters an output.

use std::path::Path;

use crate::memory::MemoryPlan;
use crate::recipe::Recipe;

/// A run begins, or goes on.
#[derive(Clone, Debug)]
pub struct Start<'a> {
    /// The recipe with everything filled in.
    pub recipe: &'a Recipe,
    /// Steps of the whole run.
    pub total_steps: u64,
    /// The checkpoint's step that it goes on from; 0 for a fresh run.
    pub resumed_at_step: u64,
    /// Values of all weights.
    pub parameters: usize,
    /// Values of the weights that are trained.
    pub trained_parameters: usize,
    /// Tokens of training text.
    pub text_tokens: usize,
    /// Documents of training text.
    pub text_documents: usize,
    /// Tokens of validation text.
    pub validation_tokens: usize,
    /// How it keeps to its memory budget, where it has one.
    pub memory: Option<MemoryPlan>,
}

/// One step is done.
#[derive(Clone, Copy, Debug)]
pub struct StepDone {
    /// The step, 1 being the first.
    pub step: u64,
    /// Steps of the whole run.
    pub total_steps: u64,
    /// Mean loss of the step's targets.
    pub loss_nats: f64,
    /// Learning rate of the step.
    pub lr: f64,
    /// Gradient norm before clipping.
    pub grad_norm: f64,
    /// Tokens of text a second, over the last steps.
    pub tokens_per_s: f64,
    /// Time left at that rate, in seconds.
    pub eta_s: f64,
}

/// Receives a run's events. Every method may be left as it is.
pub trait Progress {
    /// Once, before the first step.
    fn started(&mut self, _start: &Start) {}
    /// After each step.
    fn step_done(&mut self, _step: &StepDone) {}
    /// After each validation; step 0 is before the first.
    fn validated(&mut self, _step: u64, _loss_nats: f64) {}
    /// After each checkpoint.
    fn saved(&mut self, _step: u64, _place: &Path) {}
}

/// Says nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {}

/// Tokens a second over a sliding number of steps.
#[derive(Debug)]
pub(crate) struct Rate {
    begun: std::time::Instant,
    /// (seconds since `begun`, tokens so far), newest last.
    marks: std::collections::VecDeque<(f64, u64)>,
    tokens: u64,
}

/// Steps that a rate looks back.
const RATE_STEPS: usize = 20;

impl Rate {
    pub(crate) fn start() -> Rate {
        Rate { begun: std::time::Instant::now(), marks: [(0.0, 0)].into(), tokens: 0 }
    }

    /// Counts a step's tokens; gives tokens a second.
    pub(crate) fn step(&mut self, tokens: u64) -> f64 {
        self.tokens += tokens;
        let now_s = self.begun.elapsed().as_secs_f64();
        self.marks.push_back((now_s, self.tokens));
        if self.marks.len() > RATE_STEPS {
            self.marks.pop_front();
        }
        let (then_s, then_tokens) = self.marks[0];
        (self.tokens - then_tokens) as f64 / (now_s - then_s).max(1e-9)
    }
}
