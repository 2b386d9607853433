//! What MODEL means on the command line: a folder, a GGUF file, `hf:org/name[@revision]`, or `builtin`; and what comes
//! out of opening it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, anyhow, bail};
use candle_core::Device;
use luthier_arch::{LoadOptions, Model, Precision};
use luthier_checkpoint::adapter::Adapter;
use luthier_checkpoint::gguf::is_gguf_name;
use luthier_checkpoint::hub::{self, HubOptions, HubPlace};
use luthier_checkpoint::{Checkpoint, HeadersOnly, Output, SideFile, folder};
use luthier_surgery::Input;
use luthier_text::{TextError, Tokenizer};

use crate::builtin;
use crate::progress::DownloadDisplay;
use crate::session::remark;

/// Where models lie that a record calls by other places; see [`stand_in`].
static STAND_INS: Mutex<BTreeMap<String, PathBuf>> = Mutex::new(BTreeMap::new());

/// From now on `model` lies at `path`; records go on calling it `model`.
pub fn stand_in(model: &str, path: &Path) {
    let mut all = STAND_INS.lock().unwrap_or_else(PoisonError::into_inner);
    all.insert(model.to_string(), path.to_path_buf());
}

/// A model that is ready to run.
pub struct Loaded {
    /// Where it came from.
    pub checkpoint: Checkpoint,
    /// The model, its weights as their file stores them.
    pub model: Box<dyn Model>,
    /// Made before the weights were read, and not asked for yet.
    tokenizer: RefCell<Option<Tokenizer>>,
}

/// Opens MODEL: headers only, weights stay on disk.
pub fn open(model: &str) -> anyhow::Result<Checkpoint> {
    if model == builtin::NAME {
        return builtin::checkpoint();
    }
    let path = local_path(model)?;
    check_is_model(&path)?;
    Ok(luthier_arch::open(&path)?)
}

/// Refuses what is no model, but near one: says what is wanted, and where it probably is.
fn check_is_model(path: &Path) -> anyhow::Result<()> {
    const WANTED: &str =
        "wanted a folder with config.json and model.safetensors or pytorch_model.bin, or a GGUF file";
    let place = path.display();
    if path.is_file() {
        let is_part = path.extension().is_some_and(|ending| ending == "safetensors" || ending == "json");
        if is_part {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            let parent = parent.unwrap_or(Path::new(".")).display();
            bail!("{place}: is one file of a model; {WANTED}: did you mean {parent}?");
        }
        return Ok(());
    }
    if !path.is_dir() {
        bail!("{place}: is a pipe or a device; {WANTED}");
    }
    if path.join("config.json").exists() {
        return Ok(());
    }
    if Adapter::is_adapter(path) {
        bail!(
            "{place}: is an adapter and no model; wanted a model: luthier fuse-adapter MODEL {place} OUT makes one"
        );
    }
    let mut names: Vec<String> = Vec::new();
    for entry in std::fs::read_dir(path).with_context(|| place.to_string())? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    if names.iter().any(|name| name == "run.json" || name == "metrics.jsonl") {
        let step = |name: &String| name.strip_prefix("checkpoint-")?.parse::<u64>().ok();
        let newest = names.iter().filter_map(step).max();
        let instead = newest.map_or(String::new(), |step| format!(", or take {place}/checkpoint-{step}"));
        bail!("{place}: a training run that is not finished, so no model yet; run its recipe again{instead}");
    }
    match names.iter().find(|name| name.to_ascii_lowercase().ends_with(".gguf")) {
        Some(file) => bail!("{place}: holds no config.json; did you mean {place}/{file}?"),
        None => bail!("{place}: holds no config.json; {WANTED}"),
    }
}

/// What is read of a model's small files once it runs.
const GENERATION_CONFIG: &str = "generation_config.json";

