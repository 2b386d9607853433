//! `nuslerp`: SLERP of two tensors by relative weights, on their differences from the base where there is one; whole
//! (`nuslerp_flatten`, the default), or line by line: along the last axis, or the first (`nuslerp_row_wise`).

use luthier_checkpoint::Result;

use super::looks::{Known, Section};
use super::method::{Base, Group, Method, Unit, flag, lines, number};
use super::products::Products;

pub(crate) const METHOD: Method = Method {
    name: "nuslerp",
    parameters: &[
        number("weight", true, None),
        flag("nuslerp_row_wise", false),
        flag("nuslerp_flatten", true),
    ],
    base: Base::Optional,
    inputs: 2..=3,
    unit,
    look,
    searches: 0,
    merge,
};

fn unit(values: &[Vec<f64>]) -> Unit {
    match (values[2][0] > 0.0, values[1][0] > 0.0) {
        (true, _) => Unit::Value,
        (false, false) => Unit::Line,
        // Lines along the first axis go through all of the tensor.
        (false, true) => Unit::Whole,
    }
}

/// What each of the two counts, where they are taken whole.
fn look(section: &Section) -> Result<Known> {
    if unit(section.values()) != Unit::Value {
        return Ok(Known::default());
    }
    let pair = two(section.others()).map_err(|what| section.wrong(&what))?;
    let products = Products::of(section, true)?;
    let (of_a, of_b) = coefficients(&products, pair, share(&section.values()[0], pair));
    Ok(Known { numbers: vec![of_a, of_b], ..Known::default() })
}

fn two(others: Vec<usize>) -> std::result::Result<[usize; 2], String> {
    let others = <[usize; 2]>::try_from(others);
    others.map_err(|others| format!("wanted two models besides the base, came {}", others.len()))
}

/// How far it is from the first to the second.
fn share(weights: &[f64], [first, second]: [usize; 2]) -> f64 {
    let total = weights[first] + weights[second];
    if total.abs() < 1e-6 { 0.5 } else { weights[second] / total }
}

fn merge(group: &Group) -> std::result::Result<Vec<f32>, String> {
    let pair = two(group.others())?;
    let offset = |at: usize| group.base.map_or(0.0, |base| group.tensors[base][at]);
    let (a, b) = (group.offsets(pair[0], true), group.offsets(pair[1], true));
    let mut merged = vec![0f32; a.len()];
    let mut mix = |at: usize, (of_a, of_b): (f64, f64)| {
        merged[at] = (of_a * f64::from(a[at]) + of_b * f64::from(b[at])) as f32 + offset(at);
    };
    if let [of_a, of_b] = *group.numbers {
        (0..a.len()).for_each(|at| mix(at, (of_a, of_b)));
        return Ok(merged);
    }
    let t = share(&group.values[0], pair);
    let axis = if group.values[1][0] > 0.0 { 0 } else { group.shape.len().saturating_sub(1) };
    let (starts, step, len) = lines(group.shape, axis);
    for start in starts {
        let at = |idx: usize| start + idx * step;
        let line = |values: &[f32]| -> Vec<f32> { (0..len).map(|idx| values[at(idx)]).collect() };
        let products = Products::between(&[&line(&a), &line(&b)]);
        let counts = coefficients(&products, [0, 1], t);
        (0..len).for_each(|idx| mix(at(idx), counts));
    }
    Ok(merged)
}

/// What each of two vectors counts.
fn coefficients(products: &Products, [a, b]: [usize; 2], t: f64) -> (f64, f64) {
    let length = |of: usize| products.length(of).max(1e-7);
    let cosine = (products.get(a, b) / (length(a) * length(b))).clamp(-1.0, 1.0);
    // f32's resolution stands for mergekit's 1e-8, which f32 sums cannot meet otherwise than by being exactly parallel.
    if 1.0 - cosine * cosine <= 1e-12 {
        return (1.0 - t, t);
    }
    let angle = cosine.acos();
    (((1.0 - t) * angle).sin() / angle.sin(), (t * angle).sin() / angle.sin())
}
