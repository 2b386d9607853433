//! The folder of a run while it grows: lock, identity, log, event file, checkpoints.
//!
//! `run.json` (the identity) is written first, `lineage.json` last. Everything else is either placed whole by a rename
//! or, like metrics.jsonl and the event file, written again from the last checkpoint's log when a run goes on.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use luthier_checkpoint::lineage::LINEAGE_NAME;
use serde_json::{Map, Value};

use crate::metrics::{self, Entry};
use crate::tensorboard;
use crate::{Error, Result};

const METRICS: &str = "metrics.jsonl";
const IDENTITY: &str = "run.json";
const CHECKPOINT_PREFIX: &str = "checkpoint-";
/// Ends the names of things that are not whole yet.
const PARTIAL: &str = ".partial";

/// A run's folder, locked for as long as this lives.
pub(crate) struct RunFolder {
    path: PathBuf,
    /// Holds the lock: the system drops it with the process, however that ends.
    metrics: File,
    events: Option<File>,
    /// Whether this call made the folder.
    is_created: bool,
}

impl RunFolder {
    /// Opens or begins the folder. `force` empties one that holds a run or a model and nothing else.
    pub(crate) fn open(path: &Path, force: bool) -> Result<RunFolder> {
        let metrics_path = path.join(METRICS);
        if path.exists() && !path.is_dir() {
            let what = "is a file; wanted a place for the run's folder".to_string();
            return Err(Error::Format { path: path.to_path_buf(), what });
        }
        let occupied = fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_some());
        if occupied && force {
            refuse_other_files(path)?;
        }
        if occupied && !metrics_path.is_file() {
            let is_model = path.join("config.json").is_file();
            if !force || !is_model {
                return Err(Error::NotARun { out: path.to_path_buf(), is_model });
            }
            remove(path)?;
        }
        let is_created = !path.exists();
        fs::create_dir_all(path).map_err(Error::io(path))?;
        let metrics = lock(path, &metrics_path)?;
        let mut folder = RunFolder { path: path.to_path_buf(), metrics, events: None, is_created };
        if force && occupied {
            folder.empty()?;
        }
        folder.remove_partial()?;
        Ok(folder)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether a run in here has got anywhere: to a checkpoint, or to its end.
    pub(crate) fn has_progress(&self) -> Result<bool> {
        Ok(self.is_finished() || !self.checkpoint_steps()?.is_empty())
    }

    /// Removes what [`RunFolder::open`] and a beginning have made, where the run has got nowhere.
    pub(crate) fn abandon(self) {
        if !matches!(self.has_progress(), Ok(false)) {
            return;
        }
        // What cannot be removed is a beginning that the next run takes over.
        for name in [IDENTITY, METRICS, "runs"] {
            let _ = remove(&self.path.join(name));
        }
        if self.is_created {
            let _ = fs::remove_dir(&self.path);
        }
    }

    /// The identity of the run in here; none in a folder that has just begun.
    pub(crate) fn identity(&self) -> Result<Option<Map<String, Value>>> {
        let path = self.path.join(IDENTITY);
        if !path.exists() {
            return Ok(None);
        }
        let bytes = fs::read(&path).map_err(Error::io(&path))?;
        let damaged =
            |error| format!("is no JSON object ({error}); the folder is damaged, start over with --force");
        let parsed = serde_json::from_slice(&bytes);
        parsed.map(Some).map_err(|error| Error::Format { path, what: damaged(error) })
    }

    pub(crate) fn set_identity(&self, identity: &Map<String, Value>) -> Result<()> {
        self.place_file(IDENTITY, luthier_checkpoint::json::to_text(identity).as_bytes())
    }

    /// The lineage is written last.
    pub(crate) fn is_finished(&self) -> bool {
        self.path.join(LINEAGE_NAME).is_file()
    }

    /// Steps of the checkpoints in here, ascending.
    pub(crate) fn checkpoint_steps(&self) -> Result<Vec<u64>> {
        let mut steps = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(Error::io(&self.path))? {
            let name = entry.map_err(Error::io(&self.path))?.file_name();
            let step = name.to_str().and_then(|name| name.strip_prefix(CHECKPOINT_PREFIX)).map(str::parse);
            steps.extend(step.and_then(|step: std::result::Result<u64, _>| step.ok()));
        }
        steps.sort_unstable();
        Ok(steps)
    }

    pub(crate) fn checkpoint_path(&self, step: u64) -> PathBuf {
        self.path.join(format!("{CHECKPOINT_PREFIX}{step}"))
    }

    /// Lets `write` fill a new folder, syncs it, and places it as the checkpoint of this step.
    pub(crate) fn place_checkpoint(
        &self,
        step: u64,
        write: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        self.metrics.sync_data().map_err(Error::io(&self.path))?;
        let target = self.checkpoint_path(step);
        let partial = self.path.join(format!("{CHECKPOINT_PREFIX}{step}{PARTIAL}"));
        if target.exists() {
            remove(&target)?;
        }
        fs::create_dir(&partial).map_err(Error::io(&partial))?;
        if let Err(error) = write(&partial) {
            // A full disk is not helped by what could not be finished; the first error is the one to tell.
            let _ = remove(&partial);
            return Err(error);
        }
        for entry in fs::read_dir(&partial).map_err(Error::io(&partial))? {
            let path = entry.map_err(Error::io(&partial))?.path();
            File::open(&path).and_then(|file| file.sync_all()).map_err(Error::io(&path))?;
        }
        sync_folder(&partial)?;
        fs::rename(&partial, &target).map_err(Error::io(&target))?;
        sync_folder(&self.path)?;
        Ok(target)
    }

