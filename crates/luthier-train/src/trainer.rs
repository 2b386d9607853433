//! Everything that a run's next step depends on, and nothing else: model, optimizer, text, and how far it has come.

use luthier_arch::model::Model;
use luthier_checkpoint::byte_count::Bytes;
use luthier_ops::Weight;
use serde::{Deserialize, Serialize};

use crate::adapter::{self, Adapter};
use crate::identity;
use crate::masters::Masters;
use crate::memory::{MemoryPlan, StepSize};
use crate::objectives::Objective;
use crate::optimizers::{self, Optimizer};
use crate::parameters;
use crate::random::{Purpose, Random};
use crate::recipe::{ModelSource, Precision, Recipe};
use crate::schedules::{self, Schedule};
use crate::step::{Mover, StepReport, train_step};
use crate::teacher::Teacher;
use crate::validation::{Validation, Validator};
use crate::windows::{TokenStream, WindowOrder};
use crate::{Error, Result};

/// How far a run has come; with weights and optimizer, all that a resumed run needs. Every random draw is a function
/// of the recipe's seed and of these counters, so they are the state of the random numbers too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Steps done.
    pub step: u64,
    /// Windows read.
    pub sequences: u64,
    /// Tokens of text read.
    pub train_tokens: u64,
    /// Target tokens scored.
    pub target_tokens: u64,
}

/// A run in memory.
pub struct Trainer {
    model: Box<dyn Model>,
    teacher: Option<Teacher>,
    objective: Box<dyn Objective>,
    adapter: Option<Adapter>,
    weights: Vec<Weight>,
    masters: Option<Masters>,
    optimizer: Box<dyn Optimizer>,
    schedule: Box<dyn Schedule>,
    stream: TokenStream,
    order: WindowOrder,
    validator: Option<Validator>,
    sequence_length: usize,
    batch_size: usize,
    n_parts: usize,
    balance: Option<f64>,
    gradient_clip: Option<f64>,
    seed: u64,
    position: Position,
    memory: Option<MemoryPlan>,
}

/// The text of a run as tokens.
#[derive(Clone, Debug, Default)]
pub struct Texts {
    /// To train on.
    pub train: TokenStream,
    /// To validate on; empty for none.
    pub validation: TokenStream,
}

impl Trainer {
    /// A run at its beginning.
    pub fn new(
        recipe: &Recipe,
        mut model: Box<dyn Model>,
        objective: Box<dyn Objective>,
        teacher: Option<Teacher>,
        texts: Texts,
    ) -> Result<Trainer> {
        let sequence_length = recipe.sequence_length as usize;
        check_ids(&texts, model.vocab_size())?;
        if let Some(context_length) = model.context_length().filter(|&context| context < sequence_length) {
            let what = format!("is {sequence_length}, the model's positions reach {context_length}");
            return Err(Error::recipe("sequence_length", what));
        }
        if recipe.recompute_layers > model.n_layers() as u64 {
            let what = format!("is {}, the model has {}", recipe.recompute_layers, model.n_layers());
            return Err(Error::recipe("recompute_layers", what));
        }
        if recipe.router_aux_loss_coef.is_some() && !model.has_experts() {
            return Err(Error::recipe(
                "router_aux_loss_coef",
                "is for models with experts, this one has none",
            ));
        }
        let adapter = recipe.adapter.as_ref().map(|how| {
            let base = match &recipe.model {
                ModelSource::Place(place) => identity::place_name(place),
                ModelSource::Random(random) => identity::place_name(&random.config.to_string_lossy()),
            };
            Adapter::attach(model.as_ref(), &base, how, recipe.seed)
        });
        let adapter = adapter.transpose()?;
        let weights = adapter::trained(model.as_ref(), adapter.as_ref(), &recipe.freeze, &recipe.train_only)?;
        let optimizer = optimizers::of_recipe(recipe, &weights);
        let masters = match recipe.precision {
            Precision::F32 => None,
            Precision::Bf16 => {
                let frozen: Vec<Weight> =
                    model.weights().iter().filter(|weight| !weight.is_trainable()).cloned().collect();
                parameters::round_frozen(&frozen)?;
                Some(Masters::new(&weights)?)
            }
        };
        let n_parts = recipe.gradient_accumulation as usize;
        let batch_size = recipe.batch_size as usize;
        let tokens = (batch_size / n_parts).saturating_mul(sequence_length);
        luthier_arch::check_tokens(model.as_ref(), tokens)?;
        let size = StepSize {
            tokens: tokens as u64,
            parts: recipe.gradient_accumulation,
            has_teacher: teacher.is_some(),
        };
        let plan = |Bytes(budget)| MemoryPlan::new(model.as_ref(), &weights, size, budget);
        let memory = recipe.memory.map(plan).transpose()?;
        let recomputed = memory.map_or(recipe.recompute_layers as usize, |plan| plan.recomputed_layers);
        model.set_recomputed_layers(recomputed);
        let validator = Validator::new(
            &texts.validation,
            objective.as_ref(),
            sequence_length,
            recipe.validation_tokens,
            batch_size / n_parts,
            recipe.seed,
        );
        Ok(Trainer {
            order: WindowOrder::new(recipe.seed, texts.train.n_windows(sequence_length))?,
            schedule: schedules::of_recipe(recipe),
            stream: texts.train,
            balance: recipe.router_aux_loss_coef.or(model.balance_coefficient()),
            gradient_clip: recipe.gradient_clip,
            seed: recipe.seed,
            position: Position::default(),
            model,
            teacher,
            objective,
            adapter,
            weights,
            masters,
            optimizer,
            validator,
            sequence_length,
            batch_size,
            n_parts,
            memory,
        })
    }

