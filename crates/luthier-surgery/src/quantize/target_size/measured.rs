//! What every type loses in every matrix of a model, and how much that counts.

use std::collections::BTreeMap;

use luthier_checkpoint::gguf::GgufWriter;
use luthier_checkpoint::{Dtype, TensorInfo};
use luthier_kernels::blocks::{self, BlockType, Measured, Unfit};

use crate::Result;
use crate::quantize::{Job, block_type, mix, write};

/// Values of a matrix that are measured, where rows allow it.
const SAMPLE_VALUES: usize = 1 << 20;

/// A tensor that has a choice.
pub(super) struct Tensor {
    pub(super) name: String,
    /// How much its relative error counts.
    pub(super) factor: f64,
    pub(super) ways: Vec<Way>,
}

impl Tensor {
    pub(super) fn way(&self, dtype: Dtype) -> Option<&Way> {
        self.ways.iter().find(|way| Dtype::Weights(way.block_type) == dtype)
    }
}

/// One type for it.
pub(super) struct Way {
    pub(super) block_type: BlockType,
    /// In the file, padding included.
    pub(super) size_bytes: u64,
    /// Relative squared error.
    pub(super) error: f64,
}

/// What every type would lose in every tensor; none for tensors that keep their type.
pub(super) fn measure_all(job: &Job, source: &[TensorInfo], requantize: bool) -> Result<Vec<Option<Tensor>>> {
    let mut layers = BTreeMap::<&str, Vec<usize>>::new();
    for info in source {
        if let (stack, Some(layer), _) = place(&info.name) {
            let seen = layers.entry(stack).or_default();
            if !seen.contains(&layer) {
                seen.push(layer);
            }
        }
    }
    // Where there is no other head, the embedding is that too.
    let is_tied = !source.iter().any(|info| info.name == "output.weight");
    let factor = |name: &str| {
        let (stack, layer, _) = place(name);
        let (n_equal, at) = match layer {
            Some(layer) => (layers[stack].len(), position(layer, layers[stack].len())),
            None => (1, 1),
        };
        factors(mix::part_of(name), is_tied)[at] / n_equal as f64
    };
    let tensors = source.iter().map(|info| {
        if !mix::is_quantised(info) {
            return Ok(None);
        }
        let ways = measured_ways(job, info, requantize)?;
        Ok(Some(Tensor { name: info.name.clone(), factor: factor(&info.name), ways }))
    });
    tensors.collect()
}

/// How far the tokens' distributions move (Kullback-Leibler, nats a token) for each unit of relative squared error in all
/// matrices of a kind: in the first eighth of the layers, between, and in the last eighth. Measured on SmolLM2-135M by
/// rounding the matrices of one kind in two layers at a time to Q4_0 (docs/log.md). Between the ends most layers' down
/// projections count a third of what stands here and one of thirty twenty times as much; which one it is in another model
/// nobody knows, so all get the mean. Only the ratios matter.
fn factors(part: mix::Part, is_tied: bool) -> [f64; 3] {
    // 7.5 by Q4_0, 12 by Q5_1, which is what such a matrix gets.
    const HEAD: f64 = 12.0;
    const EMBEDDING: f64 = 0.7;
    match part {
        mix::Part::Embedding if is_tied => [HEAD + EMBEDDING; 3],
        mix::Part::Embedding => [EMBEDDING; 3],
        mix::Part::Head => [HEAD; 3],
        mix::Part::Query | mix::Part::Key => [2.2, 3.5, 1.1],
        mix::Part::AttentionOutput => [4.2, 1.6, 1.1],
        mix::Part::Other => [10.8, 6.7, 29.6],
        mix::Part::Value => [11.0, 12.1, 4.3],
        mix::Part::Down => [14.9, 9.5, 30.7],
    }
}

/// Which of the factors a layer has, as llama-quantize tells the layers that get more bits.
fn position(layer: usize, n_layers: usize) -> usize {
    match layer {
        first if first < n_layers / 8 => 0,
        last if last >= 7 * n_layers / 8 => 2,
        _ => 1,
    }
}

/// The part of a name before `blk.N.`, N, and the part after it.
pub(super) fn place(name: &str) -> (&str, Option<usize>, &str) {
    let parts = name.find("blk.").and_then(|at| {
        let (layer, rest) = name[at + 4..].split_once('.')?;
        Some((&name[..at], layer.parse().ok()?, rest))
    });
    match parts {
        Some((stack, layer, rest)) => (stack, Some(layer), rest),
        None => ("", None, name),
    }
}

