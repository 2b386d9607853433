//! `luthier info`: what a model is.

use std::fmt::Write;

use anyhow::Context;
use luthier_surgery::info::{self, Info as Facts};
use serde::Deserialize;

use super::Act;
use crate::session::{Report, Session};
use crate::{builtin, places};

/// Describes a model from its headers and small files alone: sizes, types, tokenizer, every tensor.
#[derive(Debug, clap::Args, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Info {
    /// The model
    model: String,
}

impl Act for Info {
    const NAME: &'static str = "info";
    const ABOUT: &'static str = "Describe a model: sizes, types, tokenizer, tensors";

    fn act(self, _session: &Session) -> anyhow::Result<Report> {
        let facts = places::open(&self.model).and_then(|checkpoint| Ok(info::run(&checkpoint)?));
        let mut facts = facts.with_context(|| format!("model {}", self.model))?;
        if self.model == builtin::NAME {
            facts.file_bytes = builtin::file_bytes();
        }
        Ok(Report { json: serde_json::to_value(&facts)?, text: words(&facts) })
    }
}

/// The tensors, and below them, where a terminal ends, what they come to.
fn words(facts: &Facts) -> String {
    let mut text = String::new();
    let width = facts.tensors.iter().map(|tensor| tensor.name.len()).max().unwrap_or(0);
    for tensor in &facts.tensors {
        let _ = writeln!(text, "{:<width$}  {:<5} {:?}", tensor.name, tensor.dtype, tensor.shape);
    }
    let known = if facts.known_architecture { "" } else { " (not an architecture that luthier runs)" };
    let _ = writeln!(text, "\nmodel_type      {}{known}", facts.model_type);
    let _ = writeln!(text, "parameters      {}", facts.parameters);
    for tie in &facts.tied {
        let _ = writeln!(text, "tied            {} is {}, counted once", tie.name, tie.target);
    }
    let stored: usize = facts.types.values().map(|share| share.parameters).sum();
    for (name, share) in &facts.types {
        let _ = writeln!(text, "stored as {name:<5} {} tensors, {} values", share.tensors, share.parameters);
    }
    if stored > facts.parameters && !facts.tied.is_empty() {
        let again = stored - facts.parameters;
        let _ = writeln!(text, "stored twice    {again} values, of tied weights that the file repeats");
    }
    let _ = writeln!(text, "file            {:.1} MB", facts.file_bytes as f64 / 1e6);
    let size = |value: Option<usize>| value.map_or("-".to_string(), |value| value.to_string());
    let _ = writeln!(text, "vocabulary      {}", size(facts.vocab_size));
    let _ = writeln!(text, "context         {}", size(facts.context_length));
    let of_encoder = facts.encoder_layers.map_or(String::new(), |n| format!(", {n} of them in the encoder"));
    let _ = writeln!(text, "layers          {}{of_encoder}", size(facts.layers));
    let _ = writeln!(text, "tokenizer       {} tokens", size(facts.tokenizer_tokens));
    let _ = writeln!(text, "chat template   {}", if facts.chat_template { "yes" } else { "no" });
    for note in &facts.notes {
        let _ = writeln!(text, "{note}");
    }
    for key in &facts.unknown_config_keys {
        let _ = writeln!(text, "config key {key} is not read by this architecture");
    }
    text
}
