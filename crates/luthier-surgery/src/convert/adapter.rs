//! A LoRA adapter from PEFT's form to llama.cpp's, and back.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use luthier_checkpoint::adapter::Adapter;
use luthier_checkpoint::gguf::{GgufValue, is_gguf_name};
use luthier_checkpoint::{Checkpoint, LedgerSummary, TensorSource};
use serde_json::Map;

use super::{Options, Report, recipe};
use crate::extract::config::{self, Contents};
use crate::plan::Plan;
use crate::view::{Cast, folder_type};
use crate::writing::{Header, Job, Origin, write_adapter, write_gguf};
use crate::{Input, Result, lora_gguf};

/// What `convert` would write.
pub fn plan(label: &str, place: &Path, base: &Input, out: &Path, options: &Options) -> Result<Plan> {
    let (input, adapter) = opened(label, place, base)?;
    let (infos, origins) = match is_gguf_name(out) {
        true => {
            let (view, _) = lora_gguf::form(&adapter, &base.checkpoint, options.dtype)?;
            (view.infos().to_vec(), view.origins())
        }
        false => {
            let view = cast(&input, options);
            (view.infos().to_vec(), kept(&view))
        }
    };
    Ok(Plan::new(&infos, origins.iter().map(Origin::describe).collect(), adapter.notes))
}

/// Writes the adapter at `place`, which belongs to `base`, to `out`: a GGUF file in llama.cpp's form, or a folder in PEFT's. Of
/// the base only the config is read.
pub fn convert(label: &str, place: &Path, base: &Input, out: &Path, options: &Options) -> Result<Report> {
    let (input, adapter) = opened(label, place, base)?;
    let summary = match is_gguf_name(out) {
        true => to_gguf(&input, &adapter, base, out, options)?,
        false => to_folder(&input, &adapter, base, out, options)?,
    };
    Ok(Report {
        tensors: summary.output_tensors,
        copied_tensors: summary.copied,
        changed_tensors: summary.changed,
        notes: adapter.notes,
    })
}

/// The adapter, and itself as the ledger's input.
fn opened(label: &str, place: &Path, base: &Input) -> Result<(Input, Adapter)> {
    let adapter = lora_gguf::open(place, Some(&base.checkpoint))?;
    let checkpoint = Checkpoint {
        place: adapter.place.clone(),
        config: adapter.config.keys.clone(),
        tensors: Arc::clone(&adapter.tensors),
        side_files: Vec::new(),
    };
    Ok((Input::new(label, checkpoint), adapter))
}

fn cast(input: &Input, options: &Options) -> Cast {
    Cast::new(Arc::clone(&input.checkpoint.tensors), |info| folder_type(info.dtype, options.dtype))
}

fn kept(view: &dyn TensorSource) -> Vec<Origin> {
    view.infos().iter().map(|info| Origin::From { input: 0, name: info.name.clone() }).collect()
}

fn job<'j>(
    input: &'j Input,
    base: &Input,
    options: &Options,
    origins: Vec<Origin>,
    dropped: Vec<(String, String)>,
) -> Job<'j> {
    Job {
        verb: "convert",
        recipe: recipe(&input.label, options.dtype, Some(&base.label)),
        seed: None,
        inputs: vec![input],
        origins,
        dropped: dropped.into_iter().map(|(name, reason)| (0, name, reason)).collect(),
    }
}

fn to_gguf(
    input: &Input,
    adapter: &Adapter,
    base: &Input,
    out: &Path,
    options: &Options,
) -> Result<LedgerSummary> {
    let (view, mut metadata) = lora_gguf::form(adapter, &base.checkpoint, options.dtype)?;
    let name = Path::new(&input.label).file_stem().unwrap_or_default().to_string_lossy().into_owned();
    metadata.push(("general.name".to_string(), GgufValue::String(name)));
    let job = job(input, base, options, view.origins(), adapter.repeated.clone());
    let header = Header { metadata, measurements: Map::new() };
    write_gguf(&view, header, out, options.force, job, |place| {
        lora_gguf::open(place, Some(&base.checkpoint)).map(drop)
    })
}

fn to_folder(
    input: &Input,
    adapter: &Adapter,
    base: &Input,
    out: &Path,
    options: &Options,
) -> Result<LedgerSummary> {
    let view = cast(input, options);
    // Every tensor of the file is written again, also those that repeat others.
    let job = job(input, base, options, kept(&view), Vec::new());
    let config =
        if adapter.place.is_file() { described(adapter, base)? } else { adapter.config.keys.clone() };
    let tensors: Arc<dyn TensorSource> = Arc::new(view);
    let folder = Checkpoint { place: out.to_path_buf(), config, tensors, side_files: Vec::new() };
    write_adapter(&folder, out, options.force, job, |_| Ok(Map::new()))
}

/// The adapter_config.json of a file that has none.
fn described(adapter: &Adapter, base: &Input) -> Result<Map<String, serde_json::Value>> {
    let layout = luthier_arch::layout(&base.checkpoint.config)?;
    let ranks: BTreeMap<String, usize> =
        adapter.modules.iter().map(|(path, module)| (path.clone(), module.rank)).collect();
    let contents = Contents {
        base,
        layout: Some(&layout),
        ranks,
        alpha: adapter.modules.values().any(|module| module.scale != 1.0).then_some(adapter.config.alpha),
        saved: Vec::new(),
        biases: Vec::new(),
        fan_in_fan_out: false,
        has_tied_head: false,
    };
    Ok(config::config(&contents))
}
