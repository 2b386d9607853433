//! Writes what a verb made: tensors one at a time, every one accounted for, checked, then lineage, then the name.

mod account;
mod origin;

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};

use luthier_checkpoint::adapter::{self, Adapter};
use luthier_checkpoint::gguf::{GgufValue, GgufWriter};
use luthier_checkpoint::lineage::Parent;
use luthier_checkpoint::safetensors::SafetensorsWriter;
use luthier_checkpoint::{
    Checkpoint, LedgerSummary, Lineage, Output, TensorInfo, TensorSink, TensorSource, json, lineage,
};
use luthier_kernels::bytes::SharedBytes;
use luthier_kernels::pool;
use serde_json::{Map, Value};

use self::account::Account;
pub(crate) use self::origin::Origin;
use crate::{Error, Input, Result};

/// Data of one safetensors file at most; larger models are written in shards.
const MAX_SHARD_BYTES: usize = 5_000_000_000;

/// What a verb did.
pub(crate) struct Job<'j> {
    /// The verb's name.
    pub(crate) verb: &'static str,
    /// All its options.
    pub(crate) recipe: Value,
    /// Where random numbers came from.
    pub(crate) seed: Option<u64>,
    /// What it read.
    pub(crate) inputs: Vec<&'j Input>,
    /// Where each tensor of the output comes from, in the output's order.
    pub(crate) origins: Vec<Origin>,
    /// Input, tensor and reason of what is left out.
    pub(crate) dropped: Vec<(usize, String, String)>,
}

/// Writes `model` as a folder at `out`. `check` sees the finished folder before it gets its name, and measures.
/// Nothing is left behind where anything fails.
pub(crate) fn write_folder(
    model: &Checkpoint,
    out: &Path,
    force: bool,
    job: Job,
    check: impl FnOnce(&Checkpoint) -> Result<Map<String, Value>>,
) -> Result<LedgerSummary> {
    let form = FolderForm { config: "config.json", weights: None };
    write_form(form, model, out, force, job, |place| check(&Checkpoint::open_folder(place)?))
}

/// Writes an adapter, given as a model's parts, as a folder in PEFT's form; otherwise as [`write_folder`].
pub(crate) fn write_adapter(
    adapter: &Checkpoint,
    out: &Path,
    force: bool,
    job: Job,
    check: impl FnOnce(&Adapter) -> Result<Map<String, Value>>,
) -> Result<LedgerSummary> {
    let form = FolderForm { config: adapter::CONFIG_NAME, weights: Some(adapter::WEIGHTS_NAME) };
    write_form(form, adapter, out, force, job, |place| check(&Adapter::open(place)?))
}

/// The names of a folder's files.
struct FolderForm {
    config: &'static str,
    /// The one file of weights; none: as a model's, in shards where it is large.
    weights: Option<&'static str>,
}

