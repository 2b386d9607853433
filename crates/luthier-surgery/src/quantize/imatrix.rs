//! Importance weights: the mean square of what flows into every column of a matrix, as llama-imatrix measures it.
//!
//! Read from a GGUF file (`imatrix.datasets`, `imatrix.chunk_count`, `imatrix.chunk_size`; for each matrix `NAME.in_sum2` and
//! `NAME.counts`, f32) or from the older binary form. Source: imatrix-loader.cpp and quantize.cpp of llama.cpp.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use luthier_checkpoint::gguf::{Gguf, GgufValue};
use luthier_checkpoint::{Dtype, Error as FileError, TensorInfo, TensorSource, values};

use crate::Result;

/// ggml keeps a text of this length at most in the keys that name the file and the data set.
const MAX_TEXT_BYTES: usize = 127;

/// Importance weights of a model's matrices.
pub(super) struct Imatrix {
    path: String,
    datasets: Vec<String>,
    chunks: u64,
    weights: HashMap<String, Vec<f32>>,
}

impl Imatrix {
    /// Reads a file of either form.
    pub(super) fn read(path: &Path) -> Result<Imatrix> {
        let imatrix = if Gguf::is_gguf(path) { from_gguf(path)? } else { from_binary(path)? };
        for (name, weights) in imatrix.weights.iter().collect::<BTreeMap<_, _>>() {
            if let Some(at) = weights.iter().position(|weight| !weight.is_finite() || *weight < 0.0) {
                let what = format!(
                    "entry {name}: weight {at} is {}; wanted finite means of squares, measure it again",
                    weights[at]
                );
                return Err(FileError::format(path, what).into());
            }
        }
        Ok(imatrix)
    }

    /// The weights of a tensor; none where it has none, or such that do not fit an embedding.
    pub(super) fn of(&self, info: &TensorInfo) -> Option<&[f32]> {
        self.weights.get(&info.name).filter(|weights| weights.len() == wanted_len(info)).map(Vec::as_slice)
    }

    pub(super) fn size_bytes(&self) -> usize {
        self.weights.values().map(|weights| weights.len() * 4).sum()
    }

    /// Refuses weights that do not fit the tensors which are rounded; notes those that are missing, as llama.cpp does.
    pub(super) fn check(&self, source: &[TensorInfo], infos: &[TensorInfo]) -> Result<Vec<String>> {
        let (mut missing, mut used) = (Vec::new(), 0);
        for (_, info) in source.iter().zip(infos).filter(|(source, info)| source.dtype != info.dtype) {
            match self.weights.get(&info.name) {
                None => missing.push(info.name.as_str()),
                Some(weights) if weights.len() == wanted_len(info) => used += 1,
                // Embeddings are looked up, not multiplied with; what is measured there belongs to the head.
                Some(_) if info.name == "token_embd.weight" => missing.push(&info.name),
                Some(weights) => {
                    let what = format!(
                        "entry {}: wanted {} weights (columns times experts of shape {:?}), came {}; it was measured on another model",
                        info.name,
                        wanted_len(info),
                        info.shape,
                        weights.len()
                    );
                    return Err(FileError::format(Path::new(&self.path), what).into());
                }
            }
        }
        if used == 0 {
            let what = "no entry belongs to a tensor of this model; it was measured on another one";
            return Err(FileError::format(Path::new(&self.path), what).into());
        }
        let shown = missing.iter().take(8).copied().collect::<Vec<_>>().join(", ");
        let rest = if missing.len() > 8 { ", ..." } else { "" };
        let note = format!("{} tensors have no importance weights: {shown}{rest}", missing.len());
        Ok(if missing.is_empty() { Vec::new() } else { vec![note] })
    }

    /// The keys that llama-quantize writes.
    pub(super) fn metadata(&self) -> Vec<(&'static str, GgufValue)> {
        let text = |text: &str| GgufValue::String(cut(text, MAX_TEXT_BYTES).to_string());
        let mut metadata = vec![("quantize.imatrix.file", text(&self.path))];
        metadata.extend(self.datasets.first().map(|dataset| ("quantize.imatrix.dataset", text(dataset))));
        let number = |number: u64| GgufValue::U32(u32::try_from(number).unwrap_or(u32::MAX));
        metadata.push(("quantize.imatrix.entries_count", number(self.weights.len() as u64)));
        if self.chunks > 0 {
            metadata.push(("quantize.imatrix.chunks_count", number(self.chunks)));
        }
        metadata
    }
}

/// Columns, for each expert of a stack of matrices.
fn wanted_len(info: &TensorInfo) -> usize {
    let columns = info.shape.last().copied().unwrap_or(0);
    if info.shape.len() > 2 { columns * info.shape[0] } else { columns }
}

/// The first bytes of a text, cut between characters.
fn cut(text: &str, max_bytes: usize) -> &str {
    let end = (0..=max_bytes.min(text.len())).rev().find(|&end| text.is_char_boundary(end));
    &text[..end.unwrap_or(0)]
}

