//! Which differences of a tensor are its largest, without holding the tensor: their smallest magnitude is found by counting
//! the upper and then the lower bits of all magnitudes, whose order as f32 is that of their bits.

use std::sync::{Mutex, PoisonError};

use luthier_checkpoint::Result;
use luthier_kernels::pool;

use super::method::Cut;

/// Upper bits, which include no sign.
const UPPER: usize = 1 << 16;
/// The bits below them.
const LOWER_BITS: u32 = 15;

/// Gets a task's number, a piece's number, all inputs' values of it, and the base's.
pub(crate) type Visit<'v> = dyn Fn(usize, usize, &[Vec<f32>], &[f32]) + Sync + 'v;

/// Shows every piece of a tensor once.
pub(crate) type Walk<'w> = dyn Fn(&Visit) -> Result<()> + 'w;

/// Where the largest differences of one input end.
#[derive(Debug, PartialEq)]
pub(crate) struct TensorCut {
    threshold: f32,
    /// How many differences equal to the threshold belong to the largest, from the first on.
    n_equal: usize,
    /// How many that are equal to it stand before each piece.
    equal_before: Vec<usize>,
}

impl TensorCut {
    /// For the piece of that number.
    pub(crate) fn at(&self, piece: usize) -> Cut {
        let equal_left = self.n_equal.saturating_sub(self.equal_before[piece]);
        Cut { threshold: self.threshold, equal_left }
    }
}

/// Finds the `counts` largest differences of each input that has a count.
pub(crate) fn find(n_pieces: usize, counts: &[Option<usize>], walk: &Walk) -> Result<Vec<Option<TensorCut>>> {
    let cut: Vec<(usize, usize)> =
        counts.iter().enumerate().filter_map(|(input, count)| Some((input, (*count)?))).collect();
    if cut.is_empty() {
        return Ok(counts.iter().map(|_| None).collect());
    }
    let upper = count(walk, &cut, UPPER, |_, bits| Some((bits >> LOWER_BITS) as usize))?;
    let upper: Vec<(usize, usize)> =
        upper.iter().zip(&cut).map(|(bins, (_, count))| bin_of(bins, *count)).collect();
    let lower = count(walk, &cut, 1 << LOWER_BITS, |at, bits| {
        ((bits >> LOWER_BITS) as usize == upper[at].0).then_some(bits as usize & ((1 << LOWER_BITS) - 1))
    })?;
    let lower = lower.iter().zip(&upper).map(|(bins, (_, count))| bin_of(bins, *count));
    let thresholds: Vec<(u32, usize)> =
        lower.zip(&upper).map(|((low, n), (high, _))| ((*high << LOWER_BITS | low) as u32, n)).collect();
    let equal = equal_before(walk, &cut, n_pieces, &thresholds)?;
    let mut found = thresholds.into_iter().zip(equal).map(|((bits, n_equal), equal_before)| TensorCut {
        threshold: f32::from_bits(bits),
        n_equal,
        equal_before,
    });
    Ok(counts.iter().map(|count| count.and_then(|_| found.next())).collect())
}

/// The bin in which the `count`-th largest lies, and how many of that bin are among the `count` largest.
fn bin_of(bins: &[u64], count: usize) -> (usize, usize) {
    let mut left = count as u64;
    for (bin, n) in bins.iter().enumerate().rev() {
        if left <= *n {
            return (bin, left as usize);
        }
        left -= n;
    }
    (0, 0)
}

/// Histograms of the bits of all differences of each input, in which `bin` places them.
fn count(
    walk: &Walk,
    cut: &[(usize, usize)],
    n_bins: usize,
    bin: impl Fn(usize, u32) -> Option<usize> + Sync,
) -> Result<Vec<Vec<u64>>> {
    let empty = || Mutex::new(vec![vec![0u64; n_bins]; cut.len()]);
    let of_tasks: Vec<Mutex<Vec<Vec<u64>>>> = (0..pool::threads()).map(|_| empty()).collect();
    walk(&|task, _, tensors, base| {
        let mut histograms = of_tasks[task].lock().unwrap_or_else(PoisonError::into_inner);
        for (at, (input, _)) in cut.iter().enumerate() {
            let bins = &mut histograms[at];
            for bits in magnitudes(&tensors[*input], base) {
                if let Some(bin) = bin(at, bits) {
                    bins[bin] += 1;
                }
            }
        }
    })?;
    let mut sums = vec![vec![0u64; n_bins]; cut.len()];
    for histograms in of_tasks {
        let histograms = histograms.into_inner().unwrap_or_else(PoisonError::into_inner);
        for (sum, bins) in sums.iter_mut().flatten().zip(histograms.iter().flatten()) {
            *sum += bins;
        }
    }
    Ok(sums)
}

/// For each input, how many magnitudes equal to its threshold stand before each piece.
fn equal_before(
    walk: &Walk,
    cut: &[(usize, usize)],
    n_pieces: usize,
    thresholds: &[(u32, usize)],
) -> Result<Vec<Vec<usize>>> {
    let counts: Vec<Mutex<Vec<usize>>> = cut.iter().map(|_| Mutex::new(vec![0; n_pieces])).collect();
    walk(&|_, piece, tensors, base| {
        for (at, (input, _)) in cut.iter().enumerate() {
            let wanted = thresholds[at].0;
            let n = magnitudes(&tensors[*input], base).filter(|bits| *bits == wanted).count();
            counts[at].lock().unwrap_or_else(PoisonError::into_inner)[piece] = n;
        }
    })?;
    let before = counts.into_iter().map(|counts| {
        let counts = counts.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut sum = 0;
        let sums = counts.into_iter().map(|n| {
            sum += n;
            sum - n
        });
        sums.collect()
    });
    Ok(before.collect())
}

/// Bits of the magnitudes of the differences from the base.
fn magnitudes<'v>(values: &'v [f32], base: &'v [f32]) -> impl Iterator<Item = u32> + 'v {
    values.iter().zip(base).map(|(value, base)| (value - base).abs().to_bits())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::merge::task_vectors::largest;

    const PIECE: usize = 7;

    proptest! {
        #[test]
        fn pieces_keep_what_the_whole_tensor_keeps(
            values in prop::collection::vec(prop_oneof![-3i8..3, any::<i8>()], 1..60),
            share in 0.01f64..0.99,
        ) {
            // Few distinct values, so that many are equal.
            let values: Vec<f32> = values.into_iter().map(|value| f32::from(value) * 0.5).collect();
            let base = vec![0.25f32; values.len()];
            let count = crate::merge::task_vectors::kept_count(share, values.len());
            let walk = |visit: &Visit| -> Result<()> {
                for (at, (values, base)) in values.chunks(PIECE).zip(base.chunks(PIECE)).enumerate() {
                    visit(0, at, &[base.to_vec(), values.to_vec()], base);
                }
                Ok(())
            };
            let cuts = find(values.len().div_ceil(PIECE), &[None, Some(count)], &walk).unwrap();
            prop_assert!(cuts[0].is_none());
            let cut = cuts[1].as_ref().unwrap();
            let magnitudes: Vec<f32> = values.iter().map(|value| (value - 0.25).abs()).collect();
            let kept: Vec<bool> = magnitudes
                .chunks(PIECE)
                .enumerate()
                .flat_map(|(at, piece)| crate::merge::task_vectors::above(piece, cut.at(at)))
                .collect();
            prop_assert_eq!(kept, largest(&magnitudes, count));
        }
    }
}
