//! The observer that sums activations while a model runs.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Tensor, TensorId};
use luthier_arch::Observer;
use luthier_arch::sizes::ModelSizes;
use luthier_checkpoint::layout::{Layout, Part, Role, Space, StackKind, TensorSpec};
use luthier_checkpoint::scores::Aggregation;

use super::Options;
use super::sums::{Units, add_shares, add_shifts, columns, cosines, norms, take_means_off};
use crate::Result;

// b windows, t tokens, n columns

/// Sums of everything that scores are made of.
pub(super) struct Watch {
    sequence: Aggregation,
    batch: Aggregation,
    roles: HashMap<String, (Role, Kind)>,
    /// Layers of each stack.
    layers: Vec<(StackKind, usize)>,
    seen: Mutex<Seen>,
}

/// What is summed at a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// What goes into a matrix.
    Inputs,
    /// The same, where it is the output of heads.
    Heads { heads: usize, kv_heads: usize },
    /// The same, where it is the inner state of a feed-forward block.
    Neurons,
    /// What a norm of the residual stream reads and gives.
    Channels,
}

#[derive(Default)]
struct Seen {
    units: BTreeMap<String, Units>,
    /// Sums of squares of each matrix's inputs.
    inputs: BTreeMap<String, Vec<f64>>,
    /// Sums of shares, and over how many tokens.
    energy: BTreeMap<String, (Vec<f64>, usize)>,
    /// Sums of shifts.
    shifts: BTreeMap<String, Vec<f64>>,
    /// The layer that each stack is in, and what went into it.
    current: HashMap<StackKind, (usize, Tensor)>,
    /// Sums of cosines, and over how many tokens.
    cosines: HashMap<(StackKind, usize), (f64, usize)>,
    /// The columns of the last input: several matrices read the same one.
    last: Option<(TensorId, Vec<f64>)>,
}

impl Watch {
    pub(super) fn new(layout: &Layout, sizes: &ModelSizes, options: &Options) -> Watch {
        let roles = layout.tensors.iter().map(|spec| (spec.name.clone(), (spec.role, kind(spec, sizes))));
        // No token may go through an expert.
        let experts = layout.tensors.iter().filter(|spec| spec.role.part.expert().is_some());
        let inputs = experts.map(|spec| (spec.name.clone(), vec![0.0; spec.shape[1]])).collect();
        Watch {
            sequence: options.sequence,
            batch: options.batch,
            roles: roles.collect(),
            layers: sizes.stacks.iter().map(|stack| (stack.kind, stack.layers.len())).collect(),
            seen: Mutex::new(Seen { inputs, ..Seen::default() }),
        }
    }

    /// The scores by name.
    pub(super) fn scores(&self) -> Result<BTreeMap<String, Vec<f32>>> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let mut scores: BTreeMap<String, Vec<f32>> =
            seen.units.iter().map(|(name, units)| (name.clone(), units.scores(self.batch))).collect();
        for (name, squares) in &seen.inputs {
            scores.insert(format!("inputs.{name}"), squares.iter().map(|sum| sum.sqrt() as f32).collect());
        }
        for (name, (shares, tokens)) in &seen.energy {
            let mean = |share: &f64| (share / *tokens as f64) as f32;
            scores.insert(format!("energy.{name}"), shares.iter().map(mean).collect());
            if let Some(shifts) = seen.shifts.get(name) {
                scores.insert(format!("shift.{name}"), shifts.iter().map(mean).collect());
            }
        }
        for (stack, n_layers) in &self.layers {
            let influence = |layer: usize| match seen.cosines.get(&(*stack, layer)) {
                // Rounding must not make it negative.
                Some((sum, tokens)) => (1.0 - sum / *tokens as f64).max(0.0) as f32,
                // A layer without a block changes nothing.
                None => 0.0,
            };
            scores.insert(
                format!("block_influence.{}", stack_name(*stack)),
                (0..*n_layers).map(influence).collect(),
            );
        }
        match scores.iter().find(|(_, scores)| scores.iter().any(|score| !score.is_finite())) {
            Some((name, _)) => {
                let what = format!(
                    "{name}: activations are NaN or infinite; the weights are damaged or out of range"
                );
                Err(luthier_arch::Error::Use(what).into())
            }
            None => Ok(scores),
        }
    }

    /// Notes what a stack's residual stream is when it enters a layer (none: when it leaves the last).
    fn enter(&self, seen: &mut Seen, role: Role, x: &Tensor) -> candle_core::Result<()> {
        let inside = seen.current.get(&role.stack).map(|(layer, _)| *layer);
        if inside.is_some() && inside == role.layer {
            return Ok(());
        }
        let before = seen.current.remove(&role.stack);
        // Layers are gone through in order: a smaller number begins the next pass.
        if let Some((layer, entered)) = before
            && role.layer.is_none_or(|next| next > layer)
        {
            let (_, n) = rows(x);
            let (entered, left) = (values(&entered)?, values(x)?);
            let sums = seen.cosines.entry((role.stack, layer)).or_default();
            sums.0 += cosines(&entered, &left, n);
            sums.1 += left.len() / n;
        }
        if let Some(layer) = role.layer {
            seen.current.insert(role.stack, (layer, x.clone()));
        }
        Ok(())
    }
}

/// As scores are named after stacks.
pub(super) fn stack_name(stack: StackKind) -> &'static str {
    match stack {
        StackKind::Decoder => "decoder",
        StackKind::Encoder => "encoder",
    }
}

