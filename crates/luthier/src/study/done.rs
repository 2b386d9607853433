//! The folder of a study: what is done of it, so that it goes on where it was stopped.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::cell::{Cell, Measured};

/// The cells that are done, one a line.
const CELLS: &str = "cells.jsonl";

/// A line of the file of cells.
#[derive(Deserialize, Serialize)]
pub(super) struct Line {
    /// The hash of the study and all that it reads.
    study: String,
    /// A model's losses by text, or a cell.
    #[serde(flatten)]
    entry: Entry,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Entry {
    Single { model: String, losses: BTreeMap<String, f64> },
    Cell(Measured),
}

/// The cells of a folder that are done.
pub(super) struct Done {
    folder: PathBuf,
    study: String,
    entries: Vec<Entry>,
}

impl Done {
    /// Opens a folder of this study, or makes it. Refuses one that holds anything else, but for another study and `force`.
    pub(super) fn open(folder: &Path, study: String, force: bool) -> anyhow::Result<Done> {
        let path = folder.join(CELLS);
        let mut entries = Vec::new();
        if path.exists() {
            let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            // The last line of a study that was killed may be half.
            let lines: Vec<Line> = text.lines().map_while(|line| serde_json::from_str(line).ok()).collect();
            let is_other = lines.iter().any(|line| line.study != study);
            if is_other && !force {
                bail!(
                    "{}: holds another study, or its models or texts have changed; choose another place, or --force",
                    folder.display()
                );
            }
            if !is_other {
                entries = lines.into_iter().map(|line| line.entry).collect();
            }
        } else if folder.exists() && std::fs::read_dir(folder).is_ok_and(|mut files| files.next().is_some()) {
            bail!("{}: is there already and holds no study; choose another place", folder.display());
        }
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        let done = Done { folder: folder.to_path_buf(), study, entries };
        let mut text = String::new();
        for entry in &done.entries {
            text.push_str(&done.line(entry)?);
        }
        done.write(CELLS, text.as_bytes())?;
        Ok(done)
    }

    pub(super) fn line(&self, entry: &Entry) -> anyhow::Result<String> {
        let mut line = serde_json::to_value(entry)?;
        line["study"] = json!(self.study);
        Ok(line.to_string() + "\n")
    }

    pub(super) fn single(&self, wanted: &str) -> Option<&BTreeMap<String, f64>> {
        self.entries.iter().find_map(|entry| match entry {
            Entry::Single { model, losses } if model == wanted => Some(losses),
            _ => None,
        })
    }

    pub(super) fn cell(&self, wanted: &Cell) -> Option<&Measured> {
        self.entries.iter().find_map(|entry| match entry {
            // What was refused is tried again.
            Entry::Cell(one) if one.cell == *wanted && one.refused.is_none() => Some(one),
            _ => None,
        })
    }

    pub(super) fn add(&mut self, entry: Entry) -> anyhow::Result<()> {
        let path = self.folder.join(CELLS);
        let mut file = std::fs::OpenOptions::new()
            .append(true)
            .open(&path)
            .with_context(|| path.display().to_string())?;
        file.write_all(self.line(&entry)?.as_bytes()).with_context(|| path.display().to_string())?;
        self.entries.push(entry);
        Ok(())
    }

    /// Writes beside and renames.
    pub(super) fn write(&self, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
        let path = self.folder.join(name);
        let beside = self.folder.join(format!("{name}.new"));
        std::fs::write(&beside, bytes).with_context(|| beside.display().to_string())?;
        std::fs::rename(&beside, &path).with_context(|| path.display().to_string())
    }
}
