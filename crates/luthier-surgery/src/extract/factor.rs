//! The best factors of a difference: its leading singular vectors, split evenly.
//!
//! D = U S V^T; B A with B = U sqrt(S) and A = sqrt(S) V^T, cut after r, is the matrix of rank r next to D (Eckart and Young).
//! The smaller of D D^T and D^T D is decomposed in f64, and the other side follows by a product with D, so that all of D comes
//! back, to f32's rounding, where nothing is cut.

use luthier_checkpoint::{Dtype, Result, values};
use luthier_kernels::symmetric;

use super::Size;

/// Columns that are widened to f64 together.
const TILE: usize = 256;

/// Singular values below this share of the largest are rounding of f64.
const VANISHING: f64 = 1e-10;

/// Two factors of a difference, and how far their product is from it.
pub(super) struct Factored {
    pub(super) rank: usize,
    /// `[rows, rank]`, as stored bytes of the wanted type.
    pub(super) left: Vec<u8>,
    /// `[rank, cols]`.
    pub(super) right: Vec<u8>,
    /// Sum of squares of the difference.
    pub(super) energy: f64,
    /// Sum of squares of what the product of the stored factors misses of it.
    pub(super) error: f64,
}

/// Factors `difference`, `[rows, cols]` row by row and finite; none where it vanishes.
pub(super) fn factor(
    name: &str,
    difference: &[f32],
    [rows, cols]: [usize; 2],
    size: Size,
    dtype: Dtype,
) -> Result<Option<Factored>> {
    let energy: f64 = difference.iter().map(|value| f64::from(*value).powi(2)).sum();
    if energy == 0.0 {
        return Ok(None);
    }
    let is_wide = rows <= cols;
    let least = rows.min(cols);
    let reduced = symmetric::tridiagonal(gram(difference, [rows, cols], is_wide), least);
    let values = leading(&reduced, least, energy, size);
    let rank = values.len();
    // u_i, or v_i, a row each; the other side's rows are as long as the singular values.
    let own = reduced.vectors(&values);
    drop(reduced);
    let mut other = opposite(&own, rank, difference, [rows, cols], is_wide);
    let mut own = own;
    for (own, other) in own.chunks_exact_mut(least).zip(other.chunks_exact_mut(rows.max(cols))) {
        let singular = other.iter().map(|value| value * value).sum::<f64>().sqrt();
        let root = singular.sqrt();
        own.iter_mut().for_each(|value| *value *= root);
        other.iter_mut().for_each(|value| *value /= root.max(f64::MIN_POSITIVE));
    }
    let (left, right) = if is_wide { (own, other) } else { (other, own) };
    let (left, right) = (stored(name, &transposed(&left, rank), dtype)?, stored(name, &right, dtype)?);
    let wide = |bytes: &[u8]| -> Result<Vec<f64>> {
        Ok(values::to_f32(name, dtype, bytes)?.into_iter().map(f64::from).collect())
    };
    let error = missed(difference, [rows, cols], rank, &wide(&left)?, &wide(&right)?);
    Ok(Some(Factored { rank, left, right, energy, error }))
}

/// The eigenvalues to keep, largest first: as many as asked for, at most those that are not rounding.
fn leading(reduced: &symmetric::Tridiagonal, least: usize, energy: f64, size: Size) -> Vec<f64> {
    let most = match size {
        Size::Rank(rank) => rank.min(least),
        Size::Energy(_) => least,
    };
    let mut kept: Vec<f64> = Vec::new();
    let mut sum = 0.0;
    for number in 0..most {
        let value = reduced.value(number);
        let vanishes = kept.first().is_some_and(|first| value <= first * VANISHING * VANISHING);
        let is_enough = matches!(size, Size::Energy(share) if sum >= share * energy);
        if number > 0 && (vanishes || is_enough) {
            break;
        }
        kept.push(value);
        sum += value;
    }
    kept
}

/// D D^T where D is wide, else D^T D.
fn gram(difference: &[f32], [rows, cols]: [usize; 2], is_wide: bool) -> Vec<f64> {
    let least = rows.min(cols);
    let mut sum = vec![0.0; least * least];
    if is_wide {
        for start in (0..cols).step_by(TILE) {
            let len = TILE.min(cols - start);
            let tile = columns(difference, cols, start, len);
            symmetric::add_product(
                &tile,
                (len as isize, 1),
                &tile,
                (1, len as isize),
                [rows, len, rows],
                &mut sum,
            );
        }
    } else {
        for tile in difference.chunks(TILE * cols) {
            let len = tile.len() / cols;
            let tile: Vec<f64> = tile.iter().map(|value| f64::from(*value)).collect();
            symmetric::add_product(
                &tile,
                (1, cols as isize),
                &tile,
                (cols as isize, 1),
                [cols, len, cols],
                &mut sum,
            );
        }
    }
    sum
}

/// `own` D, or `own` D^T: `[rank, the longer side]`.
fn opposite(
    own: &[f64],
    rank: usize,
    difference: &[f32],
    [rows, cols]: [usize; 2],
    is_wide: bool,
) -> Vec<f64> {
    if is_wide {
        let mut other = vec![0.0; rank * cols];
        for start in (0..cols).step_by(TILE) {
            let len = TILE.min(cols - start);
            let tile = columns(difference, cols, start, len);
            let mut part = vec![0.0; rank * len];
            symmetric::add_product(
                own,
                (rows as isize, 1),
                &tile,
                (len as isize, 1),
                [rank, rows, len],
                &mut part,
            );
            for (row, part) in part.chunks_exact(len).enumerate() {
                other[row * cols + start..][..len].copy_from_slice(part);
            }
        }
        return other;
    }
    let mut other = vec![0.0; rank * rows];
    for (at, tile) in difference.chunks(TILE * cols).enumerate() {
        let len = tile.len() / cols;
        let tile: Vec<f64> = tile.iter().map(|value| f64::from(*value)).collect();
        let mut part = vec![0.0; rank * len];
        symmetric::add_product(
            own,
            (cols as isize, 1),
            &tile,
            (1, cols as isize),
            [rank, cols, len],
            &mut part,
        );
        for (row, part) in part.chunks_exact(len).enumerate() {
            other[row * rows + at * TILE..][..len].copy_from_slice(part);
        }
    }
    other
}

