//! A merge's recipe: mergekit 0.1.5's YAML, key by key.
//!
//! Format: mergekit's `config.py`. Unknown keys are refused, where mergekit ignores them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{Error, Result};

/// A set of parameters: a number, a list that is interpolated over the layers, or filters by tensor name.
pub type Parameters = Map<String, Value>;

/// A whole recipe. Exactly one of `models`, `slices` and `modules` is given.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// How tensors are merged: the name of a method.
    pub merge_method: String,
    /// Whole models.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub models: Option<Vec<Model>>,
    /// Ranges of layers, one after another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slices: Option<Vec<Slice>>,
    /// Models or slices of each part of a model (`encoder`, `decoder`; `default` where there is one).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modules: Option<BTreeMap<String, Module>>,
    /// The model that others are compared with, and that config and tokenizer come from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_model: Option<String>,
    /// The type of the result: float32, float16 or bfloat16; arithmetic is f32 in any case, so that mergekit's float64 is
    /// refused here and taken in `out_dtype`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<String>,
    /// The type of the result, where it is not `dtype`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub out_dtype: Option<String>,
    /// Whose tokenizer the result gets: base, union or a model; rows of embeddings are aligned by token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer_source: Option<String>,
    /// The same in mergekit's longer form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokenizer: Option<TokenizerChoice>,
    /// A chat template (Jinja) for the result, or auto: the one that most models have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat_template: Option<String>,
    /// Parameters of the method for all tensors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<Parameters>,
    /// What becomes of tensors that not all models have, such as heads: refuse (the default), base (those of the base are
    /// kept, of the first model without a base; others left out), keep (as the base, else the first model that has them) or
    /// drop. No key of mergekit's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unshared: Option<Unshared>,
}

/// What becomes of tensors that not all models have.
#[derive(Clone, Copy, Debug, Deserialize, Serialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Unshared {
    /// An error.
    Refuse,
    /// Copied from the base, else from the first model that has it.
    Keep,
    /// Copied from the base; left out where the base lacks it.
    Base,
    /// Left out.
    Drop,
}

/// One model and its parameters.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Its place.
    pub model: String,
    /// Its own parameters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<Parameters>,
}

/// Layers of the result that come from the same sources.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Slice {
    /// Where the layers come from; all ranges are of one length.
    pub sources: Vec<Source>,
    /// Another base for these layers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_model: Option<String>,
    /// Without meaning in mergekit 0.1.5 too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub residual_weight: Option<f64>,
    /// Parameters of these layers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<Parameters>,
}

/// A range of one model's layers.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// The model's place.
    pub model: String,
    /// First layer, and the one after the last.
    pub layer_range: [usize; 2],
    /// Its own parameters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<Parameters>,
}

/// One part of a model.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Module {
    /// Ranges of layers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slices: Option<Vec<Slice>>,
    /// Whole models.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub models: Option<Vec<Model>>,
    /// Parameters of this part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<Parameters>,
}

/// Whose tokenizer the result gets.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct TokenizerChoice {
    /// base, union or a model.
    #[serde(default = "union")]
    pub source: String,
    /// Embeddings of single tokens: `{source: MODEL | {kind: zero} | {kind: model_token, model, token | token_id}, force}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<Map<String, Value>>,
    /// Rows of the embedding are the first multiple of this that holds all tokens; without it padding rows are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pad_to_multiple_of: Option<usize>,
}

fn union() -> String {
    "union".to_string()
}

impl Recipe {
    /// Every model that the recipe names, each once: the base first, then in the order of the recipe, last one that brings
    /// nothing but its tokenizer.
    pub fn places(&self) -> Vec<String> {
        let mut places = self.merged_places();
        let choice = self.tokenizer.as_ref().map(|choice| choice.source.as_str());
        if let Some(source) = choice.or(self.tokenizer_source.as_deref())
            && !["base", "union"].contains(&source)
            && !places.iter().any(|place| place == source)
        {
            places.push(source.to_string());
        }
        places
    }

    /// base, union or a model, where the recipe names one. Refuses both of mergekit's keys at once.
    pub(crate) fn tokenizer_choice(&self) -> Result<Option<&str>> {
        match (&self.tokenizer, &self.tokenizer_source) {
            (Some(_), Some(_)) => {
                Err(Error::Use("wanted tokenizer_source or tokenizer, not both".to_string()))
            }
            (choice, source) => {
                Ok(choice.as_ref().map(|choice| choice.source.as_str()).or(source.as_deref()))
            }
        }
    }

    /// What is said of single tokens.
    pub(crate) fn token_entries(&self) -> Vec<(String, Value)> {
        let tokens = self.tokenizer.iter().flat_map(|choice| choice.tokens.iter().flatten());
        tokens.map(|(token, entry)| (token.clone(), entry.clone())).collect()
    }

    /// The models that are merged.
    pub(crate) fn merged_places(&self) -> Vec<String> {
        let mut places: Vec<String> = self.base_model.iter().cloned().collect();
        let of_models = |models: &Option<Vec<Model>>| -> Vec<String> {
            models.iter().flatten().map(|model| model.model.clone()).collect()
        };
        let of_slices = |slices: &Option<Vec<Slice>>| -> Vec<String> {
            let slices = slices.iter().flatten();
            slices
                .flat_map(|slice| {
                    slice.sources.iter().map(|source| &source.model).chain(slice.base_model.iter()).cloned()
                })
                .collect()
        };
        places.extend(of_models(&self.models));
        places.extend(of_slices(&self.slices));
        for module in self.modules.iter().flat_map(BTreeMap::values) {
            places.extend(of_models(&module.models));
            places.extend(of_slices(&module.slices));
        }
        let mut seen = std::collections::HashSet::new();
        places.retain(|place| seen.insert(place.clone()));
        places
    }

    /// All sets of parameters, and whether each belongs to one model.
    pub(crate) fn all_parameters(&self) -> Vec<(&Parameters, bool)> {
        let mut all: Vec<(&Parameters, bool)> = self.parameters.iter().map(|set| (set, false)).collect();
        let mut parts = vec![(self.models.as_ref(), self.slices.as_ref())];
        for module in self.modules.iter().flat_map(BTreeMap::values) {
            all.extend(module.parameters.iter().map(|set| (set, false)));
            parts.push((module.models.as_ref(), module.slices.as_ref()));
        }
        for (models, slices) in parts {
            for model in models.into_iter().flatten() {
                all.extend(model.parameters.iter().map(|set| (set, true)));
            }
            for slice in slices.into_iter().flatten() {
                all.extend(slice.parameters.iter().map(|set| (set, false)));
                for source in &slice.sources {
                    all.extend(source.parameters.iter().map(|set| (set, true)));
                }
            }
        }
        all
    }
}
