//! Methods that add up what models learnt since their base: `task_arithmetic`, `ties`, `dare_linear`, `dare_ties`, `della`,
//! `della_linear`, `breadcrumbs`, `breadcrumbs_ties`.
//!
//! w_0 + lambda * sum_i weight_i * s(w_i - w_0), over those of the majority's sign where the name says ties, divided by
//! the sum of their weights where `normalize` says so. s keeps a share (`density`) of the differences: the largest (TIES,
//! arXiv:2306.01708), random ones (DARE, arXiv:2311.03099), random ones by rank of magnitude (DELLA, arXiv:2406.11617), the
//! largest but for outliers (breadcrumbs, arXiv:2312.06795), all (task arithmetic, arXiv:2212.04089). `rescale` brings the
//! sum of magnitudes back to what it was.

use luthier_checkpoint::Result;

use super::looks::{Known, Section};
use super::method::{Base, Cut, Group, Method, Unit, flag, lines, number};
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
            unit: |_| if matches!($sparse, Sparse::Ranked) { Unit::Place } else { Unit::Value },
            look: |section| look(section, $sparse),
            searches: match $sparse {
                Sparse::Magnitude => 1,
                Sparse::Outliers => 2,
                _ => 0,
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

/// Where the differences end that are kept, and, where the rest is scaled, by how much: a number for each input.
fn look(section: &Section, sparse: Sparse) -> Result<Known> {
    let (n_inputs, n_values) = (section.n_inputs(), section.n_values());
    let density = |input: usize| section.values()[DENSITY][input];
    let cut: Vec<usize> = section.others().into_iter().filter(|&input| density(input) < 1.0).collect();
    let mut known = Known::default();
    if cut.is_empty() || sparse == Sparse::No {
        return Ok(known);
    }
    let is_inside = |count: &usize| (1..n_values).contains(count);
    match sparse {
        Sparse::Magnitude => {
            let count = |input: usize| cut.contains(&input).then(|| kept_count(density(input), n_values));
            let counts: Vec<Option<usize>> =
                (0..n_inputs).map(|input| count(input).filter(|_| density(input) > 0.0)).collect();
            known.cuts = section.cuts(&counts, &|group, input| magnitudes(&group.offsets(input, true)))?;
        }
        Sparse::Outliers => {
            let counts = |input: usize| match cut.contains(&input) {
                true => {
                    outliers(section.values(), input, n_values).map(|count| Some(count).filter(is_inside))
                }
                false => [None; 2],
            };
            let counts: Vec<Option<usize>> = (0..n_inputs).flat_map(counts).collect();
            known.cuts = section.cuts(&counts, &|group, at| smallness(&group.offsets(at / 2, true)))?;
        }
        _ => {}
    }
    if section.values()[RESCALE][0] > 0.0 {
        let sums = section.sums(&known, 2 * n_inputs, &|group| {
            let mut sums = vec![0f64; 2 * n_inputs];
            for &input in &cut {
                let delta = group.offsets(input, true);
                for (value, kept) in delta.iter().zip(kept(group, input, sparse, &delta)?) {
                    let size = f64::from(value.abs());
                    sums[2 * input] += size;
                    sums[2 * input + 1] += if kept { size } else { 0.0 };
                }
            }
            Ok(sums)
        })?;
        known.numbers = sums.chunks_exact(2).map(|sums| f64::from(rescaled(sums[0], sums[1]))).collect();
    }
    Ok(known)
}

fn merge(group: &Group, sparse: Sparse, ties: bool) -> std::result::Result<Vec<f32>, String> {
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
fn sparsify(
    group: &Group,
    input: usize,
    sparse: Sparse,
    delta: &mut [f32],
) -> std::result::Result<(), String> {
    if group.values[DENSITY][input] >= 1.0 {
        return Ok(());
    }
    let kept = kept(group, input, sparse, delta)?;
    delta.iter_mut().zip(&kept).for_each(|(value, kept)| *value = if *kept { *value } else { 0.0 });
    if let Some(scale) = group.numbers.get(input) {
        delta.iter_mut().for_each(|value| *value *= *scale as f32);
    }
    Ok(())
}

/// Which of the differences of one input, of which not all are kept, are.
fn kept(
    group: &Group,
    input: usize,
    sparse: Sparse,
    delta: &[f32],
) -> std::result::Result<Vec<bool>, String> {
    let density = group.values[DENSITY][input];
    let cut = |at: usize| group.cuts.get(at).copied().flatten();
    Ok(match sparse {
        Sparse::No => vec![true; delta.len()],
        Sparse::Magnitude => match cut(input) {
            Some(cut) => above(&magnitudes(delta), cut),
            None => vec![false; delta.len()],
        },
        Sparse::Random if density < 0.0 => return Err(format!("density: wanted 0 to 1, came {density}")),
        Sparse::Random => (0..delta.len()).map(|at| (group.keeps)(input, at, density)).collect(),
        Sparse::Outliers => {
            let smallness = smallness(delta);
            let [below, kept] = outliers(group.values, input, group.n_values);
            let among = |count: usize, cut: Option<Cut>| match cut {
                Some(cut) => above(&smallness, cut),
                None => vec![count > 0; delta.len()],
            };
            let (below, kept) = (among(below, cut(2 * input)), among(kept, cut(2 * input + 1)));
            below.into_iter().zip(kept).map(|(below, kept)| kept && !below).collect()
        }
        Sparse::Ranked if density <= 0.0 => vec![false; delta.len()],
        Sparse::Ranked => ranked(group, input, delta, density)?,
    })
}

/// What brings a sum of magnitudes back to what it was.
pub(crate) fn rescaled(before: f64, after: f64) -> f32 {
    if before >= 1e-7 && after >= 1e-7 { (before / after) as f32 } else { 1.0 }
}

fn magnitudes(delta: &[f32]) -> Vec<f32> {
    delta.iter().map(|value| value.abs()).collect()
}

/// Numbers that are the larger the smaller the magnitudes are, by their bits: of equal magnitudes the first then count as
/// the smallest, as in a sorted list.
fn smallness(delta: &[f32]) -> Vec<f32> {
    let infinite = f32::INFINITY.to_bits();
    delta.iter().map(|value| f32::from_bits(infinite - value.abs().to_bits().min(infinite))).collect()
}

/// How many of the smallest differences of an input are dropped, and how many of the smallest there are together with those
/// that are kept: the share `gamma` of the largest goes first, then the smallest until `density` is left.
fn outliers(values: &[Vec<f64>], input: usize, len: usize) -> [usize; 2] {
    let target = (values[DENSITY][input].max(0.0) * len as f64) as usize;
    let outliers = (values[OWN][input] * len as f64) as usize;
    let below = len.saturating_sub(target).saturating_sub(outliers);
    [below, (below + target).min(len)]
}

/// How many of `len` values a share between 0 and 1 keeps.
pub(crate) fn kept_count(density: f64, len: usize) -> usize {
    ((density * len as f64) as usize).max(1)
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

/// Random ones: the larger within its line along the second axis, the likelier, density +- epsilon.
fn ranked(
    group: &Group,
    input: usize,
    delta: &[f32],
    density: f64,
) -> std::result::Result<Vec<bool>, String> {
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
pub(crate) mod tests {
    use super::*;

    /// Which values are among the `count` largest; of equal ones the first.
    pub(crate) fn largest(values: &[f32], count: usize) -> Vec<bool> {
        if count >= values.len() || count == 0 {
            return vec![count > 0; values.len()];
        }
        let mut order = values.to_vec();
        let (_, threshold, _) = order.select_nth_unstable_by(count - 1, |a, b| b.total_cmp(a));
        let threshold = *threshold;
        let n_above = values.iter().filter(|value| **value > threshold).count();
        above(values, Cut { threshold, equal_left: count - n_above })
    }

    #[test]
    fn the_largest_are_as_many_as_wanted_even_if_equal() {
        assert_eq!(largest(&[1.0, 3.0, 2.0, 2.0], 2), [false, true, true, false]);
        assert_eq!(largest(&[1.0, 1.0], 1), [true, false]);
        assert_eq!(largest(&[1.0, 1.0], 0), [false, false]);
        assert_eq!(largest(&[], 3), Vec::<bool>::new());
    }
}
