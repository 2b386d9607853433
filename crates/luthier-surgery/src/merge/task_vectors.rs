//! Methods that add up what models learnt since their base: `task_arithmetic`, `ties`, `dare_linear`, `dare_ties`, `della`,
//! `della_linear`, `breadcrumbs`, `breadcrumbs_ties`.
//!
//! w_0 + lambda * sum_i weight_i * s(w_i - w_0), over those of the majority's sign where the name says ties, divided by
//! the sum of their weights where `normalize` says so. s keeps a share (`density`) of the differences: the largest (TIES,
//! arXiv:2306.01708), random ones (DARE, arXiv:2311.03099), random ones by rank of magnitude (DELLA, arXiv:2406.11617), the
//! largest but for outliers (breadcrumbs, arXiv:2312.06795), all (task arithmetic, arXiv:2212.04089). `rescale` brings the
//! sum of magnitudes back to what it was.

use super::method::{Base, Cut, Group, Method, Reach, flag, lines, number};
use super::parameters::Parameter;

/// Order of the parameters below.
const NORMALIZE: usize = 1;
const RESCALE: usize = 2;
const LAMBDA: usize = 3;
const WEIGHT: usize = 4;
const DENSITY: usize = 5;
const OWN: usize = 6;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Sparse {
    No,
    Magnitude,
    Random,
    Outliers,
    Ranked,
}

macro_rules! method {
    ($name:literal, $sparse:expr, $ties:literal, normalize $normalize:literal, rescale $rescale:literal $(, $own:expr)?) => {
        Method {
            name: $name,
            parameters: {
                const PARAMETERS: &[Parameter] = &[
                    flag("int8_mask", false),
                    flag("normalize", $normalize),
                    flag("rescale", $rescale),
                    number("lambda", false, Some(1.0)),
                    number("weight", true, None),
                    number("density", true, Some(1.0)),
                    $($own,)?
                ];
                PARAMETERS
            },
            base: Base::Required,
            inputs: 1..=usize::MAX,
            reach: match $sparse {
                Sparse::No => Reach::Value,
                Sparse::Magnitude => Reach::Largest(shares),
                Sparse::Random => Reach::Drawn(drawn),
                _ => Reach::Tensor,
            },
            merge: |group| merge(group, $sparse, $ties),
        }
    };
}

pub(crate) const TASK_ARITHMETIC: Method =
    method!("task_arithmetic", Sparse::No, false, normalize false, rescale false);
pub(crate) const TIES: Method = method!("ties", Sparse::Magnitude, true, normalize true, rescale false);
pub(crate) const DARE_TIES: Method =
    method!("dare_ties", Sparse::Random, true, normalize false, rescale true);
pub(crate) const DARE_LINEAR: Method =
    method!("dare_linear", Sparse::Random, false, normalize false, rescale true);
pub(crate) const BREADCRUMBS: Method = method!("breadcrumbs", Sparse::Outliers, false, normalize false, rescale false, number("gamma", true, Some(0.01)));
pub(crate) const BREADCRUMBS_TIES: Method = method!("breadcrumbs_ties", Sparse::Outliers, true, normalize false, rescale false, number("gamma", true, Some(0.01)));
pub(crate) const DELLA: Method =
    method!("della", Sparse::Ranked, true, normalize true, rescale true, number("epsilon", true, Some(0.15)));
pub(crate) const DELLA_LINEAR: Method = method!("della_linear", Sparse::Ranked, false, normalize false, rescale true, number("epsilon", true, Some(0.15)));

