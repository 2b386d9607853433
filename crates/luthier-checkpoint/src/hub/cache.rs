//! The folder of one model in the cache: blobs by hash, snapshots of links to them, refs that name snapshots.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use super::{HubOptions, HubPlace};
use crate::{Error, Result};

/// `models--org--name` in the cache.
pub(super) struct RepoCache {
    folder: PathBuf,
    locks: PathBuf,
}

impl RepoCache {
    pub(super) fn new(options: &HubOptions, place: &HubPlace) -> RepoCache {
        let name = format!("models--{}", place.repo.replace('/', "--"));
        RepoCache { folder: options.cache.join(&name), locks: options.cache.join(".locks").join(&name) }
    }

    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }

    /// The commit that a revision meant when it was last asked for.
    pub(super) fn commit_of(&self, revision: &str) -> Option<String> {
        if is_commit(revision) && self.snapshot(revision).is_dir() {
            return Some(revision.to_string());
        }
        let commit = fs::read_to_string(self.folder.join("refs").join(revision)).ok()?.trim().to_string();
        is_commit(&commit).then_some(commit)
    }

    pub(super) fn set_commit_of(&self, revision: &str, commit: &str) -> Result<()> {
        if revision == commit {
            return Ok(());
        }
        let path = self.folder.join("refs").join(revision);
        make_parent(&path)?;
        fs::write(&path, commit).map_err(|source| Error::io(path, source))
    }

    /// Waits until no other process, of ours or of the Hugging Face tools, fetches this blob.
    pub(super) fn lock(&self, etag: &str) -> Result<File> {
        let path = self.locks.join(format!("{etag}.lock"));
        make_parent(&path)?;
        let file = File::options().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(|source| Error::io(&path, source))?;
        file.lock().map_err(|source| Error::io(&path, source))?;
        Ok(file)
    }

    /// Makes `file` of the snapshot a link to a blob.
    pub(super) fn link(&self, commit: &str, file: &str, etag: &str) -> Result<()> {
        let path = self.snapshot(commit).join(file);
        make_parent(&path)?;
        let up = "../".repeat(2 + file.matches('/').count());
        let target = PathBuf::from(format!("{up}blobs/{etag}"));
        if fs::read_link(&path).is_ok_and(|known| known == target) {
            return Ok(());
        }
        // Renamed into place, since another process may be reading the snapshot: the file is never missing meanwhile.
        let fresh = path.with_file_name(format!(".{etag}.{}", std::process::id()));
        let _ = fs::remove_file(&fresh);
        #[cfg(unix)]
        let linked = std::os::unix::fs::symlink(&target, &fresh);
        #[cfg(not(unix))]
        let linked = fs::copy(self.blob(etag), &fresh).map(drop);
        linked.and_then(|()| fs::rename(&fresh, &path)).map_err(|source| Error::io(&path, source))
    }
}

/// A commit hash of git.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

pub(super) fn make_parent(path: &Path) -> Result<()> {
    let parent = path.parent().expect("a path inside the cache has a parent");
    fs::create_dir_all(parent).map_err(|source| Error::io(parent, source))
}
