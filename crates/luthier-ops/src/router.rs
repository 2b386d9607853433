//! Which experts each token goes to, how much each of them counts, and the loss that keeps experts evenly busy.
//!
//! Sparsely gated experts (arXiv:1701.06538) as Mixtral (arXiv:2401.04088) and Qwen's models route them: a softmax over all
//! experts, the largest k of it, divided by their sum where the model says so.

use std::sync::Arc;

use candle_core::{Device, Result, Shape, Tensor};

use crate::tape::{self, Fused, Pass};

// n tokens, e experts, k experts a token

/// The experts of every token.
#[derive(Clone, Debug)]
pub struct Routes {
    /// `[n * k]`, the likeliest first.
    pub chosen: Arc<Vec<u32>>,
    /// k.
    pub top_k: usize,
    /// e.
    pub experts: usize,
}

/// logits: [n, e] -> routes, and the weight of each choice [n, k]: its probability among all experts, or with
/// `normalized` among the chosen ones.
pub fn route(logits: &Tensor, top_k: usize, normalized: bool) -> Result<(Tensor, Routes)> {
    let (n, e) = logits.dims2()?;
    if top_k == 0 || top_k > e {
        candle_core::bail!("router: {top_k} of {e} experts cannot be chosen")
    }
    let chosen = Arc::new(largest(logits, top_k)?);
    let routes = Routes { chosen: Arc::clone(&chosen), top_k, experts: e };
    let weights = if tape::is_fused(&[logits]) {
        tape::apply(Route { chosen, top_k, experts: e, normalized, shape: (n, top_k).into() }, &[logits])?
    } else {
        reference(logits, &routes, normalized)?
    };
    Ok((weights, routes))
}

fn reference(logits: &Tensor, routes: &Routes, normalized: bool) -> Result<Tensor> {
    let shape = (logits.dim(0)?, routes.top_k);
    let ids = Tensor::from_slice(&routes.chosen, shape, logits.device())?;
    let weights = softmax(logits)?.gather(&ids, 1)?;
    if normalized { weights.broadcast_div(&weights.sum_keepdim(1)?) } else { Ok(weights) }
}

/// The largest `top_k` of each row, `[n * k]`; of equals the first.
fn largest(logits: &Tensor, top_k: usize) -> Result<Vec<u32>> {
    let (n, e) = logits.dims2()?;
    let values = logits.detach().to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?;
    let mut chosen = Vec::with_capacity(n * top_k);
    let mut order: Vec<u32> = Vec::with_capacity(e);
    for row in values.chunks_exact(e) {
        order.clear();
        order.extend(0..e as u32);
        let larger = |a: &u32, b: &u32| row[*b as usize].total_cmp(&row[*a as usize]).then(a.cmp(b));
        if top_k < e {
            order.select_nth_unstable_by(top_k - 1, larger);
        }
        order[..top_k].sort_unstable_by(larger);
        chosen.extend_from_slice(&order[..top_k]);
    }
    Ok(chosen)
}

/// Over the last axis.
fn softmax(logits: &Tensor) -> Result<Tensor> {
    let shifted = logits.broadcast_sub(&logits.max_keepdim(1)?.detach())?.exp()?;
    shifted.broadcast_div(&shifted.sum_keepdim(1)?)
}

