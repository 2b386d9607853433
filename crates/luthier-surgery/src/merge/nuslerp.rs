//! `nuslerp`: SLERP of two tensors by relative weights, on their differences from the base where there is one; whole
//! (`nuslerp_flatten`, the default), or line by line: along the last axis, or the first (`nuslerp_row_wise`).

use super::method::{Base, Group, Method, Reach, dot, flag, lines, norm, number};

pub(crate) const METHOD: Method = Method {
    name: "nuslerp",
    parameters: &[
        number("weight", true, None),
        flag("nuslerp_row_wise", false),
        flag("nuslerp_flatten", true),
    ],
    base: Base::Optional,
    inputs: 2..=3,
    reach: Reach::Tensor,
    merge,
};

fn merge(group: &Group) -> Result<Vec<f32>, String> {
    let others = group.others();
    let [first, second] = others[..] else {
        return Err(format!("wanted two models besides the base, came {}", others.len()));
    };
    let weights = &group.values[0];
    let total = weights[first] + weights[second];
    let t = if total.abs() < 1e-6 { 0.5 } else { weights[second] / total };
    let base = group.base.map(|base| group.tensors[base]);
    let offset = |at: usize| base.map_or(0.0, |base| base[at]);
    let a: Vec<f32> = (0..group.len()).map(|at| group.tensors[first][at] - offset(at)).collect();
    let b: Vec<f32> = (0..group.len()).map(|at| group.tensors[second][at] - offset(at)).collect();
    let rank = group.shape.len();
    let (starts, step, len) = match (group.values[2][0] > 0.0, group.values[1][0] > 0.0) {
        (true, _) => (vec![0], 1, a.len()),
        (false, true) => lines(group.shape, 0),
        (false, false) => lines(group.shape, rank.saturating_sub(1)),
    };
    let mut merged = vec![0f32; a.len()];
    for start in starts {
        let at = |idx: usize| start + idx * step;
        let line = |values: &[f32]| -> Vec<f64> { (0..len).map(|idx| f64::from(values[at(idx)])).collect() };
        let (a, b) = (line(&a), line(&b));
        let (of_a, of_b) = coefficients(&a, &b, t);
        for idx in 0..len {
            merged[at(idx)] = (of_a * a[idx] + of_b * b[idx]) as f32 + offset(at(idx));
        }
    }
    Ok(merged)
}

/// What each of two vectors counts.
fn coefficients(a: &[f64], b: &[f64], t: f64) -> (f64, f64) {
    let length = |values: &[f64]| norm(values.iter().copied()).max(1e-7);
    let (length_a, length_b) = (length(a), length(b));
    let cosine = dot(a.iter().map(|value| value / length_a), b.iter().map(|value| value / length_b));
    let cosine = cosine.clamp(-1.0, 1.0);
    // f32's resolution stands for mergekit's 1e-8, which f32 sums cannot meet otherwise than by being exactly parallel.
    if 1.0 - cosine * cosine <= 1e-12 {
        return (1.0 - t, t);
    }
    let angle = cosine.acos();
    (((1.0 - t) * angle).sin() / angle.sin(), (t * angle).sin() / angle.sin())
}