fn measured_ways(job: &Job, info: &TensorInfo, requantize: bool) -> Result<Vec<Way>> {
    let from = block_type(info)?;
    let size = |block_type: BlockType| {
        let info = TensorInfo { dtype: Dtype::Weights(block_type), ..info.clone() };
        GgufWriter::tensor_bytes(&job.assembled.metadata, &info)
    };
    let mut ways = Vec::new();
    let columns = info.shape.last().copied().unwrap_or(0);
    // What was rounded before stays as it is, unless the user wants it otherwise.
    let is_kept = from.block_len() > 1 && !requantize;
    let sample = if is_kept { None } else { Some(Sample::of(job, info, from)?) };
    // Its own type comes first, so that it wins where another is as good.
    let others = BlockType::ALL.into_iter().filter(|to| *to != from);
    for to in std::iter::once(from).chain(others) {
        if !columns.is_multiple_of(to.block_len()) || (is_kept && to != from) {
            continue;
        }
        let Some(size_bytes) = size(to)? else { continue };
        let error = match &sample {
            Some(sample) if to != from => match sample.error(to, info)? {
                Some(error) => error,
                None => continue,
            },
            _ => 0.0,
        };
        ways.push(Way { block_type: to, size_bytes, error });
    }
    Ok(ways)
}

/// Rows of a matrix, those of each of its parts with their importance weights. Every expert of a stack is a part.
struct Sample<'j> {
    from: BlockType,
    columns: usize,
    parts: Vec<Part<'j>>,
}

struct Part<'j> {
    bytes: Vec<u8>,
    /// Numbers of the rows in the whole matrix.
    rows: Vec<usize>,
    importance: Option<&'j [f32]>,
}

impl<'j> Sample<'j> {
    fn of(job: &'j Job, info: &TensorInfo, from: BlockType) -> Result<Sample<'j>> {
        let columns = info.shape.last().copied().unwrap_or(0);
        let bytes = job.assembled.read_unchecked(&info.name)?;
        let row_bytes = from.bytes_for(columns).unwrap_or(0);
        let n_rows = bytes.len().checked_div(row_bytes).unwrap_or(0);
        let weights = job.imatrix.as_ref().and_then(|imatrix| imatrix.of(info));
        let n_parts = weights.map_or(1, |weights| weights.len() / columns.max(1)).max(1);
        let (part_rows, wanted) = (n_rows / n_parts, SAMPLE_VALUES / columns.max(1) / n_parts);
        let n_sampled = wanted.max(1).min(part_rows);
        let parts = (0..n_parts).map(|part| {
            let rows: Vec<usize> =
                (0..n_sampled).map(|at| part * part_rows + at * part_rows / n_sampled).collect();
            let bytes = rows.iter().flat_map(|row| &bytes[row * row_bytes..][..row_bytes]).copied().collect();
            let importance = weights.map(|weights| &weights[part * columns..][..columns]);
            Part { bytes, rows, importance }
        });
        Ok(Sample { from, columns, parts: parts.collect() })
    }

    /// What `to` loses; none where it cannot hold the values.
    fn error(&self, to: BlockType, info: &TensorInfo) -> Result<Option<f64>> {
        let mut all = Measured::default();
        for part in &self.parts {
            match blocks::measure_error((self.from, &part.bytes), to, self.columns, part.importance) {
                Ok(measured) => {
                    all.error += measured.error;
                    all.energy += measured.energy;
                }
                Err(Unfit::TooLarge(_)) => return Ok(None),
                Err(Unfit::NotFinite(at)) => {
                    let row = part.rows[at / self.columns.max(1)];
                    let at = Unfit::NotFinite(row * self.columns + at % self.columns.max(1));
                    return Err(write::refused(info, at, 0));
                }
            }
        }
        Ok(Some(if all.energy > 0.0 { all.error / all.energy } else { 0.0 }))
    }
}

/// Bytes of the sampled rows of the largest matrix.
pub(in super::super) fn sample_bytes(source: &[TensorInfo]) -> usize {
    let rows = |info: &TensorInfo| {
        let values = info.shape.iter().product::<usize>();
        let sampled = SAMPLE_VALUES.max(info.shape.last().copied().unwrap_or(0));
        4 * values.min(sampled)
    };
    source.iter().map(rows).max().unwrap_or(0)
}
