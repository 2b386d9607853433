//! Outputs that exist whole or not at all: written beside their place, synced, then renamed into it.
//!
//! While it is written an output lies at `.NAME.luthier-partial-PID-N` beside its place, locked (`flock`) by its writer.
//! A process that dies leaves such a remnant without a lock; the next output to the same place removes it. Where
//! `--force` replaces a folder, old and new are exchanged by one system call, so that a kill at any moment leaves one of
//! the two in place.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::{Error, Result, folder};

static NEXT_NUMBER: AtomicUsize = AtomicUsize::new(0);

/// A folder or file on its way to its place. Dropped before `commit` it leaves nothing behind.
#[derive(Debug)]
pub struct Output {
    target: PathBuf,
    temporary: PathBuf,
    is_folder: bool,
    force: bool,
    /// Holds the lock that says that the temporary is alive.
    lock: Option<File>,
    created_parents: Vec<PathBuf>,
    committed: bool,
}

impl Output {
    /// Begins a folder. Refuses a place that exists, unless `force`, and one that is, contains or lies in an input.
    pub fn folder(target: &Path, force: bool, inputs: &[&Path]) -> Result<Output> {
        Output::begin(target, true, force, inputs)
    }

    /// Begins a file; otherwise as [`Output::folder`].
    pub fn file(target: &Path, force: bool, inputs: &[&Path]) -> Result<Output> {
        Output::begin(target, false, force, inputs)
    }

    /// Refuses what [`Output::folder`] (`is_folder`) or [`Output::file`] would refuse, and touches nothing.
    pub fn check(target: &Path, is_folder: bool, force: bool, inputs: &[&Path]) -> Result<()> {
        let Some(name) = target.file_name() else { return Err(no_place(target)) };
        let target = target.with_file_name(name);
        refuse_near_inputs(&target, inputs)?;
        match fs::symlink_metadata(&target) {
            Ok(existing) => refuse_existing(&target, &existing, is_folder, force),
            Err(_) => Ok(()),
        }
    }

    /// Where to write meanwhile: an existing empty folder, or an existing empty file.
    pub fn path(&self) -> &Path {
        &self.temporary
    }

