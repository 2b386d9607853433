//! adapter_config.json, names and card of an extracted adapter, as peft 0.21.2 writes them.

use std::collections::BTreeMap;

use luthier_checkpoint::layout::{Layout, StackKind};
use luthier_checkpoint::{SideFile, TensorInfo};
use serde_json::{Map, Value, json};

use super::classify::{last, parent};
use crate::Input;

/// What the config says of an adapter.
pub(crate) struct Contents<'c> {
    pub(crate) base: &'c Input,
    pub(crate) layout: Option<&'c Layout>,
    /// Rank by the path of each module that has a pair.
    pub(crate) ranks: BTreeMap<String, usize>,
    /// Paths of modules that are stored whole.
    pub(crate) saved: Vec<String>,
    /// Modules of which a bias is stored.
    pub(crate) biases: Vec<String>,
    pub(crate) fan_in_fan_out: bool,
    pub(crate) has_tied_head: bool,
}

/// adapter_config.json. The scale is 1: lora_alpha is r, for modules of other ranks by patterns.
pub(crate) fn config(contents: &Contents) -> Map<String, Value> {
    let rank = most_common(&contents.ranks);
    let others: Map<String, Value> = contents
        .ranks
        .iter()
        .filter(|(_, own)| **own != rank)
        .map(|(path, own)| (path.clone(), json!(own)))
        .collect();
    let infos = contents.base.checkpoint.tensors.infos();
    let paths: Vec<&String> = contents.ranks.keys().collect();
    let targets = shortened(&paths, infos, &|path, name| path == name || path.ends_with(&format!(".{name}")));
    let saved =
        shortened(&contents.saved.iter().collect::<Vec<_>>(), infos, &|path, name| path.ends_with(name));
    let ties =
        contents.has_tied_head && contents.saved.iter().any(|path| is_embedding(contents.layout, path));
    let bias = match &contents.biases[..] {
        [] => "none",
        paths if paths.iter().all(|path| contents.ranks.contains_key(path)) => "lora_only",
        _ => "all",
    };
    let value = json!({
        "alora_invocation_tokens": null,
        "alpha_pattern": others,
        "arrow_config": null,
        "auto_mapping": null,
        "base_model_name_or_path": contents.base.label,
        "bias": bias,
        "corda_config": null,
        "ensure_weight_tying": ties,
        "eva_config": null,
        "exclude_modules": null,
        "fan_in_fan_out": contents.fan_in_fan_out,
        "inference_mode": true,
        "init_lora_weights": true,
        "layer_replication": null,
        "layers_pattern": null,
        "layers_to_transform": null,
        "loftq_config": {},
        "lora_alpha": rank,
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
        "task_type": task_type(contents),
        "trainable_token_indices": null,
        "use_dora": false,
        "use_rslora": false,
    });
    match value {
        Value::Object(keys) => keys,
        _ => unreachable!("an object was just written"),
    }
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

/// The shortest list that peft takes for exactly these modules: last parts of paths where all such modules are meant.
fn shortened(paths: &[&String], infos: &[TensorInfo], takes: &dyn Fn(&str, &str) -> bool) -> Vec<String> {
    let mut known: Vec<&str> = Vec::new();
    for info in infos {
        let mut path = parent(&info.name);
        while !path.is_empty() {
            known.push(path);
            path = parent(path);
        }
    }
    known.sort_unstable();
    known.dedup();
    let mut names = Vec::new();
    for path in paths {
        let short = last(path);
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

/// Whether the module at `path` is the embedding that the layout names.
pub(super) fn is_embedding(layout: Option<&Layout>, path: &str) -> bool {
    use luthier_checkpoint::layout::Part;
    let name = format!("{path}.weight");
    layout.is_some_and(|layout| {
        layout.tensors.iter().any(|spec| spec.name == name && spec.role.part == Part::Embedding)
    })
}

/// What peft's class of the model is; none where none fits, for those of classification bring heads of their own.
fn task_type(contents: &Contents) -> Option<&'static str> {
    let class =
        contents.base.checkpoint.config.get("architectures").and_then(|classes| classes.get(0)?.as_str());
    match (contents.layout, class) {
        (_, Some(class)) if class.ends_with("ForCausalLM") || class.ends_with("LMHeadModel") => {
            Some("CAUSAL_LM")
        }
        (_, Some(class)) if class.ends_with("ForConditionalGeneration") => Some("SEQ_2_SEQ_LM"),
        (_, Some(_)) | (None, None) => None,
        (Some(layout), None) => {
            let has_encoder = layout.tensors.iter().any(|spec| spec.role.stack == StackKind::Encoder);
            Some(if has_encoder { "SEQ_2_SEQ_LM" } else { "CAUSAL_LM" })
        }
    }
}

/// A card, so that the folder says what it is.
pub(super) fn card(base: &str, tuned: &str, summary: &str) -> SideFile {
    let text = format!(
        "---\nlibrary_name: peft\ntags:\n- lora\n---\n\n# LoRA adapter of {tuned}\n\nWhat {tuned} differs from {base} by, \
         extracted by `luthier extract-adapter`. {summary}\n\nWith peft: `PeftModel.from_pretrained(base, folder)`; with \
         luthier: `luthier fuse-adapter {base} folder out`.\n"
    );
    SideFile { name: "README.md".to_string(), bytes: text.into_bytes() }
}

#[cfg(test)]
mod tests {
    use luthier_checkpoint::Dtype;

    use super::*;

    #[test]
    fn lists_are_short_only_where_all_modules_of_a_name_are_meant() {
        let names = [
            "m.0.q.weight",
            "m.1.q.weight",
            "m.0.v.weight",
            "m.1.v.weight",
            "m.0.in_norm.weight",
            "m.norm.weight",
        ];
        let infos: Vec<TensorInfo> = names
            .iter()
            .map(|name| TensorInfo { name: (*name).to_string(), dtype: Dtype::F32, shape: vec![1] })
            .collect();
        let check = |paths: &[&str], takes: &dyn Fn(&str, &str) -> bool| {
            let paths: Vec<String> = paths.iter().map(|path| (*path).to_string()).collect();
            shortened(&paths.iter().collect::<Vec<_>>(), &infos, takes)
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
        let ranks = ranks.iter().map(|(path, rank)| ((*path).to_string(), *rank)).collect();
        assert_eq!(most_common(&ranks), 2);
    }
}
