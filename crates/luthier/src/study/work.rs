//! Merges of a study in memory, and their losses.

use std::collections::BTreeMap;

use candle_core::Device;
use luthier_arch::LoadOptions;
use luthier_checkpoint::Checkpoint;
use luthier_checkpoint::lineage::sha256_of_bytes;
use luthier_measure::metrics::perplexity::{Method, perplexity};
use luthier_surgery::Input;
use luthier_surgery::merge::{self, Recipe};
use serde_json::{Value, json};

use super::Study;
use super::cell::{Cell, Measured};
use crate::places;

/// What is read.
pub(super) struct Work<'s> {
    pub(super) study: &'s Study,
    pub(super) base: Input,
    pub(super) experts: Vec<Input>,
    pub(super) texts: BTreeMap<String, Vec<u8>>,
}

impl Work<'_> {
    /// The hash of the study, its models and its texts.
    pub(super) fn fingerprint(&self) -> anyhow::Result<String> {
        let mut parents = Vec::new();
        for input in std::iter::once(&self.base).chain(&self.experts).flat_map(Input::parts) {
            parents.push(input.parent()?);
        }
        let texts: Vec<String> = self.texts.values().map(|text| sha256_of_bytes(text)).collect();
        let seed = self.study.seed.unwrap_or(1);
        let experts = &self.study.experts;
        let all = json!({"experts": experts, "seed": seed, "parents": parents, "texts": texts,
            "held_out": self.study.held_out});
        Ok(sha256_of_bytes(all.to_string().as_bytes()))
    }

    pub(super) fn expert_text(&self, expert: usize) -> String {
        self.study.experts[expert].text.display().to_string()
    }

    pub(super) fn held_out(&self) -> Vec<String> {
        self.study.held_out.iter().map(|path| path.display().to_string()).collect()
    }

    /// The losses of a model on texts, in nats per token.
    pub(super) fn losses(
        &self,
        checkpoint: &Checkpoint,
        names: &[String],
    ) -> anyhow::Result<BTreeMap<String, f64>> {
        let load = LoadOptions { trainable: false, device: Device::Cpu };
        let model = luthier_arch::load(checkpoint, &load)?;
        let tokenizer = places::tokenizer(checkpoint)?;
        tokenizer.check_fits(model.vocab_size())?;
        let mut losses = BTreeMap::new();
        for name in names {
            let method = Method::default_of(model.as_ref());
            let found = perplexity(model.as_ref(), &tokenizer, name, &self.texts[name], method)?;
            losses.insert(name.clone(), found.nll_nats_per_token);
        }
        Ok(losses)
    }

    pub(super) fn recipe(&self, cell: &Cell) -> anyhow::Result<Recipe> {
        let experts = &self.study.experts[..cell.n_experts];
        let models: Vec<Value> = experts.iter().map(|expert| json!({"model": expert.model})).collect();
        let mut parameters = json!({"weight": 1.0});
        for (name, value) in [("density", cell.density), ("lambda", cell.scale), ("t", cell.t)] {
            if let Some(value) = value {
                parameters[name] = json!(value);
            }
        }
        let mut recipe = json!({"merge_method": cell.method, "models": models, "parameters": parameters});
        // Methods that do not compare with a base would take it for one more model.
        if merge::goes_from_base_to_other(&cell.method)? {
            recipe["base_model"] = json!(experts[0].model);
        } else if merge::compares_with_base(&cell.method)? {
            recipe["base_model"] = json!(self.study.base_model);
        }
        Ok(serde_json::from_value(recipe)?)
    }

    pub(super) fn measure(&self, cell: &Cell, singles: &[BTreeMap<String, f64>]) -> anyhow::Result<Measured> {
        let recipe = self.recipe(cell)?;
        let find = |place: &String| {
            std::iter::once(&self.base).chain(&self.experts).find(|input| input.label == *place).cloned()
        };
        let inputs: Vec<Input> = recipe.places().iter().filter_map(find).collect();
        let options = merge::Options {
            verb: "merge",
            record: serde_json::Value::Null,
            measurements: serde_json::Map::new(),
            seed: self.study.seed.unwrap_or(1),
            force: false,
            text: String::new(),
        };
        let own: Vec<String> = (0..cell.n_experts).map(|expert| self.expert_text(expert)).collect();
        let held_out = self.held_out();
        let names: Vec<String> = own.iter().chain(&held_out).cloned().collect();
        let losses = merge::model(&recipe, &inputs, &options)
            .map_err(anyhow::Error::from)
            .and_then(|merged| self.losses(&merged, &names));
        let losses = match losses {
            Ok(losses) => losses,
            Err(problem) => return Ok(Measured::refused(cell, format!("{problem:#}"))),
        };
        let base = &singles[0];
        let kept = own.iter().enumerate().filter_map(|(expert, name)| {
            let gain = base[name] - singles[expert + 1][name];
            (gain > 0.0).then(|| (base[name] - losses[name]) / gain)
        });
        let held_out_loss = mean(held_out.iter().map(|name| losses[name]));
        let before = mean(held_out.iter().map(|name| base[name]));
        Ok(Measured {
            cell: cell.clone(),
            held_in_nats_per_token: mean(own.iter().map(|name| losses[name])),
            held_in_gain_kept: mean(kept),
            held_out_nats_per_token: held_out_loss,
            held_out_gain_nats_per_token: before.zip(held_out_loss).map(|(before, after)| before - after),
            refused: None,
        })
    }

    /// The losses of base and experts, by model.
    pub(super) fn named(&self, singles: &[BTreeMap<String, f64>]) -> Value {
        let labels = std::iter::once(&self.base).chain(&self.experts).map(|input| &input.label);
        labels.zip(singles).map(|(label, losses)| json!({"model": label, "nats_per_token": losses})).collect()
    }
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, count) = values.fold((0.0, 0u32), |(sum, count), value| (sum + value, count + 1));
    (count > 0).then(|| sum / f64::from(count))
}
