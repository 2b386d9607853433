//! `slerp`: along the great circle between two tensors seen as vectors, from the base (t 0) to the other (t 1):
//! sin((1-t)a)/sin a * w0 + sin(t a)/sin a * w1, a the angle; the straight line where they are nearly parallel.
//!
//! Source: Shoemake 1985; threshold of 0.9995 as in mergekit.

use luthier_checkpoint::Result;

use super::looks::{Known, Section};
use super::method::{Base, Group, Method, number, single_values};
use super::products::Products;

pub(crate) const METHOD: Method = Method {
    name: "slerp",
    parameters: &[number("t", false, None)],
    base: Base::Required,
    inputs: 2..=2,
    unit: single_values,
    look,
    searches: 0,
    merge,
};

const PARALLEL: f64 = 0.9995;
const SMALLEST_NORM: f64 = 1e-8;

/// What the base and the other count.
fn look(section: &Section) -> Result<Known> {
    let base = section.base().unwrap_or(0);
    let t = section.values()[0][0];
    let products = Products::of(section, false)?;
    let length =
        |of: usize| Some(products.length(of)).filter(|length| *length > SMALLEST_NORM).unwrap_or(1.0);
    let cosine = (products.get(0, 1) / (length(0) * length(1))).clamp(-1.0, 1.0);
    let (of_base, of_other) = if cosine.abs() > PARALLEL {
        (1.0 - t, t)
    } else {
        let angle = cosine.acos();
        (((1.0 - t) * angle).sin() / angle.sin(), (t * angle).sin() / angle.sin())
    };
    let numbers = if base == 0 { vec![of_base, of_other] } else { vec![of_other, of_base] };
    Ok(Known { numbers, ..Known::default() })
}

fn merge(group: &Group) -> std::result::Result<Vec<f32>, String> {
    let [of_a, of_b] = group.numbers else { return Err("nothing is known of its angle".to_string()) };
    let between = |(a, b): (&f32, &f32)| (of_a * f64::from(*a) + of_b * f64::from(*b)) as f32;
    Ok(group.tensors[0].iter().zip(group.tensors[1]).map(between).collect())
}
