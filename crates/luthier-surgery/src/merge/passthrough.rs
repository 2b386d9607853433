//! `passthrough`: the one input as it is, times `scale` where that is given.

use super::method::{Base, Group, Method, nothing, number, single_values};

pub(crate) const METHOD: Method = Method {
    name: "passthrough",
    parameters: &[number("scale", true, Some(f64::NAN))],
    base: Base::Ignored,
    inputs: 1..=1,
    unit: single_values,
    look: nothing,
    searches: 0,
    merge,
};

fn merge(group: &Group) -> Result<Vec<f32>, String> {
    let scale = group.values[0][0] as f32;
    if scale.is_nan() {
        return Ok(group.tensors[0].to_vec());
    }
    Ok(group.tensors[0].iter().map(|value| value * scale).collect())
}
