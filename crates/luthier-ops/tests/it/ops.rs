//! One test per operation.

use std::sync::Arc;

use luthier_kernels::blocks::BlockType;
use luthier_kernels::bytes::SharedBytes;
use luthier_ops::attention::{AttentionSpec, attention};
use luthier_ops::linear::linear;
use luthier_ops::norm::rms_norm;
use luthier_ops::{Device, StoredMatrix, Tensor, Weight, without_tape};
use proptest::prelude::*;

use crate::check::{assert_near, matches_differences, run, same_as_reference, tensor, values, weight};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn linear_matches_its_reference(rows in 1usize..40, m in 1usize..70, n in 1usize..70, biased: bool) {
        let x = tensor(&[rows, m], 1);
        let mut weights = vec![weight("w", &[n, m], 2)];
        if biased {
            weights.push(weight("b", &[n], 3));
        }
        same_as_reference(&|x, w| linear(&x[0], &w[0], w.get(1)), &[x], &weights);
    }

    #[test]
    fn rms_norm_matches_its_reference(rows in 1usize..60, m in 1usize..90, offset in 0usize..2) {
        let x = tensor(&[rows, m], 1);
        let weights = [weight("w", &[m], 2)];
        same_as_reference(&|x, w| rms_norm(&x[0], &w[0], 1e-5, offset as f64), &[x], &weights);
    }

    #[test]
    fn attention_matches_its_reference(
        b in 1usize..3, t in 1usize..150, more_keys in 0usize..150, kv in 1usize..4, group in 1usize..4,
        d in 1usize..5, causal: bool, window in prop::option::of(1usize..80), capped: bool, documents in 0u32..4,
    ) {
        let (s, h, d) = (t + more_keys, kv * group, d * 6);
        // Two documents a row, interleaved lengths, and some padding keys.
        let docs = |len: usize, padded: bool| -> Vec<u32> {
            (0..b * len).map(|i| match (i % len) as u32 * (documents + 1) / len as u32 {
                doc if padded && doc == 2 => u32::MAX,
                doc => doc + 10 * (i / len) as u32,
            }).collect()
        };
        let spec = AttentionSpec {
            scale: 0.4,
            softcap: capped.then_some(1.5),
            causal,
            window,
            query_offset: if causal { s - t } else { 0 },
            segments: (documents > 0).then(|| (Arc::new(docs(t, false)), Arc::new(docs(s, true)))),
        };
        let inputs = [tensor(&[b, t, h, d], 1), tensor(&[b, s, kv, d], 2), tensor(&[b, s, kv, d], 3)];
        same_as_reference(&|x, _| attention(&x[0], &x[1], &x[2], &spec), &inputs, &[]);
    }
}

#[test]
fn gradients_match_finite_differences() {
    let x = tensor(&[3, 7], 1);
    matches_differences(
        &|x, w| linear(&x[0], &w[0], Some(&w[1])),
        &[x.clone()],
        &[weight("w", &[5, 7], 2), weight("b", &[5], 3)],
    );
    matches_differences(&|x, w| rms_norm(&x[0], &w[0], 1e-5, 1.0), &[x], &[weight("w", &[7], 2)]);
    let spec = AttentionSpec {
        scale: 0.5,
        softcap: Some(2.0),
        causal: true,
        window: Some(4),
        query_offset: 0,
        segments: None,
    };
    let inputs = [tensor(&[2, 9, 4, 6], 1), tensor(&[2, 9, 2, 6], 2), tensor(&[2, 9, 2, 6], 3)];
    matches_differences(&|x, _| attention(&x[0], &x[1], &x[2], &spec), &inputs, &[]);
}

#[test]
fn nan_reaches_the_output_of_attention() {
    let q = tensor(&[1, 5, 1, 4], 1);
    let k = Tensor::full(f32::NAN, (1, 5, 1, 4), &Device::Cpu).unwrap();
    let spec = AttentionSpec {
        scale: 1.0,
        softcap: None,
        causal: true,
        window: None,
        query_offset: 0,
        segments: None,
    };
    let y = attention(&q, &k, &k, &spec).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert!(y.iter().all(|value| value.is_nan()));
}

#[test]
fn a_stored_matrix_passes_gradients_to_its_input() {
    for rows in [2, 9] {
        let w = values(11 * 6, 2);
        let bytes = SharedBytes::from_vec(w.iter().flat_map(|value| value.to_le_bytes()).collect());
        let stored =
            Weight::stored("w", StoredMatrix { block_type: BlockType::F32, bytes, rows: 11, cols: 6 });
        let dense = Weight::dense("w", &Tensor::from_vec(w, (11, 6), &Device::Cpu).unwrap(), false).unwrap();
        let x = tensor(&[rows, 6], 1);
        let one = run(&|x, _| linear(&x[0], &stored, None), &[x.clone()], &[]);
        let other = run(&|x, _| linear(&x[0], &dense, None), &[x], &[]);
        assert_near(&one.value, &other.value, 1e-6, "result");
        assert_near(&one.grads[0], &other.grads[0], 1e-6, "gradient");
        assert!(stored.grad().is_empty() && dense.grad().is_empty());
    }
}

#[test]
fn weights_learn_under_an_untracked_input_and_not_without_tape() {
    let (x, w) = (tensor(&[4, 6], 1), weight("w", &[3, 6], 2));
    let y = linear(&x, &w, None).unwrap();
    y.sum_all().unwrap().backward().unwrap();
    let once = w.grad().to_vec();
    assert_eq!(once.len(), 18);
    linear(&x, &w, None).unwrap().sum_all().unwrap().backward().unwrap();
    let twice: Vec<f32> = once.iter().map(|grad| grad * 2.0).collect();
    assert_near(&w.grad(), &twice, 1e-6, "two passes add up");
    w.zero_grad();
    assert!(w.grad().is_empty());
    let silent = without_tape(|| linear(&x, &w, None)).unwrap();
    assert!(!silent.track_op());
    w.set_trainable(false);
    assert!(!linear(&x, &w, None).unwrap().track_op());
}

#[test]
fn update_changes_values_in_place() {
    let w = weight("w", &[2, 2], 1);
    linear(&tensor(&[1, 2], 3), &w, None).unwrap().sum_all().unwrap().backward().unwrap();
    w.update(|values, grad| values.iter_mut().zip(grad).for_each(|(value, grad)| *value = *grad)).unwrap();
    let values = w.to_tensor(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(values, w.grad().to_vec());
}

#[test]
fn wrong_shapes_are_refused() {
    let w = weight("w", &[3, 6], 2);
    assert!(linear(&tensor(&[4, 5], 1), &w, None).is_err());
    assert!(linear(&tensor(&[4, 6], 1), &w, Some(&weight("b", &[2], 1))).is_err());
    assert!(rms_norm(&tensor(&[4, 5], 1), &weight("n", &[4], 1), 1e-5, 0.0).is_err());
}
