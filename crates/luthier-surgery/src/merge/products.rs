//! Scalar products of the inputs of a tensor with each other: all that a method needs that goes by lengths and angles, since
//! every vector that it comes by is a sum of the inputs.

use luthier_checkpoint::Result;

use super::looks::{Known, Section};
use super::method::Group;

/// Sums that are added up side by side.
const LANES: usize = 8;

/// The products of some vectors by pairs.
pub(crate) struct Products {
    n: usize,
    values: Vec<f64>,
}

impl Products {
    /// Of all inputs, or of the differences of all from the base where there is one; over all values.
    pub(crate) fn of(section: &Section, from_base: bool) -> Result<Products> {
        let n = section.n_inputs();
        let known = Known::default();
        let values = section.sums(&known, n * n, &|group| Ok(Products::within(group, from_base).values))?;
        Ok(Products { n, values })
    }

    /// The same over the values of a group alone.
    fn within(group: &Group, from_base: bool) -> Products {
        let vectors: Vec<_> = (0..group.tensors.len()).map(|input| group.offsets(input, from_base)).collect();
        Products::between(&vectors.iter().map(|vector| &vector[..]).collect::<Vec<_>>())
    }

    /// Of vectors of one length.
    pub(crate) fn between(vectors: &[&[f32]]) -> Products {
        let n = vectors.len();
        let mut values = vec![0f64; n * n];
        for a in 0..n {
            for b in a..n {
                let product = product(vectors[a], vectors[b]);
                (values[a * n + b], values[b * n + a]) = (product, product);
            }
        }
        Products { n, values }
    }

    /// That of two of them.
    pub(crate) fn get(&self, a: usize, b: usize) -> f64 {
        self.values[a * self.n + b]
    }

    /// The length of one.
    pub(crate) fn length(&self, of: usize) -> f64 {
        self.get(of, of).max(0.0).sqrt()
    }

    /// The product of the sum of all, each times its factor, with one.
    pub(crate) fn of_sum(&self, factors: &[f64], with: usize) -> f64 {
        factors.iter().enumerate().map(|(at, factor)| factor * self.get(at, with)).sum()
    }

    /// The length of the sum of all, each times its factor.
    pub(crate) fn length_of_sum(&self, factors: &[f64]) -> f64 {
        let square: f64 =
            factors.iter().enumerate().map(|(at, factor)| factor * self.of_sum(factors, at)).sum();
        square.max(0.0).sqrt()
    }
}

fn product(a: &[f32], b: &[f32]) -> f64 {
    let mut sums = [0f64; LANES];
    let (a_lanes, b_lanes) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest = a_lanes.remainder().iter().zip(b_lanes.remainder());
    let rest: f64 = rest.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
    for (a, b) in a_lanes.zip(b_lanes) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += f64::from(*a) * f64::from(*b);
        }
    }
    sums.iter().sum::<f64>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_and_angles_of_sums_follow_from_the_products() {
        let (a, b): (Vec<f32>, Vec<f32>) = ((0..19).map(|at| at as f32 - 4.0).collect(), vec![2.0; 19]);
        let products = Products::between(&[&a, &b]);
        let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
        let wide = |values: &[f32]| values.iter().map(|value| f64::from(*value)).collect::<Vec<_>>();
        let (a, b) = (wide(&a), wide(&b));
        assert_eq!((products.get(0, 1), products.get(1, 0)), (dot(&a, &b), dot(&a, &b)));
        assert!((products.length(0) - dot(&a, &a).sqrt()).abs() < 1e-12);
        let sum: Vec<f64> = a.iter().zip(&b).map(|(a, b)| 0.5 * a - 3.0 * b).collect();
        assert!((products.length_of_sum(&[0.5, -3.0]) - dot(&sum, &sum).sqrt()).abs() < 1e-9);
        assert!((products.of_sum(&[0.5, -3.0], 0) - dot(&sum, &a)).abs() < 1e-9);
    }
}