/// Opens MODEL and makes it ready to score and generate, every weight as its file has it.
pub fn load(model: &str) -> anyhow::Result<Loaded> {
    let checkpoint = open(model).with_context(|| format!("model {model}"))?;
    let options = LoadOptions { trainable: false, device: Device::Cpu };
    let model = luthier_arch::load(&checkpoint, &options).with_context(|| format!("model {model}"))?;
    Ok(Loaded { checkpoint, model, tokenizer: RefCell::default() })
}

/// As [`load`], with quantised matrices packed for products in whole numbers. `reads_text`: makes the tokenizer too, before
/// the weights, since what it is made of takes as much memory for a moment as a small model; there is none otherwise.
pub fn load_packed(model: &str, precision: Precision, reads_text: bool) -> anyhow::Result<Loaded> {
    let mut checkpoint = open(model).with_context(|| format!("model {model}"))?;
    let tokenizer = if reads_text { tokenizer_if_any(&checkpoint)? } else { None };
    luthier_kernels::process::give_back_freed_memory();
    let model =
        luthier_arch::load_packed(&checkpoint, precision).with_context(|| format!("model {model}"))?;
    checkpoint.tensors = Arc::new(HeadersOnly(checkpoint.tensors.infos().to_vec()));
    if tokenizer.is_some() || !reads_text {
        checkpoint.side_files.retain(|file| file.name == GENERATION_CONFIG);
    }
    luthier_kernels::process::give_back_freed_memory();
    Ok(Loaded { checkpoint, model, tokenizer: RefCell::new(tokenizer) })
}

/// Whether MODEL names something on the hub.
pub fn is_hub_name(model: &str) -> bool {
    HubPlace::parse(model).is_some()
}

/// Where MODEL lies on this machine; downloads it from the hub when it is not there yet. Not for `builtin`.
pub fn local_path(model: &str) -> anyhow::Result<PathBuf> {
    let stand_in = STAND_INS.lock().unwrap_or_else(PoisonError::into_inner).get(model).cloned();
    if let Some(path) = stand_in {
        return Ok(path);
    }
    let mut download = DownloadDisplay::default();
    if let Some(place) = HubPlace::parse(model) {
        let options = HubOptions::from_variables(|name| std::env::var(name).ok())?;
        let place = place?;
        let has_no_organisation = !place.repo.contains('/');
        let resolved = hub::resolve(&place, &options, &mut |progress| download.show(&progress));
        return resolved.map_err(|error| match has_no_organisation {
            true => anyhow!("{model} names no organisation; wanted hf:org/name[@revision]: {error}"),
            false => error.into(),
        });
    }
    let path = Path::new(model);
    if !path.exists() {
        bail!(
            "model {model}: no such folder or file; wanted a Hugging Face folder, a GGUF file, hf:org/name[@revision] or {}",
            builtin::NAME
        );
    }
    Ok(path.to_path_buf())
}

impl Loaded {
    /// The tokenizer that comes with the model; an error where there is none or it does not fit the vocabulary.
    pub fn tokenizer(&self) -> anyhow::Result<Tokenizer> {
        let early = self.tokenizer.take();
        let tokenizer = early.map_or_else(|| tokenizer(&self.checkpoint), Ok)?;
        self.check_fits(&tokenizer)?;
        Ok(tokenizer)
    }

    /// The tokenizer, where the model has files of one.
    pub fn tokenizer_if_any(&self) -> anyhow::Result<Option<Tokenizer>> {
        let early = self.tokenizer.take();
        let tokenizer = early.map_or_else(|| tokenizer_if_any(&self.checkpoint), |early| Ok(Some(early)))?;
        if let Some(tokenizer) = &tokenizer {
            self.check_fits(tokenizer)?;
        }
        Ok(tokenizer)
    }

    fn check_fits(&self, tokenizer: &Tokenizer) -> anyhow::Result<()> {
        let fits = tokenizer.check_fits(self.model.vocab_size());
        fits.with_context(|| format!("model {}", self.checkpoint.place.display()))
    }

