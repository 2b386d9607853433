//! Eigenvalues and leading eigenvectors of a symmetric f64 matrix, from the largest on; one thread.
//!
//! Householder's reduction to three diagonals, bisection by Sturm's counts, inverse iteration with orthogonalisation, and the
//! way back (Golub and Van Loan, Matrix Computations, 8.3 to 8.4). Values are found one at a time, so that who needs r of n
//! pays for the reduction (2 n^3 operations) and r vectors. It serves singular values: of D through D D^T, whose f64 keeps the
//! singular values of f32 data to 1e-8 of the largest.

use crate::simd::dispatch;

/// A symmetric matrix as Q T Q^T, T with three diagonals.
pub struct Tridiagonal {
    n: usize,
    /// T's diagonal.
    diagonal: Vec<f64>,
    /// Beside it: n - 1 values.
    beside: Vec<f64>,
    /// Row k holds, from column k + 1 on, u of the reflection I - beta u u^T that was applied in step k.
    reflections: Vec<f64>,
    betas: Vec<f64>,
    /// No eigenvalue is further from 0.
    bound: f64,
}

/// Reduces the symmetric `n` by `n` matrix, given whole, row by row, and overwritten.
pub fn tridiagonal(mut matrix: Vec<f64>, n: usize) -> Tridiagonal {
    assert_eq!(matrix.len(), n * n, "a matrix of {n} rows and columns");
    let (mut diagonal, mut beside, mut betas) = (vec![0.0; n], vec![0.0; n.saturating_sub(1)], vec![0.0; n]);
    // The last step's change of the matrix, -(u w^T + w u^T), is made while the next step reads it.
    let (mut u, mut w) = (vec![0.0; n], vec![0.0; n]);
    let mut next = vec![0.0; n];
    for step in 0..n {
        let (own, below) = matrix[step * n..].split_at_mut(n);
        let (own_u, own_w) = (u[step], w[step]);
        change(&mut own[step..], &u[step..], &w[step..], own_u, own_w);
        diagonal[step] = own[step];
        if step + 1 == n {
            break;
        }
        let (alpha, beta) = reflection(&own[step + 1..], &mut next[step + 1..]);
        (beside[step], betas[step]) = (alpha, beta);
        own[step + 1..].copy_from_slice(&next[step + 1..]);
        let mut product = vec![0.0; n];
        for (row, values) in (step + 1..n).zip(below.chunks_exact_mut(n)) {
            let from = step + 1;
            let last = Last { u: &u[from..], w: &w[from..], own_u: u[row], own_w: w[row] };
            product[row] = beta * change_and_multiply(&mut values[from..], last, &next[from..]);
        }
        let along: f64 = product.iter().zip(&next).skip(step + 1).map(|(p, u)| p * u).sum();
        for row in step + 1..n {
            w[row] = product[row] - 0.5 * beta * along * next[row];
        }
        u[step + 1..].copy_from_slice(&next[step + 1..]);
        (u[step], w[step]) = (0.0, 0.0);
    }
    let size = |at: usize| beside.get(at).map_or(0.0, |value| value.abs());
    let reach = (0..n)
        .map(|at| diagonal[at].abs() + size(at) + at.checked_sub(1).map_or(0.0, size))
        .fold(0.0, f64::max);
    Tridiagonal { n, diagonal, beside, reflections: matrix, betas, bound: reach }
}

/// alpha, beta and u with (I - beta u u^T) x = alpha e1.
fn reflection(x: &[f64], u: &mut [f64]) -> (f64, f64) {
    u.copy_from_slice(x);
    let largest = x.iter().fold(0.0f64, |largest, value| largest.max(value.abs()));
    let rest: f64 = x[1..].iter().map(|value| (value / largest.max(f64::MIN_POSITIVE)).powi(2)).sum();
    if rest == 0.0 {
        u.fill(0.0);
        return (x[0], 0.0);
    }
    let length = largest * (rest + (x[0] / largest).powi(2)).sqrt();
    let alpha = if x[0] > 0.0 { -length } else { length };
    u[0] = x[0] - alpha;
    // u scaled to a first value of 1 keeps its square from overflowing.
    let first = u[0];
    u.iter_mut().for_each(|value| *value /= first);
    (alpha, -first / alpha)
}

/// What the last step still changes in a row.
#[derive(Clone, Copy)]
struct Last<'l> {
    u: &'l [f64],
    w: &'l [f64],
    own_u: f64,
    own_w: f64,
}

