//! `luthier info`: what a model is.

use std::fmt::Write;

use anyhow::Context;
use luthier_surgery::adapter_info::{self, AdapterInfo};
use luthier_surgery::info::{self, Info as Facts};
use serde::Deserialize;

use super::Act;
use crate::session::{Report, Session};
use crate::{builtin, places};

/// Describes a model from its headers and small files alone: sizes, types, tokenizer, every tensor; or a LoRA adapter.
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
        if places::is_adapter(&self.model)? {
            let adapter =
                places::adapter(&self.model, None).with_context(|| format!("adapter {}", self.model))?;
            let facts = adapter_info::run(&adapter);
            return Ok(Report { json: serde_json::to_value(&facts)?, text: adapter_words(&facts) });
        }
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

/// The modules, and below them what they come to.
fn adapter_words(facts: &AdapterInfo) -> String {
    let mut text = String::new();
    let width = facts.modules.iter().map(|module| module.path.len()).max().unwrap_or(0);
    for module in &facts.modules {
        let _ = writeln!(
            text,
            "{:<width$}  rank {}, scale {}, {} to {}",
            module.path, module.rank, module.scale, module.n_in, module.n_out
        );
    }
    for name in &facts.saved {
        let _ = writeln!(text, "{name:<width$}  whole");
    }
    let kind = match (facts.use_rslora, facts.use_dora) {
        (false, false) => "",
        (true, false) => ", rsLoRA",
        (false, true) => ", DoRA",
        (true, true) => ", rsLoRA, DoRA",
    };
    let base = facts.base_model.as_deref().unwrap_or("-");
    let _ = writeln!(
        text,
        "\nadapter         {}{kind}, rank {}, alpha {}",
        facts.peft_type, facts.rank, facts.alpha
    );
    let _ = writeln!(text, "base            {base}");
    let _ = writeln!(text, "parameters      {}", facts.parameters);
    let _ = writeln!(text, "tensors         {:.1} MB", facts.size_bytes as f64 / 1e6);
    for note in &facts.notes {
        let _ = writeln!(text, "{note}");
    }
    text
}
