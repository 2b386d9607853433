//! The feed-forward block with experts: a router sends each token through a few of many gated blocks, and through one that
//! all tokens share where there is one.
//!
//! Papers: arXiv:2401.04088 (Mixtral), arXiv:2401.06066 (shared experts). `sum_j w_j expert_j(x) + sigmoid(s x) shared(x)`.

use std::sync::Arc;

use luthier_checkpoint::layout::{Part, Space, TensorSpec};
use luthier_ops::activation::{Activation, gated};
use luthier_ops::experts::{Expert, experts};
use luthier_ops::linear::linear;
use luthier_ops::router::{Routes, route};
use luthier_ops::{DType, Result, Tensor, add};

use super::feed_forward::FeedForward;
use super::layer::LayerShape;
use super::linear::Linear;
use super::mlp::MlpShape;
use super::names::in_layer;
use super::stack::Site;
use crate::Error;
use crate::config::Keys;
use crate::observer::{Observer, Tap};
use crate::weights::WeightSet;

// b batch, t tokens, n = b t, m model width, f inner width, e experts, k experts a token

/// Routed experts of one layer.
pub const MAX_EXPERTS: usize = 1 << 12;

/// Sizes and rules of a block with experts.
#[derive(Clone, Debug)]
pub struct ExpertsShape {
    /// m.
    pub width: usize,
    /// f.
    pub inner: usize,
    /// e.
    pub count: usize,
    /// k.
    pub top_k: usize,
    /// Whether the weights of the chosen experts sum to 1.
    pub normalized: bool,
    /// Inner width of the expert that all tokens share.
    pub shared: Option<usize>,
    /// On the gates.
    pub activation: Activation,
    /// How much the loss that keeps experts evenly busy counts in training; none: not at all.
    pub balance: Option<f64>,
    /// What its tensors are called.
    pub names: ExpertsNames,
}

/// The names of a block with experts.
#[derive(Clone, Copy, Debug)]
pub struct ExpertsNames {
    /// In front of everything.
    pub module: &'static str,
    /// Gate, up and down projection of a routed expert.
    pub projections: [&'static str; 3],
}

impl ExpertsNames {
    /// Mixtral's.
    pub const MIXTRAL: ExpertsNames =
        ExpertsNames { module: "layers.{i}.block_sparse_moe", projections: ["w1", "w3", "w2"] };
    /// Those of Qwen's models.
    pub const QWEN: ExpertsNames =
        ExpertsNames { module: "layers.{i}.mlp", projections: ["gate_proj", "up_proj", "down_proj"] };
}

const ROUTER: &str = "gate";
const SHARED: &str = "shared_expert";
const SHARED_PROJECTIONS: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];
const SHARED_ROUTER: &str = "shared_expert_gate";

impl ExpertsShape {
    /// The tensors of layer `layer`.
    pub fn specs(&self, site: &Site, layer: usize) -> Vec<TensorSpec> {
        let module = in_layer(self.names.module, layer);
        let matrix = |name: String, part: Part, output: (usize, Space), input: (usize, Space)| {
            site.spec(&format!("{module}.{name}.weight"), Some(layer), part, &[output, input])
        };
        let (m, f) = ((self.width, Space::Residual), (self.inner, Space::ExpertFfn));
        let mut specs = vec![matrix(ROUTER.to_string(), Part::Router, (self.count, Space::Experts), m)];
        let [gate, up, down] = self.names.projections;
        for expert in 0..self.count {
            let name = |projection: &str| format!("experts.{expert}.{projection}");
            specs.push(matrix(name(gate), Part::ExpertGate(expert), f, m));
            specs.push(matrix(name(up), Part::ExpertUp(expert), f, m));
            specs.push(matrix(name(down), Part::ExpertDown(expert), m, f));
        }
        if let Some(inner) = self.shared {
            let f = (inner, Space::SharedFfn);
            let [gate, up, down] = SHARED_PROJECTIONS.map(|projection| format!("{SHARED}.{projection}"));
            specs.push(matrix(gate, Part::SharedGate, f, m));
            specs.push(matrix(up, Part::SharedUp, f, m));
            specs.push(matrix(down, Part::SharedDown, m, f));
            specs.push(matrix(SHARED_ROUTER.to_string(), Part::SharedRouter, (1, Space::SharedExperts), m));
        }
        specs
    }

