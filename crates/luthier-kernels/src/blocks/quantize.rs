//! Rounding of stored matrices to another type, rows in parallel, one pass over the bytes.

use std::sync::Mutex;

use super::fit::{Lanes, Search, fit_affine, fit_signed, side_by_side};
use super::quantize_legacy::{put_affine, put_signed};
use super::{BlockType, dequantize, narrow_bf16, narrow_f16, quantize_k, quantize_legacy, ternary};
use crate::pool::{self, Shared};
use crate::simd::dispatch;

/// Values that one task handles, where rows allow it; a multiple of what the kernels take at once.
const TASK_VALUES: usize = 16_384;

/// Why a matrix cannot be rounded to a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// The value of this number is NaN or infinite.
    NotFinite(usize),
    /// The value of this number, or one of its block, is too large for the type.
    TooLarge(usize),
}

/// What rounding loses.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Measured {
    /// Sum of the squared differences, each times its column's importance where there is one.
    pub error: f64,
    /// Sum of the squared values, weighted likewise.
    pub energy: f64,
}

/// Rounds `source`, a matrix of `row_len` columns, to `to`, byte for byte as ggml does: `source` is whole rows of `from`,
/// `target` as many of `to`. `importance` [row_len] says how much an error in each column counts; types that do not use
/// it (plain floats, Q8_0, TQ1_0, TQ2_0) ignore it. What does not fit is reported as the first such value.
///
/// # Panics
/// When lengths do not belong together, or a row is no whole number of blocks.
pub fn quantize(
    (from, source): (BlockType, &[u8]),
    to: BlockType,
    row_len: usize,
    importance: Option<&[f32]>,
    target: &mut [u8],
) -> Result<(), Unfit> {
    let tasks = Tasks::new(from, source, to, row_len, importance);
    assert_eq!(target.len(), tasks.rows * tasks.target_row, "the target does not hold these rows");
    let target = Shared::new(target);
    tasks.run(&|first_row, n_rows, values| {
        // SAFETY: tasks have different rows.
        let bytes = unsafe { target.slice(first_row * tasks.target_row, n_rows * tasks.target_row) };
        round(to, values, row_len, importance, bytes);
        find_unfit(to, bytes, values)
    })
}

/// What [`quantize`] would lose; the rounded values are not kept. Panics and refuses as it does.
pub fn measure_error(
    (from, source): (BlockType, &[u8]),
    to: BlockType,
    row_len: usize,
    importance: Option<&[f32]>,
) -> Result<Measured, Unfit> {
    let tasks = Tasks::new(from, source, to, row_len, importance);
    let parts = Mutex::new(vec![Measured::default(); tasks.n_tasks()]);
    tasks.run(&|first_row, n_rows, values| {
        let mut bytes = vec![0u8; n_rows * tasks.target_row];
        round(to, values, row_len, importance, &mut bytes);
        if let Some(unfit) = find_unfit(to, &bytes, values) {
            return Some(unfit);
        }
        let mut back = vec![0f32; values.len()];
        dequantize(to, &bytes, &mut back);
        let mut measured = Measured::default();
        for (row, back) in values.chunks_exact(row_len).zip(back.chunks_exact(row_len)) {
            let (error, energy) = row_error(row, back, importance.unwrap_or(&[]));
            measured.error += error;
            measured.energy += energy;
        }
        // Added up in the order of rows later, so that the sum does not depend on who was faster.
        parts.lock().unwrap_or_else(std::sync::PoisonError::into_inner)[first_row / tasks.rows_a_task] =
            measured;
        None
    })?;
    let parts = parts.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    Ok(parts.iter().fold(Measured::default(), |sum, part| Measured {
        error: sum.error + part.error,
        energy: sum.energy + part.energy,
    }))
}

dispatch! {
    fn row_error(values: &[f32], back: &[f32], importance: &[f32]) -> (f64, f64) = row_error_body
}

#[inline(always)]
fn row_error_body<const FMA: bool>(values: &[f32], back: &[f32], importance: &[f32]) -> (f64, f64) {
    let (mut error, mut energy) = ([0f64; 8], [0f64; 8]);
    let mut add = |lane: usize, value: f32, back: f32, weight: f32| {
        let (value, off, weight) = (f64::from(value), f64::from(value - back), f64::from(weight));
        error[lane] += weight * off * off;
        energy[lane] += weight * value * value;
    };
    for (at, (value, back)) in values.iter().zip(back).enumerate() {
        add(at % 8, *value, *back, importance.get(at).copied().unwrap_or(1.0));
    }
    (error.iter().sum(), energy.iter().sum())
}

