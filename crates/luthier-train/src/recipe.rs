//! The training recipe: one YAML file that says everything a run depends on.
//!
//! Scientific choices have no default; the few keys that may be left out say in their documentation what is taken
//! then, and the resolved value is printed and stored in the lineage.

mod adapter;
mod check;
mod model_source;
mod ul2;

use std::path::PathBuf;

use luthier_checkpoint::byte_count::Bytes;
use luthier_text::corpus::Source;
use serde::{Deserialize, Serialize};

pub use self::adapter::AdapterRecipe;
pub use self::model_source::{ModelSource, RandomModel};
pub use self::ul2::{DenoiserKind, DenoiserRecipe, Ul2Recipe};
use crate::Result;
use crate::count;

/// A training recipe.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// A MODEL to go on from, or `{config, tokenizer}` to start from random weights.
    pub model: ModelSource,
    /// The folder of the run, which becomes the trained MODEL.
    pub out: PathBuf,
    /// The text.
    pub data: DataRecipe,
    /// What is minimised.
    pub objective: ObjectiveName,
    /// How `objective: prefixlm` splits; left out: `prefix_fraction: [0.25, 0.75]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefixlm: Option<PrefixLmRecipe>,
    /// The mixture of `objective: ul2`; left out: the seven denoisers of the paper in equal shares, with mode tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ul2: Option<Ul2Recipe>,
    /// A MODEL whose distribution is learnt beside the text; left out: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teacher: Option<String>,
    /// How the teacher counts; left out, with a teacher: `teacher_share: 1.0, temperature: 1.0` (T5Gemma's choice).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distillation: Option<DistillationRecipe>,
    /// Tokens of one window of text.
    #[serde(deserialize_with = "count::required")]
    pub sequence_length: u64,
    /// Windows a step.
    #[serde(deserialize_with = "count::required")]
    pub batch_size: u64,
    /// Parts that a step's windows are computed in, one after the other; left out: 1.
    #[serde(default = "one", deserialize_with = "count::required")]
    pub gradient_accumulation: u64,
    /// Length of the run in steps; or `tokens`.
    #[serde(default, deserialize_with = "count::optional", skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// Length of the run in tokens of text, rounded up to whole steps; or `steps`.
    #[serde(default, deserialize_with = "count::optional", skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    /// How weights follow their gradients.
    pub optimizer: OptimizerRecipe,
    /// How the learning rate moves.
    pub schedule: ScheduleRecipe,
    /// Largest global norm of a step's gradient; left out: no clipping.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gradient_clip: Option<f64>,
    /// How much the loss that keeps experts evenly busy counts; left out: `router_aux_loss_coef` of config.json where
    /// its `output_router_logits` is true, else not at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub router_aux_loss_coef: Option<f64>,
    /// Precision of the weights; left out: f32.
    #[serde(default)]
    pub precision: Precision,
    /// Layers, from the first on, that are computed again in the backward pass to save memory; left out: 0.
    #[serde(default, deserialize_with = "count::required")]
    pub recompute_layers: u64,
    /// Peak memory of the process that a run keeps to, by computing as few layers as needed again (`2G`, `800MiB`, or bytes);
    /// left out: `recompute_layers` alone says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
    /// Trains a LoRA adapter beside the model, which stays as it is and is read as its file has it; `out` becomes the
    /// adapter. Left out: the model itself is trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<AdapterRecipe>,
    /// Patterns (`*` any run of characters) of weights that stay as they are; left out: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub freeze: Vec<String>,
    /// Patterns of the only weights that are trained; left out: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub train_only: Vec<String>,
    /// Steps between two validations; left out: only before the first and after the last step.
    #[serde(default, deserialize_with = "count::optional", skip_serializing_if = "Option::is_none")]
    pub validate_every_steps: Option<u64>,
    /// Tokens of validation text that a validation reads, whole windows from its beginning; left out: 16384.
    #[serde(default = "default_validation_tokens", deserialize_with = "count::required")]
    pub validation_tokens: u64,
    /// Steps between two checkpoints; left out: none before the end.
    #[serde(default, deserialize_with = "count::optional", skip_serializing_if = "Option::is_none")]
    pub checkpoint_every_steps: Option<u64>,
    /// The newest checkpoints that are kept; left out: all.
    #[serde(default, deserialize_with = "count::optional", skip_serializing_if = "Option::is_none")]
    pub keep_checkpoints: Option<u64>,
    /// Threads; left out: what `--threads` says.
    #[serde(default, deserialize_with = "count::optional", skip_serializing_if = "Option::is_none")]
    pub threads: Option<u64>,
    /// Seed of every random choice.
    #[serde(deserialize_with = "count::required")]
    pub seed: u64,
}