fn change(row: &mut [f64], u: &[f64], w: &[f64], own_u: f64, own_w: f64) {
    for ((value, u), w) in row.iter_mut().zip(u).zip(w) {
        *value -= own_u * w + own_w * u;
    }
}

dispatch! {
    /// Changes a row, and gives its product with `next`.
    fn change_and_multiply(row: &mut [f64], last: Last, next: &[f64]) -> f64 = change_and_multiply_body
}

/// Sums side by side.
const LANES: usize = 16;

#[inline(always)]
fn change_and_multiply_body<const FMA: bool>(row: &mut [f64], last: Last, next: &[f64]) -> f64 {
    let len = row.len();
    let (u, w, next) = (&last.u[..len], &last.w[..len], &next[..len]);
    let mut sums = [0f64; LANES];
    let whole = len / LANES * LANES;
    for start in (0..whole).step_by(LANES) {
        let lane_row = &mut row[start..start + LANES];
        let (u, w, next) = (&u[start..start + LANES], &w[start..start + LANES], &next[start..start + LANES]);
        for lane in 0..LANES {
            let value = lane_row[lane] - (last.own_u * w[lane] + last.own_w * u[lane]);
            lane_row[lane] = value;
            sums[lane] += value * next[lane];
        }
    }
    let mut total: f64 = sums.iter().sum();
    for at in whole..len {
        row[at] -= last.own_u * w[at] + last.own_w * u[at];
        total += row[at] * next[at];
    }
    total
}

dispatch! {
    fn dot(a: &[f64], b: &[f64]) -> f64 = dot_body
}

#[inline(always)]
fn dot_body<const FMA: bool>(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0f64; LANES];
    let (a_lanes, b_lanes) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f64 = a_lanes.remainder().iter().zip(b_lanes.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a_lanes.zip(b_lanes) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    sums.iter().sum::<f64>() + rest
}

dispatch! {
    /// y += factor * x.
    fn add(factor: f64, x: &[f64], y: &mut [f64]) = add_body
}

#[inline(always)]
fn add_body<const FMA: bool>(factor: f64, x: &[f64], y: &mut [f64]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y += factor * x);
}

impl Tridiagonal {
    /// The eigenvalue of that number, the largest being number 0, to the last bits of the largest.
    pub fn value(&self, number: usize) -> f64 {
        assert!(number < self.n, "{} eigenvalues", self.n);
        let margin = f64::EPSILON * self.bound * self.n as f64 + f64::MIN_POSITIVE;
        let (mut low, mut high) = (-self.bound - margin, self.bound + margin);
        loop {
            let middle = 0.5 * (low + high);
            if middle <= low || middle >= high || high - low <= f64::EPSILON * self.bound {
                return middle;
            }
            if self.n - self.below(middle) > number { low = middle } else { high = middle }
        }
    }

    /// How many eigenvalues are below `x`: as many as the factors of T - x have negative pivots (Sturm).
    fn below(&self, x: f64) -> usize {
        let tiny = f64::EPSILON * f64::EPSILON * self.bound.max(f64::MIN_POSITIVE) + f64::MIN_POSITIVE;
        let mut count = 0;
        let mut pivot = 1.0f64;
        for at in 0..self.n {
            let before = if at == 0 { 0.0 } else { self.beside[at - 1].powi(2) / pivot };
            pivot = self.diagonal[at] - x - before;
            if pivot.abs() < tiny {
                pivot = -tiny;
            }
            count += usize::from(pivot < 0.0);
        }
        count
    }

    /// The vectors of the eigenvalues numbered from 0 on that are given, each of length 1 and orthogonal to the others, one a
    /// row: `[values.len(), n]`.
    pub fn vectors(&self, values: &[f64]) -> Vec<f64> {
        let n = self.n;
        let mut vectors = vec![0.0; values.len() * n];
        let mut random = 0x9e37_79b9_7f4a_7c15u64;
        let apart = 10.0 * f64::EPSILON * self.bound;
        let mut shift = f64::INFINITY;
        for (number, value) in values.iter().enumerate() {
            // Equal values are moved apart, so that their factors differ.
            shift = value.min(shift - apart);
            let factors = Factors::new(self, shift);
            let (before, rest) = vectors.split_at_mut(number * n);
            let own = &mut rest[..n];
            loop {
                own.iter_mut().for_each(|value| *value = uniform(&mut random));
                // Two rounds find the vector, the third frees it from what rounding left of the others.
                let found = (0..3).all(|_| {
                    normalise(own);
                    factors.solve(own);
                    normalise(own) && orthogonalise(before, own) && orthogonalise(before, own)
                });
                if found {
                    break;
                }
            }
        }
        for (step, beta) in self.betas.iter().enumerate().rev().filter(|(_, beta)| **beta != 0.0) {
            let u = &self.reflections[step * n + step + 1..(step + 1) * n];
            for own in vectors.chunks_exact_mut(n) {
                let own = &mut own[step + 1..];
                add(-beta * dot(u, own), u, own);
            }
        }
        vectors
    }
}