    /// Tokens that end a text: those of the tokenizer, generation_config.json and config.json.
    pub fn end_ids(&self, tokenizer: Option<&Tokenizer>) -> Vec<u32> {
        let generation = self.checkpoint.side_file(GENERATION_CONFIG);
        let generation: Option<serde_json::Map<String, serde_json::Value>> =
            generation.and_then(|bytes| serde_json::from_slice(bytes).ok());
        luthier_generate::end_token_ids(&self.checkpoint.config, generation.as_ref(), tokenizer)
    }
}

/// The tokenizer among a checkpoint's side files.
pub fn tokenizer(checkpoint: &Checkpoint) -> anyhow::Result<Tokenizer> {
    let mut files = checkpoint.side_files.clone();
    if checkpoint.side_file("config.json").is_none() {
        let bytes = serde_json::to_vec(&checkpoint.config)?;
        files.push(SideFile { name: "config.json".to_string(), bytes });
    }
    tokenizer_of(&files, &checkpoint.place.display().to_string())
}

/// The tokenizer of a checkpoint, where it has files of one.
pub fn tokenizer_if_any(checkpoint: &Checkpoint) -> anyhow::Result<Option<Tokenizer>> {
    let named = ["tokenizer.json", "tokenizer.model", "spiece.model"];
    match named.iter().any(|name| checkpoint.side_file(name).is_some()) {
        true => tokenizer(checkpoint).map(Some),
        false => Ok(None),
    }
}

/// The tokenizer among small files, which come from `place`.
pub fn tokenizer_of(files: &[SideFile], place: &str) -> anyhow::Result<Tokenizer> {
    let files = files.iter().map(|file| (file.name.clone(), file.bytes.clone())).collect();
    Tokenizer::from_files(&files).map_err(|error| in_place(error, place))
}

/// An error about a file of a model with the file's path.
fn in_place(error: TextError, place: &str) -> anyhow::Error {
    match error {
        TextError::Broken { file, reason } if Path::new(place).is_dir() => {
            anyhow!("{}: {reason}", Path::new(place).join(file).display())
        }
        other => anyhow!("{place}: {other}"),
    }
}

/// The small files of a MODEL that may be a folder without weights.
pub fn side_files(model: &str) -> anyhow::Result<Vec<SideFile>> {
    if model != builtin::NAME {
        let path = local_path(model)?;
        if path.is_dir() {
            return Ok(folder::read_side_files(&path)?);
        }
    }
    Ok(open(model)?.side_files)
}

/// A model that a verb reads, with what lineages call it.
pub fn input(model: &str) -> anyhow::Result<Input> {
    let mut input = Input::new(model, open(model).with_context(|| format!("model {model}"))?);
    if model == builtin::NAME {
        input.record = Some(builtin::record());
    }
    Ok(input)
}

/// An error of a verb with the model that it speaks of; one of the system names its own file, which may be the output.
pub fn about(model: &str, error: luthier_surgery::Error) -> anyhow::Error {
    let is_of_system =
        matches!(error, luthier_surgery::Error::Checkpoint(luthier_checkpoint::Error::Io { .. }));
    let error = anyhow::Error::from(error);
    if is_of_system { error } else { error.context(format!("model {model}")) }
}

/// Opens an adapter: a folder in PEFT's form, or a GGUF file in llama.cpp's, which is read beside its base.
pub fn adapter(place: &str, base: Option<&Checkpoint>) -> anyhow::Result<Adapter> {
    Ok(luthier_surgery::lora_gguf::open(&local_path(place)?, base)?)
}

/// Whether a place on this machine is an adapter and no model.
pub fn is_adapter(place: &str) -> anyhow::Result<bool> {
    let path = Path::new(place);
    let is_folder = Adapter::is_adapter(path) && !path.join("config.json").exists();
    Ok(is_folder || luthier_surgery::lora_gguf::is_adapter(path)?)
}

