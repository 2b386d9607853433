//! Which layers each stack of the result is made of, and what its config says of them.

use std::collections::{BTreeMap, HashSet};

use luthier_checkpoint::layout::{Layout, StackKind};
use serde_json::{Map, Value, json};

use super::pairing::{Pairing, Portion, Stretch};
use super::recipe;
use crate::{Error, Input, Result};

/// The layers of each stack of the result: decoder (false), encoder (true).
pub(super) fn portions<'r>(pairing: &Pairing<'r>, layouts: &[Layout]) -> Result<BTreeMap<bool, Portion<'r>>> {
    let mut parts = BTreeMap::new();
    let stacks: HashSet<bool> =
        layouts[0].tensors.iter().map(|spec| spec.role.stack == StackKind::Encoder).collect();
    if stacks.len() > 1 && pairing.recipe.slices.is_some() {
        let what = "slices: the model has an encoder and a decoder; name each under modules";
        return Err(Error::Use(what.to_string()));
    }
    for is_encoder in stacks.iter().copied() {
        let layers = |number: usize| {
            let of_stack = layouts[number].tensors.iter();
            let of_stack = of_stack.filter(|spec| (spec.role.stack == StackKind::Encoder) == is_encoder);
            of_stack.filter_map(|spec| spec.role.layer).max().map_or(0, |layer| layer + 1)
        };
        let name = match (stacks.len(), is_encoder) {
            (1, _) => "default",
            (_, true) => "encoder",
            (_, false) => "decoder",
        };
        let part = match &pairing.recipe.modules {
            None => stretches(pairing, &pairing.recipe.models, &pairing.recipe.slices, &layers, None)?,
            Some(modules) => {
                if let Some(other) = modules.keys().find(|key| {
                    if stacks.len() == 1 {
                        *key != "default"
                    } else {
                        !["encoder", "decoder"].contains(&key.as_str())
                    }
                }) {
                    return Err(Error::Use(format!("modules: the model has no {other}; wanted {name}")));
                }
                let module =
                    modules.get(name).ok_or_else(|| Error::Use(format!("modules: {name} is missing")))?;
                stretches(pairing, &module.models, &module.slices, &layers, module.parameters.as_ref())?
            }
        };
        parts.insert(is_encoder, part);
    }
    Ok(parts)
}

fn stretches<'r>(
    pairing: &Pairing<'r>,
    models: &'r Option<Vec<recipe::Model>>,
    slices: &'r Option<Vec<recipe::Slice>>,
    layers: &dyn Fn(usize) -> usize,
    parameters: Option<&'r recipe::Parameters>,
) -> Result<Portion<'r>> {
    let stretches: Vec<Stretch> = match (models, slices) {
        (Some(models), None) => pairing.of_models(models, layers)?,
        (None, Some(slices)) => pairing.of_slices(slices, layers)?,
        _ => return Err(Error::Use("modules: wanted either models or slices in each".to_string())),
    };
    Ok(Portion { stretches, parameters })
}

/// The one list of whole models of a recipe for an architecture that is not known.
pub(super) fn unknown_portion<'r>(pairing: &Pairing<'r>) -> Result<Portion<'r>> {
    match &pairing.recipe.models {
        Some(models) => Ok(Portion { stretches: pairing.of_models(models, &|_| 0)?, parameters: None }),
        None => Err(Error::Use(
            "slices and modules: the architecture is not known, so that layers cannot be told apart; list whole models"
                .to_string(),
        )),
    }
}

/// The config with as many layers as the portions have, and its per-layer lists put together as they are.
pub(super) fn with_layers(
    donor: &Map<String, Value>,
    inputs: &[Input],
    parts: &BTreeMap<bool, Portion>,
) -> Result<Map<String, Value>> {
    let mut result = donor.clone();
    for (is_encoder, part) in parts {
        let nested = if *is_encoder { "encoder" } else { "decoder" };
        let inside = |config: &Map<String, Value>| -> Map<String, Value> {
            match config.get(nested) {
                Some(Value::Object(keys)) if parts.len() > 1 => keys.clone(),
                _ => config.clone(),
            }
        };
        let own = inside(donor);
        let count: usize = part.stretches.iter().map(|stretch| stretch.len).sum();
        let before = own.get("num_hidden_layers").and_then(Value::as_u64).unwrap_or(0);
        let mut changed = own.clone();
        let whole =
            part.stretches.len() == 1 && part.stretches[0].sources.iter().all(|source| source.1[0] == 0);
        if whole && count as u64 == before {
            continue;
        }
        changed.insert("num_hidden_layers".to_string(), json!(count));
        for (key, value) in &own {
            let is_list = value.as_array().is_some_and(|items| items.len() as u64 == before);
            if !(is_list && (key.contains("layer") || key.contains("pattern"))) {
                continue;
            }
            let mut items = Vec::new();
            for stretch in &part.stretches {
                let (number, [start, end], _) = stretch.sources[0];
                let config = inside(&inputs[number].checkpoint.config);
                let list = config.get(key).and_then(Value::as_array);
                let list = list.and_then(|list| list.get(start..end)).ok_or_else(|| {
                    let label = &inputs[number].label;
                    Error::Use(format!("config key {key} of {label} does not list layers {start} to {end}"))
                })?;
                items.extend_from_slice(list);
            }
            changed.insert(key.clone(), Value::Array(items));
        }
        if parts.len() > 1 {
            result.insert(nested.to_string(), Value::Object(changed));
        } else {
            result = changed;
        }
    }
    Ok(result)
}
