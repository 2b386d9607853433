//! `sce`: select the values whose differences from the base vary most, calculate each model's weight from the energy of
//! its differences, erase those of the minority sign. Paper: arXiv:2408.07990.

use super::method::{Base, Group, Method, Reach, flag, number};
use super::task_vectors::largest;

pub(crate) const METHOD: Method = Method {
    name: "sce",
    parameters: &[flag("int8_mask", false), number("select_topk", false, Some(1.0))],
    base: Base::Required,
    inputs: 1..=usize::MAX,
    reach: Reach::Tensor,
    merge,
};

fn merge(group: &Group) -> Result<Vec<f32>, String> {
    let base = group.tensors[group.base.unwrap_or(0)];
    let difference = |input: usize| -> Vec<f32> {
        group.tensors[input].iter().zip(base).map(|(value, base)| value - base).collect()
    };
    let mut deltas: Vec<Vec<f32>> = group.others().into_iter().map(difference).collect();
    if deltas.is_empty() {
        return Ok(base.to_vec());
    }
    let share = group.values[1][0];
    if share < 1.0 {
        select(&mut deltas, share);
    }
    let energies: Vec<f64> = deltas
        .iter()
        .map(|delta| {
            delta.iter().map(|value| f64::from(value * value)).sum::<f64>() / delta.len().max(1) as f64
        })
        .collect();
    let total: f64 = energies.iter().sum();
    let count = deltas.len() as f64;
    let weights: Vec<f64> =
        energies.iter().map(|energy| if total.abs() < 1e-6 { 1.0 / count } else { energy / total }).collect();
    let merged = (0..base.len()).map(|at| {
        let positive = deltas.iter().map(|delta| delta[at]).sum::<f32>() >= 0.0;
        let (mut sum, mut divisor) = (0f64, 0f64);
        for (delta, weight) in deltas.iter().zip(&weights) {
            let value = delta[at];
            if (positive && value > 0.0) || (!positive && value < 0.0) {
                sum += f64::from(value) * weight;
                divisor += weight;
            }
        }
        (f64::from(base[at]) + sum / divisor.max(1e-6)) as f32
    });
    Ok(merged.collect())
}

/// Sets all but the values of largest variance across the models to zero.
fn select(deltas: &mut [Vec<f32>], share: f64) {
    let len = deltas[0].len();
    let count = deltas.len() as f32;
    let variance = |at: usize| {
        let mean = deltas.iter().map(|delta| delta[at]).sum::<f32>() / count;
        deltas.iter().map(|delta| (delta[at] - mean).powi(2)).sum::<f32>() / count
    };
    let variances: Vec<f32> = (0..len).map(variance).collect();
    let varying = variances.iter().filter(|variance| **variance > 0.0).count();
    let kept = largest(&variances, (varying as f64 * share.max(0.0)) as usize);
    for delta in deltas {
        delta.iter_mut().zip(&kept).filter(|(_, kept)| !**kept).for_each(|(value, _)| *value = 0.0);
    }
}