/// The text of a run. With neither `validation` nor `validation_fraction` nothing is validated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataRecipe {
    /// What to train on: text files (each one document, or one for each part between form feeds), `.jsonl` files (the
    /// `text` of each line), or `{file: x.tsv, column: 1, header: false}` (each row's field).
    pub train: Vec<Source>,
    /// What to validate on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub validation: Vec<Source>,
    /// Share of the training text that is held out instead, in (0, 1): whole documents, or where there are too few the
    /// end of each from a paragraph on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation_fraction: Option<f64>,
}

/// What is minimised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ObjectiveName {
    /// Each token from those before it.
    #[serde(rename = "next-token")]
    NextToken,
    /// The second part of a window from the first.
    PrefixLm,
    /// A mixture of span corruption and prefix.
    Ul2,
}

/// How a window is split in prefix and target.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrefixLmRecipe {
    /// Bounds of the prefix's share of a window, between which each step draws uniformly.
    pub prefix_fraction: [f64; 2],
}

/// How a teacher counts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DistillationRecipe {
    /// Share of the teacher's distribution in the target, in [0, 1]; the rest is the text's own token.
    pub teacher_share: f64,
    /// T: divides the teacher's and the student's logits in the teacher's part of the loss, which counts T^2 times
    /// (arXiv:1503.02531).
    #[serde(default = "unit")]
    pub temperature: f64,
}

/// An optimizer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OptimizerRecipe {
    /// Which.
    pub name: OptimizerName,
    /// The schedule's highest learning rate.
    pub lr_peak: f64,
    /// Decay rates of the first and second moment.
    pub betas: [f64; 2],
    /// Decoupled weight decay, on weights of two or more dimensions.
    pub weight_decay: f64,
    /// Added to the root of the second moment; left out: 1e-8.
    #[serde(default = "default_eps")]
    pub eps: f64,
    /// The moments to begin with, of a checkpoint (or of one that `luthier grow` made larger): `true` for those beside the
    /// model, or a folder or file; left out: zeros.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initial_state: Option<InitialState>,
}

/// Where an optimizer's first state lies.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "expected true, or the folder of a checkpoint")]
pub enum InitialState {
    /// Beside the model, or nowhere.
    Beside(bool),
    /// A checkpoint's folder, or its optimizer.safetensors.
    Place(PathBuf),
}

/// The optimizers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerName {
    /// Adam with decoupled weight decay.
    AdamW,
}

/// A learning-rate schedule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleRecipe {
    /// Which.
    pub name: ScheduleName,
    /// Steps of linear rise from 0; left out: 0.
    #[serde(default, deserialize_with = "count::required")]
    pub warmup_steps: u64,
    /// wsd: steps of fall at the end (needed); cosine: steps of fall after the warm-up (left out: all that remain).
    #[serde(default, deserialize_with = "count::optional", skip_serializing_if = "Option::is_none")]
    pub decay_steps: Option<u64>,
    /// wsd: the form of its fall; left out: sqrt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decay_shape: Option<DecayShape>,
    /// wsd and cosine: the learning rate at the end; left out: 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lr_min: Option<f64>,
}

