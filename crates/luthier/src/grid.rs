//! `bench --grid`: the same measurement across axes, each cell in a process of its own, so that peak memory is the cell's.

use std::path::Path;
use std::process::Command;
use std::str::FromStr;

use anyhow::Context;
use luthier_generate::CacheType;
use serde::Serialize;
use serde_json::Value;

/// Cells of a grid at most: what takes longer than a day was not meant.
const CELLS_MAX: usize = 10_000;

/// Values of one axis: `batch=1,8`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Axis {
    /// Sequences together.
    Batch(Vec<usize>),
    /// Tokens of a prompt, or of a sequence in training.
    Length(Vec<usize>),
    /// Worker threads.
    Threads(Vec<usize>),
    /// The model as it is (none), or quantised to a type first.
    Type(Vec<Option<String>>),
    /// What keys and values are rounded to.
    Kv(Vec<CacheType>),
    /// What is measured.
    Work(Vec<Work>),
}

/// What a cell measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Work {
    /// Reading a prompt and decoding.
    Generate,
    /// Training steps.
    Train,
}

impl FromStr for Axis {
    type Err = String;

    fn from_str(text: &str) -> Result<Axis, String> {
        const WANTED: &str = "wanted batch=1,8 or length=, threads=, type=, kv=, work=";
        let (name, values) = text.split_once('=').ok_or_else(|| format!("{WANTED}, came {text:?}"))?;
        let values: Vec<&str> = values.split(',').map(str::trim).collect();
        if values.iter().any(|value| value.is_empty()) {
            return Err(format!("{name}: wanted values between commas, came {text:?}"));
        }
        let numbers = || {
            let number = |value: &&str| value.parse().ok().filter(|number| *number > 0);
            let numbers: Option<Vec<usize>> = values.iter().map(number).collect();
            numbers.ok_or_else(|| format!("{name}: wanted whole numbers of 1 or more, came {text:?}"))
        };
        Ok(match name {
            "batch" => Axis::Batch(numbers()?),
            "length" => Axis::Length(numbers()?),
            "threads" => Axis::Threads(numbers()?),
            "type" => {
                let word = |value: &&str| (*value != "asis").then(|| value.to_string());
                Axis::Type(values.iter().map(word).collect())
            }
            "kv" => Axis::Kv(values.iter().map(|value| value.parse()).collect::<Result<_, String>>()?),
            "work" => {
                let work = |value: &&str| match *value {
                    "generate" => Ok(Work::Generate),
                    "train" => Ok(Work::Train),
                    other => Err(format!("work: wanted generate or train, came {other:?}")),
                };
                Axis::Work(values.iter().map(work).collect::<Result<_, String>>()?)
            }
            _ => return Err(format!("{WANTED}, came {text:?}")),
        })
    }
}

/// One measurement.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cell {
    /// What.
    pub work: Work,
    /// The type that the model was quantised to; none: as it is.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// Worker threads.
    pub threads: usize,
    /// Sequences together.
    pub batch: usize,
    /// Tokens of a prompt or of a sequence; none: as `bench` has it.
    pub length: Option<usize>,
    /// What keys and values are rounded to; none: as `bench` has it.
    #[serde(skip)]
    pub kv: Option<CacheType>,
}

/// All cells, the first axis of the list turning slowest: work, type, threads, kv, length, batch. Training is in f32 and without
/// cache, so that those axes do not count for it.
///
/// # Errors
/// An axis given twice, and more cells than anybody waits for.
pub fn cells(axes: &[Axis], threads: usize) -> Result<Vec<Cell>, String> {
    let (mut batch, mut length, mut workers) = (vec![1], vec![None], vec![threads]);
    let (mut kinds, mut kvs, mut works) = (vec![None], vec![None], vec![Work::Generate]);
    for (at, axis) in axes.iter().enumerate() {
        let same = |other: &Axis| std::mem::discriminant(other) == std::mem::discriminant(axis);
        if axes[..at].iter().any(same) {
            return Err(format!("grid: an axis is given twice: {axis:?}"));
        }
        match axis.clone() {
            Axis::Batch(values) => batch = values,
            Axis::Length(values) => length = values.into_iter().map(Some).collect(),
            Axis::Threads(values) => workers = values,
            Axis::Type(values) => kinds = values,
            Axis::Kv(values) => kvs = values.into_iter().map(Some).collect(),
            Axis::Work(values) => works = values,
        }
    }
    let counts = [works.len(), kinds.len(), workers.len(), kvs.len(), length.len(), batch.len()];
    let count = counts.iter().try_fold(1usize, |all, count| all.checked_mul(*count));
    if count.is_none_or(|count| count > CELLS_MAX) {
        return Err(format!("grid: wanted at most {CELLS_MAX} cells, came {counts:?} multiplied"));
    }
    let mut cells: Vec<Cell> = Vec::new();
    for work in &works {
        for kind in &kinds {
            for threads in &workers {
                for kv in &kvs {
                    for length in &length {
                        for batch in &batch {
                            let is_training = *work == Work::Train;
                            let cell = Cell {
                                work: *work,
                                kind: kind.clone().filter(|_| !is_training),
                                threads: *threads,
                                batch: *batch,
                                length: *length,
                                kv: kv.filter(|_| !is_training),
                            };
                            if !cells.contains(&cell) {
                                cells.push(cell);
                            }
                        }
                    }
                }
            }
        }
    }
    Ok(cells)
}