fn kind(spec: &TensorSpec, sizes: &ModelSizes) -> Kind {
    let layer = spec.role.layer.and_then(|layer| sizes.stack(spec.role.stack)?.layers.get(layer));
    match (&spec.spaces[..], layer.and_then(|layer| layer.heads)) {
        ([Space::Residual], _) => Kind::Channels,
        ([_, Space::Ffn], _) => Kind::Neurons,
        ([_, Space::Heads], Some(heads)) => Kind::Heads { heads: heads.query, kv_heads: heads.kv },
        _ => Kind::Inputs,
    }
}

/// Tokens of a window and columns, t and n of [b, t, n] or [t, n].
fn rows(x: &Tensor) -> (usize, usize) {
    let dims = x.dims();
    let at = |from_end: usize| dims.len().checked_sub(from_end).map_or(1, |at| dims[at]);
    (at(2), at(1))
}

/// x: [b, t, n] -> `[b * t * n]`.
fn values(x: &Tensor) -> candle_core::Result<Vec<f32>> {
    x.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()
}

impl Observer for Watch {
    fn matrix(&self, weight: &str, x: &Tensor) -> candle_core::Result<()> {
        let Some((role, kind)) = self.roles.get(weight) else { return Ok(()) };
        let mut guard = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = &mut *guard;
        // Where no norm stands in front of a block, its first matrix sees the stream first.
        if seen.current.get(&role.stack).is_none_or(|(layer, _)| Some(*layer) != role.layer)
            && is_first(role.part)
        {
            self.enter(seen, *role, x)?;
        }
        let (t, n) = rows(x);
        if t == 0 {
            return Ok(());
        }
        if let Some((id, squares)) = seen.last.take()
            && id == x.id()
            && *kind == Kind::Inputs
        {
            add(seen.inputs.entry(weight.to_string()).or_insert_with(|| vec![0.0; n]), &squares);
            seen.last = Some((id, squares));
            return Ok(());
        }
        let x_values = values(x)?;
        let mut all = vec![0f64; n];
        for window in x_values.chunks_exact(t * n) {
            let (absolute, square) = columns(window, n);
            add(&mut all, &square);
            let (sequence, batch) = (self.sequence, self.batch);
            let mut note = |axis: &str, sums: Vec<(f64, f64)>| {
                let units = seen.units.entry(format!("{axis}.{weight}"));
                units.or_insert_with(|| Units::new(sums.len())).add(sums.into_iter(), t, sequence, batch);
            };
            match *kind {
                Kind::Heads { heads, kv_heads } => {
                    note("heads", norms(window, n, n / heads));
                    note("groups", norms(window, n, n / kv_heads));
                }
                Kind::Neurons => note("neurons", absolute.into_iter().zip(square).collect()),
                Kind::Inputs | Kind::Channels => {}
            }
        }
        add(seen.inputs.entry(weight.to_string()).or_insert_with(|| vec![0.0; n]), &all);
        seen.last = Some((x.id(), all));
        Ok(())
    }

    fn shares(&self, weight: &str, shares: &Tensor) -> candle_core::Result<()> {
        let (t, n) = rows(shares);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let units = seen.units.entry(format!("experts.{weight}")).or_insert_with(|| Units::new(n));
        for window in values(shares)?.chunks_exact((t * n).max(1)) {
            let (absolute, square) = columns(window, n);
            units.add(absolute.into_iter().zip(square), t, self.sequence, self.batch);
        }
        Ok(())
    }

    fn norm(&self, weight: &str, x: &Tensor, y: &Tensor) -> candle_core::Result<()> {
        let Some((role, Kind::Channels)) = self.roles.get(weight) else { return Ok(()) };
        let mut guard = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let seen = &mut *guard;
        if is_first(role.part) || role.part == Part::FinalNorm {
            self.enter(seen, *role, x)?;
        }
        let (t, n) = rows(x);
        if t == 0 {
            return Ok(());
        }
        if role.part == Part::FeedForwardSumNorm {
            // The layer ends behind this norm.
            self.enter(seen, Role { layer: None, ..*role }, y)?;
        }
        let energy = seen.energy.entry(weight.to_string()).or_insert_with(|| (vec![0.0; n], 0));
        let mut x_values = values(x)?;
        if role.part.centred_norm().is_some() {
            take_means_off(&mut x_values, n);
            add_shifts(&x_values, seen.shifts.entry(weight.to_string()).or_insert_with(|| vec![0.0; n]));
        }
        add_shares(&x_values, &mut energy.0);
        energy.1 += x_values.len() / n;
        let units = seen.units.entry(format!("channels.{weight}")).or_insert_with(|| Units::new(n));
        for window in values(y)?.chunks_exact(t * n) {
            let (absolute, square) = columns(window, n);
            units.add(absolute.into_iter().zip(square), t, self.sequence, self.batch);
        }
        Ok(())
    }
}

/// Whether a part may be the first of its layer to see the residual stream.
fn is_first(part: Part) -> bool {
    use luthier_checkpoint::layout::Projection::Query;
    matches!(
        part,
        Part::SelfAttentionNorm
            | Part::CrossAttentionNorm
            | Part::FeedForwardNorm
            | Part::SelfAttention(Query)
    )
}

fn add(sums: &mut [f64], more: &[f64]) {
    sums.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
}
