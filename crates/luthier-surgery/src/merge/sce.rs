//! `sce`: select the values whose differences from the base vary most, calculate each model's weight from the energy of
//! its differences, erase those of the minority sign. Paper: arXiv:2408.07990.

use luthier_checkpoint::Result;

use super::looks::{Known, Section};
use super::method::{Base, Group, Method, flag, number, single_values};
use super::task_vectors::above;

pub(crate) const METHOD: Method = Method {
    name: "sce",
    parameters: &[flag("int8_mask", false), number("select_topk", false, Some(1.0))],
    base: Base::Required,
    inputs: 1..=usize::MAX,
    unit: single_values,
    look,
    searches: 1,
    merge,
};

/// How many values are selected, where they end, and what each model besides the base counts.
fn look(section: &Section) -> Result<Known> {
    let others = section.others();
    if others.is_empty() {
        return Ok(Known::default());
    }
    let share = section.values()[1][0];
    let mut known = Known { numbers: vec![section.n_values() as f64], ..Known::default() };
    if share < 1.0 {
        let varying = section.sums(&known, 1, &|group| {
            let varying = variances(&deltas(group)).iter().filter(|variance| **variance > 0.0).count();
            Ok(vec![varying as f64])
        })?;
        let count = (varying[0] * share.max(0.0)) as usize;
        known.numbers = vec![count as f64];
        if count > 0 {
            known.cuts = section.cuts(&[Some(count)], &|group, _| variances(&deltas(group)))?;
        }
    }
    let sums = section.sums(&known, others.len(), &|group| {
        let energy = |delta: &Vec<f32>| delta.iter().map(|value| f64::from(value * value)).sum();
        Ok(selected(group).iter().map(energy).collect())
    })?;
    let energies: Vec<f64> = sums.iter().map(|sum| sum / section.n_values().max(1) as f64).collect();
    let (total, count) = (energies.iter().sum::<f64>(), others.len() as f64);
    let weight = |energy: f64| if total.abs() < 1e-6 { 1.0 / count } else { energy / total };
    known.numbers.extend(energies.into_iter().map(weight));
    Ok(known)
}

fn merge(group: &Group) -> std::result::Result<Vec<f32>, String> {
    let base = group.tensors[group.base.unwrap_or(0)];
    let Some((_, weights)) = group.numbers.split_first() else { return Ok(base.to_vec()) };
    let deltas = selected(group);
    let merged = (0..base.len()).map(|at| {
        let positive = deltas.iter().map(|delta| delta[at]).sum::<f32>() >= 0.0;
        let (mut sum, mut divisor) = (0f64, 0f64);
        for (delta, weight) in deltas.iter().zip(weights) {
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

/// The differences from the base.
fn deltas(group: &Group) -> Vec<Vec<f32>> {
    group.others().into_iter().map(|input| group.offsets(input, true).into_owned()).collect()
}

/// The differences, but zero where they are not among those that vary most across the models.
fn selected(group: &Group) -> Vec<Vec<f32>> {
    let mut deltas = deltas(group);
    let count = group.numbers.first().map_or(0, |count| *count as usize);
    if count >= group.n_values {
        return deltas;
    }
    let kept = match group.cuts.first().copied().flatten() {
        Some(cut) => above(&variances(&deltas), cut),
        None => vec![false; group.len()],
    };
    for delta in &mut deltas {
        delta.iter_mut().zip(&kept).filter(|(_, kept)| !**kept).for_each(|(value, _)| *value = 0.0);
    }
    deltas
}

/// Of each place across the models.
fn variances(deltas: &[Vec<f32>]) -> Vec<f32> {
    let count = deltas.len() as f32;
    let variance = |at: usize| {
        let mean = deltas.iter().map(|delta| delta[at]).sum::<f32>() / count;
        deltas.iter().map(|delta| (delta[at] - mean).powi(2)).sum::<f32>() / count
    };
    (0..deltas.first().map_or(0, Vec::len)).map(variance).collect()
}
