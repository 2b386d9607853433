//! Feed-forward blocks of which each token goes through a few: `y = sum_j w_j down_j(act(gate_j(x)) * up_j(x))` over the
//! experts j that its routes name.
//!
//! Tokens are put together by expert, so that each expert multiplies its own tokens once and nothing else is computed.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::{Result, Shape, Tensor};
use luthier_kernels::activation::{gated as kernel, gated_backward};
use luthier_kernels::buffer::unfilled;
use luthier_kernels::embedding::gather;
use luthier_kernels::{pool, rows};

use crate::Weight;
use crate::activation::{Activation, gated};
use crate::linear::{add_outer, linear, multiply, multiply_transposed, on_cpu};
use crate::router::Routes;
use crate::tape::{self, Fused, Pass};

// n tokens, k experts a token, r tokens of one expert, m model width, f inner width

/// One gated block.
#[derive(Clone, Debug)]
pub struct Expert {
    /// `[f, m]`.
    pub gate: Weight,
    /// `[f, m]`.
    pub up: Weight,
    /// `[m, f]`.
    pub down: Weight,
}

/// x: [n, m], weights: [n, k] -> [n, m].
pub fn experts(
    x: &Tensor,
    weights: &Tensor,
    routes: &Routes,
    experts: &Arc<Vec<Expert>>,
    activation: Activation,
) -> Result<Tensor> {
    let (n, m) = x.dims2()?;
    if weights.dims() != [n, routes.top_k] || routes.chosen.len() != n * routes.top_k {
        candle_core::bail!(
            "experts: {n} tokens, weights {:?}, {} routes",
            weights.dims(),
            routes.chosen.len()
        );
    }
    if routes.experts != experts.len() {
        candle_core::bail!("experts: routes lead to {} experts, there are {}", routes.experts, experts.len());
    }
    for expert in experts.iter() {
        let f = expert.gate.shape()[0];
        let shapes = [expert.gate.shape(), expert.up.shape(), expert.down.shape()];
        if shapes != [&[f, m][..], &[f, m], &[m, f]] {
            candle_core::bail!("{}: experts of width {m} cannot have shapes {shapes:?}", expert.gate.name());
        }
    }
    let all = experts.iter().flat_map(|expert| [&expert.gate, &expert.up, &expert.down]);
    if !tape::is_fused(&[x, weights]) || !all.into_iter().all(on_cpu) {
        return reference(x, weights, routes, experts, activation);
    }
    let op = Experts {
        experts: Arc::clone(experts),
        groups: Groups::new(routes),
        activation,
        shape: (n, m).into(),
        keeps: tape::is_recording(),
        kept: Mutex::new(None),
    };
    tape::apply(op, &[x, weights])
}

fn reference(
    x: &Tensor,
    weights: &Tensor,
    routes: &Routes,
    experts: &[Expert],
    activation: Activation,
) -> Result<Tensor> {
    let groups = Groups::new(routes);
    let flat = weights.flatten_all()?;
    let mut y = x.zeros_like()?;
    for (expert, slots) in experts.iter().zip(&groups.slots).filter(|(_, slots)| !slots.is_empty()) {
        let ids = |ids: Vec<u32>| Tensor::from_vec(ids, slots.len(), x.device());
        let tokens = ids(groups.tokens(slots))?;
        let own = x.index_select(&tokens, 0)?;
        let gate = linear(&own, &expert.gate, None)?;
        let inner = gated(&gate, &linear(&own, &expert.up, None)?, activation)?;
        let weight = flat.index_select(&ids(slots.clone())?, 0)?.unsqueeze(1)?;
        let out = linear(&inner, &expert.down, None)?.broadcast_mul(&weight)?;
        y = y.index_add(&tokens, &out, 0)?;
    }
    Ok(y)
}

/// Choices by expert. A slot is the number of one choice: token * k + rank.
struct Groups {
    /// Of each expert, in order of tokens.
    slots: Vec<Vec<u32>>,
    /// Of each slot: its expert, and its row there.
    places: Vec<(u32, u32)>,
    top_k: usize,
}

impl Groups {
    fn new(routes: &Routes) -> Groups {
        let mut slots = vec![Vec::new(); routes.experts];
        let mut places = Vec::with_capacity(routes.chosen.len());
        for (slot, expert) in routes.chosen.iter().enumerate() {
            let own: &mut Vec<u32> = &mut slots[*expert as usize];
            places.push((*expert, own.len() as u32));
            own.push(slot as u32);
        }
        Groups { slots, places, top_k: routes.top_k }
    }

