//! How one tensor of a grown model comes about, and its values.

use luthier_arch::random::{Stream, hash};
use luthier_checkpoint::layout::TensorSpec;
use luthier_checkpoint::{Dtype, Error, Result, TensorInfo, values};
use luthier_kernels::pool;
use serde_json::{Map, Value};

/// Bytes that one task copies, roughly.
const TASK_BYTES: usize = 1 << 20;

/// How one tensor comes about.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    /// The tensor of the input that stands there; a made one gets its type.
    pub(super) source: String,
    /// The tensor in the grown model.
    pub(super) spec: TensorSpec,
    pub(super) form: Form,
}

/// What it holds.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Form {
    /// The input's values. `is_learnt`: whether they go on learning as they did there, or first have to be heard again.
    Copied { is_learnt: bool },
    /// Zeros.
    Silent,
    /// Ones.
    Neutral,
    /// As a fresh model has it.
    Fresh,
    /// More places on some axes.
    Wider(Wider),
}

/// A tensor with more places.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Wider {
    /// How many times the places of each axis.
    pub(super) times: Vec<usize>,
    /// What the new places hold.
    pub(super) fill: Fill,
    /// Every value w becomes (w + offset) * factor - offset.
    pub(super) factor: f64,
    pub(super) offset: f64,
    /// Copies of an input get shares of its weight that differ by this deviation, relative to an equal share.
    pub(super) asymmetry: f64,
}

/// What new places hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fill {
    /// The old ones again.
    Copies,
    /// Zeros.
    Zeros,
    /// What a fresh model has there.
    Fresh,
}

impl Wider {
    /// What a gradient of the old weight is multiplied by to be that of a new one. A weight that stands n times, each
    /// scaled by the factor, shares its gradient: the old one is the sum over its places times the factor.
    pub(super) fn gradient_factor(&self) -> f64 {
        let copies: usize = match self.fill {
            Fill::Copies => self.times.iter().product(),
            Fill::Zeros | Fill::Fresh => 1,
        };
        1.0 / (copies as f64 * self.factor)
    }

    /// In few words.
    pub(super) fn describe(&self) -> String {
        let mut how = match self.fill {
            Fill::Copies if self.asymmetry > 0.0 => "copied over the new width in random shares",
            Fill::Copies => "copied over the new width",
            Fill::Zeros => "zeros in the new width",
            Fill::Fresh => "fresh values in the new width",
        }
        .to_string();
        if (self.factor - 1.0).abs() > f64::EPSILON {
            how.push_str(", scaled");
        }
        how
    }
}

/// The bytes of a wider tensor, in the type of `source`. Fresh values are those of a model of this config and seed.
pub(super) fn widened(
    piece: &Piece,
    wider: &Wider,
    source: &TensorInfo,
    bytes: &[u8],
    config: &Map<String, Value>,
    seed: u64,
) -> Result<Vec<u8>> {
    let (1, unit) = source.dtype.block() else {
        let what = format!("holds {}, which cannot be widened; wanted floats", source.dtype);
        return Err(Error::tensor(&source.name, what));
    };
    let placed = place(bytes, unit, &source.shape, &wider.times, wider.fill == Fill::Copies);
    let is_placed_only = (wider.factor - 1.0).abs() <= f64::EPSILON
        && wider.fill != Fill::Fresh
        && (wider.asymmetry <= 0.0 || wider.fill != Fill::Copies);
    if is_placed_only {
        return Ok(placed);
    }
    let name = &piece.spec.name;
    let mut numbers = values::to_f32(name, source.dtype, &placed)?;
    drop(placed);
    if wider.fill == Fill::Fresh {
        let fresh = luthier_arch::init::fresh(config, &piece.spec, seed)
            .map_err(|problem| Error::tensor(name, problem.to_string()))?;
        fill_new(&mut numbers, &fresh, &source.shape, &wider.times);
    }
    let Wider { factor, offset, .. } = *wider;
    pool::run_chunks(&mut numbers, TASK_BYTES / 4, &|_, part| {
        for number in part {
            *number = ((f64::from(*number) + offset) * factor - offset) as f32;
        }
    });
    if wider.asymmetry > 0.0
        && wider.fill == Fill::Copies
        && let Some(copies) = wider.times.last()
    {
        let columns = source.shape.last().copied().unwrap_or(1);
        share_out(&mut numbers, columns, *copies, wider.asymmetry, name, seed);
    }
    let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    drop(numbers);
    if source.dtype == Dtype::F32 { Ok(bytes) } else { values::cast(name, Dtype::F32, &bytes, source.dtype) }
}

/// Values of `unit` bytes in a shape that has `times` as many places on each axis: the old ones again in the new places,
/// or zeros.
pub(super) fn place(bytes: &[u8], unit: usize, shape: &[usize], times: &[usize], again: bool) -> Vec<u8> {
    let columns = shape.last().copied().unwrap_or(1) * unit;
    let times_columns = times.last().copied().unwrap_or(1);
    let wide = columns * times_columns;
    let (leading, times_leading) = (&shape[..shape.len().max(1) - 1], &times[..times.len().max(1) - 1]);
    let n_rows: usize = leading.iter().zip(times_leading).map(|(len, times)| len * times).product();
    let mut target = vec![0u8; n_rows * wide];
    if target.is_empty() {
        return target;
    }
    let per_task = (TASK_BYTES / wide).max(1);
    pool::run_chunks(&mut target, per_task * wide, &|task, part| {
        for (row, target) in part.chunks_exact_mut(wide).enumerate() {
            let Some(row) = old_row(task * per_task + row, leading, times_leading, again) else { continue };
            let source = &bytes[row * columns..(row + 1) * columns];
            let copies = if again { times_columns } else { 1 };
            target.chunks_exact_mut(columns).take(copies).for_each(|target| target.copy_from_slice(source));
        }
    });
    target
}