/// From -1 to 1.
fn uniform(state: &mut u64) -> f64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
}

/// To length 1; false where nothing is left.
fn normalise(values: &mut [f64]) -> bool {
    let largest = values.iter().fold(0.0f64, |largest, value| largest.max(value.abs()));
    if largest == 0.0 || !largest.is_finite() {
        return false;
    }
    values.iter_mut().for_each(|value| *value /= largest);
    let length = dot(values, values).sqrt();
    values.iter_mut().for_each(|value| *value /= length);
    true
}

/// Takes away what lies along the rows before it, and normalises; false where next to nothing is left.
fn orthogonalise(before: &[f64], own: &mut [f64]) -> bool {
    for other in before.chunks_exact(own.len()) {
        add(-dot(other, own), other, own);
    }
    let left = dot(own, own).sqrt();
    left > 1e-10 && normalise(own)
}

/// T - shift as triangular factors, rows exchanged where the one below has the larger first value.
struct Factors {
    /// The upper factor's three diagonals.
    upper: Vec<[f64; 3]>,
    /// For each row but the last: what of it is taken from the next, and whether the two were exchanged before.
    steps: Vec<(f64, bool)>,
}

impl Factors {
    fn new(of: &Tridiagonal, shift: f64) -> Factors {
        let n = of.n;
        // Not so small that a step of 1 over it overflows.
        let tiny = (f64::EPSILON * of.bound).max(1e-140);
        let beside = |at: usize| of.beside.get(at).copied().unwrap_or(0.0);
        let (mut upper, mut steps) = (Vec::with_capacity(n), Vec::with_capacity(n));
        let mut row = [of.diagonal[0] - shift, beside(0), 0.0];
        for at in 0..n - 1 {
            let below = [beside(at), of.diagonal[at + 1] - shift, beside(at + 1)];
            let exchanged = below[0].abs() > row[0].abs();
            let (mut kept, other) = if exchanged { (below, row) } else { (row, below) };
            if kept[0].abs() < tiny {
                kept[0] = tiny;
            }
            let factor = other[0] / kept[0];
            row = [other[1] - factor * kept[1], other[2] - factor * kept[2], 0.0];
            upper.push(kept);
            steps.push((factor, exchanged));
        }
        if row[0].abs() < tiny {
            row[0] = tiny;
        }
        upper.push(row);
        Factors { upper, steps }
    }

    /// Solves (T - shift) x = `values`, in its place.
    fn solve(&self, values: &mut [f64]) {
        for (at, (factor, exchanged)) in self.steps.iter().enumerate() {
            if *exchanged {
                values.swap(at, at + 1);
            }
            values[at + 1] -= factor * values[at];
        }
        for at in (0..values.len()).rev() {
            let value = |at: usize| values.get(at).copied().unwrap_or(0.0);
            let [own, second, third] = self.upper[at];
            let solved = (values[at] - second * value(at + 1) - third * value(at + 2)) / own;
            // Where the shift is an eigenvalue the vector grows without bound; its direction is what counts.
            values[at] = solved;
            if solved.abs() > 1e150 {
                values.iter_mut().for_each(|value| *value *= 1e-150);
            }
        }
    }
}

/// c += a a^T for `rows` rows of `cols` values; c: `[rows, rows]`.
pub fn add_gram(a: &[f64], rows: usize, cols: usize, c: &mut [f64]) {
    add_product(a, (cols as isize, 1), a, (1, cols as isize), [rows, cols, rows], c);
}