    fn tokens(&self, slots: &[u32]) -> Vec<u32> {
        slots.iter().map(|slot| slot / self.top_k as u32).collect()
    }

    /// y[token] = sum over its slots of `factor(slot)` times that slot's row; `of_experts`: each [r, m].
    fn combine(
        &self,
        of_experts: &[Vec<f32>],
        m: usize,
        factor: impl Fn(usize) -> f32 + Sync,
        y: &mut [f32],
    ) {
        let tokens_a_task = (TASK_VALUES / m.max(1)).max(1);
        pool::run_chunks(y, tokens_a_task * m, &|task, part| {
            for (at, y) in part.chunks_exact_mut(m).enumerate() {
                let token = task * tokens_a_task + at;
                y.fill(0.0);
                for slot in token * self.top_k..(token + 1) * self.top_k {
                    let (expert, row) = self.places[slot];
                    let out = &of_experts[expert as usize][row as usize * m..][..m];
                    let factor = factor(slot);
                    y.iter_mut().zip(out).for_each(|(y, out)| *y += factor * out);
                }
            }
        });
    }
}

/// Values that make a task of putting tokens together.
const TASK_VALUES: usize = 1 << 13;
/// Multiplications of one product up to which experts run side by side, one thread each.
const SMALL: usize = 1 << 21;

/// What the gate and the up projection of one expert made, [r, f] each.
type GateAndUp = (Vec<f32>, Vec<f32>);

struct Experts {
    experts: Arc<Vec<Expert>>,
    groups: Groups,
    activation: Activation,
    shape: Shape,
    keeps: bool,
    /// Of each expert what its gate and its up projection made, [r, f], until the backward pass takes it.
    kept: Mutex<Option<Vec<GateAndUp>>>,
}

impl Experts {
    fn width(&self) -> usize {
        self.shape.dims()[1]
    }

    /// `work` for every expert, in order. Large products share their work out among threads; of small ones each expert
    /// has a thread to itself.
    fn each<T: Send>(&self, work: impl Fn(usize) -> Result<T> + Sync) -> Result<Vec<T>> {
        let mut results: Vec<Option<Result<T>>> = Vec::new();
        results.resize_with(self.experts.len(), || None);
        let active = self.groups.slots.iter().filter(|slots| !slots.is_empty()).count();
        let multiplications = self.groups.places.len() * self.experts[0].gate.elem_count();
        if active > 1 && multiplications / active <= SMALL {
            pool::run_chunks(&mut results, 1, &|at, result| result[0] = Some(work(at)));
        } else {
            results.iter_mut().enumerate().for_each(|(at, result)| *result = Some(work(at)));
        }
        results.into_iter().map(|result| result.expect("every expert ran")).collect()
    }

    /// Rows of a [n, m] matrix, those of one expert's tokens: [r, m].
    fn gathered(&self, x: &[f32], expert: usize) -> Vec<f32> {
        let tokens = self.groups.tokens(&self.groups.slots[expert]);
        let mut own = unfilled(tokens.len() * self.width());
        gather(x, &tokens, 1.0, &mut own);
        own
    }

    /// What the projections of one expert make of its tokens, [r, f] each.
    fn projected(&self, own: &[f32], expert: usize) -> Result<(Vec<f32>, Vec<f32>)> {
        let Expert { gate, up, .. } = &self.experts[expert];
        let len = self.groups.slots[expert].len() * gate.shape()[0];
        let (mut gates, mut ups) = (unfilled(len), unfilled(len));
        multiply(own, gate, &mut gates)?;
        multiply(own, up, &mut ups)?;
        Ok((gates, ups))
    }

    fn inner(&self, gates: &[f32], ups: &[f32]) -> Vec<f32> {
        let mut inner = unfilled(gates.len());
        kernel(gates, ups, self.activation.into(), &mut inner);
        inner
    }

