//! The weights that a run trains: which they are, their values in place, their gradients.

use candle_core::{CpuStorage, Layout};
use luthier_kernels::optimizer::sum_of_squares;
use luthier_ops::Weight;
use luthier_ops::weight::Values;

use crate::{Error, Result};

/// Marks the weights that `freeze` and `train_only` leave trainable, freezes the others, and gives the former in
/// layout order. A pattern that names no weight is an error, and so is a trained weight without f32 values.
pub fn choose(weights: &[Weight], freeze: &[String], train_only: &[String]) -> Result<Vec<Weight>> {
    for (key, patterns) in [("freeze", freeze), ("train_only", train_only)] {
        for pattern in patterns {
            if !weights.iter().any(|weight| matches(pattern, weight.name())) {
                return Err(Error::recipe(
                    key,
                    format!("{pattern} names no weight; `luthier info MODEL` lists them"),
                ));
            }
        }
    }
    let mut chosen = Vec::new();
    for weight in weights {
        let any = |patterns: &[String]| patterns.iter().any(|pattern| matches(pattern, weight.name()));
        let trained = !any(freeze) && (train_only.is_empty() || any(train_only));
        weight.set_trainable(trained);
        if !trained {
            continue;
        }
        match weight.values() {
            Values::Dense(values) if values.is_variable() => chosen.push(weight.clone()),
            _ => {
                let what = format!(
                    "weight {} holds no f32 values of its own; open the model for training",
                    weight.name()
                );
                return Err(Error::data(what));
            }
        }
    }
    if chosen.is_empty() {
        return Err(Error::recipe("freeze", "leaves no weight to train"));
    }
    Ok(chosen)
}

/// Whether `name` is `pattern`, in which `*` stands for any run of characters.
pub fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let parts: Vec<&str> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    rest.ends_with(last)
}

/// Lets `edit` change the f32 values of a dense weight in place.
pub fn edit_values(weight: &Weight, mut edit: impl FnMut(&mut [f32])) -> Result<()> {
    Ok(weight.update(|values, _| edit(values))?)
}

/// Lets `look` see the f32 values of a dense weight on CPU without copying them.
pub fn view_values<T>(weight: &Weight, look: impl FnOnce(&[f32]) -> T) -> Result<T> {
    let Values::Dense(values) = weight.values() else {
        return Err(Error::data(format!("weight {} holds no f32 values", weight.name())));
    };
    let (storage, layout) = values.storage_and_layout();
    match &*storage {
        candle_core::Storage::Cpu(CpuStorage::F32(all)) => Ok(look(&all[extent(layout)])),
        _ => Err(Error::data(format!("weight {} is not f32 on CPU", weight.name()))),
    }
}

/// Euclidean norm over all gradients, in f64, summed in layout order.
pub fn gradient_norm(weights: &[Weight]) -> f64 {
    weights.iter().map(|weight| sum_of_squares(&weight.grad())).sum::<f64>().sqrt()
}

fn extent(layout: &Layout) -> std::ops::Range<usize> {
    let start = layout.start_offset();
    start..start + layout.shape().elem_count()
}

/// Rounds frozen f32 weights to bf16 where the passes of a run see bf16; matrices in their file's blocks stay.
pub fn round_frozen(weights: &[Weight]) -> Result<()> {
    for weight in weights.iter().filter(|weight| matches!(weight.values(), Values::Dense(_))) {
        edit_values(weight, |values| values.iter_mut().for_each(|x| *x = crate::masters::rounded(*x)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor};

    #[test]
    fn stars_stand_for_any_run() {
        assert!(matches("*cross_attn*", "decoder.layers.0.cross_attn.q_proj.weight"));
        assert!(matches("decoder.*.weight", "decoder.norm.weight"));
        assert!(matches("a*b*c", "a-b-b-c") && matches("same", "same") && matches("*", ""));
        assert!(!matches("decoder", "decoder.norm") && !matches("a*bc*bc", "a.bc") && !matches("x*", "y"));
    }

    #[test]
    fn values_are_edited_in_place() {
        let weight =
            Weight::dense("w", &Tensor::new(&[[1f32, 2.], [3., 4.]], &Device::Cpu).unwrap(), true).unwrap();
        edit_values(&weight, |values| values.iter_mut().for_each(|x| *x *= 2.0)).unwrap();
        let seen = weight.to_tensor(&Device::Cpu).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(seen, [[2., 4.], [6., 8.]]);
        assert_eq!(view_values(&weight, |values| values[3]).unwrap(), 8.0);
    }

    #[test]
    fn the_norm_is_global() {
        let weight = |name: &str, factors: &[f32]| {
            let values = Tensor::ones(factors.len(), luthier_ops::DType::F32, &Device::Cpu).unwrap();
            let weight = Weight::dense(name, &values, true).unwrap();
            let factors = Tensor::new(factors, &Device::Cpu).unwrap();
            (weight.to_tensor(&Device::Cpu).unwrap().mul(&factors).unwrap().sum_all().unwrap(), weight)
        };
        // The gradients are the factors: sqrt(9 + 16 + 144) = 13.
        let ((loss_a, a), (loss_b, b)) = (weight("a", &[3.0, 4.0]), weight("b", &[12.0]));
        let weights = [a, b];
        luthier_ops::weight::collect(&weights, &(loss_a + loss_b).unwrap().backward().unwrap()).unwrap();
        assert_eq!(gradient_norm(&weights), 13.0);
        weights.iter().for_each(Weight::zero_grad);
        assert_eq!(gradient_norm(&weights), 0.0);
    }

    #[test]
    fn frozen_weights_are_not_chosen_and_wrong_patterns_are_named() {
        let weight = |name: &str| {
            Weight::dense(name, &Tensor::zeros(2, luthier_ops::DType::F32, &Device::Cpu).unwrap(), true)
                .unwrap()
        };
        let weights = [weight("encoder.a"), weight("decoder.cross_attn.b")];
        let chosen = choose(&weights, &[], &["*cross_attn*".to_string()]).unwrap();
        assert_eq!(chosen.iter().map(Weight::name).collect::<Vec<_>>(), ["decoder.cross_attn.b"]);
        assert!(!weights[0].is_trainable() && weights[1].is_trainable());
        let error = choose(&weights, &["*croz*".to_string()], &[]).unwrap_err().to_string();
        assert!(error.contains("freeze: *croz* names no weight"), "{error}");
        assert!(choose(&weights, &["*".to_string()], &[]).is_err());
    }
}
