//! `luthier replay`: a model made again from its record.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use luthier_checkpoint::lineage::{FileHash, LINEAGE_NAME, Parent, sha256_of_file};
use luthier_checkpoint::{Lineage, Output};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{Act, find, pretrain};
use crate::session::{Report, Session};
use crate::{builtin, places};

/// Makes a model again from the record that it carries and compares every file. The record's inputs are looked for where it
/// says, or where --at says, and their hashes compared first; an input that is gone is made again from its own record. Exit
/// code 1 where a file differs.
#[derive(Debug, clap::Args, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Replay {
    /// A model that luthier made
    model: String,
    /// Keep what was made here; without it only the comparison is kept
    #[arg(long, value_name = "OUT")]
    out: Option<PathBuf>,
    /// Where an input of the record lies now; may be given several times
    #[arg(long, value_name = "PLACE=PATH", value_parser = parse_at)]
    #[serde(default)]
    at: Vec<At>,
}

/// A place of a record, and where it lies now.
#[derive(Clone, Debug, Deserialize)]
struct At {
    place: String,
    path: PathBuf,
}

fn parse_at(text: &str) -> Result<At, String> {
    let (place, path) = text.split_once('=').ok_or_else(|| format!("wanted PLACE=PATH, came {text}"))?;
    Ok(At { place: place.to_string(), path: path.into() })
}

/// One file of the model and of what was made.
#[derive(Debug, Serialize)]
struct Compared {
    name: String,
    sha256: Option<String>,
    replayed_sha256: Option<String>,
    same: bool,
}

impl Act for Replay {
    const NAME: &'static str = "replay";
    const ABOUT: &'static str = "Make a model again from its record, and compare";

    fn act(self, session: &Session) -> anyhow::Result<Report> {
        if self.model == builtin::NAME {
            bail!(
                "{}: its recipe is recipes/builtin.yaml of the source, which `luthier pretrain` runs",
                builtin::NAME
            );
        }
        let place = places::local_path(&self.model)?;
        let Some(lineage) = Lineage::read(&place)? else {
            bail!("{}: it carries no record; luthier did not make it, or the record was removed", self.model);
        };
        // Beside the output or the current folder, where there is room for a model.
        let parent =
            self.out.as_deref().and_then(Path::parent).filter(|parent| !parent.as_os_str().is_empty());
        let work = tempfile::Builder::new()
            .prefix(".luthier-replay-")
            .tempdir_in(parent.unwrap_or(Path::new(".")))
            .context("a folder to work in")?;
        if let Some(out) = &self.out {
            Output::check(out, place.is_dir(), false, &[place.as_path()])?;
        }
        let mut replayer =
            Replayer { session, work: work.path(), made: Vec::new(), underway: BTreeSet::new() };
        for at in &self.at {
            if !at.path.exists() {
                bail!("--at {}={}: nothing is there", at.place, at.path.display());
            }
            places::stand_in(&at.place, &at.path);
        }
        // Names inside a GGUF file may follow from the file's own.
        let name = place.file_name().map_or_else(|| "model".into(), ToOwned::to_owned);
        let made = replayer.make(&lineage, &work.path().join("result").join(name))?;
        let files = compared(&all_files(&place)?, &all_files(&made)?);
        let differing: Vec<&str> =
            files.iter().filter(|file| !file.same).map(|file| file.name.as_str()).collect();
        let same = differing.is_empty();
        let mut text = if same {
            format!(
                "{}: made again by `luthier {}`, all {} files are the same",
                self.model,
                lineage.verb,
                files.len()
            )
        } else {
            format!(
                "{}: made again by `luthier {}`, {} differ",
                self.model,
                lineage.verb,
                differing.join(", ")
            )
        };
        if !same && lineage.luthier_version != env!("CARGO_PKG_VERSION") {
            let made_by = &lineage.luthier_version;
            text.push_str(&format!(
                "\nthe model was made by version {made_by}, this is {}",
                env!("CARGO_PKG_VERSION")
            ));
        }
        let inputs_made = replayer.made.clone();
        if let Some(out) = &self.out {
            std::fs::rename(&made, out).with_context(|| out.display().to_string())?;
        }
        let json = json!({
            "model": self.model,
            "verb": lineage.verb,
            "same": same,
            "files": files,
            "inputs_made_again": inputs_made,
            "out": self.out,
            "recorded_luthier_version": lineage.luthier_version,
        });
        Report { json, text }.judged(same)
    }
}

/// Makes models again, their inputs first.
struct Replayer<'s> {
    session: &'s Session,
    work: &'s Path,
    /// Places of inputs that were made again.
    made: Vec<String>,
    /// Places whose making has begun.
    underway: BTreeSet<String>,
}

