//! Which layers drop their activations, so that a run keeps to a memory budget (arXiv:1604.06174).
//!
//! Planned is the peak of the whole process: what it holds when the plan is made, gradients and the optimizer's moments, and a
//! step's activations, of as few layers as possible computed again in the backward pass. No value depends on the plan.

use luthier_arch::model::Model;
use luthier_ops::Weight;
use luthier_ops::weight::Values;
use serde::Serialize;

use crate::{Error, Result};

/// Bytes of an f32.
const F32: u64 = 4;
/// AdamW's moments and the gradient, of each trained value.
const TRAINED_VALUE: u64 = 3 * F32;
/// Chunks of logits, packed operands of products, tables, texts in work.
const WORK: u64 = 80 << 20;
/// Share of a step's memory that lies between what is asked for and what the allocator holds: one in this many.
const SLACK: u64 = 8;

/// What a step's passes are made of.
#[derive(Clone, Copy, Debug)]
pub struct StepSize {
    /// Tokens of one part of a step: rows times their length.
    pub tokens: u64,
    /// Parts that a step is computed in.
    pub parts: u64,
    /// Whether a teacher's distribution over the vocabulary stands beside.
    pub has_teacher: bool,
}

/// How a run keeps to its budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct MemoryPlan {
    /// What was given.
    pub budget_bytes: u64,
    /// The peak that is planned.
    pub planned_bytes: u64,
    /// Of it, what is held all the time: weights, gradients, moments, texts.
    pub held_bytes: u64,
    /// Layers, from the first on, that are computed again.
    pub recomputed_layers: usize,
    /// All layers.
    pub layers: usize,
}

impl MemoryPlan {
    /// The plan with the fewest layers computed again that keeps to the budget.
    ///
    /// # Errors
    /// Where none does: the message says what is needed.
    pub fn new(
        model: &dyn Model,
        trained: &[Weight],
        size: StepSize,
        budget_bytes: u64,
    ) -> Result<MemoryPlan> {
        luthier_kernels::process::give_back_freed_memory();
        let Some(resident) = luthier_kernels::process::resident_bytes() else {
            return Err(Error::data(
                "memory: this system does not say how much a process holds; leave it out",
            ));
        };
        let values: usize = trained.iter().map(Weight::elem_count).sum();
        // Pages of a mapped file come when they are read; those that are here already are counted twice, on the safe side.
        let mapped: usize = model.weights().iter().map(stored_bytes).sum();
        let held_bytes = resident + mapped as u64 + values as u64 * TRAINED_VALUE;
        let layers = model.kept_values().len();
        let planned = |recomputed: usize| held_bytes + step_bytes(model, trained, size, recomputed);
        let found = (0..=layers).find(|recomputed| planned(*recomputed) <= budget_bytes);
        let Some(recomputed_layers) = found else {
            let least = (0..=layers).map(planned).min().unwrap_or(held_bytes);
            let mib = |bytes: u64| bytes.div_ceil(1 << 20);
            return Err(Error::data(format!(
                "memory: wanted {least} bytes ({} MiB) at least, came {budget_bytes}; {} MiB of them are weights, gradients, \
                 moments and texts, the rest a part of {} tokens, all {layers} layers computed again; give more, or take fewer or \
                 shorter sequences or more parts of a step (gradient_accumulation)",
                mib(least),
                mib(held_bytes),
                size.tokens
            )));
        };
        let planned_bytes = planned(recomputed_layers);
        Ok(MemoryPlan { budget_bytes, planned_bytes, held_bytes, recomputed_layers, layers })
    }

    /// In words.
    pub fn text(&self) -> String {
        let mb = |bytes: u64| bytes as f64 / 1e6;
        format!(
            "memory: {:.1} MB planned of {:.1} MB, {} of {} layers are computed again",
            mb(self.planned_bytes),
            mb(self.budget_bytes),
            self.recomputed_layers,
            self.layers
        )
    }
}

/// Of a weight that stays as its file has it.
fn stored_bytes(weight: &Weight) -> usize {
    match weight.values() {
        Values::Stored(matrix) => matrix.bytes.len(),
        Values::Dense(_) | Values::Packed(_) => 0,
    }
}

/// What a step adds at its peak.
fn step_bytes(model: &dyn Model, trained: &[Weight], size: StepSize, recomputed: usize) -> u64 {
    let layers = model.kept_values();
    let (again, kept) = layers.split_at(recomputed);
    let width = layers.iter().map(|layer| layer.recomputed).max().unwrap_or(0);
    let most = |values: &mut dyn Iterator<Item = usize>| values.max().unwrap_or(0);
    let a_token = again.iter().map(|layer| layer.recomputed).sum::<usize>()
        + kept.iter().map(|layer| layer.whole).sum::<usize>()
        + most(&mut again.iter().map(|layer| layer.whole + 4 * layer.recomputed))
        + most(&mut layers.iter().map(|layer| layer.backward))
        // The last states, scored ones apart, and their gradients.
        + 5 * width;
    let vocabulary = model.vocab_size() as u64;
    let teacher = if size.has_teacher { 2 * size.tokens * vocabulary } else { 0 };
    // The head's gradient of a second part stands apart until it is added.
    let apart = match size.parts {
        1 => 0,
        _ => trained.iter().map(|weight| weight.elem_count() as u64).max().unwrap_or(0),
    };
    let bytes = F32 * (size.tokens * a_token as u64 + teacher + apart);
    bytes + bytes / SLACK + WORK
}