/// As [`check_out`], for an output that is a folder.
pub fn check_folder_out(out: &Path, force: bool, inputs: &[&Input]) -> anyhow::Result<()> {
    check_out(out, force, inputs)?;
    if is_gguf_name(out) {
        bail!(
            "{}: is the name of a GGUF file; wanted a place for a folder, convert it afterwards",
            out.display()
        );
    }
    Ok(())
}

/// As [`check_out`], with adapters among what is read.
pub fn check_out_beside(
    out: &Path,
    force: bool,
    inputs: &[&Input],
    adapters: &[(String, Adapter)],
) -> anyhow::Result<()> {
    check_out(out, force, inputs)?;
    let places: Vec<&Path> = adapters.iter().map(|(_, adapter)| adapter.place.as_path()).collect();
    Ok(Output::check(out, !is_gguf_name(out), force, &places)?)
}

/// Refuses an output that no command could open by its name.
pub fn refuse_builtin_name(out: &Path) -> anyhow::Result<()> {
    if out == Path::new(builtin::NAME) {
        bail!(
            "{0}: every command takes this name for the built-in model; choose another, or write ./{0}",
            builtin::NAME
        );
    }
    Ok(())
}

/// Refuses a place that no output can go to, before any work: one that exists, without `force`; an input; and with `force`
/// anything but a model, for it is no leave to lose a folder of other files.
pub fn check_out(out: &Path, force: bool, inputs: &[&Input]) -> anyhow::Result<()> {
    refuse_builtin_name(out)?;
    let to_file = is_gguf_name(out);
    let places: Vec<&Path> = inputs.iter().map(|input| input.checkpoint.place.as_path()).collect();
    Output::check(out, !to_file, force, &places)?;
    check_replaceable(out)?;
    places.iter().for_each(|place| remark_on_other_files(place));
    Ok(())
}

/// What training runs and version control leave in a model's folder.
const NOT_MISSED: &[&str] = &[
    "metrics.jsonl",
    "run.json",
    "trainer_state.json",
    "optimizer.safetensors",
    "measurements.json",
    "report.html",
];

/// Says which files of an input folder are no part of a model as the program knows it, since no output will have them.
fn remark_on_other_files(place: &Path) {
    let Ok(entries) = std::fs::read_dir(place) else { return };
    let names = entries.filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()));
    let is_left = |name: &String| {
        let is_missed = !NOT_MISSED.contains(&name.as_str())
            && ![".", "checkpoint-", "events.", "runs"].iter().any(|start| name.starts_with(start));
        is_missed && !folder::is_part_of_model(name)
    };
    let mut left: Vec<String> = names.filter(is_left).collect();
    left.sort();
    if let Some(first) = left.first() {
        let more = if left.len() > 1 { format!(" and {} more", left.len() - 1) } else { String::new() };
        remark(&format!("{}: {first}{more}: no part of a model, and in no output", place.display()));
    }
}

fn check_replaceable(out: &Path) -> anyhow::Result<()> {
    let to_file = is_gguf_name(out);
    if out.is_file() && !to_file {
        bail!("{}: is a file; wanted a place for a folder", out.display());
    }
    let is_model = ["config.json", "lineage.json"].iter().any(|name| out.join(name).exists());
    let is_empty = || std::fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_none());
    if out.is_dir() && !is_model && !is_empty() {
        bail!("{}: holds files but no model; only models are replaced, choose another place", out.display());
    }
    if out.is_dir() {
        for entry in std::fs::read_dir(out).with_context(|| out.display().to_string())? {
            let name = entry?.file_name();
            if !folder::is_part_of_model(&name.to_string_lossy()) {
                bail!(
                    "{}: is no part of the model there, and would be lost; move it away, or choose another place",
                    out.join(name).display()
                );
            }
        }
    }
    Ok(())
}
