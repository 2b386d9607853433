//! `model_stock`: from the base towards the average of the others, as far as their mean angle says:
//! t = n cos / (1 + (n-1) cos), for the whole tensor or line by line (`filter_wise`). Paper: arXiv:2403.19522, eq. 5.

use luthier_checkpoint::Result;

use super::looks::{Known, Section};
use super::method::{Base, Group, Method, Unit, flag, lines};
use super::products::Products;

pub(crate) const METHOD: Method = Method {
    name: "model_stock",
    parameters: &[flag("filter_wise", false)],
    base: Base::Required,
    inputs: 3..=usize::MAX,
    unit,
    look,
    searches: 0,
    merge,
};

fn unit(values: &[Vec<f64>]) -> Unit {
    if values[0][0] > 0.0 { Unit::Line } else { Unit::Value }
}

/// How far it is from the base to the average, where that is one for all.
fn look(section: &Section) -> Result<Known> {
    if unit(section.values()) == Unit::Line {
        return Ok(Known::default());
    }
    let products = Products::of(section, true)?;
    Ok(Known { numbers: vec![share(&products, &section.others())], ..Known::default() })
}

/// t of the differences from the base at these places.
fn share(products: &Products, others: &[usize]) -> f64 {
    let mut cosines = Vec::new();
    for (at, &a) in others.iter().enumerate() {
        for &b in &others[at + 1..] {
            let lengths = (products.length(a) * products.length(b)).max(1e-6);
            cosines.push((products.get(a, b) / lengths).clamp(-1.0, 1.0));
        }
    }
    let count = others.len() as f64;
    let cosine = cosines.iter().sum::<f64>() / cosines.len().max(1) as f64;
    let denominator = 1.0 + (count - 1.0) * cosine;
    if denominator.abs() < 1e-6 { 0.0 } else { count * cosine / denominator }
}

fn merge(group: &Group) -> std::result::Result<Vec<f32>, String> {
    let base = group.tensors[group.base.unwrap_or(0)];
    let others = group.others();
    let mut merged = vec![0f32; group.len()];
    let mut mix = |line: std::ops::Range<usize>, t: f64| {
        for at in line {
            let sum: f64 = others.iter().map(|&other| f64::from(group.tensors[other][at])).sum();
            let average = sum / others.len() as f64;
            merged[at] = (t * average + (1.0 - t) * f64::from(base[at])) as f32;
        }
    };
    if let [t] = *group.numbers {
        mix(0..group.len(), t);
        return Ok(merged);
    }
    let offsets: Vec<_> = others.iter().map(|&other| group.offsets(other, true)).collect();
    let numbers: Vec<usize> = (0..others.len()).collect();
    let (starts, _, len) = lines(group.shape, group.shape.len().saturating_sub(1));
    for start in starts {
        let line: Vec<&[f32]> = offsets.iter().map(|values| &values[start..start + len]).collect();
        mix(start..start + len, share(&Products::between(&line), &numbers));
    }
    Ok(merged)
}