/// The columns from `start` on, as f64: `[rows, len]`.
fn columns(values: &[f32], cols: usize, start: usize, len: usize) -> Vec<f64> {
    let rows = values.chunks_exact(cols);
    rows.flat_map(|row| row[start..start + len].iter().map(|value| f64::from(*value))).collect()
}

/// Sum of squares of D - left right.
fn missed(difference: &[f32], [rows, cols]: [usize; 2], rank: usize, left: &[f64], right: &[f64]) -> f64 {
    let mut sum = 0.0;
    for start in (0..rows).step_by(TILE) {
        let len = TILE.min(rows - start);
        let mut product = vec![0.0; len * cols];
        let own = &left[start * rank..(start + len) * rank];
        symmetric::add_product(
            own,
            (rank as isize, 1),
            right,
            (cols as isize, 1),
            [len, rank, cols],
            &mut product,
        );
        let wanted = &difference[start * cols..(start + len) * cols];
        sum += wanted
            .iter()
            .zip(&product)
            .map(|(wanted, came)| (f64::from(*wanted) - came).powi(2))
            .sum::<f64>();
    }
    sum
}

/// `[rows, cols]` of that many rows as `[cols, rows]`.
fn transposed(values: &[f64], rows: usize) -> Vec<f64> {
    let cols = values.len() / rows.max(1);
    (0..cols).flat_map(|col| (0..rows).map(move |row| values[row * cols + col])).collect()
}

fn stored(name: &str, wide: &[f64], dtype: Dtype) -> Result<Vec<u8>> {
    let bytes: Vec<u8> = wide.iter().flat_map(|value| (*value as f32).to_le_bytes()).collect();
    values::cast(name, Dtype::F32, &bytes, dtype)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(rows: usize, cols: usize, seed: u64) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        };
        (0..rows * cols).map(|_| next()).collect()
    }

    fn product(left: &[f32], right: &[f32], rank: usize) -> Vec<f32> {
        let cols = right.len() / rank;
        let row = |left: &[f32]| -> Vec<f32> {
            (0..cols).map(|col| (0..rank).map(|at| left[at] * right[at * cols + col]).sum()).collect()
        };
        left.chunks_exact(rank).flat_map(row).collect()
    }

    #[test]
    fn all_of_a_difference_comes_back_where_nothing_is_cut() {
        for (rows, cols) in [(1, 1), (1, 9), (9, 1), (5, 300), (300, 5), (19, 19), (2, 3)] {
            let wanted = matrix(rows, cols, (rows * cols) as u64);
            let came = factor("x", &wanted, [rows, cols], Size::Energy(1.0), Dtype::F32).unwrap().unwrap();
            assert_eq!(came.rank, rows.min(cols));
            let wide = |bytes: &[u8]| values::to_f32("x", Dtype::F32, bytes).unwrap();
            for (came, wanted) in
                product(&wide(&came.left), &wide(&came.right), came.rank).iter().zip(&wanted)
            {
                assert!((came - wanted).abs() < 1e-5, "{rows} by {cols}: {came} for {wanted}");
            }
            assert!(came.error <= 1e-12 * came.energy);
        }
    }

    #[test]
    fn a_rank_is_found_and_kept_by_energy() {
        let (rows, cols) = (40, 23);
        let wanted = product(&matrix(rows, 3, 1), &matrix(3, cols, 2), 3);
        let by = |size: Size| factor("x", &wanted, [rows, cols], size, Dtype::F32).unwrap().unwrap();
        let whole = by(Size::Rank(3));
        assert!(whole.error < 1e-12 * whole.energy, "{} of {}", whole.error, whole.energy);
        let part = by(Size::Rank(1));
        assert!(part.rank == 1 && part.error > 0.05 * part.energy);
        let share = 1.0 - part.error / part.energy;
        assert_eq!(by(Size::Energy(share - 1e-6)).rank, 1);
        assert_eq!(by(Size::Energy(share + 1e-6)).rank, 2);
        assert_eq!(by(Size::Energy(1.0 - 1e-9)).rank, 3);
        assert!(factor("x", &vec![0.0; 6], [2, 3], Size::Rank(2), Dtype::F32).unwrap().is_none());
    }

    #[test]
    fn both_factors_are_of_one_length() {
        let wanted = matrix(12, 30, 9);
        let came = factor("x", &wanted, [12, 30], Size::Rank(4), Dtype::F32).unwrap().unwrap();
        let left = values::to_f32("x", Dtype::F32, &came.left).unwrap();
        let right = values::to_f32("x", Dtype::F32, &came.right).unwrap();
        for at in 0..4 {
            let a: f32 = left.iter().skip(at).step_by(4).map(|value| value * value).sum();
            let b: f32 = right[at * 30..(at + 1) * 30].iter().map(|value| value * value).sum();
            assert!((a - b).abs() < 1e-4 * a, "{a} and {b}");
        }
    }
}