fn write_form(
    form: FolderForm,
    model: &Checkpoint,
    out: &Path,
    force: bool,
    job: Job,
    check: impl FnOnce(&Path) -> Result<Map<String, Value>>,
) -> Result<LedgerSummary> {
    let output = Output::folder(out, force, &places(&job))?;
    let infos = model.tensors.infos();
    let metadata = SafetensorsWriter::pt_metadata();
    let writer = match form.weights {
        Some(name) => SafetensorsWriter::create_file(&output.path().join(name), infos, &metadata)?,
        None => SafetensorsWriter::create(output.path(), infos, &metadata, Some(MAX_SHARD_BYTES))?,
    };
    let mut account = Account::new(&job)?;
    // The inputs' hashes are computed while their tensors are worked on.
    let parents = std::thread::scope(|scope| {
        let inputs = &job.inputs;
        let hashing = scope.spawn(move || parents(inputs));
        write_tensors(model.tensors.as_ref(), writer, &mut account, &job.origins)?;
        hashing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    output.write(form.config, json::to_text(&model.config).as_bytes())?;
    for file in &model.side_files {
        output.write(&file.name, &file.bytes)?;
    }
    let summary = account.finish(infos)?;
    let measurements = check(output.path())?;
    let lineage = Lineage { measurements, ..record(&job, parents, summary.clone()) };
    output.write(lineage::LINEAGE_NAME, lineage.to_text().as_bytes())?;
    output.commit()?;
    Ok(summary)
}

/// The model at a place, its tensors those that its config asks for.
pub(crate) fn checked_model(place: &Path) -> Result<Checkpoint> {
    let written = luthier_arch::open(place)?;
    luthier_arch::check_headers(&written)?;
    Ok(written)
}

/// Writes `view`, whose names and types are the file's own, as a GGUF file at `out`; `check` sees the file before it gets its
/// name.
pub(crate) fn write_gguf(
    view: &dyn TensorSource,
    header: Header,
    out: &Path,
    force: bool,
    job: Job,
    check: impl FnOnce(&Path) -> Result<()>,
) -> Result<LedgerSummary> {
    let infos = view.infos();
    stream_gguf(header, infos, out, force, &job, |at| Ok(view.read(&infos[at].name)?), check)
}

/// What stands before the tensors of a GGUF file besides their names and the lineage.
pub(crate) struct Header {
    pub(crate) metadata: Vec<(String, GgufValue)>,
    pub(crate) measurements: Map<String, Value>,
}

impl Header {
    /// All metadata of the file; the lineage, last, has blanks for the hashes of the inputs where they are not known yet.
    fn with_lineage(self, job: &Job, expected: LedgerSummary) -> Result<(Vec<(String, GgufValue)>, Lineage)> {
        let Header { mut metadata, measurements } = self;
        let lineage = Lineage { measurements, ..record_without_hashes(job, expected)? };
        metadata.push(lineage_entry(&lineage));
        Ok((metadata, lineage))
    }

    /// Length of the file that [`stream_gguf`] writes, to the byte.
    pub(crate) fn file_bytes(self, infos: &[TensorInfo], job: &Job) -> Result<u64> {
        let (metadata, _) = self.with_lineage(job, expected_summary(job, infos)?)?;
        Ok(GgufWriter::file_bytes(&metadata, infos)?)
    }
}

fn lineage_entry(lineage: &Lineage) -> (String, GgufValue) {
    (lineage::LINEAGE_KEY.to_string(), GgufValue::String(lineage.to_text()))
}

/// Writes a GGUF file at `out` whose tensors `make` gives one after another, each once. The header stands before them and
/// holds the lineage: it is written first with the ledger that the job means to come and with blanks for the inputs'
/// hashes, which are computed meanwhile, and again at the end, when the ledger that came must be the one that was meant.
pub(crate) fn stream_gguf(
    header: Header,
    infos: &[TensorInfo],
    out: &Path,
    force: bool,
    job: &Job,
    mut make: impl FnMut(usize) -> Result<SharedBytes>,
    check: impl FnOnce(&Path) -> Result<()>,
) -> Result<LedgerSummary> {
    let output = Output::file(out, force, &places(job))?;
    let expected = expected_summary(job, infos)?;
    let (mut metadata, mut lineage) = header.with_lineage(job, expected.clone())?;
    let mut writer = GgufWriter::create(output.path(), &metadata, infos)?;
    let mut account = Account::new(job)?;
    let inputs = &job.inputs;
    lineage.parents = std::thread::scope(|scope| {
        let hashing = scope.spawn(move || parents(inputs));
        // One tensor goes to the disk while the next one is made.
        let (sender, receiver) = sync_channel::<(&str, SharedBytes)>(0);
        let target = &mut writer;
        let writing = scope
            .spawn(move || receiver.into_iter().try_for_each(|(name, bytes)| target.write(name, &bytes)));
        let mut making = || {
            for (at, (info, origin)) in infos.iter().zip(&job.origins).enumerate() {
                let bytes = make(at)?;
                account.note(info, origin, Some(&bytes))?;
                if sender.send((&info.name, bytes)).is_err() {
                    break; // The writer ended, and says why.
                }
            }
            Ok(())
        };
        let made = making();
        drop(sender);
        let written = writing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let parents = hashing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        made.and(written.map_err(Into::into)).and(parents)
    })?;
    writer.finish()?;
    let summary = account.finish(infos)?;
    if summary != expected {
        let check = "the ledger".to_string();
        return Err(Error::Check { check, wanted: expected.to_string(), came: summary.to_string() });
    }
    *metadata.last_mut().expect("the lineage is last") = lineage_entry(&lineage);
    writer.replace_metadata(&metadata, infos)?;
    drop(writer);
    check(output.path())?;
    output.commit()?;
    Ok(summary)
}

/// Pieces that may wait for the writer.
const WAITING: usize = 2;

/// Makes and notes the tensors of a model, each whole or in the parts in which its source gives it, while another thread
/// writes those that are made.
fn write_tensors(
    tensors: &dyn TensorSource,
    mut writer: SafetensorsWriter,
    account: &mut Account,
    origins: &[Origin],
) -> Result<()> {
    let (sender, receiver) = sync_channel::<(&str, SharedBytes)>(WAITING);
    std::thread::scope(|scope| {
        let writing = scope.spawn(move || -> Result<()> {
            for (name, bytes) in receiver {
                writer.write_part(name, &bytes)?;
            }
            Ok(writer.finish()?)
        });
        let made = make_tensors(tensors, account, origins, &sender);
        drop(sender);
        let written = writing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        // Without the rest the writer misses tensors, which is not what went wrong.
        made.and(written)
    })
}

/// Stops without an error where nobody takes what it makes: the writer then has one.
fn make_tensors<'t>(
    tensors: &'t dyn TensorSource,
    account: &mut Account,
    origins: &[Origin],
    sender: &SyncSender<(&'t str, SharedBytes)>,
) -> Result<()> {
    for (info, origin) in tensors.infos().iter().zip(origins) {
        let name = info.name.as_str();
        let is_copied = matches!(origin, Origin::From { .. });
        let Some(step) = tensors.part_bytes(name).filter(|_| !is_copied) else {
            let bytes = tensors.read(name)?;
            account.note(info, origin, Some(&bytes))?;
            if sender.send((name, bytes)).is_err() {
                return Ok(());
            }
            continue;
        };
        account.note(info, origin, None)?;
        let size = info.dtype.size_bytes(&info.shape).unwrap_or(0);
        for start in (0..size.max(1)).step_by(step) {
            let bytes = tensors.read_part(name, start..size.min(start + step))?;
            if sender.send((name, bytes)).is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// The inputs with the hashes of their files; as many at a time as there are threads.
fn parents(inputs: &[&Input]) -> Result<Vec<Parent>> {
    let next = AtomicUsize::new(0);
    let hash = || {
        let mut done = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(input) = inputs.get(at) else { return done };
            done.push((at, input.parent()));
        }
    };
    let mut all = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..pool::threads().min(inputs.len())).map(|_| scope.spawn(hash)).collect();
        let join = |worker: std::thread::ScopedJoinHandle<'_, Vec<_>>| {
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        workers.into_iter().flat_map(join).collect::<Vec<_>>()
    });
    all.sort_by_key(|(at, _)| *at);
    all.into_iter().map(|(_, parent)| parent).collect()
}

/// The record of a job.
fn record(job: &Job, parents: Vec<Parent>, summary: LedgerSummary) -> Lineage {
    Lineage::new(job.verb, job.recipe.clone(), job.seed, parents, summary)
}

/// The same with blanks of the same length for hashes that would have to be computed.
fn record_without_hashes(job: &Job, summary: LedgerSummary) -> Result<Lineage> {
    let parents = job.inputs.iter().map(|input| input.parent_without_hashes()).collect::<Result<Vec<_>>>()?;
    Ok(Lineage::new(job.verb, job.recipe.clone(), job.seed, parents, summary))
}

fn places<'j>(job: &Job<'j>) -> Vec<&'j Path> {
    job.inputs.iter().map(|input| input.checkpoint.place.as_path()).collect()
}

/// The ledger that a job will come to if what it calls copied is that.
fn expected_summary(job: &Job, infos: &[TensorInfo]) -> Result<LedgerSummary> {
    let mut account = Account::new(job)?;
    for (info, origin) in infos.iter().zip(&job.origins) {
        account.note(info, origin, None)?;
    }
    account.finish(infos)
}