/// What is done with a piece: its first row, its number of rows, its values.
type Work<'w> = dyn Fn(usize, usize, &[f32]) -> Option<Unfit> + Sync + 'w;

/// A matrix cut into pieces of whole rows.
struct Tasks<'s> {
    from: BlockType,
    source: &'s [u8],
    row_len: usize,
    rows: usize,
    rows_a_task: usize,
    source_row: usize,
    target_row: usize,
}

impl<'s> Tasks<'s> {
    fn new(
        from: BlockType,
        source: &'s [u8],
        to: BlockType,
        row_len: usize,
        importance: Option<&[f32]>,
    ) -> Tasks<'s> {
        let source_row = from.bytes_for(row_len).expect("a row of the source is whole blocks");
        let target_row = to.bytes_for(row_len).expect("a row of the target is whole blocks");
        let rows = source.len().checked_div(source_row).unwrap_or(0);
        assert_eq!(source.len(), rows * source_row, "the source is no whole number of rows");
        assert!(importance.is_none_or(|weights| weights.len() == row_len), "one weight a column is wanted");
        let rows_a_task = (TASK_VALUES / row_len.max(1)).max(1);
        Tasks { from, source, row_len, rows, rows_a_task, source_row, target_row }
    }

    fn n_tasks(&self) -> usize {
        self.rows.div_ceil(self.rows_a_task)
    }

    /// Calls `work(first row, rows, values)` for every piece whose values are finite; the first fault of all.
    fn run(&self, work: &Work) -> Result<(), Unfit> {
        let fault: Mutex<Option<(usize, Unfit)>> = Mutex::new(None);
        pool::run(self.n_tasks(), &|task| {
            let first_row = task * self.rows_a_task;
            let n_rows = self.rows_a_task.min(self.rows - first_row);
            let bytes = &self.source[first_row * self.source_row..][..n_rows * self.source_row];
            let mut values = vec![0f32; n_rows * self.row_len];
            dequantize(self.from, bytes, &mut values);
            let found = match all_finite(&values) {
                true => work(first_row, n_rows, &values),
                false => values.iter().position(|value| !value.is_finite()).map(Unfit::NotFinite),
            };
            if let Some(found) = found {
                let start = first_row * self.row_len;
                let found = match found {
                    Unfit::NotFinite(at) => (start + at, Unfit::NotFinite(start + at)),
                    Unfit::TooLarge(at) => (start + at, Unfit::TooLarge(start + at)),
                };
                let mut fault = fault.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                if fault.is_none_or(|fault| found.0 < fault.0) {
                    *fault = Some(found);
                }
            }
        });
        match fault.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
            Some((_, fault)) => Err(fault),
            None => Ok(()),
        }
    }
}

dispatch! {
    fn all_finite(values: &[f32]) -> bool = all_finite_body
}

#[inline(always)]
fn all_finite_body<const FMA: bool>(values: &[f32]) -> bool {
    values.iter().fold(true, |finite, value| finite & value.is_finite())
}

dispatch! {
    fn all_in_reach(values: &[f32]) -> bool = all_in_reach_body
}

#[inline(always)]
fn all_in_reach_body<const FMA: bool>(values: &[f32]) -> bool {
    values.iter().fold(true, |fits, value| fits & (value.abs() <= OUT_OF_REACH))
}

/// No quantised type reaches such magnitudes; well below, the searches' sums overflow.
const OUT_OF_REACH: f32 = 1e9;

/// The first value that the rounded bytes do not hold: a float or a scale that became infinite.
fn find_unfit(to: BlockType, bytes: &[u8], values: &[f32]) -> Option<Unfit> {
    let is_bad = |half: &[u8]| u16::from_le_bytes([half[0], half[1]]) & 0x7c00 == 0x7c00;
    let block = match to {
        BlockType::F32 => None,
        BlockType::F16 => bytes.chunks_exact(2).position(is_bad),
        BlockType::BF16 => {
            bytes.chunks_exact(2).position(|b| u16::from_le_bytes([b[0], b[1]]) & 0x7f80 == 0x7f80)
        }
        _ => {
            let (at, count) = to.scales()?;
            if !all_in_reach(values) {
                let at = values.iter().position(|value| value.abs() > OUT_OF_REACH);
                return Some(Unfit::TooLarge(at.unwrap_or(0)));
            }
            let mut blocks = bytes.chunks_exact(to.block_bytes());
            blocks.position(|block| block[at..at + 2 * count].chunks_exact(2).any(is_bad))
        }
    }?;
    let start = block * to.block_len();
    let block = &values[start..start + to.block_len()];
    let largest = (0..block.len()).max_by(|&a, &b| block[a].abs().total_cmp(&block[b].abs()));
    Some(Unfit::TooLarge(start + largest.unwrap_or(0)))
}