    /// Where it will be.
    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Writes a small file into the folder; `name` may have folders of its own.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let inside = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
        if !self.is_folder || !inside || name.is_empty() {
            return Err(Error::format(&self.target, format!("{name:?} is no place inside this output")));
        }
        let path = self.temporary.join(name);
        let parent = path.parent().expect("a joined name has a parent");
        fs::create_dir_all(parent).map_err(|source| Error::io(parent, source))?;
        fs::write(&path, bytes).map_err(|source| Error::io(&path, source))
    }

    /// Syncs everything to the disk and moves it into place.
    pub fn commit(mut self) -> Result<()> {
        sync_all(&self.temporary)?;
        if self.force && fs::symlink_metadata(&self.target).is_ok() {
            self.replace()?;
        } else {
            self.put()?;
        }
        self.committed = true;
        let parent = parent_of(&self.target);
        File::open(parent).and_then(|parent| parent.sync_all()).map_err(|source| Error::io(parent, source))
    }

    fn begin(target: &Path, is_folder: bool, force: bool, inputs: &[&Path]) -> Result<Output> {
        let Some(name) = target.file_name().map(OsStr::to_os_string) else {
            return Err(no_place(target));
        };
        // Without the slash that may stand at the end, so that a link is replaced, not what it points to.
        let target = target.with_file_name(&name);
        let parent = parent_of(&target).to_path_buf();
        refuse_near_inputs(&target, inputs)?;
        restore_and_clean(&parent, &name)?;
        if let Ok(existing) = fs::symlink_metadata(&target) {
            refuse_existing(&target, &existing, is_folder, force)?;
        }
        let created_parents = create_parents(&parent)?;
        let mut output = Output {
            target,
            temporary: PathBuf::new(),
            is_folder,
            force,
            lock: None,
            created_parents,
            committed: false,
        };
        loop {
            let number = NEXT_NUMBER.fetch_add(1, Ordering::Relaxed);
            let temporary =
                parent.join(marked(&name, &format!("luthier-partial-{}-{number}", std::process::id())));
            let created = if is_folder {
                fs::create_dir(&temporary).and_then(|()| File::open(&temporary))
            } else {
                File::create_new(&temporary)
            };
            match created {
                Ok(handle) => {
                    // Where the file system has no locks nothing is cleaned up either.
                    let _ = handle.try_lock();
                    output.lock = Some(handle);
                    output.temporary = temporary;
                    return Ok(output);
                }
                Err(problem) if problem.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(source) => return Err(Error::io(&output.target, source)),
            }
        }
    }

    /// Moves the output to a place where nothing may be.
    fn put(&self) -> Result<()> {
        let moved = renameat_with(CWD, &self.temporary, CWD, &self.target, RenameFlags::NOREPLACE);
        match moved.map_err(io::Error::from) {
            Ok(()) => Ok(()),
            Err(problem) if problem.kind() == io::ErrorKind::AlreadyExists => Err(Error::format(
                &self.target,
                "appeared while the output was written; pass --force to replace it",
            )),
            Err(problem) if is_unsupported(&problem) => {
                if fs::symlink_metadata(&self.target).is_ok() {
                    return Err(Error::format(
                        &self.target,
                        "appeared while the output was written; pass --force",
                    ));
                }
                fs::rename(&self.temporary, &self.target).map_err(|source| Error::io(&self.target, source))
            }
            Err(source) => Err(Error::io(&self.target, source)),
        }
    }

    /// Moves the output to a place where something is, which goes away.
    fn replace(&self) -> Result<()> {
        if !self.is_folder {
            return fs::rename(&self.temporary, &self.target)
                .map_err(|source| Error::io(&self.target, source));
        }
        let exchanged = renameat_with(CWD, &self.temporary, CWD, &self.target, RenameFlags::EXCHANGE);
        match exchanged.map_err(io::Error::from) {
            // The old state now has the temporary name; what cannot be removed is tried again by the next output.
            Ok(()) => {
                let _ = remove(&self.temporary);
                Ok(())
            }
            Err(problem) if is_unsupported(&problem) => {
                let name = self.target.file_name().expect("checked at the beginning");
                let previous = self.target.with_file_name(marked(name, "luthier-previous"));
                let moved = fs::rename(&self.target, &previous)
                    .and_then(|()| fs::rename(&self.temporary, &self.target))
                    .map_err(|source| Error::io(&self.target, source));
                if moved.is_err() && fs::symlink_metadata(&self.target).is_err() {
                    let _ = fs::rename(&previous, &self.target);
                }
                moved?;
                let _ = remove(&previous);
                Ok(())
            }
            Err(source) => Err(Error::io(&self.target, source)),
        }
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if self.committed {
            return;
        }
        if !self.temporary.as_os_str().is_empty() {
            let _ = remove(&self.temporary);
        }
        for parent in self.created_parents.iter().rev() {
            let _ = fs::remove_dir(parent);
        }
    }
}

fn no_place(target: &Path) -> Error {
    Error::format(target, "is no place for an output; name a new file or folder")
}

fn parent_of(target: &Path) -> &Path {
    match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// `.NAME.MARK`
fn marked(name: &OsStr, mark: &str) -> OsString {
    let mut marked = OsString::from(".");
    marked.push(name);
    marked.push(".");
    marked.push(mark);
    marked
}

fn is_unsupported(problem: &io::Error) -> bool {
    use rustix::io::Errno;
    let codes = [Errno::INVAL, Errno::NOSYS, Errno::OPNOTSUPP];
    problem.raw_os_error().is_some_and(|code| codes.iter().any(|errno| errno.raw_os_error() == code))
}

fn remove(path: &Path) -> io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
}

/// Creates the folders above an output; returns those that were not there, outermost first.
fn create_parents(parent: &Path) -> Result<Vec<PathBuf>> {
    let missing =
        parent.ancestors().take_while(|ancestor| !ancestor.as_os_str().is_empty() && !ancestor.exists());
    let mut missing: Vec<PathBuf> = missing.map(Path::to_path_buf).collect();
    missing.reverse();
    for (created, folder) in missing.iter().enumerate() {
        if let Err(source) = fs::create_dir(folder)
            && source.kind() != io::ErrorKind::AlreadyExists
        {
            missing[..created].iter().rev().for_each(|folder| drop(fs::remove_dir(folder)));
            return Err(Error::io(folder, source));
        }
    }
    Ok(missing)
}