    /// Removes all checkpoints but the newest `keep`.
    pub(crate) fn keep_newest(&self, keep: Option<u64>) -> Result<()> {
        let steps = self.checkpoint_steps()?;
        let excess = keep.map_or(0, |keep| steps.len().saturating_sub(keep as usize));
        for &step in &steps[..excess] {
            self.discard_checkpoint(step)?;
        }
        Ok(())
    }

    /// Renamed first, so that a checkpoint that is half removed is no checkpoint.
    pub(crate) fn discard_checkpoint(&self, step: u64) -> Result<()> {
        let path = self.checkpoint_path(step);
        let partial = self.path.join(format!("{CHECKPOINT_PREFIX}{step}{PARTIAL}"));
        fs::rename(&path, &partial).map_err(Error::io(&path))?;
        remove(&partial)
    }

    /// Makes metrics.jsonl and the event file those of this log.
    pub(crate) fn rewrite_log(&mut self, log: &[Entry]) -> Result<()> {
        let path = self.path.join(METRICS);
        self.metrics.set_len(0).map_err(Error::io(&path))?;
        self.metrics.seek(SeekFrom::Start(0)).map_err(Error::io(&path))?;
        self.metrics.write_all(metrics::lines(log).as_bytes()).map_err(Error::io(&path))?;
        let runs = self.path.join("runs");
        fs::create_dir_all(&runs).map_err(Error::io(&runs))?;
        let path = runs.join(tensorboard::FILE_NAME);
        let mut events = File::create(&path).map_err(Error::io(&path))?;
        events.write_all(&tensorboard::file(log)).map_err(Error::io(&path))?;
        self.events = Some(events);
        Ok(())
    }

    /// Appends one entry to both; [`RunFolder::rewrite_log`] has begun them.
    pub(crate) fn append_log(&mut self, entry: &Entry) -> Result<()> {
        self.metrics.write_all(entry.line().as_bytes()).map_err(Error::io(&self.path.join(METRICS)))?;
        let events = self.events.as_mut().expect("the log was begun");
        let path = self.path.join("runs").join(tensorboard::FILE_NAME);
        events.write_all(&tensorboard::event(entry)).map_err(Error::io(&path))
    }

    /// Writes a file beside its place, syncs it and renames it there.
    pub(crate) fn place_file(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.place_with(name, |path| fs::write(path, bytes).map_err(Error::io(path)))
    }

    /// As [`RunFolder::place_file`], the file being written by `write`.
    pub(crate) fn place_with(&self, name: &str, write: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let partial = self.path.join(format!("{name}{PARTIAL}"));
        let target = self.path.join(name);
        write(&partial)?;
        File::open(&partial).and_then(|file| file.sync_all()).map_err(Error::io(&partial))?;
        fs::rename(&partial, &target).map_err(Error::io(&target))?;
        sync_folder(&self.path)
    }

    /// All but the locked log goes.
    fn empty(&mut self) -> Result<()> {
        for entry in fs::read_dir(&self.path).map_err(Error::io(&self.path))? {
            let path = entry.map_err(Error::io(&self.path))?.path();
            if path.file_name().is_some_and(|name| name != METRICS) {
                remove(&path)?;
            }
        }
        self.metrics.set_len(0).map_err(Error::io(&self.path.join(METRICS)))
    }

    fn remove_partial(&self) -> Result<()> {
        for entry in fs::read_dir(&self.path).map_err(Error::io(&self.path))? {
            let path = entry.map_err(Error::io(&self.path))?.path();
            if path.to_string_lossy().ends_with(PARTIAL) {
                remove(&path)?;
            }
        }
        Ok(())
    }
}

fn lock(out: &Path, metrics_path: &Path) -> Result<File> {
    let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(metrics_path);
    let file = file.map_err(Error::io(metrics_path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::Locked { out: out.to_path_buf() }),
        Err(TryLockError::Error(source)) => Err(Error::Io { path: metrics_path.to_path_buf(), source }),
    }
}

fn remove(path: &Path) -> Result<()> {
    let is_folder = fs::symlink_metadata(path).is_ok_and(|meta| meta.is_dir());
    let removed = if is_folder { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    removed.map_err(Error::io(path))
}

fn sync_folder(path: &Path) -> Result<()> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(Error::io(path))
}

/// Refuses to throw away what neither a run nor a model consists of.
fn refuse_other_files(path: &Path) -> Result<()> {
    const OWN: &[&str] =
        &[IDENTITY, METRICS, "runs", "trainer_state.json", "optimizer.safetensors", "measurements.json"];
    for entry in fs::read_dir(path).map_err(Error::io(path))? {
        let entry = entry.map_err(Error::io(path))?.path();
        let name = entry.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_own = OWN.contains(&name.as_str())
            || name.starts_with(CHECKPOINT_PREFIX)
            || name.ends_with(PARTIAL)
            || luthier_checkpoint::folder::is_part_of_model(&name);
        if !is_own {
            let what = "is no part of the run there, and would be lost; move it away, or choose another out"
                .to_string();
            return Err(Error::Format { path: entry, what });
        }
    }
    Ok(())
}