impl Replayer<'_> {
    /// Makes what `lineage` records at `out`, and gives that place.
    fn make(&mut self, lineage: &Lineage, out: &Path) -> anyhow::Result<PathBuf> {
        for parent in &lineage.parents {
            self.provide(parent)?;
        }
        let verb = find(&lineage.verb).with_context(|| {
            format!("the record names a verb that this program does not have: {}", lineage.verb)
        })?;
        if let Some(folder) = out.parent() {
            std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        }
        let keys = if lineage.verb == pretrain::Pretrain::NAME {
            training_keys(&lineage.recipe, out)?
        } else {
            keys(&lineage.recipe, out)?
        };
        self.session.note(&format!("replay: {}", lineage.verb));
        (verb.run_step)(&keys, self.session)?;
        Ok(out.to_path_buf())
    }

    /// Sees to it that an input lies where the verb will look, with the files that the record names.
    fn provide(&mut self, parent: &Parent) -> anyhow::Result<()> {
        let place = parent.place.as_str();
        let found = match difference(parent) {
            Ok(None) => return Ok(()),
            Ok(Some(what)) => what,
            Err(problem) => format!("{problem:#}"),
        };
        let Some(lineage) = &parent.lineage else {
            bail!("input {place}: {found}; give the place where it lies now: --at {place}=PATH");
        };
        if !self.underway.insert(place.to_string()) {
            bail!("input {place}: {found}; two inputs of the record have this place");
        }
        self.session.note(&format!("replay: input {place}: {found}; it is made again from its own record"));
        let name = Path::new(place).file_name().map_or_else(|| "model".into(), ToOwned::to_owned);
        let out = self.work.join(format!("input-{}", self.underway.len())).join(name);
        let made = self.make(lineage, &out)?;
        places::stand_in(place, &made);
        self.made.push(place.to_string());
        match difference(parent)? {
            None => Ok(()),
            Some(what) => bail!(
                "input {place}, made again: {what}; it was made by another version, or from other texts"
            ),
        }
    }
}

/// The files of a model, its record included.
fn all_files(place: &Path) -> anyhow::Result<Vec<FileHash>> {
    let mut files = Parent::of_place("", place)?.files;
    let record = place.join(LINEAGE_NAME);
    if record.is_file() {
        let (size_bytes, sha256) = sha256_of_file(&record)?;
        files.push(FileHash { name: LINEAGE_NAME.to_string(), size_bytes, sha256 });
    }
    Ok(files)
}

/// What distinguishes an input from its record; none where nothing does.
fn difference(parent: &Parent) -> anyhow::Result<Option<String>> {
    let came = match parent.place == builtin::NAME {
        true => builtin::record(),
        false => Parent::of_place(&parent.place, &places::local_path(&parent.place)?)?,
    };
    // A lone file may have another name now; files that the record does not know were not read.
    if let ([recorded], [came]) = (&parent.files[..], &came.files[..]) {
        let what = || format!("{} is another than it was", came.name);
        return Ok((recorded.sha256 != came.sha256).then(what));
    }
    let differing =
        compared(&parent.files, &came.files).into_iter().find(|file| !file.same && file.sha256.is_some());
    Ok(differing.map(|file| match file.replayed_sha256 {
        None => format!("{} is not there", file.name),
        Some(_) => format!("{} is another than it was", file.name),
    }))
}

fn compared(recorded: &[FileHash], came: &[FileHash]) -> Vec<Compared> {
    let hash = |files: &[FileHash], name: &str| {
        files.iter().find(|file| file.name == name).map(|file| file.sha256.clone())
    };
    let only_came = came.iter().filter(|file| !recorded.iter().any(|known| known.name == file.name));
    let names = recorded.iter().chain(only_came).map(|file| file.name.clone());
    names
        .map(|name| {
            let (sha256, replayed_sha256) = (hash(recorded, &name), hash(came, &name));
            Compared { same: sha256 == replayed_sha256, name, sha256, replayed_sha256 }
        })
        .collect()
}

/// The verb's own keys: a record holds them all; what was not given stands there as null.
fn keys(recipe: &Value, out: &Path) -> anyhow::Result<Value> {
    let Value::Object(recipe) = recipe else { bail!("the record's recipe is no object of keys") };
    let given = recipe.iter().filter(|(_, value)| !value.is_null());
    let mut keys: Map<String, Value> = given.map(|(key, value)| (key.clone(), value.clone())).collect();
    keys.insert("out".to_string(), json!(out));
    Ok(Value::Object(keys))
}

/// A training run's recipe from its identity: texts by their names again, hashes compared by the run's own record.
fn training_keys(identity: &Value, out: &Path) -> anyhow::Result<Value> {
    let Value::Object(mut recipe) = identity.clone() else {
        bail!("the record's recipe is no object of keys")
    };
    recipe.shift_remove("inputs");
    recipe.insert("out".to_string(), json!(out));
    let data = recipe
        .get_mut("data")
        .and_then(Value::as_object_mut)
        .ok_or_else(|| anyhow!("the record names no data"))?;
    for key in ["train", "validation"] {
        let Some(Value::Array(texts)) = data.get_mut(key) else { continue };
        for text in texts.iter_mut() {
            let Some(name) = text["name"].as_str().map(str::to_string) else { continue };
            check_text(&name, text["sha256"].as_str().unwrap_or_default())?;
            *text = match text.get("column") {
                None => json!(name),
                Some(column) => {
                    json!({"file": name, "column": column, "header": text["header"], "join": text["join"]})
                }
            };
        }
    }
    Ok(json!({ "recipe": { "text": Value::Object(recipe).to_string() } }))
}

fn check_text(name: &str, sha256: &str) -> anyhow::Result<()> {
    let text = crate::texts::read(Path::new(name)).with_context(|| {
        format!("text {name}: the record names texts by file name; start replay in their folder")
    })?;
    let came = luthier_checkpoint::lineage::sha256_of_bytes(text.as_bytes());
    if came != sha256 {
        bail!(
            "text {name}: SHA-256 is {came}, the record says {sha256}; put the text of that time in its place"
        );
    }
    Ok(())
}
