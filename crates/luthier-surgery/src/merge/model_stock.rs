//! `model_stock`: from the base towards the average of the others, as far as their mean angle says:
//! t = n cos / (1 + (n-1) cos), for the whole tensor or line by line (`filter_wise`). Paper: arXiv:2403.19522, eq. 5.

use super::method::{Base, Group, Method, Reach, dot, flag, lines, norm};

pub(crate) const METHOD: Method = Method {
    name: "model_stock",
    parameters: &[flag("filter_wise", false)],
    base: Base::Required,
    inputs: 3..=usize::MAX,
    reach: Reach::Tensor,
    merge,
};

fn merge(group: &Group) -> Result<Vec<f32>, String> {
    let base = group.tensors[group.base.unwrap_or(0)];
    let others: Vec<&[f32]> = group.others().iter().map(|&input| group.tensors[input]).collect();
    let (starts, len) = if group.values[0][0] > 0.0 {
        let (starts, _, len) = lines(group.shape, group.shape.len().saturating_sub(1));
        (starts, len)
    } else {
        (vec![0], group.len())
    };
    let count = others.len() as f64;
    let mut merged = vec![0f32; group.len()];
    for start in starts {
        let line = start..start + len;
        let offset = |which: usize| {
            let pairs = others[which][line.clone()].iter().zip(&base[line.clone()]);
            pairs.map(|(value, base)| f64::from(value - base))
        };
        let norms: Vec<f64> = (0..others.len()).map(|which| norm(offset(which))).collect();
        let mut cosines = Vec::new();
        for a in 0..others.len() {
            for b in a + 1..others.len() {
                cosines.push((dot(offset(a), offset(b)) / (norms[a] * norms[b]).max(1e-6)).clamp(-1.0, 1.0));
            }
        }
        let cosine = cosines.iter().sum::<f64>() / cosines.len().max(1) as f64;
        let denominator = 1.0 + (count - 1.0) * cosine;
        let t = if denominator.abs() < 1e-6 { 0.0 } else { count * cosine / denominator };
        for at in line {
            let average = others.iter().map(|other| f64::from(other[at])).sum::<f64>() / count;
            merged[at] = (t * average + (1.0 - t) * f64::from(base[at])) as f32;
        }
    }
    Ok(merged)
}