    /// Trains one step further. After an error weights, optimizer and position are those before it.
    pub fn step(&mut self) -> Result<(StepReport, f64)> {
        let step = self.position.step + 1;
        let shared = Random::new(self.seed, Purpose::Step, step);
        let mut rows = Vec::with_capacity(self.batch_size);
        let mut train_tokens = 0;
        for sequence in self.position.sequences..self.position.sequences + self.batch_size as u64 {
            let window = self.stream.window(self.order.window_of(sequence), self.sequence_length);
            let mut own = Random::new(self.seed, Purpose::Sequence, sequence);
            train_tokens += window.ids.len() as u64;
            rows.push(self.objective.row(&window, &mut shared.clone(), &mut own));
        }
        let lr = self.schedule.lr(step);
        let mover = Mover {
            weights: &self.weights,
            optimizer: self.optimizer.as_mut(),
            masters: self.masters.as_mut(),
            lr,
            balance: self.balance,
            gradient_clip: self.gradient_clip,
        };
        let report =
            train_step(self.model.as_ref(), self.teacher.as_ref(), &rows, self.n_parts, step, mover)?;
        self.position.step = step;
        self.position.sequences += self.batch_size as u64;
        self.position.train_tokens += train_tokens;
        self.position.target_tokens += report.target_tokens;
        Ok((report, lr))
    }

    /// Loss on the validation text; none where there is none.
    pub fn validate(&self) -> Result<Option<Validation>> {
        self.validator.as_ref().map(|validator| validator.loss(self.model.as_ref())).transpose()
    }

    /// An error where a trained weight holds a value that is no number.
    pub fn check_finite(&self) -> Result<()> {
        for weight in &self.weights {
            let sum = parameters::view_values(weight, luthier_kernels::optimizer::sum_of_squares)?;
            if !sum.is_finite()
                && parameters::view_values(weight, |values| values.iter().any(|x| !x.is_finite()))?
            {
                let (step, kept) = (self.position.step, String::new());
                return Err(Error::Diverged { step, what: "a weight", value: f64::NAN, kept });
            }
        }
        Ok(())
    }

    /// How far the run has come.
    pub fn position(&self) -> Position {
        self.position
    }

    /// Epochs of the training text read so far.
    pub fn epochs(&self) -> f64 {
        self.order.epochs(self.position.sequences)
    }

    /// The model.
    pub fn model(&self) -> &dyn Model {
        self.model.as_ref()
    }

    /// How it keeps to its memory budget, where it has one.
    pub fn memory(&self) -> Option<MemoryPlan> {
        self.memory
    }

    /// The adapter that is trained, where it is not the model itself.
    pub fn adapter(&self) -> Option<&Adapter> {
        self.adapter.as_ref()
    }

    /// The weights that the run's files hold: the model's, or the adapter's.
    pub(crate) fn kept(&self) -> &[Weight] {
        self.adapter.as_ref().map_or(self.model.weights(), Adapter::weights)
    }

    /// The weights that are trained, in layout order.
    pub fn trained(&self) -> &[Weight] {
        &self.weights
    }

    /// The optimizer's state.
    pub fn optimizer(&self) -> &dyn Optimizer {
        self.optimizer.as_ref()
    }

    /// Runs `look` while every trained weight holds its f32 master instead of the bf16 value that the passes see.
    pub fn with_masters<T>(&mut self, look: impl FnOnce(&Trainer) -> Result<T>) -> Result<T> {
        if let Some(masters) = &self.masters {
            masters.restore(&self.weights)?;
        }
        let seen = look(self);
        if let Some(masters) = &mut self.masters {
            masters.round(&self.weights)?;
        }
        seen
    }

    /// Gives the optimizer of a run at its beginning a state that has seen so many steps; `fill` writes each of its vectors.
    pub(crate) fn begin_with(
        &mut self,
        steps: u64,
        mut fill: impl FnMut(&str, &mut [f32]) -> Result<()>,
    ) -> Result<()> {
        self.optimizer.restore(steps).into_iter().try_for_each(|(name, values)| fill(&name, values))
    }

    /// Puts the run where a checkpoint was, whose optimizer had taken `steps`: `fill_weights` writes the masters into the weights that are kept, `fill_state` each
    /// vector of the optimizer's state.
    pub fn restore(
        &mut self,
        position: Position,
        steps: u64,
        fill_weights: impl FnOnce(&[Weight]) -> Result<()>,
        mut fill_state: impl FnMut(&str, &mut [f32]) -> Result<()>,
    ) -> Result<()> {
        fill_weights(self.kept())?;
        if let Some(masters) = &mut self.masters {
            masters.round(&self.weights)?;
        }
        for (name, values) in self.optimizer.restore(steps) {
            fill_state(&name, values)?;
        }
        self.position = position;
        Ok(())
    }
}

fn check_ids(texts: &Texts, vocab_size: usize) -> Result<()> {
    for stream in [&texts.train, &texts.validation] {
        if let Some(id) = stream.ids().iter().find(|&&id| id as usize >= vocab_size) {
            let what = format!(
                "the tokenizer made token {id} of the text, the model's vocabulary has {vocab_size}; \
                 the tokenizer does not belong to this model"
            );
            return Err(Error::data(what));
        }
    }
    Ok(())
}
