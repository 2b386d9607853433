//! Compares a fused operation with its reference, and its gradients with finite differences.

use luthier_ops::{Device, Result, Tensor, Weight, with_reference};

/// Reproducible values in -1..1.
pub(crate) fn values(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

pub(crate) fn tensor(shape: &[usize], seed: u64) -> Tensor {
    Tensor::from_vec(values(shape.iter().product(), seed), shape, &Device::Cpu).unwrap()
}

pub(crate) fn weight(name: &str, shape: &[usize], seed: u64) -> Weight {
    Weight::dense(name, &tensor(shape, seed), true).unwrap()
}

/// An operation on tracked inputs and trainable weights.
pub(crate) type Op<'a> = &'a dyn Fn(&[Tensor], &[Weight]) -> Result<Tensor>;

/// A result and the gradients of `sum(result * seed)` by inputs, then by weights.
pub(crate) struct Outcome {
    pub(crate) value: Vec<f32>,
    pub(crate) grads: Vec<Vec<f32>>,
}

pub(crate) fn run(op: Op, inputs: &[Tensor], weights: &[Weight]) -> Outcome {
    let variables: Vec<_> = inputs.iter().map(|x| candle_core::Var::from_tensor(x).unwrap()).collect();
    let tracked: Vec<Tensor> = variables.iter().map(|x| x.as_tensor().clone()).collect();
    weights.iter().for_each(Weight::zero_grad);
    let y = op(&tracked, weights).unwrap();
    let seed = tensor(y.dims(), 99);
    let grads = y.mul(&seed).unwrap().sum_all().unwrap().backward().unwrap();
    luthier_ops::weight::collect(weights, &grads).unwrap();
    let mut all: Vec<Vec<f32>> = tracked
        .iter()
        .map(|x| match grads.get(x) {
            Some(grad) => grad.flatten_all().unwrap().to_vec1().unwrap(),
            None => vec![0.0; x.elem_count()],
        })
        .collect();
    // No gradient counts as zero.
    all.extend(weights.iter().map(|weight| match weight.grad() {
        grad if grad.is_empty() => vec![0.0; weight.elem_count()],
        grad => grad.to_vec(),
    }));
    Outcome { value: y.flatten_all().unwrap().to_vec1().unwrap(), grads: all }
}

pub(crate) fn assert_near(got: &[f32], wanted: &[f32], tolerance: f32, what: &str) {
    assert_eq!(got.len(), wanted.len(), "{what}: number of values");
    for (at, (got, wanted)) in got.iter().zip(wanted).enumerate() {
        let near = (got - wanted).abs() <= tolerance * (1.0 + wanted.abs());
        assert!(near, "{what}: value {at} is {got}, the reference has {wanted}");
    }
}

/// Fused against reference, 2e-5 relative to values of order 1: sums of up to some hundred products in f32.
pub(crate) fn same_as_reference(op: Op, inputs: &[Tensor], weights: &[Weight]) {
    let fused = run(op, inputs, weights);
    let plain = with_reference(|| run(op, inputs, weights));
    assert_near(&fused.value, &plain.value, 2e-5, "result");
    for (at, (fused, plain)) in fused.grads.iter().zip(&plain.grads).enumerate() {
        assert_near(fused, plain, 5e-5, &format!("gradient {at}"));
    }
}

/// The gradient by every tenth value of the inputs against central differences.
pub(crate) fn matches_differences(op: Op, inputs: &[Tensor], weights: &[Weight]) {
    let outcome = run(op, inputs, weights);
    let objective = |inputs: &[Tensor]| -> f64 {
        let y = op(inputs, weights).unwrap();
        let seed = values(y.elem_count(), 99);
        let y: Vec<f32> = y.flatten_all().unwrap().to_vec1().unwrap();
        y.iter().zip(&seed).map(|(y, seed)| f64::from(*y) * f64::from(*seed)).sum()
    };
    let step = 1e-2f32;
    for (which, input) in inputs.iter().enumerate() {
        let base: Vec<f32> = input.flatten_all().unwrap().to_vec1().unwrap();
        for at in (0..base.len()).step_by(10) {
            let moved = |by: f32| {
                let mut values = base.clone();
                values[at] += by;
                let mut inputs = inputs.to_vec();
                inputs[which] = Tensor::from_vec(values, input.dims(), &Device::Cpu).unwrap();
                objective(&inputs)
            };
            let slope = ((moved(step) - moved(-step)) / f64::from(2.0 * step)) as f32;
            let grad = outcome.grads[which][at];
            assert!(
                (slope - grad).abs() < 1e-2 * (1.0 + slope.abs()),
                "input {which}[{at}]: {grad}, slope {slope}"
            );
        }
    }
}
