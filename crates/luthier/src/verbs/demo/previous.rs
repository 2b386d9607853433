//! The last demonstration, kept until the next one in its place is complete.
//!
//! It waits at `.NAME.luthier-previous` beside its place. An error puts it back at once, a kill leaves it to the next
//! demonstration to put it back.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::Context;

/// The file that a demonstration writes last.
pub(super) const COMPLETE: &str = "report.html";

/// A demonstration that was set aside; dropped before `remove` it goes back to its place.
pub(super) struct Previous {
    place: PathBuf,
    aside: PathBuf,
    is_replaced: bool,
}

impl Previous {
    /// Clears the place of a demonstration: a complete one is set aside, the remnants of a killed one go away.
    pub(super) fn set_aside(place: &Path) -> anyhow::Result<Previous> {
        let mut name = OsString::from(".");
        name.push(place.file_name().context("--out: name a new folder")?);
        name.push(".luthier-previous");
        let aside = place.with_file_name(name);
        let in_words = || place.display().to_string();
        if place.join(COMPLETE).exists() {
            let waits = aside.display();
            crate::session::remark(&format!(
                "the last demonstration waits at {waits} until this one is complete"
            ));
            remove(&aside).with_context(in_words)?;
            std::fs::rename(place, &aside).with_context(in_words)?;
        } else {
            remove(place).with_context(in_words)?;
        }
        Ok(Previous { place: place.to_path_buf(), aside, is_replaced: false })
    }

    /// Removes it: the next one is complete.
    pub(super) fn remove(mut self) {
        self.is_replaced = true;
        // What cannot be removed now is removed by the next demonstration.
        let _ = remove(&self.aside);
    }
}

impl Drop for Previous {
    fn drop(&mut self) {
        if !self.is_replaced && self.aside.exists() {
            let _ = remove(&self.place).and_then(|()| std::fs::rename(&self.aside, &self.place));
        }
    }
}

fn remove(folder: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::Previous;

    #[test]
    fn the_last_one_stays_until_the_next_is_complete() {
        let at = tempfile::tempdir().unwrap();
        let place = at.path().join("demo");
        let write = |text: &str| {
            fs::create_dir_all(&place).unwrap();
            fs::write(place.join("report.html"), text).unwrap();
        };
        let entries = || fs::read_dir(at.path()).unwrap().count();
        let read = || fs::read_to_string(place.join("report.html")).unwrap();
        write("first");
        // An error on the way, before and after the place holds something.
        drop(Previous::set_aside(&place).unwrap());
        assert_eq!(read(), "first");
        let previous = Previous::set_aside(&place).unwrap();
        fs::create_dir(&place).unwrap();
        drop(previous);
        assert_eq!(read(), "first");
        // A kill: nobody puts it back, until the next demonstration fails.
        std::mem::forget(Previous::set_aside(&place).unwrap());
        fs::create_dir(&place).unwrap();
        drop(Previous::set_aside(&place).unwrap());
        assert_eq!(read(), "first");
        let previous = Previous::set_aside(&place).unwrap();
        write("second");
        previous.remove();
        assert_eq!((read().as_str(), entries()), ("second", 1));
    }
}
