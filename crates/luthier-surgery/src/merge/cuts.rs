//! Which magnitudes of a tensor are its largest, without holding the tensor: a sample of its pieces says between which values
//! the smallest of them lies, and one walk over all pieces keeps those between and counts those above. The order of f32 that
//! are not negative is that of their bits.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use luthier_checkpoint::Result;
use luthier_kernels::pool;

use super::method::Cut;

/// Upper bits, which include no sign.
const UPPER: usize = 1 << 16;
/// The bits below them.
const LOWER_BITS: u32 = 15;
/// Pieces that are looked at first, about.
const SAMPLED_PIECES: usize = 64;
/// By how much the sample may be wrong about the share of values above a magnitude; where it is worse, all pieces are asked.
const MARGIN: f64 = 0.02;
/// Bins of one step of the search between two magnitudes.
const SEARCH_BITS: u32 = 16;

/// Gets a task's number, a piece's number, and a way to the magnitudes of it by the number of what is looked for.
pub(crate) type Visit<'v> = dyn Fn(usize, usize, &dyn Fn(usize) -> Vec<f32>) + Sync + 'v;

/// Shows the pieces of a tensor whose numbers are multiples of a step, each once.
pub(crate) type Walk<'w> = dyn Fn(usize, &Visit) -> Result<()> + 'w;

/// Where the largest magnitudes of one kind end.
#[derive(Debug, PartialEq)]
pub(crate) struct TensorCut {
    threshold: f32,
    /// How many that are equal to the threshold belong to the largest, from the first on.
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

/// Finds the `counts` largest of `n_values` magnitudes of each kind that has a count.
pub(crate) fn find(
    n_values: usize,
    n_pieces: usize,
    counts: &[Option<usize>],
    walk: &Walk,
) -> Result<Vec<Option<TensorCut>>> {
    let cut: Vec<(usize, usize)> =
        counts.iter().enumerate().filter_map(|(kind, count)| Some((kind, (*count)?))).collect();
    if cut.is_empty() || n_values == 0 {
        return Ok(counts.iter().map(|_| None).collect());
    }
    let step = (n_pieces / SAMPLED_PIECES).max(1);
    let mut found = within(n_values, n_pieces, &cut, step, walk)?;
    if found.is_none() {
        found = within(n_values, n_pieces, &cut, 1, walk)?;
    }
    let mut found = found.expect("all pieces together say what they hold").into_iter();
    Ok(counts.iter().map(|count| count.and_then(|_| found.next())).collect())
}

/// The cuts, when every `step`-th piece says how the magnitudes are spread; none where it says it wrongly, as all never do.
fn within(
    n_values: usize,
    n_pieces: usize,
    cut: &[(usize, usize)],
    step: usize,
    walk: &Walk,
) -> Result<Option<Vec<TensorCut>>> {
    let margin = if step == 1 { 0.0 } else { MARGIN };
    let bins = spread(walk, step, cut)?;
    let brackets: Vec<Range<u32>> = bins
        .iter()
        .zip(cut)
        .map(|(bins, (_, count))| bracket(bins, *count as f64 / n_values as f64, margin))
        .collect();
    let seen = look(walk, cut, n_pieces, &brackets)?;
    let mut cuts = Vec::with_capacity(cut.len());
    for ((pieces, (_, count)), bracket) in seen.iter().zip(cut).zip(brackets) {
        let n_above: usize = pieces.iter().map(|piece| piece.n_above).sum();
        let n_inside: usize = pieces.iter().map(Seen::n_inside).sum();
        if *count <= n_above || *count > n_above + n_inside {
            return Ok(None);
        }
        let (threshold, n_equal) = nth_largest(pieces, bracket, count - n_above);
        let mut sum = 0;
        let equal_before = pieces.iter().map(|piece| {
            let before = sum;
            sum += piece.count_of(threshold);
            before
        });
        let equal_before = equal_before.collect();
        cuts.push(TensorCut { threshold: f32::from_bits(threshold), n_equal, equal_before });
    }
    Ok(Some(cuts))
}

/// What one piece says of one kind: how many magnitudes lie above its bracket, and those inside.
#[derive(Default)]
struct Seen {
    n_above: usize,
    /// Bits, in no order.
    values: Vec<u32>,
    /// Bits and how many have them, where many are equal.
    runs: Vec<(u32, u32)>,
}

impl Seen {
    fn new(magnitudes: &[u32], bracket: &Range<u32>) -> Seen {
        let n_above = magnitudes.iter().filter(|bits| **bits >= bracket.end).count();
        let width = bracket.end - bracket.start;
        let mut values = vec![0; magnitudes.len()];
        let mut len = 0;
        for bits in magnitudes {
            // Written in any case, kept where it lies inside: a branch would be guessed wrong.
            values[len] = *bits;
            len += usize::from(bits.wrapping_sub(bracket.start) < width);
        }
        let mut values = values[..len].to_vec();
        if len < magnitudes.len() / 8 {
            return Seen { n_above, values, runs: Vec::new() };
        }
        values.sort_unstable();
        let runs: Vec<(u32, u32)> =
            values.chunk_by(|a, b| a == b).map(|run| (run[0], run.len() as u32)).collect();
        if runs.len() * 2 < values.len() {
            return Seen { n_above, values: Vec::new(), runs };
        }
        Seen { n_above, values, runs: Vec::new() }
    }

