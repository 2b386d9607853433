//! `luthier pretrain`: trains a model from a recipe.

use anyhow::Context;
use luthier_train::{Outcome, Recipe};
use serde::Deserialize;
use serde_json::json;

use super::Act;
use crate::session::{Report, Session};
use crate::{places, recipe, training};

/// Trains as the recipe says; see docs/recipes.md. The same recipe again continues an unfinished run from its last
/// checkpoint, and does nothing on a finished one.
#[derive(Debug, clap::Args, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Pretrain {
    /// The recipe, a YAML file
    recipe: recipe::Written,
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
        let (text, named) = self.recipe.read()?;
        let recipe: Recipe = recipe::from_text(&text, &named, recipe::Kind::Training)?;
        recipe.clone().resolved().with_context(|| format!("recipe {named}"))?;
        places::refuse_builtin_name(&recipe.out)?;
        let outcome = training::train(&recipe, session, "", self.force)?;
        let mut json = serde_json::to_value(&outcome)?;
        json["out"] = json!(recipe.out);
        json["was_finished"] = json!(outcome.was_finished);
        let state = match outcome.was_finished {
            true => "was finished already, nothing was done",
            false => "is trained",
        };
        let text = format!(
            "{} {state}: {} steps, {} tokens, {}",
            recipe.out.display(),
            outcome.steps,
            outcome.train_tokens,
            validation(&outcome)
        );
        Ok(Report { json, text })
    }
}

fn validation(outcome: &Outcome) -> String {
    match (outcome.validation_loss_nats, outcome.initial_validation_loss_nats) {
        (Some(after), Some(before)) => {
            format!("validation loss {after:.4} nats per token, {before:.4} before")
        }
        (Some(after), None) => format!("validation loss {after:.4} nats per token"),
        (None, _) => format!(
            "training loss {:.4} nats per token in the last step; the recipe names no validation text",
            outcome.train_loss_nats
        ),
    }
}
