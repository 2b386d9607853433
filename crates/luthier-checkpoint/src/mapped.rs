//! Files mapped into memory, read-only. The one file of this crate with `unsafe`.
//!
//! A map is sound as long as nobody shortens the file meanwhile; inputs are opened read-only and outputs are renamed into
//! place, never changed in place, so no run of this program does.
#![allow(unsafe_code)]

use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use luthier_kernels::bytes::SharedBytes;
use memmap2::Mmap;

use crate::{Error, Result};

/// A whole file as bytes.
#[derive(Debug)]
pub struct MappedFile {
    path: PathBuf,
    map: Mmap,
}

impl MappedFile {
    /// Maps a regular file; refuses folders, pipes and empty files.
    pub fn open(path: &Path) -> Result<Arc<MappedFile>> {
        // Before it is opened, which waits where nobody writes into a pipe.
        let metadata = std::fs::metadata(path).map_err(|source| Error::io(path, source))?;
        if !metadata.is_file() {
            return Err(Error::format(path, "wanted a file, found a folder or a device"));
        }
        let file = File::open(path).map_err(|source| Error::io(path, source))?;
        if metadata.len() == 0 {
            return Err(Error::format(path, "the file is empty; download or write it again"));
        }
        // SAFETY: see the top of this file.
        let map = unsafe { Mmap::map(&file) }.map_err(|source| Error::io(path, source))?;
        if map.starts_with(b"version https://git-lfs") {
            return Err(Error::format(
                path,
                "is a git-lfs pointer, not the file itself; run git lfs pull beside it",
            ));
        }
        Ok(Arc::new(MappedFile { path: path.to_path_buf(), map }))
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All of it.
    pub fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// A shared piece. When its last clone is gone, its pages leave this process's resident memory again, so that going
    /// through a file tensor by tensor holds one tensor, not the file.
    ///
    /// # Panics
    /// When the range lies outside the file; headers are checked before.
    pub fn share(self: &Arc<MappedFile>, range: Range<usize>) -> SharedBytes {
        assert!(
            range.start <= range.end && range.end <= self.map.len(),
            "ranges are checked with the header"
        );
        let len = range.len();
        let piece = Piece { file: self.clone(), range };
        SharedBytes::new(Arc::new(piece), 0..len).expect("a piece is as long as its range")
    }

    /// As [`MappedFile::share`], for a piece that is wanted as a whole and at once: its pages come in one go, where the
    /// system can do that, and not one by one as they are touched.
    pub fn share_now(self: &Arc<MappedFile>, range: Range<usize>) -> SharedBytes {
        #[cfg(target_os = "linux")]
        // A refusal leaves them to come one by one.
        let _ = self.map.advise_range(memmap2::Advice::PopulateRead, range.start, range.len());
        self.share(range)
    }
}

struct Piece {
    file: Arc<MappedFile>,
    range: Range<usize>,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.file.map[self.range.clone()]
    }
}

/// Bytes that Linux maps around a touched page.
#[cfg(unix)]
const AROUND: usize = 1 << 16;

impl Drop for Piece {
    fn drop(&mut self) {
        if self.range.is_empty() {
            return;
        }
        #[cfg(unix)]
        {
            use memmap2::UncheckedAdvice::DontNeed;
            // The system maps pages around those that are touched.
            let start = self.range.start.saturating_sub(AROUND);
            let end = self.range.end.saturating_add(AROUND).min(self.file.map.len());
            // SAFETY: the pages of a read-only file map are read again from the file when they are touched again. A
            // refusal only leaves them resident.
            let _ = unsafe { self.file.map.unchecked_advise_range(DontNeed, start, end - start) };
        }
    }
}
