//! `luthier convert IN OUT [--dtype f32|bf16|f16]`: a model in another format or type, nothing else changed.
//!
//! Reads a model folder (safetensors, or PyTorch's own files, whose tensors keep their names), or a GGUF file. Writes a GGUF file where OUT ends in `.gguf`, else a folder that transformers
//! loads. Without `--dtype` stored types are kept, but where the format cannot: safetensors hold no quantised blocks, which
//! become F32 (the same values), and one-dimensional tensors of a GGUF file are F32, as llama.cpp wants them. A GGUF file
//! that we write carries config.json, tokenizer and side files whole, and the types that its tensors had, so that the way
//! back gives the same folder byte for byte. Guarantees: every tensor is in the ledger. Leaves the input alone. Refuses:
//! weights that are not finite or that the wanted type cannot hold, a config that the weights contradict, a tokenizer that
//! does not fit, a model that llama.cpp would compute otherwise. Example: `luthier convert model.gguf model`.

mod adapter;
pub(crate) mod card;
pub(crate) mod gguf;
mod model_name;
pub(crate) mod restore;
mod ties;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use luthier_checkpoint::gguf::is_gguf_name;
use luthier_checkpoint::{Checkpoint, Dtype, LedgerSummary, TensorInfo, TensorSource};
use serde::Serialize;
use serde_json::{Map, json};

use crate::plan::Plan;
use crate::view::{Cast, find, folder_type};
use crate::writing::{Job, Origin, write_folder};
use crate::{Error, Input, Result, config, fit};

/// How a model is converted.
#[derive(Clone, Debug)]
pub struct Options {
    /// The type of all float weights: F32, F16 or BF16; none keeps them.
    pub dtype: Option<Dtype>,
    /// Whether an existing output is replaced.
    pub force: bool,
}

/// What came of it.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Report {
    /// Tensors of the output.
    pub tensors: usize,
    /// Those that are byte for byte the input's.
    pub copied_tensors: usize,
    /// How the others were changed, and how many.
    pub changed_tensors: BTreeMap<String, usize>,
    /// What to know.
    pub notes: Vec<String>,
}

pub use adapter::{convert as adapter, plan as plan_adapter};

/// What `run` would write, from headers alone.
pub fn plan(input: &Input, out: &Path, options: &Options) -> Result<Plan> {
    let notes = check(input, out, options)?;
    if is_gguf_name(out) {
        let (infos, origins) = gguf::planned(input, options)?;
        return Ok(Plan::new(&infos, origins.iter().map(Origin::describe).collect(), notes));
    }
    let infos = folder_infos(input, options);
    let from = infos.iter().map(|info| info.name.clone()).collect();
    Ok(Plan::new(&infos, from, notes))
}

/// Writes the model to `out`.
pub fn run(input: &Input, out: &Path, options: &Options) -> Result<Report> {
    let notes = check(input, out, options)?;
    fit::check_ties(&input.checkpoint)?;
    let summary =
        if is_gguf_name(out) { gguf::write(input, out, options)? } else { to_folder(input, out, options)? };
    Ok(Report {
        tensors: summary.output_tensors,
        copied_tensors: summary.copied,
        changed_tensors: summary.changed,
        notes,
    })
}

/// What is refused before a weight is read, and what to know.
pub(crate) fn check(input: &Input, out: &Path, options: &Options) -> Result<Vec<String>> {
    if let Some(dtype) = options.dtype
        && ![Dtype::F32, Dtype::F16, Dtype::BF16].contains(&dtype)
    {
        return Err(Error::Use(format!("--dtype {dtype} is not known to convert; wanted f32, f16 or bf16")));
    }
    let mut notes: Vec<String> = fit::recognised_type(&input.checkpoint).into_iter().collect();
    // Configs of 2019 do not say what model they are.
    if !input.checkpoint.config.contains_key("model_type") && !is_gguf_name(out) {
        notes.push(
            "config.json names no model_type: weights are not compared with it, and other verbs need that key"
                .to_string(),
        );
        return Ok(notes);
    }
    match fit::checked_layout(&input.checkpoint) {
        Ok(_) if is_gguf_name(out) => {
            if let Some(window) = luthier_arch::gguf::ignored_window(&input.checkpoint.config)? {
                notes.push(format!(
                    "config key sliding_window: llama.cpp does not apply it to this architecture and computes something \
                     else for texts longer than {window} tokens; luthier applies it"
                ));
            }
        }
        Ok(_) => {}
        Err(Error::Architecture(luthier_arch::Error::UnknownArchitecture { model_type, .. })) => {
            notes.push(format!(
                "architecture {model_type} is not known: weights are not compared with the config"
            ));
        }
        Err(problem) => return Err(problem),
    }
    Ok(notes)
}