fn from_gguf(path: &Path) -> Result<Imatrix> {
    let gguf = Gguf::open(path)?;
    let key = |name: &str| {
        let missing =
            || format!("metadata key {name} is missing; wanted importance weights of llama-imatrix");
        gguf.get(name).ok_or_else(|| FileError::format(path, missing()))
    };
    let datasets = key("imatrix.datasets")?.as_strings().unwrap_or_default().to_vec();
    let chunks = key("imatrix.chunk_count")?.as_u64().unwrap_or(0);
    key("imatrix.chunk_size")?;
    let read = |name: &str| -> Result<Vec<f32>> {
        let info = gguf.infos().iter().find(|info| info.name == name);
        match info {
            Some(info) if info.dtype == Dtype::F32 => {
                Ok(values::to_f32(name, info.dtype, &gguf.read(name)?)?)
            }
            Some(info) => Err(FileError::tensor(name, format!("wanted F32, found {}", info.dtype)).into()),
            None => {
                Err(FileError::format(path, format!("tensor {name} is missing; sums and counts go together"))
                    .into())
            }
        }
    };
    let mut weights = HashMap::new();
    for info in gguf.infos() {
        if let Some(name) = info.name.strip_suffix(".counts") {
            read(&format!("{name}.in_sum2"))?;
        }
        let Some(name) = info.name.strip_suffix(".in_sum2") else { continue };
        let (sums, counts) = (read(&info.name)?, read(&format!("{name}.counts"))?);
        if counts.is_empty() || sums.is_empty() || !sums.len().is_multiple_of(counts.len()) {
            let what = format!("{} sums are not shared out among {} counts", sums.len(), counts.len());
            return Err(FileError::tensor(&info.name, what).into());
        }
        let columns = sums.len() / counts.len();
        // Counts are whole numbers; an expert that was never asked counts every column the same.
        let mean = |(at, sum): (usize, &f32)| {
            let count = counts[at / columns].round();
            if count > 0.0 { sum / count } else { 1.0 }
        };
        weights.insert(name.to_string(), sums.iter().enumerate().map(mean).collect());
    }
    if weights.is_empty() {
        return Err(FileError::format(
            path,
            "holds no NAME.in_sum2; wanted importance weights of llama-imatrix",
        )
        .into());
    }
    Ok(Imatrix { path: path.to_string_lossy().into_owned(), datasets, chunks, weights })
}

/// `i32 n_entries`, then for each `i32 len, name, i32 calls, i32 n_values, f32 values`; then, or the end, `i32 chunks,
/// i32 len, data set`. Values are means times calls.
fn from_binary(path: &Path) -> Result<Imatrix> {
    let bytes = std::fs::read(path).map_err(|source| FileError::io(path, source))?;
    let wrong =
        |what: String| FileError::format(path, format!("{what}; wanted importance weights of llama-imatrix"));
    let mut cursor = Cursor { rest: &bytes };
    let n_entries = cursor.count().filter(|&n| n > 0).ok_or_else(|| wrong("holds no entries".to_string()))?;
    let mut weights = HashMap::new();
    for entry in 0..n_entries {
        let cut_off = || wrong(format!("ends inside entry {} of {n_entries}", entry + 1));
        let name_len = cursor.count().ok_or_else(cut_off)?;
        let name = cursor.take(name_len).ok_or_else(cut_off)?;
        let name = std::str::from_utf8(name)
            .map_err(|_| wrong(format!("the name of entry {} is no text", entry + 1)))?;
        let calls = cursor.number().ok_or_else(cut_off)?;
        let n_values = cursor.count().filter(|&n| n > 0).ok_or_else(cut_off)?;
        let bytes = n_values.checked_mul(4).and_then(|len| cursor.take(len)).ok_or_else(cut_off)?;
        let value = |bytes: &[u8]| f32::from_le_bytes(bytes.try_into().expect("chunks have 4 bytes"));
        let divisor = if calls > 0 { calls as f32 } else { 1.0 };
        weights.insert(name.to_string(), bytes.chunks_exact(4).map(|bytes| value(bytes) / divisor).collect());
    }
    let chunks = cursor.number().map_or(0, |chunks| chunks.max(0) as u64);
    let dataset = cursor.count().and_then(|len| cursor.take(len)).filter(|name| !name.is_empty());
    let datasets = dataset.map(|name| String::from_utf8_lossy(name).into_owned()).into_iter().collect();
    Ok(Imatrix { path: path.to_string_lossy().into_owned(), datasets, chunks, weights })
}

struct Cursor<'b> {
    rest: &'b [u8],
}

impl<'b> Cursor<'b> {
    fn take(&mut self, len: usize) -> Option<&'b [u8]> {
        let (taken, rest) = self.rest.split_at_checked(len)?;
        self.rest = rest;
        Some(taken)
    }

    fn number(&mut self) -> Option<i32> {
        self.take(4).map(|bytes| i32::from_le_bytes(bytes.try_into().expect("4 bytes were taken")))
    }

    fn count(&mut self) -> Option<usize> {
        self.number().and_then(|number| usize::try_from(number).ok())
    }
}
