//! Eigenvalues and products against plain reckoning.

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
