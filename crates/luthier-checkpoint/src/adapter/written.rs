//! adapter_config.json of an adapter that luthier writes, with the keys that peft 0.21.2 writes.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// What the config says of an adapter.
#[derive(Clone, Debug)]
pub struct NewAdapter<'a> {
    /// The base model, as the user named it.
    pub base: &'a str,
    /// The names of the base's tensors.
    pub tensors: Vec<&'a str>,
    /// Rank by the path of each module that has a pair.
    pub ranks: BTreeMap<String, usize>,
    /// `lora_alpha`; none where products count once: it is then r, for modules of other ranks by patterns.
    pub alpha: Option<f64>,
    /// Paths of modules that are stored whole.
    pub saved: Vec<String>,
    /// Modules of which a bias is stored.
    pub biases: Vec<String>,
    /// Whether the base's weights are stored `[in, out]`.
    pub fan_in_fan_out: bool,
    /// Whether a head that is tied to a saved embedding stays so.
    pub keeps_ties: bool,
    /// What peft's class of the base is, where one fits.
    pub task_type: Option<&'a str>,
}

impl NewAdapter<'_> {
    /// adapter_config.json.
    pub fn config(&self) -> Map<String, Value> {
        let rank = most_common(&self.ranks);
        let others: Map<String, Value> = self
            .ranks
            .iter()
            .filter(|(_, own)| **own != rank)
            .map(|(path, own)| (path.clone(), json!(own)))
            .collect();
        let by_parts = |path: &str, name: &str| path == name || path.ends_with(&format!(".{name}"));
        let targets = self.shortened(&self.ranks.keys().collect::<Vec<_>>(), &by_parts);
        let by_end = |path: &str, name: &str| path.ends_with(name);
        let saved = self.shortened(&self.saved.iter().collect::<Vec<_>>(), &by_end);
        let bias = match &self.biases[..] {
            [] => "none",
            paths if paths.iter().all(|path| self.ranks.contains_key(path)) => "lora_only",
            _ => "all",
        };
        let value = json!({
            "alora_invocation_tokens": null,
            "alpha_pattern": if self.alpha.is_some() { Map::new() } else { others.clone() },
            "arrow_config": null,
            "auto_mapping": null,
            "base_model_name_or_path": self.base,
            "bias": bias,
            "corda_config": null,
            "ensure_weight_tying": self.keeps_ties,
            "eva_config": null,
            "exclude_modules": null,
            "fan_in_fan_out": self.fan_in_fan_out,
            "inference_mode": true,
            "init_lora_weights": true,
            "layer_replication": null,
            "layers_pattern": null,
            "layers_to_transform": null,
            "loftq_config": {},
            "lora_alpha": self.alpha.map_or(json!(rank), number),
            "lora_bias": false,
            "lora_dropout": 0.0,
            "megatron_config": null,
            "megatron_core": "megatron.core",
            "modules_to_save": if saved.is_empty() { Value::Null } else { json!(saved) },
            "peft_type": "LORA",
            "r": rank,
            "rank_pattern": others,
            "revision": null,
            "target_modules": targets,
            "target_parameters": null,
            "task_type": self.task_type,
            "trainable_token_indices": null,
            "use_dora": false,
            "use_rslora": false,
        });
        match value {
            Value::Object(keys) => keys,
            _ => unreachable!("an object was just written"),
        }
    }

    /// The shortest list that peft takes for exactly these modules: last parts of paths where all such modules are meant.
    fn shortened(&self, paths: &[&String], takes: &dyn Fn(&str, &str) -> bool) -> Vec<String> {
        let mut known: Vec<&str> = Vec::new();
        for name in &self.tensors {
            let mut path = parent(name);
            while !path.is_empty() {
                known.push(path);
                path = parent(path);
            }
        }
        known.sort_unstable();
        known.dedup();
        let mut names = Vec::new();
        for path in paths {
            let short = path.rsplit_once('.').map_or(path.as_str(), |(_, last)| last);
            let all_meant = known
                .iter()
                .filter(|known| takes(known, short))
                .all(|known| paths.iter().any(|path| path == known));
            names.push(if all_meant { short.to_string() } else { (*path).clone() });
        }
        names.sort();
        names.dedup();
        names
    }
}

