//! Whether the tensors are those that the config describes: one finding for each cause, not for each tensor.

use std::collections::{BTreeMap, HashMap};

use luthier_checkpoint::layout::{Layout, Space, StackKind, TensorSpec};
use luthier_checkpoint::{Checkpoint, Dtype, TensorInfo};
use serde_json::{Map, Value};

use super::{Finding, Severity};

/// Compares headers with the layout.
pub(super) fn examine(checkpoint: &Checkpoint, layout: &Layout) -> Vec<Finding> {
    let infos: HashMap<&str, &TensorInfo> =
        checkpoint.tensors.infos().iter().map(|info| (info.name.as_str(), info)).collect();
    let mut findings = mismatches(checkpoint, layout, &infos);
    findings.extend(missing(checkpoint, layout, &infos));
    findings.extend(unknown(checkpoint, layout));
    findings.extend(ties(checkpoint, layout, &infos));
    for spec in &layout.tensors {
        if let Some(info) = infos.get(spec.name.as_str())
            && !matches!(info.dtype, Dtype::Weights(_) | Dtype::F64)
        {
            let what = format!("is stored as {}, wanted floats or quantised blocks", info.dtype);
            let fix = "take the file from its source again, or convert it with the program that wrote it";
            findings.push(Finding::new(Severity::Error, format!("tensor {}", spec.name), what, fix));
        }
    }
    findings
}

/// Axes that differ, gathered by what they range over and by the two sizes.
fn mismatches(checkpoint: &Checkpoint, layout: &Layout, infos: &HashMap<&str, &TensorInfo>) -> Vec<Finding> {
    type Cause = (StackKind, Space, usize, usize);
    let mut causes: Vec<(Cause, Vec<&str>)> = Vec::new();
    let mut findings = Vec::new();
    for spec in &layout.tensors {
        let Some(info) = infos.get(spec.name.as_str()) else { continue };
        if info.shape.len() != spec.shape.len() {
            let what = format!("has shape {:?}, the config asks for {:?}", info.shape, spec.shape);
            let fix = "config.json and weights belong to different models";
            findings.push(Finding::new(Severity::Error, format!("tensor {}", spec.name), what, fix));
            continue;
        }
        for ((wanted, came), space) in spec.shape.iter().zip(&info.shape).zip(&spec.spaces) {
            if wanted == came {
                continue;
            }
            let cause = (spec.role.stack, *space, *wanted, *came);
            match causes.iter_mut().find(|(known, _)| *known == cause) {
                Some((_, names)) => names.push(&spec.name),
                None => causes.push((cause, vec![&spec.name])),
            }
        }
    }
    for ((stack, space, wanted, came), names) in causes {
        let keys = keys_of(&checkpoint.config, stack, space);
        let others = names.len() - 1;
        let and_others = if others > 0 { format!(" and {others} more") } else { String::new() };
        let what =
            format!("{} by config.json, {came} in tensor {}{and_others}", described(space, wanted), names[0]);
        let subject = if keys.is_empty() {
            "config.json".to_string()
        } else {
            format!("config key {}", keys.join(" or "))
        };
        let fix = match space {
            Space::Vocab => format!(
                "set vocab_size to {came} if the weights are right; else the embedding belongs to another tokenizer"
            ),
            Space::Heads | Space::KvHeads => {
                format!("set head count and head_dim so that their product is {came}")
            }
            _ => format!(
                "set it to {came} if the weights are right; else take the config that belongs to them"
            ),
        };
        findings.push(Finding::new(Severity::Error, subject, what, &fix));
    }
    findings
}

fn described(space: Space, size: usize) -> String {
    let what = match space {
        Space::Residual => "the model is wide",
        Space::Heads => "query heads together are wide",
        Space::KvHeads => "key/value heads together are wide",
        Space::HeadDim => "a head is wide",
        Space::Ffn => "the feed-forward block is wide",
        Space::Vocab => "the vocabulary holds",
        Space::QueryHeads => "there are query heads",
        Space::Experts => "there are experts",
        Space::ExpertFfn => "an expert is wide",
        Space::SharedFfn => "the shared expert is wide",
        _ => return format!("the axis {space:?} is long: {size}").to_lowercase(),
    };
    format!("{what}: {size}")
}

/// The config's keys for a space, by the names that configs use, where they stand.
fn keys_of(config: &Map<String, Value>, stack: StackKind, space: Space) -> Vec<String> {
    let names: &[&str] = match space {
        Space::Residual => &["hidden_size", "d_model"],
        Space::Heads | Space::QueryHeads => &["num_attention_heads", "num_heads", "head_dim", "d_kv"],
        Space::KvHeads => &["num_key_value_heads", "head_dim", "num_heads", "d_kv"],
        Space::HeadDim => &["head_dim", "d_kv"],
        Space::Ffn => &["intermediate_size", "d_ff"],
        Space::Vocab => &["vocab_size"],
        Space::Buckets => &["relative_attention_num_buckets"],
        Space::Positions => &["max_position_embeddings"],
        Space::TokenTypes => &["type_vocab_size"],
        Space::Experts => &["num_local_experts", "num_experts"],
        Space::ExpertFfn => &["moe_intermediate_size", "intermediate_size"],
        Space::SharedFfn => &["shared_expert_intermediate_size"],
        _ => &[],
    };
    let nested = match stack {
        StackKind::Encoder => "encoder",
        StackKind::Decoder => "decoder",
    };
    let inside = config.get(nested).and_then(Value::as_object);
    let mut found = Vec::new();
    for name in names {
        if inside.is_some_and(|inside| inside.contains_key(*name)) {
            found.push(format!("{nested}.{name}"));
        } else if config.contains_key(*name) {
            found.push((*name).to_string());
        }
    }
    found
}