fn merge(group: &Group, sparse: Sparse, ties: bool) -> Result<Vec<f32>, String> {
    let base = group.tensors[group.base.unwrap_or(0)];
    let others = group.others();
    let mut deltas = Vec::with_capacity(others.len());
    let mut weights = Vec::with_capacity(others.len());
    for &input in &others {
        let mut delta: Vec<f32> =
            group.tensors[input].iter().zip(base).map(|(value, base)| value - base).collect();
        if sparse != Sparse::No {
            sparsify(group, input, sparse, &mut delta)?;
        }
        let weight = group.values[WEIGHT][input] as f32;
        delta.iter_mut().for_each(|value| *value *= weight);
        deltas.push(delta);
        weights.push(weight);
    }
    let normalize = group.values[NORMALIZE][0] > 0.0;
    let lambda = group.values[LAMBDA][0] as f32;
    let total: f32 = weights.iter().sum();
    let total = if total.abs() < 1e-8 { 1.0 } else { total };
    let mut mixed = vec![0f32; base.len()];
    for delta in &deltas {
        mixed.iter_mut().zip(delta).for_each(|(sum, value)| *sum += value);
    }
    let mut divisors = vec![total; base.len()];
    if ties {
        (mixed, divisors) = of_majority(&mixed, &deltas, &weights);
    }
    let mut merged = base.to_vec();
    for ((merged, mixed), divisor) in merged.iter_mut().zip(&mixed).zip(&divisors) {
        let mixed = if normalize { mixed / divisor } else { *mixed };
        *merged += mixed * lambda;
    }
    Ok(merged)
}

/// The sums of those differences that have the sign of the whole sum, and of their weights.
fn of_majority(sums: &[f32], deltas: &[Vec<f32>], weights: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let (mut mixed, mut divisors) = (vec![0f32; sums.len()], vec![0f32; sums.len()]);
    for (delta, weight) in deltas.iter().zip(weights) {
        let places = mixed.iter_mut().zip(&mut divisors).zip(sums).zip(delta);
        for (((mixed, divisor), sum), value) in places {
            let agrees = ((*sum >= 0.0) & (*value > 0.0)) | ((*sum < 0.0) & (*value < 0.0));
            // All bits or none: signs are as good as random, and a branch on them is guessed wrong half of the time.
            let mask = u32::from(agrees).wrapping_neg();
            *mixed += f32::from_bits(value.to_bits() & mask);
            *divisor += f32::from_bits(weight.to_bits() & mask);
        }
    }
    let is_none = |divisor: f32| divisor.abs() < f32::MIN_POSITIVE;
    divisors.iter_mut().for_each(|divisor| *divisor = if is_none(*divisor) { 1.0 } else { *divisor });
    (mixed, divisors)
}

/// Keeps the chosen share of the differences of one input, the others become zero.
fn sparsify(group: &Group, input: usize, sparse: Sparse, delta: &mut [f32]) -> Result<(), String> {
    let density = group.values[DENSITY][input];
    if density >= 1.0 {
        return Ok(());
    }
    let len = delta.len();
    let kept: Vec<bool> = match sparse {
        Sparse::No => return Ok(()),
        Sparse::Magnitude if density <= 0.0 => vec![false; len],
        Sparse::Magnitude => match group.cuts.get(input).copied().flatten() {
            Some(cut) => above(&magnitudes(delta), cut),
            None => largest(&magnitudes(delta), kept_count(density, len)),
        },
        Sparse::Random => {
            if density < 0.0 {
                return Err(format!("density: wanted 0 to 1, came {density}"));
            }
            (0..len).map(|at| (group.keeps)(input, at, density)).collect()
        }
        Sparse::Outliers => without_outliers(delta, density.max(0.0), group.values[OWN][input]),
        Sparse::Ranked if density <= 0.0 => vec![false; len],
        Sparse::Ranked => ranked(group, input, delta, density)?,
    };
    let rescales = group.values[RESCALE][0] > 0.0;
    let known = group.scales.get(input).copied().flatten();
    let sum = |delta: &[f32]| delta.iter().map(|value| f64::from(value.abs())).sum::<f64>();
    let before = if rescales && known.is_none() { sum(delta) } else { 0.0 };
    delta.iter_mut().zip(&kept).for_each(|(value, kept)| *value = if *kept { *value } else { 0.0 });
    if rescales {
        let scale = known.unwrap_or_else(|| rescaled(before, sum(delta)));
        delta.iter_mut().for_each(|value| *value *= scale);
    }
    Ok(())
}

/// What brings a sum of magnitudes back to what it was.
pub(crate) fn rescaled(before: f64, after: f64) -> f32 {
    if before >= 1e-7 && after >= 1e-7 { (before / after) as f32 } else { 1.0 }
}

/// The share of each input's differences that is kept at random; none where the rest is not scaled.
fn drawn(values: &[Vec<f64>]) -> Option<Vec<f64>> {
    (values[RESCALE][0] > 0.0).then(|| values[DENSITY].clone())
}

