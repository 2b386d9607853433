//! `multislerp`: barycentric interpolation of any number of tensors on a hypersphere: in the tangent space at their
//! weighted mean direction, back by the exponential map, then scaled to the weighted mean of the norms.
//!
//! Source: goddard.blog/posts/multislerp-wow-what-a-cool-idea.

use super::method::{Base, Group, Method, Reach, dot, flag, norm, number};

pub(crate) const METHOD: Method = Method {
    name: "multislerp",
    parameters: &[
        number("weight", true, None),
        flag("normalize_weights", true),
        number("eps", false, Some(1e-8)),
    ],
    base: Base::Optional,
    inputs: 1..=usize::MAX,
    reach: Reach::Tensor,
    merge,
};

fn merge(group: &Group) -> Result<Vec<f32>, String> {
    let others = group.others();
    match others[..] {
        [] => return Err("wanted a model besides the base".to_string()),
        [only] => return Ok(group.tensors[only].to_vec()),
        _ => {}
    }
    let mut weights: Vec<f64> = others.iter().map(|&input| group.values[0][input]).collect();
    let total: f64 = weights.iter().sum();
    if group.values[1][0] > 0.0 {
        if total.abs() < f64::MIN_POSITIVE {
            return Err("the weights add up to 0; give others, or normalize_weights: false".to_string());
        }
        weights.iter_mut().for_each(|weight| *weight /= total);
    }
    let eps = group.values[2][0];
    let offset = |at: usize| group.base.map_or(0.0, |base| group.tensors[base][at]);
    let value = |which: usize, at: usize| f64::from(group.tensors[others[which]][at] - offset(at));
    let len = group.len();
    let norms: Vec<f64> = (0..others.len()).map(|which| norm((0..len).map(|at| value(which, at)))).collect();
    let unit = |which: usize, at: usize| value(which, at) / (norms[which] + eps);
    let weighted = |at: usize, of: &dyn Fn(usize, usize) -> f64| -> f64 {
        weights.iter().enumerate().map(|(which, weight)| weight * of(which, at)).sum()
    };
    let mut mean: Vec<f64> = (0..len).map(|at| weighted(at, &unit)).collect();
    let mean_norm = norm(mean.iter().copied());
    if mean_norm < eps {
        if others.len() == 2 {
            return Ok((0..len).map(|at| weighted(at, &value) as f32 + offset(at)).collect());
        }
        return Err("the weighted directions cancel out; give other weights".to_string());
    }
    mean.iter_mut().for_each(|value| *value /= mean_norm);
    let dots: Vec<f64> = (0..others.len())
        .map(|which| dot((0..len).map(|at| unit(which, at)), mean.iter().copied()))
        .collect();
    let tangent: Vec<f64> =
        (0..len).map(|at| weighted(at, &|which, at| unit(which, at) - dots[which] * mean[at])).collect();
    let tangent_norm = norm(tangent.iter().copied()) + eps;
    let scale: f64 = norms.iter().zip(&weights).map(|(norm, weight)| norm * weight).sum();
    let (along, across) = (tangent_norm.cos(), tangent_norm.sin() / tangent_norm);
    let result = |at: usize| ((mean[at] * along + tangent[at] * across) * scale) as f32 + offset(at);
    Ok((0..len).map(result).collect())
}