/// The schedules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleName {
    /// Warm-up, stable, decay.
    Wsd,
    /// Warm-up, then half a cosine.
    Cosine,
    /// Warm-up, then flat.
    Constant,
}

/// The fall of a WSD schedule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DecayShape {
    /// 1 - sqrt(t), t the elapsed share of the fall.
    Sqrt,
    /// 1 - t.
    Linear,
}

/// How weights are held.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// f32 throughout.
    #[default]
    F32,
    /// The passes see bf16 weights, the optimizer their f32 masters; the trained model is written in bf16.
    Bf16,
}

impl Recipe {
    /// Looks at every value, alone and beside the others, and fills in what was left out.
    pub fn resolved(mut self) -> Result<Recipe> {
        self.check_data()?;
        self.check_lengths()?;
        self.check_out()?;
        self.check_adapter()?;
        self.check_optimizer()?;
        self.check_schedule()?;
        self.resolve_objective()?;
        self.optimizer.initial_state.take_if(|state| *state == InitialState::Beside(false));
        Ok(self)
    }

    /// Steps of the whole run.
    pub fn total_steps(&self) -> u64 {
        let tokens_a_step = self.batch_size.saturating_mul(self.sequence_length).max(1);
        self.steps.unwrap_or_else(|| self.tokens.unwrap_or(0).div_ceil(tokens_a_step))
    }
}

fn one() -> u64 {
    1
}

fn unit() -> f64 {
    1.0
}

fn default_eps() -> f64 {
    1e-8
}

fn default_validation_tokens() -> u64 {
    16_384
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn recipe(changes: &serde_json::Value) -> Recipe {
        let mut value = json!({
            "model": "builtin", "out": "o", "data": {"train": ["a"]}, "objective": "ul2", "sequence_length": 8,
            "batch_size": 4, "tokens": "1_000",
            "optimizer": {"name": "adamw", "lr_peak": 1e-3, "betas": [0.9, 0.95], "weight_decay": 0},
            "schedule": {"name": "cosine", "warmup_steps": 2}, "seed": 1,
        });
        for (key, change) in changes.as_object().into_iter().flatten() {
            value[key] = change.clone();
        }
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn tokens_become_whole_steps() {
        // 1000 tokens at 32 a step: 31.25, so 32 steps, of which the cosine takes all but the warm-up.
        let recipe = recipe(&json!({})).resolved().unwrap();
        assert_eq!((recipe.total_steps(), recipe.schedule.decay_steps), (32, Some(30)));
    }

    #[test]
    fn counts_are_whole_numbers() {
        let parse = |text: &str| {
            serde_json::from_value::<ScheduleRecipe>(json!({"name": "wsd", "warmup_steps": text}))
        };
        assert_eq!(parse("1_000").unwrap().warmup_steps, 1000);
        for bad in ["", "_1", "1__0", "-1", "1.5", "ten", "99999999999999999999"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_resolved_recipe_is_read_back_as_written(
            seed: u64, lr in 1e-6f64..1.0, decay in 0.0f64..1.0, clip in proptest::option::of(1e-3f64..10.0),
            parts in 1u64..3, share in 0.01f64..9.0, random_model: bool,
        ) {
            let model = if random_model { json!({"config": "c", "tokenizer": "t"}) } else { json!("hf:a/b") };
            let denoisers = json!([{"kind": "X", "mean_span": 3.5, "density": 0.3, "share": share}]);
            let mut recipe = recipe(&json!({
                "seed": seed, "gradient_accumulation": parts, "model": model, "gradient_clip": clip.unwrap_or(1.0),
                "ul2": {"denoisers": denoisers, "mode_tokens": false},
            }));
            (recipe.optimizer.lr_peak, recipe.optimizer.weight_decay, recipe.gradient_clip) = (lr, decay, clip);
            let resolved = recipe.resolved().unwrap();
            let text = serde_json::to_string(&resolved).unwrap();
            let back: Recipe = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(&back, &resolved);
            prop_assert_eq!(back.clone().resolved().unwrap(), back);
        }
    }
}