/// Rounds whole rows on the calling thread.
fn round(to: BlockType, values: &[f32], row_len: usize, importance: Option<&[f32]>, bytes: &mut [u8]) {
    use BlockType::*;
    match (to, importance) {
        (F32, _) => {
            for (value, bytes) in values.iter().zip(bytes.chunks_exact_mut(4)) {
                bytes.copy_from_slice(&value.to_le_bytes());
            }
        }
        (F16, _) => narrow_f16(values, bytes),
        (BF16, _) => narrow_bf16(values, bytes),
        (Q4_0, None) => q4_0(values, bytes),
        (Q4_1, None) => q4_1(values, bytes),
        (Q5_0, None) => q5_0(values, bytes),
        (Q5_1, None) => q5_1(values, bytes),
        (Q4_0 | Q4_1 | Q5_0 | Q5_1, Some(weights)) => {
            let row_bytes = to.bytes_for(row_len).expect("checked by the caller");
            for (row, bytes) in values.chunks_exact(row_len).zip(bytes.chunks_exact_mut(row_bytes)) {
                weighted_row(to, row, weights, bytes);
            }
        }
        (Q8_0, _) => q8_0(values, bytes),
        (Q2K, weights) => q2_k(values, weights, bytes),
        (Q3K, weights) => q3_k(values, weights, bytes),
        (Q4K, weights) => q4_k(values, weights, bytes),
        (Q5K, weights) => q5_k(values, weights, bytes),
        (Q6K, weights) => q6_k(values, weights, bytes),
        (TQ1_0, _) => tq1_0(values, bytes),
        (TQ2_0, _) => tq2_0(values, bytes),
    }
}

macro_rules! compiled {
    ($($name:ident = $body:ident, $source:path;)*) => {$(
        dispatch! {
            fn $name(values: &[f32], bytes: &mut [u8]) = $body
        }
        #[inline(always)]
        fn $body<const FMA: bool>(values: &[f32], bytes: &mut [u8]) {
            $source(values, bytes);
        }
    )*};
}
compiled! {
    q4_0 = q4_0_body, quantize_legacy::quantize_q4_0;
    q4_1 = q4_1_body, quantize_legacy::quantize_q4_1;
    q5_0 = q5_0_body, quantize_legacy::quantize_q5_0;
    q5_1 = q5_1_body, quantize_legacy::quantize_q5_1;
    q8_0 = q8_0_body, quantize_legacy::quantize_q8_0;
    tq1_0 = tq1_0_body, ternary::quantize_tq1_0;
    tq2_0 = tq2_0_body, ternary::quantize_tq2_0;
}

macro_rules! compiled_k {
    ($($name:ident = $body:ident, $source:path;)*) => {$(
        dispatch! {
            fn $name(values: &[f32], importance: Option<&[f32]>, bytes: &mut [u8]) = $body
        }
        #[inline(always)]
        fn $body<const FMA: bool>(values: &[f32], importance: Option<&[f32]>, bytes: &mut [u8]) {
            $source(values, 0, importance, bytes);
        }
    )*};
}
compiled_k! {
    q2_k = q2_k_body, quantize_k::quantize_q2_k;
    q3_k = q3_k_body, quantize_k::quantize_q3_k;
    q4_k = q4_k_body, quantize_k::quantize_q4_k;
    q5_k = q5_k_body, quantize_k::quantize_q5_k;
    q6_k = q6_k_body, quantize_k::quantize_q6_k;
}

dispatch! {
    /// A row of 32-value blocks with importance weights.
    fn weighted_row(to: BlockType, row: &[f32], importance: &[f32], bytes: &mut [u8]) = weighted_row_body
}