/// The old row that a row of the new shape is a copy of; none of a new one where there are no copies.
fn old_row(mut row: usize, shape: &[usize], times: &[usize], again: bool) -> Option<usize> {
    let (mut old, mut stride) = (0, 1);
    for (len, times) in shape.iter().zip(times).rev() {
        let at = row % (len * times);
        row /= len * times;
        if at >= *len && !again {
            return None;
        }
        old += at % len * stride;
        stride *= len;
    }
    Some(old)
}

/// Puts fresh values into the new places.
fn fill_new(numbers: &mut [f32], fresh: &[f32], shape: &[usize], times: &[usize]) {
    let columns = shape.last().copied().unwrap_or(1);
    let wide = columns * times.last().copied().unwrap_or(1);
    let (leading, times_leading) = (&shape[..shape.len().max(1) - 1], &times[..times.len().max(1) - 1]);
    for (row, (numbers, fresh)) in numbers.chunks_mut(wide).zip(fresh.chunks(wide)).enumerate() {
        let start = if old_row(row, leading, times_leading, false).is_some() { columns } else { 0 };
        numbers[start..].copy_from_slice(&fresh[start..]);
    }
}

/// Moves weight between the copies of each input so that each row's copies sum to what they did.
fn share_out(numbers: &mut [f32], columns: usize, copies: usize, deviation: f64, name: &str, seed: u64) {
    if copies < 2 {
        return;
    }
    let wide = columns * copies;
    let start = hash(name, seed);
    pool::run_chunks(numbers, wide, &|row, numbers| {
        let of_row = start ^ Stream::new(row as u64).bits();
        let mut stream = Stream::new(Stream::new(of_row).bits());
        // Models that are there already were made from the second number on.
        stream.bits();
        let mut shares = vec![0f64; copies];
        for column in 0..columns {
            for share in &mut shares {
                let (radius, angle) = stream.polar();
                *share = deviation * (radius * angle.cos());
            }
            let mean = shares.iter().sum::<f64>() / copies as f64;
            for (copy, share) in shares.iter().enumerate() {
                let number = &mut numbers[copy * columns + column];
                *number = (f64::from(*number) * (1.0 + share - mean)) as f32;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_copied_or_left_empty() {
        let bytes: Vec<u8> = (1..=6).collect();
        assert_eq!(
            place(&bytes, 1, &[2, 3], &[2, 2], true),
            [1, 2, 3, 1, 2, 3, 4, 5, 6, 4, 5, 6, 1, 2, 3, 1, 2, 3, 4, 5, 6, 4, 5, 6]
        );
        assert_eq!(place(&bytes, 1, &[2, 3], &[1, 2], false), [1, 2, 3, 0, 0, 0, 4, 5, 6, 0, 0, 0]);
        assert_eq!(place(&bytes, 2, &[3], &[2], true), [1, 2, 3, 4, 5, 6, 1, 2, 3, 4, 5, 6]);
        assert_eq!(place(&bytes, 1, &[1, 2, 3], &[2, 1, 1], false), [1, 2, 3, 4, 5, 6, 0, 0, 0, 0, 0, 0]);
        let mut numbers = [1.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
        fill_new(&mut numbers, &[9.0; 8], &[1, 2], &[2, 2]);
        assert_eq!(numbers, [1.0, 2.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0]);
    }

    #[test]
    fn shares_sum_to_the_whole() {
        let mut numbers = [0.5f32, -1.0, 0.5, -1.0, 0.5, -1.0];
        share_out(&mut numbers, 2, 3, 0.3, "w", 1);
        let sum = |at: usize| numbers[at] + numbers[at + 2] + numbers[at + 4];
        assert!((sum(0) - 1.5).abs() < 1e-6 && (sum(1) + 3.0).abs() < 1e-6, "{numbers:?}");
        assert!((numbers[0] - numbers[2]).abs() > 1e-3, "{numbers:?}");
    }

    #[test]
    fn gradients_are_shared_by_copies() {
        let wider = |times: &[usize], fill: Fill, factor: f64| Wider {
            times: times.to_vec(),
            fill,
            factor,
            offset: 0.0,
            asymmetry: 0.0,
        };
        // A matrix between two wide streams, an untied head, a norm.
        assert!((wider(&[2, 2], Fill::Copies, 0.5).gradient_factor() - 0.5).abs() < 1e-12);
        assert!((wider(&[1, 2], Fill::Copies, 0.5).gradient_factor() - 1.0).abs() < 1e-12);
        assert!((wider(&[2], Fill::Copies, 1.0).gradient_factor() - 0.5).abs() < 1e-12);
        assert!((wider(&[2], Fill::Fresh, 0.5).gradient_factor() - 2.0).abs() < 1e-12);
    }
}
