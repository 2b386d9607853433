//! `nearswap`: towards the other model where it is near: w = clamp(t / |a - b|, 0, 1), result w*b + (1-w)*a, a the base.
//!
//! Source: the model card of QuartetAnemoi-70B.

use super::method::{Base, Group, Method, nothing, number, single_values};

pub(crate) const METHOD: Method = Method {
    name: "nearswap",
    parameters: &[number("t", false, None)],
    base: Base::Required,
    inputs: 2..=2,
    unit: single_values,
    look: nothing,
    searches: 0,
    merge,
};

fn merge(group: &Group) -> Result<Vec<f32>, String> {
    let base = group.base.unwrap_or(0);
    let (a, b) = (group.tensors[base], group.tensors[1 - base]);
    let t = group.values[0][0] as f32;
    let swap = |(a, b): (&f32, &f32)| {
        let weight = (t / (a - b).abs().max(1e-6)).clamp(0.0, 1.0);
        weight * b + (1.0 - weight) * a
    };
    Ok(a.iter().zip(b).map(swap).collect())
}