    /// The block of layer `layer`.
    pub fn build(&self, site: &Site, weights: &WeightSet, layer: usize) -> crate::Result<Experts> {
        let module = site.name(&in_layer(self.names.module, layer));
        let [gate, up, down] = self.names.projections;
        let expert = |number: usize| {
            let weight =
                |projection: &str| weights.get(&format!("{module}.experts.{number}.{projection}.weight"));
            Ok(Expert { gate: weight(gate)?, up: weight(up)?, down: weight(down)? })
        };
        let linear = |name: &str| Linear::build(weights, &format!("{module}.{name}"), false);
        let shared = match self.shared {
            Some(_) => {
                let block = FeedForward::of_projections(
                    weights,
                    &format!("{module}.{SHARED}"),
                    SHARED_PROJECTIONS,
                    self.activation,
                )?;
                Some((linear(SHARED_ROUTER)?, block))
            }
            None => None,
        };
        Ok(Experts {
            router: linear(ROUTER)?,
            experts: Arc::new((0..self.count).map(expert).collect::<crate::Result<_>>()?),
            shared,
            shape: self.clone(),
            tap: weights.tap().clone(),
        })
    }
}

/// A block with experts that runs.
pub struct Experts {
    router: Linear,
    experts: Arc<Vec<Expert>>,
    /// What decides how much the shared block counts, and that block.
    shared: Option<(Linear, FeedForward)>,
    shape: ExpertsShape,
    tap: Tap,
}

impl Experts {
    /// e.
    pub fn count(&self) -> usize {
        self.shape.count
    }

    /// x: [b, t, m] -> [b, t, m], and the router's logits [n, e].
    pub fn forward(&self, x_btm: &Tensor) -> Result<(Tensor, Tensor)> {
        let (b, t, m) = x_btm.dims3()?;
        let x_nm = x_btm.reshape((b * t, m))?;
        let logits_ne = self.router.forward(&x_nm)?;
        let (weights_nk, routes) = route(&logits_ne, self.shape.top_k, self.shape.normalized)?;
        self.tap.see(|observer| self.show(observer, &x_nm, &weights_nk, &routes, b))?;
        let mut y_nm = experts(&x_nm, &weights_nk, &routes, &self.experts, self.shape.activation)?;
        if let Some((router, block)) = &self.shared {
            let share_n1 = sigmoid(&router.forward(&x_nm)?)?;
            let shared_nm = block.forward(&x_nm)?.broadcast_mul(&share_n1)?;
            y_nm = add(&y_nm, &shared_nm)?;
        }
        Ok((y_nm.reshape((b, t, m))?, logits_ne))
    }
}

