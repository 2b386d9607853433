//! A recipe's `adapter`: what is trained beside a model that stays as it is.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{ModelSource, Precision, Recipe};
use crate::{Error, Result, count};

/// As many as the widest models have inputs.
const MAX_RANK: u64 = 1 << 16;

/// A LoRA adapter: `y = x W^T + (alpha / rank) x A^T B^T` beside each weight W that it targets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdapterRecipe {
    /// Inner width of the products.
    #[serde(deserialize_with = "count::required")]
    pub rank: u64,
    /// The products count alpha / rank times.
    pub alpha: f64,
    /// The linear layers that it stands beside, by whole last parts of their names (`q_proj`, `layers.0.mlp.up_proj`); left
    /// out: all projections of attention and of dense feed-forward blocks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<String>,
    /// The folder of an adapter of the same rank, alpha and targets that training goes on from; left out: A is drawn, B zeros.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initial: Option<PathBuf>,
}

impl Recipe {
    pub(super) fn check_adapter(&self) -> Result<()> {
        let Some(adapter) = &self.adapter else { return Ok(()) };
        adapter.check()?;
        if matches!(self.model, ModelSource::Random(_)) {
            let what = "is trained beside a model that others have too; name a MODEL";
            return Err(Error::recipe("adapter", what));
        }
        if self.precision != Precision::F32 {
            let what = "adapters are trained in f32, and the model stays as its file has it; remove the key";
            return Err(Error::recipe("precision", what));
        }
        for (key, patterns) in [("freeze", &self.freeze), ("train_only", &self.train_only)] {
            if !patterns.is_empty() {
                let what = "means nothing beside adapter, which trains nothing of the model; remove it, or name adapter.targets";
                return Err(Error::recipe(key, what));
            }
        }
        Ok(())
    }
}

impl AdapterRecipe {
    pub(crate) fn check(&self) -> Result<()> {
        if !(1..=MAX_RANK).contains(&self.rank) {
            let what = format!("wanted 1 to {MAX_RANK}, came {}", self.rank);
            return Err(Error::recipe("adapter.rank", what));
        }
        if !self.alpha.is_finite() || self.alpha == 0.0 {
            let what = format!("wanted a number other than 0, came {}", self.alpha);
            return Err(Error::recipe("adapter.alpha", what));
        }
        Ok(())
    }

    /// What the products are multiplied with.
    pub fn scale(&self) -> f64 {
        self.alpha / self.rank as f64
    }
}