    fn n_inside(&self) -> usize {
        self.values.len() + self.runs.iter().map(|(_, n)| *n as usize).sum::<usize>()
    }

    fn count_of(&self, wanted: u32) -> usize {
        let single = self.values.iter().filter(|bits| **bits == wanted).count();
        single + self.runs.iter().filter(|(bits, _)| *bits == wanted).map(|(_, n)| *n as usize).sum::<usize>()
    }

    /// Bits, and how many have them.
    fn counted(&self) -> impl Iterator<Item = (u32, u64)> {
        let single = self.values.iter().map(|bits| (*bits, 1));
        single.chain(self.runs.iter().map(|(bits, n)| (*bits, u64::from(*n))))
    }
}

/// The magnitudes between which that share of the values ends.
fn bracket(bins: &[u64], share: f64, margin: f64) -> Range<u32> {
    let total: u64 = bins.iter().sum();
    let wanted = share * total as f64;
    let slack = margin * total as f64;
    let bits = |bin: usize| (bin as u32) << LOWER_BITS;
    let (most, fewest) = (wanted + slack, wanted - slack);
    let start = if most > total as f64 { 0 } else { bits(bin_of(bins, most.round() as u64)) };
    // The largest bits that a magnitude can have are below the end of the last bin.
    let end = if fewest < 1.0 { bits(UPPER) } else { bits(bin_of(bins, fewest.round() as u64) + 1) };
    start..end
}

/// The bin in which the `count`-th largest lies.
fn bin_of(bins: &[u64], count: u64) -> usize {
    let mut left = count;
    for (bin, n) in bins.iter().enumerate().rev() {
        if left <= *n {
            return bin;
        }
        left -= n;
    }
    0
}

/// The `nth` largest of what lies inside a bracket, and how many that are equal to it are among the `nth` largest.
fn nth_largest(pieces: &[Seen], bracket: Range<u32>, nth: usize) -> (u32, usize) {
    let (mut start, mut width, mut left) = (bracket.start, bracket.end - bracket.start, nth as u64);
    loop {
        let shift = (u32::BITS - (width.max(1) - 1).leading_zeros()).saturating_sub(SEARCH_BITS);
        let mut bins = vec![0u64; (width as usize).div_ceil(1 << shift)];
        for (bits, n) in pieces.iter().flat_map(Seen::counted) {
            let at = bits.wrapping_sub(start);
            if at < width {
                bins[(at >> shift) as usize] += n;
            }
        }
        let bin = bin_of(&bins, left);
        left -= bins[bin + 1..].iter().sum::<u64>();
        start += (bin as u32) << shift;
        width = (1 << shift).min(width - ((bin as u32) << shift));
        if shift == 0 {
            return (start, left as usize);
        }
    }
}

/// Histograms of the upper bits of the magnitudes of each kind, over every `step`-th piece.
fn spread(walk: &Walk, step: usize, cut: &[(usize, usize)]) -> Result<Vec<Vec<u64>>> {
    let empty = || Mutex::new(vec![vec![0u64; UPPER]; cut.len()]);
    let of_tasks: Vec<Mutex<Vec<Vec<u64>>>> = (0..pool::threads()).map(|_| empty()).collect();
    walk(step, &|task, _, magnitudes| {
        let mut histograms = of_tasks[task].lock().unwrap_or_else(PoisonError::into_inner);
        for (bins, (kind, _)) in histograms.iter_mut().zip(cut) {
            for magnitude in magnitudes(*kind) {
                bins[(magnitude.to_bits() >> LOWER_BITS) as usize & (UPPER - 1)] += 1;
            }
        }
    })?;
    let mut sums = vec![vec![0u64; UPPER]; cut.len()];
    for histograms in of_tasks {
        let histograms = histograms.into_inner().unwrap_or_else(PoisonError::into_inner);
        for (sum, bins) in sums.iter_mut().flatten().zip(histograms.iter().flatten()) {
            *sum += bins;
        }
    }
    Ok(sums)
}

/// What all pieces say, by kind.
fn look(
    walk: &Walk,
    cut: &[(usize, usize)],
    n_pieces: usize,
    brackets: &[Range<u32>],
) -> Result<Vec<Vec<Seen>>> {
    let none = || Mutex::new((0..n_pieces).map(|_| Seen::default()).collect::<Vec<_>>());
    let seen: Vec<Mutex<Vec<Seen>>> = cut.iter().map(|_| none()).collect();
    walk(1, &|_, piece, magnitudes| {
        for ((seen, (kind, _)), bracket) in seen.iter().zip(cut).zip(brackets) {
            let bits: Vec<u32> = magnitudes(*kind).into_iter().map(f32::to_bits).collect();
            let one = Seen::new(&bits, bracket);
            seen.lock().unwrap_or_else(PoisonError::into_inner)[piece] = one;
        }
    })?;
    Ok(seen.into_iter().map(|seen| seen.into_inner().unwrap_or_else(PoisonError::into_inner)).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::merge::task_vectors::tests::largest;

    const PIECE: usize = 7;

    /// Cuts of one input of those values, and what each piece keeps by them.
    fn kept(values: &[f32], base: &[f32], count: usize) -> Vec<bool> {
        let walk = |step: usize, visit: &Visit| -> Result<()> {
            for (at, (values, base)) in values.chunks(PIECE).zip(base.chunks(PIECE)).enumerate().step_by(step)
            {
                visit(0, at, &|_| {
                    values.iter().zip(base).map(|(value, base)| (value - base).abs()).collect()
                });
            }
            Ok(())
        };
        let n_pieces = values.len().div_ceil(PIECE);
        let cuts = find(values.len(), n_pieces, &[None, Some(count)], &walk).unwrap();
        assert!(cuts[0].is_none());
        let cut = cuts[1].as_ref().unwrap();
        let magnitudes: Vec<f32> =
            values.iter().zip(base).map(|(value, base)| (value - base).abs()).collect();
        let pieces = magnitudes.chunks(PIECE).enumerate();
        pieces.flat_map(|(at, piece)| crate::merge::task_vectors::above(piece, cut.at(at))).collect()
    }

    /// What all values at once keep.
    fn wanted(values: &[f32], base: &[f32], count: usize) -> Vec<bool> {
        let magnitudes: Vec<f32> =
            values.iter().zip(base).map(|(value, base)| (value - base).abs()).collect();
        largest(&magnitudes, count)
    }

    #[test]
    fn a_tensor_without_values_has_no_cut() {
        let nothing = |_: usize, _: &Visit| -> Result<()> { Ok(()) };
        assert_eq!(find(0, 0, &[None, Some(1)], &nothing).unwrap(), [None, None]);
    }

    #[test]
    fn a_sample_that_says_nothing_of_the_rest_does_no_harm() {
        // More pieces than are sampled, whose every third holds other magnitudes than the others.
        let n_pieces = 3 * SAMPLED_PIECES;
        let values: Vec<f32> = (0..n_pieces * PIECE)
            .map(|at| if (at / PIECE).is_multiple_of(3) { 1e-3 } else { 1.0 + (at % 11) as f32 })
            .collect();
        let base = vec![0.0; values.len()];
        for count in [1, 5, values.len() / 3, values.len() / 2, values.len() - 1] {
            assert_eq!(kept(&values, &base, count), wanted(&values, &base, count), "{count}");
        }
    }

    proptest! {
        #[test]
        fn many_different_magnitudes_are_cut_where_sorting_cuts_them(
            seed in any::<u64>(),
            len in 1usize..6000,
            share in 0.001f64..0.999,
        ) {
            let mut state = seed | 1;
            let mut draw = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
            };
            let values: Vec<f32> = (0..len).map(|_| draw() * draw()).collect();
            let base: Vec<f32> = (0..len).map(|_| draw() * 0.01).collect();
            let count = crate::merge::task_vectors::kept_count(share, len);
            prop_assert_eq!(kept(&values, &base, count), wanted(&values, &base, count));
        }

        #[test]
        fn pieces_keep_what_the_whole_tensor_keeps(
            values in prop::collection::vec(prop_oneof![-3i8..3, any::<i8>()], 1..1200),
            share in 0.01f64..0.99,
        ) {
            // Few distinct values, so that many are equal.
            let values: Vec<f32> = values.into_iter().map(|value| f32::from(value) * 0.5).collect();
            let base = vec![0.25f32; values.len()];
            let count = crate::merge::task_vectors::kept_count(share, values.len());
            prop_assert_eq!(kept(&values, &base, count), wanted(&values, &base, count));
        }
    }
}
