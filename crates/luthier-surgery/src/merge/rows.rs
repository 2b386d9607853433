//! The rows of one tensor of the result, taken from the models' tensors row by row.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use luthier_checkpoint::{Dtype, Error, Result, values};
use luthier_kernels::bytes::SharedBytes;

use super::vocabulary::{Given, NONE, Vocabulary};
use crate::Input;

/// Where the rows of one tensor come from.
pub(crate) struct Rows {
    /// Values of a row.
    width: usize,
    /// Rows of each input's tensor.
    stored: Vec<usize>,
    /// By input: its row for each row of the result, or [`NONE`].
    own: Vec<Arc<Vec<u32>>>,
    /// What an input gets that has none.
    others: Vec<Other>,
    /// Rows where it gets that even if it has one.
    forced: Arc<HashSet<u32>>,
    is_token: Arc<Vec<bool>>,
}

/// The row of an input that has none of its own.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Other {
    Zero,
    /// The mean of the inputs that have it.
    Average,
    /// The mean of the input's rows of all tokens.
    Mean,
    /// That row of the input of that position.
    Row(u32, u32),
}

/// The tensors of all inputs as they are stored, and the means of their rows where they are asked for.
pub(crate) struct Whole {
    tensors: Vec<Tensor>,
    means: Vec<Vec<f32>>,
}

struct Tensor {
    name: String,
    dtype: Dtype,
    bytes: SharedBytes,
    row_bytes: usize,
}

impl Rows {
    /// For a tensor of those inputs (number of the model, rows of its tensor); `base` is the position of the one whose row
    /// others get first. None where every row is in its place already.
    pub(super) fn new(
        vocabulary: &Vocabulary,
        inputs: &[(usize, usize)],
        width: usize,
        base: Option<usize>,
        labels: &[Input],
    ) -> crate::Result<Option<Rows>> {
        let own: Vec<Arc<Vec<u32>>> =
            inputs.iter().map(|(number, _)| Arc::clone(&vocabulary.own[*number])).collect();
        let in_place = |own: &[u32]| own.iter().enumerate().all(|(row, own)| *own as usize == row);
        let untouched =
            inputs.iter().zip(&own).all(|((_, stored), own)| *stored == vocabulary.rows && in_place(own));
        if untouched && vocabulary.forced.is_empty() {
            return Ok(None);
        }
        let mut rows = Rows {
            width,
            stored: inputs.iter().map(|(_, stored)| *stored).collect(),
            own,
            others: Vec::with_capacity(vocabulary.rows),
            forced: Arc::clone(&vocabulary.forced),
            is_token: Arc::clone(&vocabulary.is_token),
        };
        let position = |number: usize| {
            let found = inputs.iter().position(|(input, _)| *input == number);
            found.ok_or_else(|| {
                crate::Error::Use(format!(
                    "tokenizer.tokens: a row of {} is wanted where that model is not merged",
                    labels[number].label
                ))
            })
        };
        for row in 0..vocabulary.rows as u32 {
            let other = match vocabulary.given.get(&row) {
                Some(Given::Zero) => Other::Zero,
                Some(Given::Model(number)) => {
                    let position = position(*number)?;
                    Other::Row(position as u32, rows.own[position][row as usize])
                }
                Some(Given::Row(number, own)) => Other::Row(position(*number)? as u32, *own),
                None => rows.other(row, base, vocabulary.mean_padding),
            };
            rows.others.push(other);
        }
        Ok(Some(rows))
    }

    /// What the recipe leaves to the rule.
    fn other(&self, row: u32, base: Option<usize>, mean_padding: bool) -> Other {
        let is_token = self.is_token[row as usize];
        if !is_token && mean_padding {
            return Other::Mean;
        }
        let has = |position: &usize| self.own_row(*position, row).is_some();
        let mut present = (0..self.own.len()).filter(has);
        let (first, second) = (present.next(), present.next());
        let from = |position: usize| {
            self.own_row(position, row).map_or(Other::Zero, |own| Other::Row(position as u32, own))
        };
        match (first, second, base.filter(has)) {
            (None, ..) => Other::Zero,
            (Some(only), None, _) => from(only),
            (_, _, Some(base)) => from(base),
            (Some(first), Some(_), None) if !is_token => from(first),
            _ => Other::Average,
        }
    }

