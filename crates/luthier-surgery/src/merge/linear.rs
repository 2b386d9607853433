//! `linear`: sum of weight_i * w_i, divided by the sum of the weights where `normalize` says so (the default).
//!
//! Paper: Model soups, arXiv:2203.05482.

use super::method::{Base, Group, Method, flag, nothing, number, single_values};

pub(crate) const METHOD: Method = Method {
    name: "linear",
    parameters: &[number("weight", true, None), flag("normalize", true)],
    base: Base::Ignored,
    inputs: 1..=usize::MAX,
    unit: single_values,
    look: nothing,
    searches: 0,
    merge,
};

fn merge(group: &Group) -> Result<Vec<f32>, String> {
    let weights: Vec<f32> = group.values[0].iter().map(|weight| *weight as f32).collect();
    let normalized = group.values[1][0] > 0.0;
    let total: f32 = weights.iter().sum();
    if normalized && total.abs() < f32::MIN_POSITIVE {
        return Err("the weights add up to 0; give others, or normalize: false".to_string());
    }
    let mut merged = vec![0f32; group.len()];
    for (tensor, weight) in group.tensors.iter().zip(&weights) {
        for (merged, value) in merged.iter_mut().zip(*tensor) {
            *merged += weight * value;
        }
    }
    if normalized && (total - 1.0).abs() > 0.0 {
        merged.iter_mut().for_each(|value| *value /= total);
    }
    Ok(merged)
}