/// c += a b; a: `[m, k]`, b: `[k, n]`, each with the strides of its rows and columns, c: `[m, n]` row by row.
pub fn add_product(
    a: &[f64],
    a_strides: (isize, isize),
    b: &[f64],
    b_strides: (isize, isize),
    [m, k, n]: [usize; 3],
    c: &mut [f64],
) {
    let fits = |values: &[f64], (row, col): (isize, isize), rows: usize, cols: usize| {
        rows == 0
            || cols == 0
            || (row >= 0 && col >= 0)
                && (rows - 1) * (row as usize) + (cols - 1) * (col as usize) < values.len()
    };
    assert!(fits(a, a_strides, m, k) && fits(b, b_strides, k, n) && c.len() == m * n, "lengths go together");
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    // SAFETY: all places that these strides reach lie inside the slices.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            1,
            n as isize,
            true,
            a.as_ptr(),
            a_strides.1,
            a_strides.0,
            b.as_ptr(),
            b_strides.1,
            b_strides.0,
            1.0f64,
            1.0f64,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(n: usize, seed: u64) -> Vec<f64> {
        let mut state = seed;
        (0..n).map(|_| uniform(&mut state)).collect()
    }

    /// Q diag(values) Q^T of a random orthogonal Q.
    fn with_values(values: &[f64]) -> Vec<f64> {
        let n = values.len();
        let mut q = random(n * n, 7);
        for row in 0..n {
            let (before, rest) = q.split_at_mut(row * n);
            assert!(normalise(&mut rest[..n]) && orthogonalise(before, &mut rest[..n]));
            assert!(orthogonalise(before, &mut rest[..n]));
        }
        let mut matrix = vec![0.0; n * n];
        for (value, q) in values.iter().zip(q.chunks_exact(n)) {
            for row in 0..n {
                add(value * q[row], q, &mut matrix[row * n..(row + 1) * n]);
            }
        }
        matrix
    }

    /// Values and vectors are those of the matrix: A v = value v, v v^T = 1.
    fn check(matrix: &[f64], n: usize, wanted: Option<&[f64]>) {
        let reduced = tridiagonal(matrix.to_vec(), n);
        let values: Vec<f64> = (0..n).map(|number| reduced.value(number)).collect();
        let largest = values.iter().fold(0.0f64, |largest, value| largest.max(value.abs()));
        let bound = 1e-13 * largest * n as f64 + f64::MIN_POSITIVE;
        for (came, wanted) in values.iter().zip(wanted.unwrap_or(&values)) {
            assert!((came - wanted).abs() <= bound, "{came} for {wanted}");
        }
        let vectors = reduced.vectors(&values);
        for (row, value) in values.iter().enumerate() {
            let own = &vectors[row * n..(row + 1) * n];
            for (at, line) in matrix.chunks_exact(n).enumerate() {
                assert!((dot(line, own) - value * own[at]).abs() <= 100.0 * bound, "{n}: {row}, {at}");
            }
            for (other, vector) in vectors.chunks_exact(n).enumerate() {
                let product = dot(own, vector) - f64::from(u8::from(other == row));
                assert!(product.abs() < 1e-12, "{n}: {row} and {other} are not orthogonal: {product}");
            }
        }
    }

    #[test]
    fn values_and_vectors_are_those_of_the_matrix() {
        for n in [1, 2, 3, 5, 17, 48] {
            let a = random(n * n, n as u64);
            let mut gram = vec![0.0; n * n];
            add_gram(&a, n, n, &mut gram);
            check(&gram, n, None);
            check(&vec![0.0; n * n], n, Some(&vec![0.0; n]));
        }
    }

    #[test]
    fn equal_and_vanishing_values_keep_their_vectors_apart() {
        check(
            &with_values(&[3.0, 2.0, 2.0, 2.0, 1.0, 0.0, 0.0, 0.0, 0.0]),
            9,
            Some(&[3.0, 2.0, 2.0, 2.0, 1.0, 0.0, 0.0, 0.0, 0.0]),
        );
        let spread: Vec<f64> = (0..40).map(|at| 10f64.powi(-at / 2)).collect();
        check(&with_values(&spread), 40, Some(&spread));
        let diagonal: Vec<f64> =
            (0..36).map(|at| if at % 7 == 0 { 5.0 - (at / 7) as f64 } else { 0.0 }).collect();
        check(&diagonal, 6, Some(&[5.0, 4.0, 3.0, 2.0, 1.0, 0.0]));
    }

    #[test]
    fn products_add_to_what_is_there() {
        let mut c = vec![1.0; 4];
        // [1 2; 3 4] [5 6; 7 8] = [19 22; 43 50]
        add_product(&[1.0, 2.0, 3.0, 4.0], (2, 1), &[5.0, 6.0, 7.0, 8.0], (2, 1), [2, 2, 2], &mut c);
        assert_eq!(c, [20.0, 23.0, 44.0, 51.0]);
    }
}
