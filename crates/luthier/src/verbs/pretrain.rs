//! `luthier pretrain`: trains a model from a recipe.

use std::path::PathBuf;

use luthier_train::Recipe;
use serde::Deserialize;
use serde_json::json;

use super::Act;
use crate::session::{Report, Session};
use crate::{recipe, training};

/// Trains as the recipe says; see docs/recipes.md. The same recipe again continues an unfinished run from its last
/// checkpoint, and does nothing on a finished one.
#[derive(Debug, clap::Args, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Pretrain {
    /// The recipe, a YAML file
    recipe: PathBuf,
    /// Throw away what the recipe's out holds and start over
    #[arg(long)]
    #[serde(default)]
    force: bool,
}

impl Act for Pretrain {
    const NAME: &'static str = "pretrain";
    const ABOUT: &'static str =
        "Train a model from a recipe: next-token, PrefixLM or UL2, with or without a teacher";

    fn act(self, session: &Session) -> anyhow::Result<Report> {
        let recipe: Recipe = recipe::from_file(&self.recipe)?;
        let outcome = training::train(&recipe, session, "", self.force)?;
        let mut json = serde_json::to_value(&outcome)?;
        json["out"] = json!(recipe.out);
        json["was_finished"] = json!(outcome.was_finished);
        let state = if outcome.was_finished { "was finished already" } else { "is trained" };
        let text = format!(
            "{} {state}: {} steps, {} tokens, validation loss {} (before: {}) nats per token",
            recipe.out.display(),
            outcome.steps,
            outcome.train_tokens,
            nats(outcome.validation_loss_nats),
            nats(outcome.initial_validation_loss_nats),
        );
        Ok(Report { json, text })
    }
}

fn nats(loss: Option<f64>) -> String {
    loss.map_or("not measured".to_string(), |loss| format!("{loss:.4}"))
}
