//! `luthier info MODEL`: what a model is, from its headers and small files alone.
//!
//! Reads no weight and writes nothing. Refuses what cannot be parsed, sizes that cannot be, a config that the weights
//! contradict, and a tokenizer that does not fit; a model of an architecture that is not known is described all the
//! same. Example: `luthier info SmolLM2-135M-Instruct.Q4_1.gguf`.

use std::collections::BTreeMap;

use luthier_checkpoint::layout::{Layout, StackKind};
use luthier_checkpoint::{Checkpoint, TensorInfo};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::{Result, fit};

/// What a model is.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Info {
    /// config.json's `model_type`.
    pub model_type: String,
    /// Whether this program can run it.
    pub known_architecture: bool,
    /// Number of weights, each tied one counted once.
    pub parameters: usize,
    /// Size of the files that hold the weights.
    pub file_bytes: u64,
    /// Rows of the embedding; none where neither layout nor config say.
    pub vocab_size: Option<usize>,
    /// Positions that the config allows.
    pub context_length: Option<usize>,
    /// Layers; of an encoder-decoder, those of both stacks.
    pub layers: Option<usize>,
    /// Those of the encoder; none without one.
    pub encoder_layers: Option<usize>,
    /// Tokens that the tokenizer knows; none without a tokenizer.
    pub tokenizer_tokens: Option<usize>,
    /// Whether a chat template is there.
    pub chat_template: bool,
    /// Names that are another weight once more.
    pub tied: Vec<TiedName>,
    /// Stored types, and how much of the model is in each.
    pub types: BTreeMap<String, TypeShare>,
    /// What is odd about it without being wrong.
    pub notes: Vec<String>,
    /// Config keys that its architecture does not read; they are kept all the same.
    pub unknown_config_keys: Vec<String>,
    /// Every tensor, in file order; a tied weight twice where the file carries it twice.
    pub tensors: Vec<TensorLine>,
}

/// How much of a model is stored in one type.
#[derive(Clone, Copy, Debug, Default, Serialize, PartialEq)]
#[allow(missing_docs)]
pub struct TypeShare {
    pub tensors: usize,
    pub parameters: usize,
    pub size_bytes: usize,
}

/// A name that stands for the weight of another; `parameters` counts it once.
#[derive(Clone, Debug, Serialize, PartialEq)]
#[allow(missing_docs)]
pub struct TiedName {
    pub name: String,
    pub target: String,
}

/// One tensor.
#[derive(Clone, Debug, Serialize, PartialEq)]
#[allow(missing_docs)]
pub struct TensorLine {
    pub name: String,
    pub dtype: String,
    pub shape: Vec<usize>,
}

/// Describes a model.
pub fn run(checkpoint: &Checkpoint) -> Result<Info> {
    let infos = checkpoint.tensors.infos();
    let config = &checkpoint.config;
    let layout = match fit::checked_layout(checkpoint) {
        Ok(layout) => Some(layout),
        Err(crate::Error::Architecture(luthier_arch::Error::UnknownArchitecture { .. })) => None,
        Err(_) if !config.contains_key("model_type") => None,
        Err(problem) => return Err(problem),
    };
    let unknown_config_keys = if layout.is_some() { luthier_arch::unknown_keys(config)? } else { Vec::new() };
    let model_type = config.get("model_type").and_then(Value::as_str).unwrap_or("unknown").to_string();
    let named = |name: &str| checkpoint.side_files.iter().any(|file| file.name == name);
    Ok(Info {
        model_type,
        known_architecture: layout.is_some(),
        parameters: layout.as_ref().map_or_else(|| infos.iter().map(values).sum(), Layout::parameters),
        file_bytes: weight_file_bytes(checkpoint)?,
        vocab_size: layout.as_ref().map(fit::vocab_size).or_else(|| number(config.get("vocab_size"))),
        context_length: context_length(checkpoint),
        layers: layout.as_ref().map(|layout| layers(layout, |_| true)),
        encoder_layers: layout
            .as_ref()
            .map(|layout| layers(layout, |stack| stack == StackKind::Encoder))
            .filter(|layers| *layers > 0),
        tokenizer_tokens: fit::tokenizer(checkpoint)?.map(|tokenizer| tokenizer.vocab_size()),
        chat_template: named("chat_template.jinja")
            || named("chat_template.json")
            || template_in_config(checkpoint),
        tied: layout.as_ref().map_or_else(Vec::new, tied),
        types: types(infos),
        notes: {
            let mut notes: Vec<String> = fit::recognised_type(checkpoint).into_iter().collect();
            notes.extend(layout.iter().flat_map(|layout| odd_tokens(config, fit::vocab_size(layout))));
            notes
        },
        unknown_config_keys,
        tensors: infos
            .iter()
            .map(|info| TensorLine {
                name: info.name.clone(),
                dtype: info.dtype.name().to_string(),
                shape: info.shape.clone(),
            })
            .collect(),
    })
}

