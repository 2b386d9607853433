//! Routers and experts.

use std::sync::Arc;

use luthier_kernels::blocks::BlockType;
use luthier_kernels::bytes::SharedBytes;
use luthier_kernels::packed::Precision;
use luthier_ops::activation::Activation;
use luthier_ops::experts::{Expert, experts};
use luthier_ops::router::{load_balance, route};
use luthier_ops::{Device, StoredMatrix, Tensor, Weight};
use proptest::prelude::*;

use crate::check::{assert_near, matches_differences, run, same_as_reference, tensor, weight};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn routes_match_their_reference(n in 1usize..30, e in 1usize..12, k in 1usize..5, normalized: bool) {
        let logits = (tensor(&[n, e], 1) * 3.0).unwrap();
        same_as_reference(&|x, _| Ok(route(&x[0], k.min(e), normalized)?.0), &[logits], &[]);
    }

    #[test]
    fn experts_match_their_reference(
        n in 1usize..40, m in 1usize..30, f in 1usize..30, e in 1usize..9, k in 1usize..4, normalized: bool,
        kind in 0usize..4,
    ) {
        let kind = [Activation::Silu, Activation::GeluTanh, Activation::Gelu, Activation::Relu][kind];
        let weights = expert_weights(e, f, m);
        let op = |x: &[Tensor], w: &[Weight]| {
            let (weights, routes) = route(&x[1], k.min(e), normalized)?;
            experts(&x[0], &weights, &routes, &grouped(w), kind)
        };
        same_as_reference(&op, &[tensor(&[n, m], 1), (tensor(&[n, e], 2) * 4.0).unwrap()], &weights);
    }
}

fn expert_weights(e: usize, f: usize, m: usize) -> Vec<Weight> {
    let shapes = [[f, m], [f, m], [m, f]];
    (0..3 * e).map(|at| weight(&format!("w{at}"), &shapes[at % 3], 10 + at as u64)).collect()
}

fn grouped(weights: &[Weight]) -> Arc<Vec<Expert>> {
    let expert = |w: &[Weight]| Expert { gate: w[0].clone(), up: w[1].clone(), down: w[2].clone() };
    Arc::new(weights.chunks_exact(3).map(expert).collect())
}

#[test]
fn experts_match_differences() {
    let op = |x: &[Tensor], w: &[Weight]| {
        let (weights, routes) = route(&x[1], 2, false)?;
        experts(&x[0], &weights, &routes, &grouped(w), Activation::Silu)
    };
    // Steps of the differences must not change who is chosen.
    let logits: Vec<f32> = (0..7 * 4).map(|at| (at * 7 % 4) as f32 * 0.5 + at as f32 * 0.001).collect();
    let logits = Tensor::from_vec(logits, (7, 4), &Device::Cpu).unwrap();
    matches_differences(&op, &[tensor(&[7, 6], 1), logits], &expert_weights(4, 5, 6));
}

/// Two tokens, three experts, top 1: f = (1/2, 1/2, 0), P the mean of the softmaxes; 3 (P_0 / 2 + P_1 / 2).
#[test]
fn load_balance_has_the_value_worked_by_hand() {
    let logits = |values: &[f32]| Tensor::from_slice(values, (values.len() / 3, 3), &Device::Cpu).unwrap();
    let third = (2f32).ln();
    // Softmaxes (1/2, 1/4, 1/4) and (1/4, 1/2, 1/4): P = (3/8, 3/8, 1/4).
    let both = logits(&[third, 0.0, 0.0, 0.0, third, 0.0]);
    let value = |tensor: Tensor| tensor.to_scalar::<f32>().unwrap();
    let balance = value(load_balance(std::slice::from_ref(&both), 1, None).unwrap());
    assert!((balance - 9.0 / 8.0).abs() < 1e-6, "{balance}");
    // Layers count together, padding does not count.
    let padded = logits(&[third, 0.0, 0.0, 0.0, third, 0.0, 9.0, 0.0, 0.0]);
    let counted = [true, true, false];
    let balance = value(load_balance(&[padded.clone(), padded], 1, Some(&counted)).unwrap());
    assert!((balance - 9.0 / 8.0).abs() < 1e-6, "{balance}");
    matches_differences(&|x, _| load_balance(&x[..1], 1, None), &[both], &[]);
}

#[test]
fn experts_that_nobody_asks_have_no_gradient() {
    let weights = expert_weights(3, 4, 5);
    let logits = Tensor::from_slice(&[1f32, 0.0, -9.0], (1, 3), &Device::Cpu).unwrap();
    let op = |x: &[Tensor], w: &[Weight]| {
        let (weights, routes) = route(&x[1], 2, true)?;
        assert_eq!(*routes.chosen, [0, 1]);
        experts(&x[0], &weights, &routes, &grouped(w), Activation::Silu)
    };
    let outcome = run(&op, &[tensor(&[1, 5], 1), logits], &weights);
    assert!(outcome.grads[2..8].iter().all(|grad| grad.iter().any(|value| *value != 0.0)));
    assert!(outcome.grads[8..].iter().all(|grad| grad.len() == 20 && grad.iter().all(|value| *value == 0.0)));
}

#[test]
fn experts_left_in_their_files_encoding_give_the_dense_result() {
    let (e, f, m) = (3, 32, 64);
    let dense = expert_weights(e, f, m);
    let stored: Vec<Weight> = dense
        .iter()
        .map(|weight| {
            let values: Vec<f32> =
                weight.to_tensor(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap();
            let bytes = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            let (rows, cols) = (weight.shape()[0], weight.shape()[1]);
            let bytes = SharedBytes::from_vec(bytes);
            Weight::stored(
                weight.name(),
                StoredMatrix { block_type: BlockType::F32, bytes, rows, cols, precision: Precision::Precise },
            )
        })
        .collect();
    let (x, logits) = (tensor(&[9, m], 1), tensor(&[9, e], 2));
    let compute = |w: &[Weight]| -> Vec<f32> {
        let (weights, routes) = route(&logits, 2, true).unwrap();
        let y = experts(&x, &weights, &routes, &grouped(w), Activation::Silu).unwrap();
        y.flatten_all().unwrap().to_vec1().unwrap()
    };
    assert_near(&compute(&stored), &compute(&dense), 1e-5, "stored");
    assert!(route(&logits, 4, true).is_err() && route(&logits, 0, true).is_err());
}