    /// The row that an input has itself.
    fn own_row(&self, position: usize, row: u32) -> Option<u32> {
        let own = self.own[position][row as usize];
        (own != NONE && (own as usize) < self.stored[position]).then_some(own)
    }

    /// Rows from the first on that stand for tokens.
    pub(super) fn n_tokens(&self) -> usize {
        self.is_token.iter().take_while(|is_token| **is_token).count()
    }

    /// Bytes of the tables, and of the means.
    pub(super) fn size_bytes(&self) -> usize {
        self.others.len() * (size_of::<Other>() + 1 + 4 * self.own.len()) + 4 * self.width * self.own.len()
    }

    /// The tensors that the rows are taken from.
    pub(super) fn whole(&self, inputs: Vec<(String, Dtype, SharedBytes)>) -> Result<Whole> {
        let mut tensors = Vec::new();
        for (name, dtype, bytes) in inputs {
            let size = dtype.size_bytes(&[self.width]);
            let row_bytes =
                size.ok_or_else(|| Error::tensor(&name, "its rows are no whole number of blocks"))?;
            tensors.push(Tensor { name, dtype, bytes, row_bytes });
        }
        let mut whole = Whole { tensors, means: Vec::new() };
        if self.others.contains(&Other::Mean) {
            whole.means =
                (0..self.own.len()).map(|position| self.mean(&whole, position)).collect::<Result<_>>()?;
        }
        Ok(whole)
    }

    fn mean(&self, whole: &Whole, position: usize) -> Result<Vec<f32>> {
        let mut sums = vec![0f64; self.width];
        let mut count = 0;
        for row in (0..self.others.len() as u32).filter(|row| self.is_token[*row as usize]) {
            let values = self.row(whole, position, row)?;
            sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += f64::from(value));
            count += 1;
        }
        Ok(sums.into_iter().map(|sum| (sum / f64::from(count.max(1))) as f32).collect())
    }

    /// The values `range` of the tensor of the input at `position`, put together, as the bytes of f32.
    pub(super) fn fill(
        &self,
        whole: &Whole,
        position: usize,
        range: Range<usize>,
        target: &mut [u8],
    ) -> Result<()> {
        let mut at = range.start;
        let mut target = target.chunks_exact_mut(4);
        while at < range.end {
            let (row, column) = (at / self.width, at % self.width);
            let end = self.width.min(column + range.end - at);
            let values = self.row(whole, position, row as u32)?;
            for value in &values[column..end] {
                if let Some(target) = target.next() {
                    target.copy_from_slice(&value.to_le_bytes());
                }
            }
            at += end - column;
        }
        Ok(())
    }

    /// One row of the result as the input at `position` has it.
    fn row(&self, whole: &Whole, position: usize, row: u32) -> Result<Vec<f32>> {
        let own = self.own_row(position, row).filter(|_| !self.forced.contains(&row));
        if let Some(own) = own {
            return whole.tensors[position].row(own);
        }
        match self.others[row as usize] {
            Other::Zero => Ok(vec![0.0; self.width]),
            Other::Mean => Ok(whole.means[position].clone()),
            Other::Row(position, row) => whole.tensors[position as usize].row(row),
            Other::Average => {
                let mut sum = vec![0f32; self.width];
                let mut count = 0u16;
                for position in 0..self.own.len() {
                    let Some(own) = self.own_row(position, row) else { continue };
                    let values = whole.tensors[position].row(own)?;
                    sum.iter_mut().zip(values).for_each(|(sum, value)| *sum += value);
                    count += 1;
                }
                sum.iter_mut().for_each(|sum| *sum /= f32::from(count));
                Ok(sum)
            }
        }
    }
}

impl Tensor {
    fn row(&self, row: u32) -> Result<Vec<f32>> {
        let start = row as usize * self.row_bytes;
        let bytes = self.bytes.get(start..start + self.row_bytes);
        let bytes = bytes.ok_or_else(|| Error::tensor(&self.name, format!("has no row {row}")))?;
        let values = values::to_f32(&self.name, self.dtype, bytes)?;
        if values.iter().all(|value| value.is_finite()) {
            return Ok(values);
        }
        Err(Error::tensor(&self.name, format!("row {row} is NaN or infinite; the weights are damaged")))
    }
}