/// What stands before the last dot.
fn parent(name: &str) -> &str {
    name.rsplit_once('.').map_or("", |(parent, _)| parent)
}

/// Whole numbers without a point, as peft's users write them.
fn number(alpha: f64) -> Value {
    let whole = alpha as i64;
    if whole as f64 == alpha { json!(whole) } else { json!(alpha) }
}

/// The rank of most modules, the smaller of two as common; 1 where there are none, for peft wants one.
fn most_common(ranks: &BTreeMap<String, usize>) -> usize {
    let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
    ranks.values().for_each(|rank| *counts.entry(*rank).or_default() += 1);
    counts
        .into_iter()
        .max_by_key(|(rank, count)| (*count, std::cmp::Reverse(*rank)))
        .map_or(1, |(rank, _)| rank)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn adapter(tensors: &[&'static str]) -> NewAdapter<'static> {
        NewAdapter {
            base: "base",
            tensors: tensors.to_vec(),
            ranks: BTreeMap::new(),
            alpha: None,
            saved: Vec::new(),
            biases: Vec::new(),
            fan_in_fan_out: false,
            keeps_ties: false,
            task_type: None,
        }
    }

    #[test]
    fn lists_are_short_only_where_all_modules_of_a_name_are_meant() {
        let base = adapter(&[
            "m.0.q.weight",
            "m.1.q.weight",
            "m.0.v.weight",
            "m.1.v.weight",
            "m.0.in_norm.weight",
            "m.norm.weight",
        ]);
        let check = |paths: &[&str], takes: &dyn Fn(&str, &str) -> bool| {
            let paths: Vec<String> = paths.iter().map(|path| (*path).to_string()).collect();
            base.shortened(&paths.iter().collect::<Vec<_>>(), takes)
        };
        let suffix = |path: &str, name: &str| path == name || path.ends_with(&format!(".{name}"));
        assert_eq!(check(&["m.0.q", "m.1.q", "m.0.v"], &suffix), ["m.0.v", "q"]);
        let ends = |path: &str, name: &str| path.ends_with(name);
        assert_eq!(check(&["m.norm"], &ends), ["m.norm"]);
        assert_eq!(check(&["m.norm", "m.0.in_norm"], &ends), ["in_norm", "norm"]);
    }

    #[test]
    fn the_rank_of_most_modules_stands_for_all() {
        let ranks = [("a", 4), ("b", 2), ("c", 2), ("d", 4), ("e", 9)];
        let ranks: BTreeMap<String, usize> =
            ranks.iter().map(|(path, rank)| ((*path).to_string(), *rank)).collect();
        assert_eq!(most_common(&ranks), 2);
        let config = NewAdapter { ranks, ..adapter(&[]) }.config();
        assert_eq!((&config["r"], &config["lora_alpha"]), (&json!(2), &json!(2)));
        assert_eq!(config["alpha_pattern"], json!({"a": 4, "d": 4, "e": 9}));
    }

    #[test]
    fn a_given_alpha_holds_for_all_modules() {
        let ranks = BTreeMap::from([("m.0.q".to_string(), 4)]);
        let config = |alpha: f64| {
            NewAdapter { ranks: ranks.clone(), alpha: Some(alpha), ..adapter(&["m.0.q.weight"]) }.config()
        };
        assert_eq!(config(8.0)["lora_alpha"].to_string(), "8");
        assert_eq!(config(0.5)["lora_alpha"].to_string(), "0.5");
        assert_eq!(config(8.0)["alpha_pattern"], json!({}));
        assert_eq!(config(8.0)["target_modules"], json!(["q"]));
    }
}