/// The place with links resolved as far as it exists.
fn resolved(path: &Path) -> PathBuf {
    for ancestor in path.ancestors() {
        let existing = if ancestor.as_os_str().is_empty() { Path::new(".") } else { ancestor };
        if let Ok(real) = existing.canonicalize() {
            let rest = path.strip_prefix(ancestor).expect("an ancestor is a prefix");
            return if rest.as_os_str().is_empty() { real } else { real.join(rest) };
        }
    }
    path.to_path_buf()
}

/// An input in several files (a split GGUF model, weights beside their config) is safe as a whole.
fn refuse_near_inputs(target: &Path, inputs: &[&Path]) -> Result<()> {
    let real_target = resolved(target);
    let mut files = Vec::with_capacity(inputs.len());
    for input in inputs {
        files.push(input.to_path_buf());
        if input.is_file() {
            files.extend(folder::model_files(input)?);
        }
    }
    for input in &files {
        let Ok(real_input) = input.canonicalize() else { continue };
        let relation = if real_target == real_input {
            "is"
        } else if real_target.starts_with(&real_input) {
            "lies inside"
        } else if real_input.starts_with(&real_target) {
            "contains"
        } else {
            continue;
        };
        let what = format!("the output {relation} the input {}; choose another place", input.display());
        return Err(Error::format(target, what));
    }
    Ok(())
}

fn refuse_existing(target: &Path, existing: &fs::Metadata, is_folder: bool, force: bool) -> Result<()> {
    if !force {
        return Err(Error::format(target, "exists; pass --force to replace it, or choose another place"));
    }
    let kind = existing.file_type();
    if !(kind.is_file() || kind.is_dir() || kind.is_symlink()) {
        return Err(Error::format(target, "is a device or a pipe, which is not replaced; name a file"));
    }
    if existing.is_dir() && !is_folder {
        return Err(Error::format(target, "is a folder; wanted a place for a file"));
    }
    let here = std::env::current_dir().and_then(|here| here.canonicalize());
    if existing.is_dir() && here.is_ok_and(|here| here.starts_with(resolved(target))) {
        return Err(Error::format(target, "is or contains the current folder, which is not replaced"));
    }
    Ok(())
}

/// Brings back an old state that a dying process had moved aside, and removes what dead processes left half-written.
fn restore_and_clean(parent: &Path, name: &OsStr) -> Result<()> {
    let target = parent.join(name);
    let previous = parent.join(marked(name, "luthier-previous"));
    if fs::symlink_metadata(&previous).is_ok() {
        if fs::symlink_metadata(&target).is_ok() {
            remove(&previous).map_err(|source| Error::io(&previous, source))?;
        } else {
            fs::rename(&previous, &target).map_err(|source| Error::io(&previous, source))?;
        }
    }
    let Ok(entries) = fs::read_dir(parent) else { return Ok(()) };
    let prefix = marked(name, "luthier-partial-");
    for entry in entries.flatten() {
        if !entry.file_name().as_encoded_bytes().starts_with(prefix.as_encoded_bytes()) {
            continue;
        }
        let is_dead = File::open(entry.path()).is_ok_and(|handle| handle.try_lock().is_ok());
        if is_dead {
            // Another process may be removing it at this moment.
            let _ = remove(&entry.path());
        }
    }
    Ok(())
}

fn sync_all(path: &Path) -> Result<()> {
    let metadata = fs::symlink_metadata(path).map_err(|source| Error::io(path, source))?;
    if metadata.is_dir() {
        for entry in fs::read_dir(path).map_err(|source| Error::io(path, source))? {
            sync_all(&entry.map_err(|source| Error::io(path, source))?.path())?;
        }
    }
    File::open(path).and_then(|handle| handle.sync_all()).map_err(|source| Error::io(path, source))
}