/// Weights that the config asks for and no file has.
fn missing(checkpoint: &Checkpoint, layout: &Layout, infos: &HashMap<&str, &TensorInfo>) -> Vec<Finding> {
    let absent: Vec<&TensorSpec> =
        layout.tensors.iter().filter(|spec| !infos.contains_key(spec.name.as_str())).collect();
    let mut findings = Vec::new();
    let mut by_layer: BTreeMap<(u8, usize), usize> = BTreeMap::new();
    for spec in &absent {
        if let Some(layer) = spec.role.layer {
            *by_layer.entry((spec.role.stack as u8, layer)).or_default() += 1;
        }
    }
    let whole = |spec: &TensorSpec, layer: usize| {
        let of_layer = layout.tensors.iter();
        let of_layer =
            of_layer.filter(|other| other.role.layer == Some(layer) && other.role.stack == spec.role.stack);
        of_layer.count() == by_layer[&(spec.role.stack as u8, layer)]
    };
    let mut whole_layers: BTreeMap<(u8, usize), ()> = BTreeMap::new();
    for spec in absent {
        match spec.role.layer {
            Some(layer) if whole(spec, layer) => {
                whole_layers.insert((spec.role.stack as u8, layer), ());
            }
            _ => {
                let is_head = spec.role.part == luthier_checkpoint::layout::Part::Head;
                let fix = if is_head {
                    "set tie_word_embeddings to true if the head is the embedding; else the file is incomplete"
                } else {
                    "the file is incomplete, or model_type or a size in config.json is another model's"
                };
                let what = format!("is missing; the config asks for shape {:?}", spec.shape);
                findings.push(Finding::new(Severity::Error, format!("tensor {}", spec.name), what, fix));
            }
        }
    }
    if let (Some(((_, first), ())), Some(((_, last), ()))) =
        (whole_layers.first_key_value(), whole_layers.last_key_value())
    {
        let what = format!("the weights have no layers {first} to {last}, {} in all", whole_layers.len());
        let key = ["num_hidden_layers", "num_layers", "decoder.num_hidden_layers"]
            .into_iter()
            .find(|key| checkpoint.config.contains_key(*key))
            .unwrap_or("num_hidden_layers");
        let fix = format!("set it to {first} if the weights are whole; else a shard is missing");
        findings.push(Finding::new(Severity::Error, format!("config key {key}"), what, &fix));
    }
    findings
}

/// Tensors that no weight of such a model is.
fn unknown(checkpoint: &Checkpoint, layout: &Layout) -> Vec<Finding> {
    if luthier_arch::check_headers(checkpoint).is_ok() {
        return Vec::new();
    }
    let is_known = |name: &str| {
        layout.tensors.iter().any(|spec| spec.name == name)
            || layout.ties.iter().any(|tie| tie.name == name)
            || name.ends_with(".rotary_emb.inv_freq")
    };
    let names: Vec<&str> = checkpoint.tensors.infos().iter().map(|info| info.name.as_str()).collect();
    let extra: Vec<&str> = names.into_iter().filter(|name| !is_known(name)).collect();
    let Some(first) = extra.first() else { return Vec::new() };
    let more = if extra.len() > 1 { format!(" and {} more", extra.len() - 1) } else { String::new() };
    let what = format!("tensor {first}{more}: a model of this config has no such weights");
    let fix = "num_hidden_layers may be too small, a bias switched off, or model_type another one";
    vec![Finding::new(Severity::Error, "weights", what, fix)]
}

/// Heads and embeddings that are one weight, or should be.
fn ties(checkpoint: &Checkpoint, layout: &Layout, infos: &HashMap<&str, &TensorInfo>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for tie in &layout.ties {
        let (Some(own), Some(target)) = (infos.get(tie.name.as_str()), infos.get(tie.target.as_str())) else {
            continue;
        };
        let read = |info: &TensorInfo| checkpoint.tensors.read(&info.name);
        let (Ok(a), Ok(b)) = (read(own), read(target)) else { continue };
        if own.dtype == target.dtype && a[..] != b[..] {
            let what = format!("differs from {}, but the config ties the two", tie.target);
            let fix = "set tie_word_embeddings to false to keep both, or remove the one that is out of date";
            findings.push(Finding::new(Severity::Error, format!("tensor {}", tie.name), what, fix));
        }
    }
    findings
}
