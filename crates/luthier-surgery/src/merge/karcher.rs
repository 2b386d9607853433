//! `karcher`: the Karcher (Riemannian) mean of the tensors' directions on the hypersphere, found by stepping along the mean
//! tangent, times the mean of their norms. Paper: arXiv:2603.04972.

use super::method::{Base, Group, Method, Reach, dot, norm, number};
use super::parameters::{Kind, Parameter};

pub(crate) const METHOD: Method = Method {
    name: "karcher",
    parameters: &[
        Parameter { name: "max_iter", kind: Kind::Whole, per_input: false, default: Some(10.0) },
        number("tol", false, Some(1e-5)),
    ],
    base: Base::Ignored,
    inputs: 1..=usize::MAX,
    reach: Reach::Tensor,
    merge,
};

fn merge(group: &Group) -> Result<Vec<f32>, String> {
    if let [only] = group.tensors[..] {
        return Ok(only.to_vec());
    }
    let (max_iter, tol) = (group.values[0][0].max(0.0) as usize, group.values[1][0]);
    let n_inputs = group.tensors.len() as f64;
    let norms: Vec<f64> =
        group.tensors.iter().map(|tensor| norm(tensor.iter().map(|value| f64::from(*value)))).collect();
    let valid: Vec<usize> = (0..norms.len()).filter(|&input| norms[input] > tol).collect();
    if valid.is_empty() {
        return Ok(vec![0.0; group.len()]);
    }
    let share = 1.0 / valid.len() as f64;
    let unit = |input: usize, at: usize| f64::from(group.tensors[input][at]) / norms[input];
    let mut mean: Vec<f64> =
        (0..group.len()).map(|at| valid.iter().map(|&input| share * unit(input, at)).sum()).collect();
    let mean_norm = norm(mean.iter().copied());
    if mean_norm < tol {
        mean = (0..group.len()).map(|at| unit(valid[0], at)).collect();
    } else {
        mean.iter_mut().for_each(|value| *value /= mean_norm);
    }
    for _ in 0..max_iter {
        let mut tangent = vec![0f64; group.len()];
        for &input in &valid {
            let units = (0..group.len()).map(|at| unit(input, at));
            let cosine = dot(mean.iter().copied(), units).clamp(-1.0, 1.0);
            let angle = cosine.acos();
            if angle < tol {
                continue;
            }
            let step = share * angle / angle.sin();
            for (at, tangent) in tangent.iter_mut().enumerate() {
                *tangent += step * (unit(input, at) - cosine * mean[at]);
            }
        }
        let length = norm(tangent.iter().copied());
        if length < tol {
            break;
        }
        for (mean, tangent) in mean.iter_mut().zip(&tangent) {
            *mean = length.cos() * *mean + length.sin() * tangent / length;
        }
        let length = norm(mean.iter().copied());
        if length > tol {
            mean.iter_mut().for_each(|value| *value /= length);
        }
    }
    let scale = norms.iter().sum::<f64>() / n_inputs;
    Ok(mean.iter().map(|value| (scale * value) as f32).collect())
}
