//! `multislerp`: barycentric interpolation of any number of tensors on a hypersphere: in the tangent space at their
//! weighted mean direction, back by the exponential map, then scaled to the weighted mean of the norms.
//!
//! Source: goddard.blog/posts/multislerp-wow-what-a-cool-idea. At the weighted mean direction m of the unit vectors u_i the
//! weighted sum of the tangents is nothing, sum_i w_i (u_i - (u_i m) m) = M - (M m) m = 0 with M = |M| m, so that the map
//! back stays where it is: what mergekit's tangents hold is the rounding of its sums.

use luthier_checkpoint::Result;

use super::looks::{Known, Section};
use super::method::{Base, Group, Method, flag, number, single_values};
use super::products::Products;

pub(crate) const METHOD: Method = Method {
    name: "multislerp",
    parameters: &[
        number("weight", true, None),
        flag("normalize_weights", true),
        number("eps", false, Some(1e-8)),
    ],
    base: Base::Optional,
    inputs: 1..=usize::MAX,
    unit: single_values,
    look,
    searches: 0,
    merge,
};

/// A sum of unit vectors that is shorter cancels out: this is what the rounding of f64 products leaves.
const ROUNDING: f64 = 1e-7;

/// What every input counts.
fn look(section: &Section) -> Result<Known> {
    let others = section.others();
    let mut numbers = vec![0f64; section.n_inputs()];
    match others[..] {
        [] => return Err(section.wrong("wanted a model besides the base")),
        [only] => {
            numbers[only] = 1.0;
            return Ok(Known { numbers, ..Known::default() });
        }
        _ => {}
    }
    let mut weights = vec![0f64; section.n_inputs()];
    others.iter().for_each(|&input| weights[input] = section.values()[0][input]);
    let total: f64 = weights.iter().sum();
    if section.values()[1][0] > 0.0 {
        if total.abs() < f64::MIN_POSITIVE {
            return Err(section.wrong("the weights add up to 0; give others, or normalize_weights: false"));
        }
        weights.iter_mut().for_each(|weight| *weight /= total);
    }
    let eps = section.values()[2][0];
    let products = Products::of(section, true)?;
    let along: Vec<f64> =
        weights.iter().enumerate().map(|(input, weight)| weight / (products.length(input) + eps)).collect();
    let mean_length = products.length_of_sum(&along);
    if mean_length < eps.max(ROUNDING) {
        if others.len() == 2 {
            return Ok(Known { numbers: weights, ..Known::default() });
        }
        return Err(section.wrong("the weighted directions cancel out; give other weights"));
    }
    let scale: f64 = weights.iter().enumerate().map(|(input, weight)| weight * products.length(input)).sum();
    let numbers = along.iter().map(|factor| factor / mean_length * scale).collect();
    Ok(Known { numbers, ..Known::default() })
}

fn merge(group: &Group) -> std::result::Result<Vec<f32>, String> {
    if let [only] = group.others()[..] {
        return Ok(group.tensors[only].to_vec());
    }
    let mut sums = vec![0f64; group.len()];
    for input in group.others() {
        let values = group.offsets(input, true);
        sums.iter_mut()
            .zip(values.iter())
            .for_each(|(sum, value)| *sum += group.numbers[input] * f64::from(*value));
    }
    let offset = |at: usize| group.base.map_or(0.0, |base| group.tensors[base][at]);
    Ok(sums.iter().enumerate().map(|(at, sum)| *sum as f32 + offset(at)).collect())
}