impl Experts {
    /// Shows what goes into the matrices of the experts, which compute together otherwise, and how much each counts.
    fn show(
        &self,
        observer: &dyn Observer,
        x_nm: &Tensor,
        weights_nk: &Tensor,
        routes: &Routes,
        rows: usize,
    ) -> Result<()> {
        let (n, e) = (x_nm.dim(0)?, routes.experts);
        let weights = weights_nk.detach().to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
        let mut shares = vec![0f32; n * e];
        let mut tokens: Vec<Vec<u32>> = vec![Vec::new(); e];
        for (at, (expert, weight)) in routes.chosen.iter().zip(weights).enumerate() {
            let (token, expert) = (at / routes.top_k, *expert as usize);
            shares[token * e + expert] = weight;
            tokens[expert].push(token as u32);
        }
        let shares_bte = Tensor::from_vec(shares, (rows, n / rows.max(1), e), x_nm.device())?;
        observer.shares(self.router.name(), &shares_bte)?;
        for (expert, tokens) in self.experts.iter().zip(tokens).filter(|(_, tokens)| !tokens.is_empty()) {
            let n_own = tokens.len();
            let own = x_nm.detach().index_select(&Tensor::from_vec(tokens, n_own, x_nm.device())?, 0)?;
            observer.matrix(expert.gate.name(), &own)?;
            observer.matrix(expert.up.name(), &own)?;
            let (gate, up) = (linear(&own, &expert.gate, None)?, linear(&own, &expert.up, None)?);
            observer.matrix(expert.down.name(), &gated(&gate, &up, self.shape.activation)?)?;
        }
        Ok(())
    }
}

/// Through tanh, whose gradient is a number everywhere.
fn sigmoid(x: &Tensor) -> Result<Tensor> {
    (x * 0.5)?.tanh()?.affine(0.5, 0.5)
}

/// How many experts, and how many of them for each token. The reference takes two keys for the former.
pub fn counts(
    keys: &Keys,
    [count_key, other_key]: [&'static str; 2],
    (count, top_k): (usize, usize),
) -> crate::Result<(usize, usize)> {
    const TOP_K: &str = "num_experts_per_tok";
    let said = keys.optional_size(count_key, MAX_EXPERTS)?;
    let other = keys.optional_size(other_key, MAX_EXPERTS)?;
    if let (Some(said), Some(other)) = (said, other)
        && said != other
    {
        let what = format!("{other}, but {count_key} is {said}; they mean the same, remove one of them");
        return Err(Error::config(keys.name(other_key), what));
    }
    let count = said.or(other).unwrap_or(count);
    let top_k = keys.size_or(TOP_K, MAX_EXPERTS, top_k)?;
    if top_k > count {
        let what = format!("{top_k}, but there are only {count} experts ({count_key})");
        return Err(Error::config(keys.name(TOP_K), what));
    }
    Ok((count, top_k))
}

/// How much the loss that keeps experts evenly busy counts: where the router's logits are asked for, as the reference
/// adds it.
pub fn balance(keys: &Keys) -> crate::Result<Option<f64>> {
    let coefficient = keys.number_or("router_aux_loss_coef", 0.001)?;
    Ok(keys.flag_or("output_router_logits", false)?.then_some(coefficient))
}

/// Whether each layer has experts: every `decoder_sparse_step`th, but those that `mlp_only_layers` lists.
pub fn sparse_layers(keys: &Keys, n_layers: usize) -> crate::Result<Vec<bool>> {
    let step = keys.size_or("decoder_sparse_step", crate::config::MAX_LAYERS, 1)?;
    let dense = keys.optional_counts("mlp_only_layers")?.unwrap_or_default();
    Ok((0..n_layers).map(|layer| (layer + 1) % step == 0 && !dense.contains(&layer)).collect())
}

/// Gives layers experts in place of their feed-forward block, those that `sparse` says. Refuses an inner width of its own
/// that `per_layer_config` gives such a layer: it would be that of a block which is not there.
pub fn put(
    keys: &Keys,
    layers: &mut [LayerShape],
    sparse: &[bool],
    experts: &ExpertsShape,
) -> crate::Result<()> {
    for (layer, own) in keys.layer_objects(layers.len())? {
        const INNER: &str = "intermediate_size";
        if sparse[layer] && own.map().contains_key(INNER) {
            let what =
                format!("layer {layer} has experts, and all experts of a model are of one width; remove it");
            return Err(Error::config(own.name(INNER), what));
        }
    }
    for (layer, _) in layers.iter_mut().zip(sparse).filter(|(_, sparse)| **sparse) {
        layer.feed_forward = MlpShape::Experts(experts.clone());
    }
    Ok(())
}
