//! Picks the shape for a number of parameters or of bytes: of the candidates that fit, the one that loses least by the
//! scores. No axis is cut further than trial cuts have measured (without them: 40% of a width, 20% of the depth) unless
//! nothing else fits.

use luthier_arch::sizes::ModelSizes;
use luthier_checkpoint::layout::Layout;
use serde::Serialize;

use super::choices::{Choice, Choices, shapes};
use super::costs::Costs;
use super::losses::Axis;
use super::scored::Scored;
use super::shape::{StackShape, Targets};
use crate::{Error, Result};

/// What the result may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Budget {
    /// Weights, each tied one counted once.
    Parameters(usize),
    /// Bytes of all weights in the types that are written.
    Memory(usize),
}

impl Budget {
    fn limit(self) -> usize {
        match self {
            Budget::Parameters(limit) | Budget::Memory(limit) => limit,
        }
    }
}

/// Sizes of candidates are multiples of these; none: the usual ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Divisors {
    pub hidden: Option<usize>,
    pub ffn: Option<usize>,
    pub layers: Option<usize>,
}

/// Candidates that are reported.
const REPORTED: usize = 10;

/// A shape that fits.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Candidate {
    /// Layers of each stack.
    pub layers: Vec<usize>,
    /// Width of the residual stream of each stack.
    pub hidden: Vec<usize>,
    /// Inner width of most feed-forward blocks of each stack.
    pub ffn: Vec<usize>,
    /// Query heads and key/value groups of most layers of each stack.
    pub heads: Vec<(usize, usize)>,
    /// Number of weights.
    pub parameters: usize,
    /// Bytes of all weights.
    pub size_bytes: usize,
    /// What it loses by the scores: 0 is nothing.
    pub loss: f64,
}

/// A shape that fits, and what it is made of.
pub(super) type Found = (Candidate, Vec<StackShape>);

/// What a search works on.
pub(super) struct Search<'s> {
    pub(super) layout: &'s Layout,
    pub(super) sizes: &'s ModelSizes,
    pub(super) scored: &'s Scored,
    /// The shape that options ask for already; axes that they name are not searched.
    pub(super) shapes: &'s [StackShape],
    pub(super) targets: &'s Targets,
    pub(super) budget: Budget,
    pub(super) divisors: Divisors,
    /// Bytes of a value of each tensor of the layout, as written.
    pub(super) value_bytes: &'s [f64],
}

impl Search<'_> {
    /// Candidates that fit, the best first, with their shapes; refuses where none does.
    pub(super) fn run(&self) -> Result<(Vec<Found>, Vec<String>)> {
        let mut notes = Vec::new();
        if Axis::ALL.iter().all(|axis| self.scored.trials(axis.name()).is_empty()) {
            notes.push(
                "what a cut costs is guessed from another model; luthier score --perplexity measures it on this one".to_string(),
            );
        }
        for careful in [true, false] {
            let mut found = self.candidates(careful)?;
            if !found.is_empty() {
                found.sort_by(|(a, _), (b, _)| {
                    a.loss.total_cmp(&b.loss).then(b.parameters.cmp(&a.parameters))
                });
                found.truncate(10 * REPORTED);
                return Ok((found, notes));
            }
            notes.push(
                "nothing fits within the cuts that were measured (without them: 40% of the widths, 20% of the depth); more was \
                 cut, which needs more retraining"
                    .to_string(),
            );
        }
        let (name, unit) = match self.budget {
            Budget::Parameters(_) => ("--params", "parameters"),
            Budget::Memory(_) => ("--memory", "bytes"),
        };
        let limit = self.budget.limit();
        Err(Error::Use(format!(
            "{name} {limit}: no shape of this model is that small in {unit}; the vocabulary alone takes its part, see luthier \
             trim-vocab"
        )))
    }

    /// Of every depth, width and number of heads the widest feed-forward blocks that fit: narrower ones lose no less.
    fn candidates(&self, careful: bool) -> Result<Vec<Found>> {
        let choices = Choices::new(self, careful)?;
        let mut found = Vec::new();
        for layers in &choices.layers {
            let costs = Costs::new(self, &layers.kept);
            for hidden in &choices.hidden {
                for heads in &choices.heads {
                    let sized = |ffn: &Choice<usize>| {
                        let shapes = shapes(self, layers, hidden, ffn, heads);
                        let (parameters, size_bytes) = costs.of(&shapes);
                        (shapes, parameters, size_bytes)
                    };
                    let is_too_large = |ffn: &Choice<usize>| {
                        let (_, parameters, size_bytes) = sized(ffn);
                        let cost = match self.budget {
                            Budget::Parameters(_) => parameters,
                            Budget::Memory(_) => size_bytes,
                        };
                        cost > self.budget.limit()
                    };
                    if let Some(ffn) = choices.ffn.get(choices.ffn.partition_point(is_too_large)) {
                        let (shapes, parameters, size_bytes) = sized(ffn);
                        let loss = layers.loss + hidden.loss + ffn.loss + heads.loss;
                        found.push((candidate(&shapes, parameters, size_bytes, loss), shapes));
                    }
                }
            }
        }
        Ok(found)
    }
}

/// The candidates to report.
pub(super) fn reported(found: &[Found]) -> Vec<Candidate> {
    found.iter().take(REPORTED).map(|(candidate, _)| candidate.clone()).collect()
}

fn candidate(shapes: &[StackShape], parameters: usize, size_bytes: usize, loss: f64) -> Candidate {
    let widest = |shape: &StackShape| shape.inner.iter().copied().flatten().max().unwrap_or(0);
    let most = |shape: &StackShape| {
        let sizes = shape.heads.iter().flatten().max_by_key(|heads| (heads.query, heads.kv));
        sizes.map_or((0, 0), |heads| (heads.query, heads.kv))
    };
    Candidate {
        layers: shapes.iter().map(|shape| shape.n_layers).collect(),
        hidden: shapes.iter().map(|shape| shape.width).collect(),
        ffn: shapes.iter().map(widest).collect(),
        heads: shapes.iter().map(most).collect(),
        parameters,
        size_bytes,
        loss,
    }
}