/// What all cells share.
pub struct Shared<'a> {
    /// Tokens to decode, where they were said.
    pub new_tokens: Option<usize>,
    /// Timed runs.
    pub runs: usize,
    /// Training steps, where they were said.
    pub steps: Option<usize>,
    /// Where quantised forms are made.
    pub folder: &'a Path,
}

/// Measures a cell of MODEL with `bench`; its one JSON object.
///
/// # Errors
/// What `bench`, or `quantize` before it, said.
pub fn measure(model: &str, cell: &Cell, shared: &Shared) -> anyhow::Result<Value> {
    let model = match &cell.kind {
        None => model.to_string(),
        Some(kind) => {
            let is_folder = ["nf4", "fp4", "int8"].contains(&kind.as_str());
            let name = if is_folder { kind.clone() } else { format!("{kind}.gguf") };
            let place = shared.folder.join(name).display().to_string();
            if !Path::new(&place).exists() {
                program(&["quantize", model, &place, "--to", kind, "--requantize"])?;
            }
            place
        }
    };
    let mut arguments = vec!["bench".to_string(), model];
    let mut add = |flag: &str, value: String| arguments.extend([flag.to_string(), value]);
    add("--threads", cell.threads.to_string());
    add("--batch", cell.batch.to_string());
    match cell.work {
        Work::Generate => {
            cell.length.into_iter().for_each(|length| add("--prompt-tokens", length.to_string()));
            shared.new_tokens.into_iter().for_each(|count| add("--new-tokens", count.to_string()));
            add("--runs", shared.runs.to_string());
            cell.kv.into_iter().for_each(|kind| add("--kv-cache", kind.as_str().to_string()));
        }
        Work::Train => {
            cell.length.into_iter().for_each(|length| add("--seq", length.to_string()));
            shared.steps.into_iter().for_each(|steps| add("--steps", steps.to_string()));
            arguments.push("--train".to_string());
        }
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    program(&arguments)
}

/// Runs this program, whose one JSON object it gives.
fn program(arguments: &[&str]) -> anyhow::Result<Value> {
    let own = std::env::current_exe().context("where this program lies")?;
    let output = Command::new(own).args(arguments).arg("--json").output().context("starting a cell")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let last = said.lines().last().unwrap_or("ended without a word").trim_start_matches("luthier: ");
        anyhow::bail!("{last}");
    }
    serde_json::from_slice(&output.stdout).context("what a cell printed")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axes(texts: &[&str]) -> Vec<Axis> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn axes_multiply_and_training_leaves_some_out() {
        assert_eq!(cells(&[], 2).unwrap().len(), 1);
        let all = axes(&["batch=1,8", "type=asis,Q8_0", "threads=1,2", "work=generate,train", "kv=f16,q8"]);
        let all = cells(&all, 2).unwrap();
        assert_eq!(all.len(), 16 + 4);
        assert_eq!((all[0].batch, all[1].batch, all[0].kind.as_deref()), (1, 8, None));
        assert!(cells(&axes(&["batch=1", "batch=2"]), 2).unwrap_err().contains("twice"));
        let many = ["batch", "length", "threads"].map(|name| format!("{name}={}1", "1,".repeat(30)));
        assert!(cells(&axes(&many.each_ref().map(String::as_str)), 2).is_err());
    }

    #[test]
    fn what_is_no_axis_is_refused() {
        for wrong in ["batch", "batch=", "batch=0", "batch=1,,2", "size=3", "kv=q4", "work=eat", "length=x"] {
            assert!(wrong.parse::<Axis>().is_err(), "{wrong}");
        }
    }
}
