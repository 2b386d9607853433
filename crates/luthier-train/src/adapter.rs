//! A LoRA adapter while it is trained: which weights of a model it stands beside, its first values, its files in PEFT's form.
//!
//! As PEFT begins one, A is uniform in +-1/sqrt(in) (Kaiming's with a = sqrt(5)) and B zero, so that the first step starts at the
//! model itself.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use luthier_arch::model::Model;
use luthier_checkpoint::adapter::{Adapter as AdapterFile, NewAdapter, PREFIX};
use luthier_checkpoint::layout::{Layout, Part, StackKind, TensorSpec};
use luthier_checkpoint::lineage::Parent;
use luthier_checkpoint::{Ledger, LedgerSummary, TensorInfo, TensorSource};
use luthier_ops::{Lora, Weight};
use serde_json::{Map, Value};

use crate::random::{Purpose, Random};
use crate::recipe::AdapterRecipe;
use crate::{Error, Result, parameters};

const TARGETS: &str = "adapter.targets";
const INITIAL: &str = "adapter.initial";

/// An adapter that is attached to a model.
pub struct Adapter {
    /// A and B of each module in layout order, under PEFT's names.
    weights: Vec<Weight>,
    /// By the path of the module: its rank.
    ranks: BTreeMap<String, usize>,
    alpha: f64,
    /// What the model is called.
    base: String,
    layout: Layout,
    initial: Option<Initial>,
}

impl Adapter {
    /// Puts an adapter beside the weights of a model called `base` that it targets, which are frozen with all others.
    pub fn attach(model: &dyn Model, base: &str, recipe: &AdapterRecipe, seed: u64) -> Result<Adapter> {
        recipe.check()?;
        let layout = luthier_arch::layout(model.config())?;
        let targets = targets(&layout, &recipe.targets)?;
        let initial = recipe.initial.as_deref().map(|place| Initial::open(place, recipe)).transpose()?;
        if let Some(initial) = &initial {
            initial.check_paths(&targets)?;
        }
        model.weights().iter().for_each(|weight| weight.set_trainable(false));
        let rank = recipe.rank as usize;
        let (mut weights, mut ranks) = (Vec::new(), BTreeMap::new());
        for (at, spec) in targets.iter().enumerate() {
            let weight = model.weights().iter().find(|weight| weight.name() == spec.name);
            let weight =
                weight.ok_or_else(|| Error::data(format!("the model has no weight {}", spec.name)))?;
            let (path, n, m) = (path(spec), spec.shape[0], spec.shape[1]);
            let (a, b) = match &initial {
                Some(initial) => initial.factors(path, [n, m])?,
                None => (drawn(seed, at as u64, rank * m, m), vec![0.0; n * rank]),
            };
            let factor = |what: &str, values: Vec<f32>, shape: [usize; 2]| -> Result<Weight> {
                let values = Tensor::from_vec(values, &shape, &Device::Cpu)?.to_device(model.device())?;
                Ok(Weight::dense(&format!("{PREFIX}{path}.{what}.weight"), &values, true)?)
            };
            let (down, up) = (factor("lora_A", a, [rank, m])?, factor("lora_B", b, [n, rank])?);
            weights.extend([down.clone(), up.clone()]);
            weight.adapt(Lora { down, up, scale: recipe.scale() as f32 })?;
            ranks.insert(path.to_string(), rank);
        }
        let base = base.to_string();
        Ok(Adapter { weights, ranks, alpha: recipe.alpha, base, layout, initial })
    }

    /// What is trained.
    pub fn weights(&self) -> &[Weight] {
        &self.weights
    }

    /// adapter_config.json.
    pub fn config(&self) -> Map<String, Value> {
        let has_encoder = self.layout.tensors.iter().any(|spec| spec.role.stack == StackKind::Encoder);
        let adapter = NewAdapter {
            base: &self.base,
            tensors: self.layout.tensors.iter().map(|spec| spec.name.as_str()).collect(),
            ranks: self.ranks.clone(),
            alpha: Some(self.alpha),
            saved: Vec::new(),
            biases: Vec::new(),
            fan_in_fan_out: false,
            keeps_ties: false,
            task_type: Some(if has_encoder { "SEQ_2_SEQ_LM" } else { "CAUSAL_LM" }),
        };
        adapter.config()
    }

    /// The adapter that training went on from, for the lineage.
    pub(crate) fn parent(&self) -> Result<Option<Parent>> {
        let parent = |initial: &Initial| Parent::of_place(&initial.label(), &initial.0.place);
        Ok(self.initial.as_ref().map(parent).transpose()?)
    }

    /// What becomes of the tensors of the model and of the adapter that training went on from; `infos` are those that are
    /// written.
    pub(crate) fn ledger(
        &self,
        tensors: Option<&dyn TensorSource>,
        infos: &[TensorInfo],
    ) -> Result<LedgerSummary> {
        let mut ledger = Ledger::new();
        if let Some(tensors) = tensors {
            let input = ledger.input(&self.base, tensors);
            for info in tensors.infos() {
                ledger.dropped(input, &info.name, "stays in the model, which the adapter stands beside")?;
            }
        }
        let Some(initial) = &self.initial else {
            self.weights
                .iter()
                .try_for_each(|weight| ledger.made(weight.name(), "begun as PEFT does and trained"))?;
            return Ok(ledger.finish(infos)?);
        };
        let input = ledger.input(&initial.label(), initial.0.tensors.as_ref());
        for (path, module) in &initial.0.modules {
            for (what, name) in [("lora_A", &module.a), ("lora_B", &module.b)] {
                ledger.changed(
                    &[(input, name.as_str())],
                    &format!("{PREFIX}{path}.{what}.weight"),
                    "trained",
                )?;
            }
        }
        for (name, why) in &initial.0.repeated {
            ledger.dropped(input, name, why)?;
        }
        Ok(ledger.finish(infos)?)
    }
}