fn magnitudes(delta: &[f32]) -> Vec<f32> {
    delta.iter().map(|value| value.abs()).collect()
}

/// The share of each input's differences that is kept; none where what is dropped changes the scale of the rest.
fn shares(values: &[Vec<f64>]) -> Option<Vec<f64>> {
    (values[RESCALE][0] <= 0.0).then(|| values[DENSITY].clone())
}

/// How many of `len` values a share between 0 and 1 keeps.
pub(crate) fn kept_count(density: f64, len: usize) -> usize {
    ((density * len as f64) as usize).max(1)
}

/// Which values are among the `count` largest; of equal ones the first.
pub(crate) fn largest(values: &[f32], count: usize) -> Vec<bool> {
    if count >= values.len() {
        return vec![true; values.len()];
    }
    if count == 0 {
        return vec![false; values.len()];
    }
    let mut order = values.to_vec();
    let (_, threshold, _) = order.select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a));
    let threshold = *threshold;
    let n_above = values.iter().filter(|value| **value > threshold).count();
    above(values, Cut { threshold, equal_left: count - n_above })
}

/// Which values are above the cut, or equal to it and among the first of those.
pub(crate) fn above(values: &[f32], Cut { threshold, mut equal_left }: Cut) -> Vec<bool> {
    // Where all or none of those that are equal are kept, as nearly everywhere, no value depends on the ones before it.
    let n_equal = values.iter().filter(|value| **value == threshold).count();
    if equal_left >= n_equal {
        return values.iter().map(|value| *value >= threshold).collect();
    }
    if equal_left == 0 {
        return values.iter().map(|value| *value > threshold).collect();
    }
    let keep = |value: &f32| {
        let equal = *value == threshold && equal_left > 0;
        equal_left -= usize::from(equal);
        equal || *value > threshold
    };
    values.iter().map(keep).collect()
}

/// Drops the share `gamma` of the largest and then the smallest, until `density` is left.
fn without_outliers(delta: &[f32], density: f64, gamma: f64) -> Vec<bool> {
    let len = delta.len();
    let target = (density * len as f64) as usize;
    let outliers = (gamma * len as f64) as usize;
    let below = len.saturating_sub(target).saturating_sub(outliers);
    let magnitudes = magnitudes(delta);
    let mut order: Vec<usize> = (0..len).collect();
    order.sort_by(|&a, &b| magnitudes[a].total_cmp(&magnitudes[b]));
    let mut kept = vec![false; len];
    order.iter().skip(below).take(target).for_each(|&at| kept[at] = true);
    kept
}

/// Random ones: the larger within its line along the second axis, the likelier, density +- epsilon.
fn ranked(group: &Group, input: usize, delta: &[f32], density: f64) -> Result<Vec<bool>, String> {
    let epsilon = group.values[OWN][input];
    if density + epsilon >= 1.0 || density - epsilon <= 0.0 {
        return Err(format!(
            "density {density} and epsilon {epsilon}: wanted density - epsilon above 0 and density + epsilon below 1"
        ));
    }
    let one_line = [1, delta.len()];
    let shape = if group.shape.len() < 2 { &one_line[..] } else { group.shape };
    let (starts, step, len) = lines(shape, 1);
    let mut kept = vec![false; delta.len()];
    for start in starts {
        let mut order: Vec<usize> = (0..len).map(|idx| start + idx * step).collect();
        order.sort_by(|&a, &b| delta[a].abs().total_cmp(&delta[b].abs()));
        for (rank, &at) in order.iter().enumerate() {
            let share = if len > 1 { rank as f64 / (len - 1) as f64 } else { 0.5 };
            kept[at] = (group.keeps)(input, at, density - epsilon + share * 2.0 * epsilon);
        }
    }
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use super::largest;

    #[test]
    fn the_largest_are_as_many_as_wanted_even_if_equal() {
        assert_eq!(largest(&[1.0, 3.0, 2.0, 2.0], 2), [false, true, true, false]);
        assert_eq!(largest(&[1.0, 1.0], 1), [true, false]);
        assert_eq!(largest(&[1.0, 1.0], 0), [false, false]);
        assert_eq!(largest(&[], 3), Vec::<bool>::new());
    }
}