fn values(info: &TensorInfo) -> usize {
    info.shape.iter().product()
}

fn number(value: Option<&Value>) -> Option<usize> {
    value.and_then(Value::as_u64).and_then(|number| usize::try_from(number).ok())
}

/// Of the model, or of an encoder-decoder's decoder.
fn context_length(checkpoint: &Checkpoint) -> Option<usize> {
    let key = "max_position_embeddings";
    let nested = || number(checkpoint.config.get("decoder").and_then(|decoder| decoder.get(key)));
    number(checkpoint.config.get(key)).or_else(nested)
}

/// Special tokens that the model cannot write; other programs take them for absent.
fn odd_tokens(config: &Map<String, Value>, vocab_size: usize) -> Vec<String> {
    let mut odd = Vec::new();
    for key in ["bos_token_id", "eos_token_id", "pad_token_id"] {
        let ids = match config.get(key) {
            Some(Value::Array(ids)) => ids.as_slice(),
            Some(id) if !id.is_null() => std::slice::from_ref(id),
            _ => &[],
        };
        let outside = ids.iter().filter(|id| id.as_u64().is_none_or(|id| id >= vocab_size as u64));
        odd.extend(
            outside.map(|id| format!("config key {key}: {id} is no token of the {vocab_size} there are")),
        );
    }
    odd
}

fn layers(layout: &Layout, is_meant: impl Fn(StackKind) -> bool) -> usize {
    let roles = layout.tensors.iter().map(|spec| spec.role).filter(|role| is_meant(role.stack));
    let mut layers: Vec<_> = roles.filter_map(|role| Some((role.stack as u8, role.layer?))).collect();
    layers.sort_unstable();
    layers.dedup();
    layers.len()
}

fn tied(layout: &Layout) -> Vec<TiedName> {
    let ties = layout.ties.iter();
    ties.map(|tie| TiedName { name: tie.name.clone(), target: tie.target.clone() }).collect()
}

fn types(infos: &[TensorInfo]) -> BTreeMap<String, TypeShare> {
    let mut types: BTreeMap<String, TypeShare> = BTreeMap::new();
    for info in infos {
        let share = types.entry(info.dtype.name().to_string()).or_default();
        share.tensors += 1;
        share.parameters += values(info);
        share.size_bytes += info.dtype.size_bytes(&info.shape).unwrap_or(0);
    }
    types
}

fn template_in_config(checkpoint: &Checkpoint) -> bool {
    let config = checkpoint.side_file("tokenizer_config.json");
    let parsed = config.and_then(|bytes| serde_json::from_slice::<Value>(bytes).ok());
    parsed.is_some_and(|config| config.get("chat_template").is_some_and(|template| !template.is_null()))
}

/// Bytes of the GGUF file with all its parts, or of the folder's files of weights.
fn weight_file_bytes(checkpoint: &Checkpoint) -> Result<u64> {
    let place = &checkpoint.place;
    if !place.exists() {
        // A model in memory: its tensors are all that there is.
        let sizes = checkpoint.tensors.infos().iter().filter_map(|info| info.dtype.size_bytes(&info.shape));
        return Ok(sizes.sum::<usize>() as u64);
    }
    let mut files = luthier_checkpoint::folder::model_files(place)?;
    let is_weights = |ending: &std::ffi::OsStr| {
        ["safetensors", "bin", "pt", "pth"].iter().any(|known| ending.eq_ignore_ascii_case(known))
    };
    if place.is_dir() || luthier_checkpoint::torch::is_torch_name(place) {
        files.retain(|path| path.extension().is_some_and(is_weights));
    }
    let mut total = 0;
    for file in files {
        let metadata =
            std::fs::metadata(&file).map_err(|source| luthier_checkpoint::Error::io(&file, source))?;
        total += metadata.len();
    }
    Ok(total)
}