    /// The gradients of one expert: of its tokens [r, m] where `wants_x`, and of its slots' weights [r].
    fn back(
        &self,
        expert: usize,
        kept: Option<&(Vec<f32>, Vec<f32>)>,
        pass: &Pass,
        wants_x: bool,
    ) -> Result<(Vec<f32>, Vec<f32>)> {
        let Expert { gate, up, down } = &self.experts[expert];
        let slots = &self.groups.slots[expert];
        if slots.is_empty() {
            return Ok((Vec::new(), Vec::new()));
        }
        let (m, f) = (self.width(), gate.shape()[0]);
        let (x, weights) = (pass.inputs[0], pass.inputs[1]);
        let own = self.gathered(x, expert);
        let again;
        let (gates, ups) = match kept {
            Some((gates, ups)) => (gates, ups),
            None => {
                again = self.projected(&own, expert)?;
                (&again.0, &again.1)
            }
        };
        let inner = self.inner(gates, ups);
        let mut dout = self.gathered(pass.grad, expert);
        let mut dinner = unfilled(inner.len());
        multiply_transposed(&dout, down, &mut dinner)?;
        let mut dweights = Vec::with_capacity(slots.len());
        for (row, slot) in slots.iter().enumerate() {
            let (dinner, dout) = (&mut dinner[row * f..][..f], &mut dout[row * m..][..m]);
            let weight = weights[*slot as usize];
            dweights.push(inner[row * f..][..f].iter().zip(dinner.iter()).map(|(a, b)| a * b).sum());
            dinner.iter_mut().for_each(|value| *value *= weight);
            dout.iter_mut().for_each(|value| *value *= weight);
        }
        if down.is_trainable() {
            add_outer(down, &dout, &inner);
        }
        let (mut dgates, mut dups) = (unfilled(inner.len()), inner);
        gated_backward(gates, ups, self.activation.into(), &dinner, &mut dgates, &mut dups);
        for (weight, grad) in [(gate, &dgates), (up, &dups)] {
            if weight.is_trainable() {
                add_outer(weight, grad, &own);
            }
        }
        if !wants_x {
            return Ok((Vec::new(), dweights));
        }
        let (mut dx, mut through_up) = (own, dout);
        multiply_transposed(&dgates, gate, &mut dx)?;
        multiply_transposed(&dups, up, &mut through_up)?;
        rows::add_scaled(&mut dx, &through_up, 1.0);
        Ok((dx, dweights))
    }
}

impl Fused for Experts {
    fn name(&self) -> &'static str {
        "experts"
    }

    fn trains_weights(&self) -> bool {
        let all = |expert: &Expert| [&expert.gate, &expert.up, &expert.down].map(Weight::is_trainable);
        self.experts.iter().any(|expert| all(expert).contains(&true))
    }

    fn forward(&self, inputs: &[&[f32]]) -> Result<(Vec<f32>, Shape)> {
        let (x, weights, m) = (inputs[0], inputs[1], self.width());
        let run = |expert: usize| {
            let slots = &self.groups.slots[expert];
            if slots.is_empty() {
                return Ok((Vec::new(), (Vec::new(), Vec::new())));
            }
            let (gates, ups) = self.projected(&self.gathered(x, expert), expert)?;
            let mut out = unfilled(slots.len() * m);
            multiply(&self.inner(&gates, &ups), &self.experts[expert].down, &mut out)?;
            Ok((out, if self.keeps { (gates, ups) } else { (Vec::new(), Vec::new()) }))
        };
        let (outs, kept): (Vec<_>, Vec<_>) = self.each(run)?.into_iter().unzip();
        if self.keeps {
            *self.kept.lock().unwrap_or_else(PoisonError::into_inner) = Some(kept);
        }
        let mut y = unfilled(x.len());
        self.groups.combine(&outs, m, |slot| weights[slot], &mut y);
        Ok((y, self.shape.clone()))
    }

    fn backward(&self, pass: Pass) -> Result<Vec<Option<Vec<f32>>>> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner).take();
        let back = |expert: usize| {
            self.back(expert, kept.as_ref().map(|kept| &kept[expert]), &pass, pass.tracked[0])
        };
        let (of_tokens, of_slots): (Vec<_>, Vec<_>) = self.each(back)?.into_iter().unzip();
        let dx = pass.tracked[0].then(|| {
            let mut dx = unfilled(pass.inputs[0].len());
            self.groups.combine(&of_tokens, self.width(), |_| 1.0, &mut dx);
            dx
        });
        let places = self.groups.places.iter();
        let dweights = pass.tracked[1]
            .then(|| places.map(|(expert, row)| of_slots[*expert as usize][*row as usize]).collect());
        Ok(vec![dx, dweights])
    }
}