/// The tensors of the folder that is made of a model.
fn folder_infos(input: &Input, options: &Options) -> Vec<TensorInfo> {
    let infos = input.checkpoint.tensors.infos().iter();
    infos.map(|info| TensorInfo { dtype: folder_type(info.dtype, options.dtype), ..info.clone() }).collect()
}

fn to_folder(input: &Input, out: &Path, options: &Options) -> Result<LedgerSummary> {
    let checkpoint = &input.checkpoint;
    let restored = restore::folder_tensors(checkpoint)?;
    let source: Arc<dyn TensorSource> = match &restored {
        Some(restored) => Arc::clone(restored) as Arc<dyn TensorSource>,
        None => Arc::clone(&checkpoint.tensors),
    };
    let twice = ties::Twice::of(checkpoint, &source);
    let source: Arc<dyn TensorSource> = match &twice {
        Some(twice) => Arc::clone(twice) as Arc<dyn TensorSource>,
        None => source,
    };
    let types = source.infos().to_vec();
    let view = Cast::new(source, |info| folder_type(info.dtype, options.dtype));
    let same_types = view.infos() == types;
    let config = if same_types
        && (restored.is_some()
            || !checkpoint.place.is_file()
            || luthier_checkpoint::torch::is_torch_name(&checkpoint.place))
    {
        checkpoint.config.clone()
    } else {
        config::with_dtype(&checkpoint.config, view.infos())
    };
    let mut origins = Vec::with_capacity(types.len());
    for info in view.infos() {
        let own = twice.as_ref().and_then(|twice| twice.target(&info.name)).unwrap_or(&info.name);
        let stored = find(checkpoint.tensors.infos(), own)?;
        let name = own.to_string();
        origins.push(match &restored {
            Some(restored) if restored.differs(&name) && stored.dtype == info.dtype => {
                Origin::Changed { input: 0, name, how: "as it was before it became GGUF".to_string() }
            }
            _ => Origin::From { input: 0, name },
        });
    }
    let model = Checkpoint { config, tensors: Arc::new(view), ..checkpoint.clone() };
    write_folder(&model, out, options.force, job(input, options, origins), |staged| {
        fit_again(staged, &model)?;
        Ok(Map::new())
    })
}

/// Asserts that what was written is what was meant, by its headers.
fn fit_again(staged: &Checkpoint, model: &Checkpoint) -> Result<()> {
    let wanted = model.tensors.infos();
    for info in wanted {
        let came = find(staged.tensors.infos(), &info.name)?;
        if came != info {
            let (wanted, came) = (format!("{info:?}"), format!("{came:?}"));
            return Err(Error::Check { check: "the written file".to_string(), wanted, came });
        }
    }
    Ok(())
}

fn job<'j>(input: &'j Input, options: &Options, origins: Vec<Origin>) -> Job<'j> {
    Job {
        verb: "convert",
        recipe: recipe(&input.label, options.dtype, None),
        seed: None,
        inputs: vec![input],
        origins,
        dropped: Vec::new(),
    }
}

/// What the record says: the verb's own keys.
fn recipe(model: &str, dtype: Option<Dtype>, base: Option<&str>) -> serde_json::Value {
    json!({"model": model, "dtype": dtype.map(|dtype| dtype.name().to_ascii_lowercase()), "base": base})
}