/// The path of a weight's module.
fn path(spec: &TensorSpec) -> &str {
    spec.name.strip_suffix(".weight").unwrap_or(&spec.name)
}

/// A weight that goes through a linear map of its own: those of routed experts do not.
fn is_projection(spec: &TensorSpec) -> bool {
    matches!(
        spec.role.part,
        Part::SelfAttention(_) | Part::CrossAttention(_) | Part::Gate | Part::Up | Part::Down
    )
}

/// The weights that these names mean, or all projections.
fn targets<'l>(layout: &'l Layout, names: &[String]) -> Result<Vec<&'l TensorSpec>> {
    let projections: Vec<&TensorSpec> = layout.tensors.iter().filter(|spec| is_projection(spec)).collect();
    let means = |name: &String, spec: &TensorSpec| {
        path(spec).strip_suffix(name.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    let unknown = names.iter().find(|name| !projections.iter().any(|spec| means(name, spec)));
    if let Some(name) = unknown {
        let mut known: Vec<&str> =
            projections.iter().filter_map(|spec| path(spec).rsplit('.').next()).collect();
        known.sort_unstable();
        known.dedup();
        let what = format!("{name} names no projection of this model; it has {}", known.join(", "));
        return Err(Error::recipe(TARGETS, what));
    }
    let chosen: Vec<&TensorSpec> = projections
        .into_iter()
        .filter(|spec| names.is_empty() || names.iter().any(|name| means(name, spec)))
        .collect();
    if chosen.is_empty() {
        return Err(Error::recipe(TARGETS, "this model has no projection that an adapter can stand beside"));
    }
    Ok(chosen)
}

/// Uniform in +-1/sqrt(m).
fn drawn(seed: u64, module: u64, n_values: usize, m: usize) -> Vec<f32> {
    let mut random = Random::new(seed, Purpose::Adapter, module);
    let bound = (m as f64).sqrt().recip();
    (0..n_values).map(|_| ((2.0 * random.unit() - 1.0) * bound) as f32).collect()
}

/// The adapter that training goes on from.
struct Initial(AdapterFile);

impl Initial {
    fn open(place: &Path, recipe: &AdapterRecipe) -> Result<Initial> {
        let adapter = AdapterFile::open(place)?;
        let refuse = |what: String| Err(Error::recipe(INITIAL, format!("{}: {what}", place.display())));
        if adapter.config.fan_in_fan_out {
            return refuse("is that of a model whose weights are stored [in, out]".to_string());
        }
        if adapter.config.use_dora || !adapter.saved.is_empty() {
            return refuse(
                "holds more than pairs of matrices, which would be lost; fuse it first".to_string(),
            );
        }
        for (path, module) in &adapter.modules {
            if module.bias.is_some() {
                return refuse(format!("{path} has a bias, which would be lost; fuse it first"));
            }
            if module.rank as u64 != recipe.rank || module.scale as f32 != recipe.scale() as f32 {
                return refuse(format!(
                    "{path} has rank {} and counts {} times, the recipe says {} and {}",
                    module.rank,
                    module.scale,
                    recipe.rank,
                    recipe.scale()
                ));
            }
        }
        Ok(Initial(adapter))
    }

    /// What the lineage calls it.
    fn label(&self) -> String {
        crate::identity::place_name(&self.0.place.to_string_lossy())
    }

    /// Every module of either has to be one of the other.
    fn check_paths(&self, targets: &[&TensorSpec]) -> Result<()> {
        let place = self.0.place.display();
        if let Some(spec) = targets.iter().find(|spec| !self.0.modules.contains_key(path(spec))) {
            let what = format!("{place} has no pair for {}; name its modules in adapter.targets", path(spec));
            return Err(Error::recipe(INITIAL, what));
        }
        let is_target = |module: &str| targets.iter().any(|spec| path(spec) == module);
        if let Some(module) = self.0.modules.keys().find(|module| !is_target(module)) {
            let what = format!("{place} has a pair for {module}, which is no target here; it would be lost");
            return Err(Error::recipe(INITIAL, what));
        }
        Ok(())
    }

    /// A and B of a module whose weight is [n, m].
    fn factors(&self, path: &str, [n, m]: [usize; 2]) -> Result<(Vec<f32>, Vec<f32>)> {
        let factors = self.0.delta(path, &[n, m])?;
        let factors = factors.ok_or_else(|| Error::recipe(INITIAL, format!("has no pair for {path}")))?;
        Ok((factors.right, factors.left))
    }
}

/// The weights that a run trains: an adapter's, or those that `freeze` and `train_only` leave.
pub(crate) fn trained(
    model: &dyn Model,
    adapter: Option<&Adapter>,
    freeze: &[String],
    train_only: &[String],
) -> Result<Vec<Weight>> {
    match adapter {
        Some(adapter) => Ok(adapter.weights().to_vec()),
        None => parameters::choose(model.weights(), freeze, train_only),
    }
}
