//! `karcher`: the Karcher (Riemannian) mean of the tensors' directions on the hypersphere, found by stepping along the mean
//! tangent, times the mean of their norms. Paper: arXiv:2603.04972.

use luthier_checkpoint::Result;

use super::looks::{Known, Section};
use super::method::{Base, Group, Method, number, single_values};
use super::parameters::{Kind, Parameter};
use super::products::Products;

pub(crate) const METHOD: Method = Method {
    name: "karcher",
    parameters: &[
        Parameter { name: "max_iter", kind: Kind::Whole, per_input: false, default: Some(10.0) },
        number("tol", false, Some(1e-5)),
    ],
    base: Base::Ignored,
    inputs: 1..=usize::MAX,
    unit: single_values,
    look,
    searches: 0,
    merge,
};

/// What every input counts: the mean and all tangents on the way to it are sums of the inputs.
fn look(section: &Section) -> Result<Known> {
    if section.n_inputs() == 1 {
        return Ok(Known::default());
    }
    let (max_iter, tol) = (section.values()[0][0].max(0.0) as usize, section.values()[1][0]);
    let products = Products::of(section, false)?;
    Ok(Known { numbers: factors(&products, section.n_inputs(), max_iter, tol), ..Known::default() })
}

fn factors(products: &Products, n_inputs: usize, max_iter: usize, tol: f64) -> Vec<f64> {
    let norms: Vec<f64> = (0..n_inputs).map(|input| products.length(input)).collect();
    let valid: Vec<usize> = (0..n_inputs).filter(|&input| norms[input] > tol).collect();
    let mut mean = vec![0f64; n_inputs];
    if valid.is_empty() {
        return mean;
    }
    let share = 1.0 / valid.len() as f64;
    valid.iter().for_each(|&input| mean[input] = share / norms[input]);
    let length = products.length_of_sum(&mean);
    if length < tol {
        mean.fill(0.0);
        mean[valid[0]] = 1.0 / norms[valid[0]];
    } else {
        mean.iter_mut().for_each(|factor| *factor /= length);
    }
    for _ in 0..max_iter {
        let mut tangent = vec![0f64; n_inputs];
        for &input in &valid {
            let cosine = (products.of_sum(&mean, input) / norms[input]).clamp(-1.0, 1.0);
            let angle = cosine.acos();
            if angle < tol {
                continue;
            }
            let step = share * angle / angle.sin();
            tangent[input] += step / norms[input];
            tangent.iter_mut().zip(&mean).for_each(|(tangent, mean)| *tangent -= step * cosine * mean);
        }
        let length = products.length_of_sum(&tangent);
        if length < tol {
            break;
        }
        for (mean, tangent) in mean.iter_mut().zip(&tangent) {
            *mean = length.cos() * *mean + length.sin() * tangent / length;
        }
        let length = products.length_of_sum(&mean);
        if length > tol {
            mean.iter_mut().for_each(|factor| *factor /= length);
        }
    }
    let scale = norms.iter().sum::<f64>() / n_inputs as f64;
    mean.iter().map(|factor| scale * factor).collect()
}

fn merge(group: &Group) -> std::result::Result<Vec<f32>, String> {
    if let [only] = group.tensors[..] {
        return Ok(only.to_vec());
    }
    let mut sums = vec![0f64; group.len()];
    for (tensor, factor) in group.tensors.iter().zip(group.numbers) {
        sums.iter_mut().zip(*tensor).for_each(|(sum, value)| *sum += factor * f64::from(*value));
    }
    Ok(sums.into_iter().map(|sum| sum as f32).collect())
}