#[inline(always)]
fn weighted_row_body<const FMA: bool>(to: BlockType, row: &[f32], importance: &[f32], bytes: &mut [u8]) {
    let mean = row.iter().fold(0f32, |sum, value| sum + value * value) / row.len() as f32;
    let block_bytes = to.block_bytes();
    for ((values, weights), bytes) in
        row.chunks(16 * 32).zip(importance.chunks(16 * 32)).zip(bytes.chunks_mut(16 * block_bytes))
    {
        let n_blocks = values.len() / 32;
        let part = |slice: &'_ [f32], lane: usize| if lane < n_blocks { lane * 32 } else { slice.len() - 32 };
        let x: [Lanes; 32] = side_by_side(std::array::from_fn(|lane| &values[part(values, lane)..][..32]));
        let mut w: [Lanes; 32] =
            side_by_side(std::array::from_fn(|lane| &weights[part(weights, lane)..][..32]));
        for i in 0..32 {
            for l in 0..16 {
                w[i][l] *= (mean + x[i][l] * x[i][l]).sqrt();
            }
        }
        match to {
            BlockType::Q4_0 => put_signed(&fit_signed(8.0, &x, &w), bytes, block_bytes),
            BlockType::Q5_0 => put_signed(&fit_signed(16.0, &x, &w), bytes, block_bytes),
            _ => {
                let top = if to == BlockType::Q4_1 { 15.0 } else { 31.0 };
                let search = Search { top, from: -0.9, step: 0.05, steps: 36, absolute: false };
                put_affine(&fit_affine(search, &x, &w), bytes, block_bytes);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::BASELINE_FMA;

    fn floats(name: &str) -> Vec<f32> {
        let path = format!("{}/../../golden/quantize/{name}.bin", env!("CARGO_MANIFEST_DIR"));
        let bytes = std::fs::read(path).unwrap();
        bytes.chunks_exact(4).map(|value| f32::from_le_bytes(value.try_into().unwrap())).collect()
    }

    /// What `round` dispatches to, compiled for the baseline whatever this processor offers.
    fn round_for_baseline(to: BlockType, values: &[f32], weights: Option<&[f32]>, bytes: &mut [u8]) {
        use BlockType::*;
        match (to, weights) {
            (Q4_0 | Q4_1 | Q5_0 | Q5_1, Some(weights)) => {
                let row_bytes = to.bytes_for(weights.len()).unwrap();
                for (row, bytes) in values.chunks_exact(weights.len()).zip(bytes.chunks_exact_mut(row_bytes))
                {
                    weighted_row_body::<BASELINE_FMA>(to, row, weights, bytes);
                }
            }
            (Q4_0, _) => q4_0_body::<BASELINE_FMA>(values, bytes),
            (Q4_1, _) => q4_1_body::<BASELINE_FMA>(values, bytes),
            (Q5_0, _) => q5_0_body::<BASELINE_FMA>(values, bytes),
            (Q5_1, _) => q5_1_body::<BASELINE_FMA>(values, bytes),
            (Q8_0, _) => q8_0_body::<BASELINE_FMA>(values, bytes),
            (Q2K, weights) => q2_k_body::<BASELINE_FMA>(values, weights, bytes),
            (Q3K, weights) => q3_k_body::<BASELINE_FMA>(values, weights, bytes),
            (Q4K, weights) => q4_k_body::<BASELINE_FMA>(values, weights, bytes),
            (Q5K, weights) => q5_k_body::<BASELINE_FMA>(values, weights, bytes),
            (Q6K, weights) => q6_k_body::<BASELINE_FMA>(values, weights, bytes),
            (TQ1_0, _) => tq1_0_body::<BASELINE_FMA>(values, bytes),
            (TQ2_0, _) => tq2_0_body::<BASELINE_FMA>(values, bytes),
            (F32 | F16 | BF16, _) => unreachable!("plain floats are not searched for"),
        }
    }

    #[test]
    fn every_processor_rounds_to_the_same_bytes() {
        let (values, importance) = (floats("rows"), floats("importance"));
        for to in BlockType::ALL.into_iter().filter(|to| to.block_len() > 1) {
            for weights in [None, Some(&importance[..])] {
                let n_bytes = to.bytes_for(values.len()).unwrap();
                let (mut best, mut baseline) = (vec![0u8; n_bytes], vec![0u8; n_bytes]);
                round(to, &values, importance.len(), weights, &mut best);
                round_for_baseline(to, &values, weights, &mut baseline);
                assert!(best == baseline, "{to:?}, weighted: {}", weights.is_some());
            }
        }
    }
}
