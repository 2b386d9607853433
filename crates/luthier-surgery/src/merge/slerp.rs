//! `slerp`: along the great circle between two tensors seen as vectors, from the base (t 0) to the other (t 1):
//! sin((1-t)a)/sin a * w0 + sin(t a)/sin a * w1, a the angle; the straight line where they are nearly parallel.
//!
//! Source: Shoemake 1985; threshold of 0.9995 as in mergekit.

use super::method::{Base, Group, Method, Reach, dot, norm, number};

pub(crate) const METHOD: Method = Method {
    name: "slerp",
    parameters: &[number("t", false, None)],
    base: Base::Required,
    inputs: 2..=2,
    reach: Reach::Tensor,
    merge,
};

const PARALLEL: f64 = 0.9995;
const SMALLEST_NORM: f64 = 1e-8;

fn merge(group: &Group) -> Result<Vec<f32>, String> {
    let base = group.base.unwrap_or(0);
    let (a, b) = (group.tensors[base], group.tensors[1 - base]);
    let t = group.values[0][0];
    let length = |values: &[f32]| {
        let length = norm(values.iter().map(|value| f64::from(*value)));
        if length > SMALLEST_NORM { length } else { 1.0 }
    };
    let (length_a, length_b) = (length(a), length(b));
    let cosine = dot(
        a.iter().map(|value| f64::from(*value) / length_a),
        b.iter().map(|value| f64::from(*value) / length_b),
    )
    .clamp(-1.0, 1.0);
    let (of_a, of_b) = if cosine.abs() > PARALLEL {
        (1.0 - t, t)
    } else {
        let angle = cosine.acos();
        (((1.0 - t) * angle).sin() / angle.sin(), (t * angle).sin() / angle.sin())
    };
    let between = |(a, b): (&f32, &f32)| (of_a * f64::from(*a) + of_b * f64::from(*b)) as f32;
    Ok(a.iter().zip(b).map(between).collect())
}