/// e sum_i f_i P_i over the tokens of all layers together (equations 4 to 6 of arXiv:2101.03961): f_i is how often expert
/// i was chosen a token, P_i its mean probability. Gradients flow through P alone.
///
/// `logits`: [n, e] of each layer; `counted`: which of the n tokens count, all where there is none. -> scalar.
pub fn load_balance(logits: &[Tensor], top_k: usize, counted: Option<&[bool]>) -> Result<Tensor> {
    let Some(first) = logits.first() else { candle_core::bail!("load balance: no layer has a router") };
    let (n, e) = first.dims2()?;
    if counted.is_some_and(|counted| counted.len() != n) {
        candle_core::bail!("load balance: {n} tokens, but it is said of others whether they count")
    }
    let counts = |token: usize| counted.is_none_or(|counted| counted[token]);
    let mask = match counted {
        Some(counted) => {
            let mask: Vec<f32> = counted.iter().map(|counts| f32::from(u8::from(*counts))).collect();
            Some(Tensor::from_vec(mask, (n, 1), first.device())?)
        }
        None => None,
    };
    let mut frequencies = vec![0f32; e];
    let mut probabilities: Option<Tensor> = None;
    for layer in logits {
        for (at, expert) in largest(layer, top_k)?.into_iter().enumerate() {
            frequencies[expert as usize] += if counts(at / top_k) { 1.0 } else { 0.0 };
        }
        let of_tokens = softmax(layer)?;
        let of_tokens = mask.as_ref().map_or(Ok(of_tokens.clone()), |mask| of_tokens.broadcast_mul(mask))?;
        let of_layer = of_tokens.sum(0)?;
        probabilities = Some(match probabilities {
            Some(sum) => (sum + of_layer)?,
            None => of_layer,
        });
    }
    let total = (0..n).filter(|token| counts(*token)).count() * logits.len();
    let total = total.max(1) as f32;
    frequencies.iter_mut().for_each(|frequency| *frequency *= e as f32 / (total * total));
    let frequencies = Tensor::from_vec(frequencies, e, first.device())?;
    probabilities.expect("there is a layer").mul(&frequencies)?.sum_all()
}

struct Route {
    chosen: Arc<Vec<u32>>,
    top_k: usize,
    experts: usize,
    normalized: bool,
    shape: Shape,
}

impl Fused for Route {
    fn name(&self) -> &'static str {
        "route"
    }

    fn forward(&self, inputs: &[&[f32]]) -> Result<(Vec<f32>, Shape)> {
        let mut weights = vec![0f32; self.chosen.len()];
        let rows = inputs[0].chunks_exact(self.experts);
        let choices = self.chosen.chunks_exact(self.top_k);
        for ((logits, chosen), weights) in rows.zip(choices).zip(weights.chunks_exact_mut(self.top_k)) {
            let largest = logits[chosen[0] as usize];
            let total: f32 = logits.iter().map(|logit| (logit - largest).exp()).sum();
            for (weight, expert) in weights.iter_mut().zip(chosen) {
                *weight = (logits[*expert as usize] - largest).exp() / total;
            }
            if self.normalized {
                let sum: f32 = weights.iter().sum();
                weights.iter_mut().for_each(|weight| *weight /= sum);
            }
        }
        Ok((weights, self.shape.clone()))
    }

    fn backward(&self, pass: Pass) -> Result<Vec<Option<Vec<f32>>>> {
        if !pass.tracked[0] {
            return Ok(vec![None]);
        }
        let mut dlogits = vec![0f32; pass.inputs[0].len()];
        let logits = pass.inputs[0].chunks_exact(self.experts);
        let choices = self.chosen.chunks_exact(self.top_k);
        let weights = pass.result.chunks_exact(self.top_k).zip(pass.grad.chunks_exact(self.top_k));
        let targets = dlogits.chunks_exact_mut(self.experts);
        for (((logits, chosen), (weights, dweights)), dlogits) in
            logits.zip(choices).zip(weights).zip(targets)
        {
            // A softmax over the chosen experts, or over all of them where only the chosen ones are asked.
            let mean: f32 = weights.iter().zip(dweights).map(|(weight, dweight)| weight * dweight).sum();
            if !self.normalized {
                let largest = logits[chosen[0] as usize];
                let total: f32 = logits.iter().map(|logit| (logit - largest).exp()).sum();
                for (dlogit, logit) in dlogits.iter_mut().zip(logits) {
                    *dlogit = -mean * (logit - largest).exp() / total;
                }
            }
            let own = if self.normalized { mean } else { 0.0 };
            for ((expert, weight), dweight) in chosen.iter().zip(weights).zip(dweights) {
                dlogits[*expert as usize] += weight * (dweight - own);
            }
        }
        Ok(vec![Some(dlogits)])
    }
}
