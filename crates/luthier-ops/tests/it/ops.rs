//! One test per operation.

use std::sync::Arc;

use luthier_kernels::blocks::BlockType;
use luthier_kernels::bytes::SharedBytes;
use luthier_kernels::packed::Precision;
use luthier_ops::activation::{Activation, gated};
use luthier_ops::attention::{
    AttentionSpec, Buckets, CacheType, KvCache, RelativeBias, attention, attention_cached,
};
use luthier_ops::cross_entropy::{Targets, Teaching, project, projected_cross_entropy};
use luthier_ops::embedding::embedding;
use luthier_ops::layer_norm::layer_norm;
use luthier_ops::linear::linear;
use luthier_ops::norm::rms_norm;
use luthier_ops::rope::rope;
use luthier_ops::{
    Device, StoredMatrix, Tensor, Weight, add, recompute, recompute_with, with_reference, without_tape,
};
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
    fn layer_norm_matches_its_reference(rows in 1usize..60, m in 2usize..90) {
        let x = tensor(&[rows, m], 1);
        let weights = [weight("w", &[m], 2), weight("b", &[m], 3)];
        same_as_reference(&|x, w| layer_norm(&x[0], &w[0], &w[1], 1e-3), &[x], &weights);
    }

    #[test]
    fn attention_matches_its_reference(
        b in 1usize..3, t in 1usize..150, more_keys in 0usize..150, kv in 1usize..4, group in 1usize..4,
        d in 1usize..5, causal: bool, window in prop::option::of(1usize..80), capped: bool, documents in 0u32..4,
        biased: bool, bidirectional: bool, max_distance in 9usize..90,
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
            softcap: (capped && !biased).then_some(1.5),
            causal,
            window,
            query_offset: if causal { s - t } else { 0 },
            segments: (documents > 0).then(|| (Arc::new(docs(t, false)), Arc::new(docs(s, true)))),
            bias: None,
        };
        let buckets = Buckets { count: 12, max_distance, bidirectional };
        let inputs = [tensor(&[b, t, h, d], 1), tensor(&[b, s, kv, d], 2), tensor(&[b, s, kv, d], 3)];
        let weights: Vec<Weight> = biased.then(|| weight("bias", &[12, h], 4)).into_iter().collect();
        let op = |x: &[Tensor], w: &[Weight]| {
            let bias = w.first().map(|weight| RelativeBias::new(weight.clone(), buckets));
            attention(&x[0], &x[1], &x[2], &AttentionSpec { bias, ..spec.clone() })
        };
        same_as_reference(&op, &inputs, &weights);
    }

    #[test]
    fn rope_matches_its_reference(b in 1usize..3, t in 1usize..40, h in 1usize..4, half in 1usize..9, per_row: bool) {
        let x = tensor(&[b, t, h, 2 * half], 1);
        let shape = [if per_row { b } else { 1 }, t, half];
        let (cos, sin) = (tensor(&shape, 2), tensor(&shape, 3));
        same_as_reference(&|x, _| rope(&x[0], &cos, &sin), &[x], &[]);
    }

    #[test]
    fn gated_activations_match_their_references(n in 1usize..300, kind in 0usize..4) {
        let kind = [Activation::Silu, Activation::GeluTanh, Activation::Gelu, Activation::Relu][kind];
        let wide = |seed| (tensor(&[3, n], seed) * 6.0).unwrap();
        same_as_reference(&|x, _| gated(&x[0], &x[1], kind), &[wide(1), wide(2)], &[]);
    }

    #[test]
    fn embedding_matches_its_reference(b in 1usize..4, t in 1usize..60, v in 1usize..30, m in 1usize..40) {
        let ids: Vec<u32> = values(b * t, 1).iter().map(|x| ((x + 1.0) * 0.499 * v as f32) as u32).collect();
        let ids = Tensor::from_vec(ids, (b, t), &Device::Cpu).unwrap();
        let weights = [weight("e", &[v, m], 2)];
        same_as_reference(&|_, w| embedding(&ids, &w[0], 3.0), &[], &weights);
    }

    #[test]
    fn cross_entropy_matches_its_reference(
        n in 1usize..80, m in 1usize..30, v in 1usize..70, capped: bool, skipped in 0usize..4,
        temperature in prop::option::of(prop::sample::select(vec![0.5, 1.0, 2.5])),
    ) {
        let targets = targets(n, v, skipped, temperature);
        let cap = capped.then_some(2.0);
        let op = |x: &[Tensor], w: &[Weight]| {
            // A factor other than one must reach all gradients.
            projected_cross_entropy(&x[0], &w[0], cap, &targets)? * 3.0
        };
        same_as_reference(&op, &[tensor(&[n, m], 1)], &[weight("head", &[v, m], 2)]);
    }

    #[test]
    fn cached_attention_continues_what_a_whole_pass_computes(
        b in 1usize..3, first in 1usize..70, steps in 1usize..6, kv in 1usize..3, group in 1usize..4,
        window in prop::option::of(1usize..30), biased: bool, kind in 0usize..3,
    ) {
        let (d, t) = (8, first + steps);
        let (kind, rounding) =
            [(CacheType::F32, 2e-5), (CacheType::F16, 2e-3), (CacheType::Q8, 2e-2)][kind];
        let all = [tensor(&[b, t, kv * group, d], 1), tensor(&[b, t, kv, d], 2), tensor(&[b, t, kv, d], 3)];
        let mut spec = AttentionSpec {
            scale: 0.3, softcap: None, causal: true, window, query_offset: 0, segments: None,
            bias: biased.then(|| {
                let buckets = Buckets { count: 8, max_distance: 20, bidirectional: false };
                RelativeBias::new(weight("bias", &[8, kv * group], 4), buckets)
            }),
        };
        let whole = attention(&all[0], &all[1], &all[2], &spec).unwrap();
        let mut cache = KvCache::of(kind);
        let mut at = 0;
        for step in std::iter::once(first).chain(std::iter::repeat_n(1, steps)) {
            let part = |x: &Tensor| x.narrow(1, at, step).unwrap();
            // What is forgotten again must leave no trace.
            cache.append(&part(&all[2]), &part(&all[1])).unwrap();
            cache.truncate(at).unwrap();
            cache.append(&part(&all[1]), &part(&all[2])).unwrap();
            spec.query_offset = at;
            let got = attention_cached(&part(&all[0]), &cache, &spec).unwrap();
            let plain = with_reference(|| attention_cached(&part(&all[0]), &cache, &spec)).unwrap();
            let flat = |x: &Tensor| x.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_near(&flat(&got), &flat(&part(&whole)), rounding, "fused");
            assert_near(&flat(&plain), &flat(&got), 2e-5, "reference");
            at += step;
        }
        prop_assert_eq!(cache.len(), t);
        let mut again = KvCache::of(kind).expecting(t + 3);
        let last = all[0].narrow(1, t - 1, 1).unwrap();
        if b == 1 {
            again.fill(&cache.save().unwrap()).unwrap();
            let flat = |cache| attention_cached(&last, cache, &spec).unwrap().flatten_all().unwrap();
            prop_assert_eq!(flat(&again).to_vec1::<f32>().unwrap(), flat(&cache).to_vec1::<f32>().unwrap());
        }
    }
}

fn targets(n: usize, v: usize, skipped: usize, temperature: Option<f64>) -> Targets {
    let ids = values(n, 5).iter().map(|x| ((x + 1.0) * 0.499 * v as f32) as u32).collect();
    let weights: Vec<f32> =
        (0..n).map(|i| if i % 4 < skipped { 0.0 } else { 1.0 + i as f32 / 9.0 }).collect();
    let logits = || (tensor(&[n, v], 7) * 3.0).unwrap();
    let shares = (0..n).map(|i| [0.3, 0.0, 1.0][i % 3]).collect();
    let teacher = temperature.map(|temperature| Teaching { logits: logits(), shares, temperature });
    Targets { ids, normalizer: weights.iter().sum::<f32>().max(1.0), weights, teacher }
}

/// z = (0, ln 4), t = (ln 9, 0), T = 2: softmax(z / 2) = (1/3, 2/3), softmax(t / 2) = (3/4, 1/4), so the teacher's part
/// is 4 (3/4 ln 3 + 1/4 ln 3/2) = 4 ln 3 - ln 2, its gradient 2 (1/3 - 3/4) = -5/6 at the first logit; the text's own
/// part with y = 0 is ln 5, its gradient 1/5 - 1.
#[test]
fn distillation_divides_both_sides_by_the_temperature() {
    let rows = Tensor::from_vec(vec![0f32, 1.0], (2, 1), &Device::Cpu).unwrap();
    let head = Weight::dense("head", &rows, true).unwrap();
    let hidden = candle_core::Var::from_vec(vec![4f32.ln()], (1, 1), &Device::Cpu).unwrap();
    let logits = Tensor::from_vec(vec![9f32.ln(), 0.0], (1, 2), &Device::Cpu).unwrap();
    let teacher = Some(Teaching { logits, shares: vec![0.25], temperature: 2.0 });
    let targets = Targets { ids: vec![0], weights: vec![1.0], normalizer: 1.0, teacher };
    let loss = projected_cross_entropy(&hidden, &head, None, &targets).unwrap();
    let wanted = 0.75 * 5f32.ln() + 0.25 * (4.0 * 3f32.ln() - 2f32.ln());
    assert_near(&[loss.to_scalar::<f32>().unwrap()], &[wanted], 1e-6, "loss");
    let grads = loss.backward().unwrap();
    // The head is (0, 1): the gradient of the second logit, minus that of the first.
    let wanted = 0.75 * 0.8 + 0.25 * 5.0 / 6.0;
    assert_near(
        &grads.get(&hidden).unwrap().flatten_all().unwrap().to_vec1().unwrap(),
        &[wanted],
        1e-6,
        "hidden",
    );
    let wanted = [-wanted * 4f32.ln(), wanted * 4f32.ln()];
    assert_near(&head.grad(), &wanted, 1e-6, "head");
}

#[test]
fn one_matrix_may_embed_and_project() {
    let ids = Tensor::from_vec(vec![0u32, 3, 3, 5], (1, 4), &Device::Cpu).unwrap();
    let targets = targets(4, 7, 0, None);
    let op = |_: &[Tensor], w: &[Weight]| {
        let hidden = embedding(&ids, &w[0], 1.0)?.reshape((4, 6))?;
        projected_cross_entropy(&hidden, &w[0], None, &targets)
    };
    same_as_reference(&op, &[], &[weight("tied", &[7, 6], 2)]);
}

#[test]
fn gradients_of_micro_batches_add_up_and_dropped_losses_leave_none() {
    let (head, x) = (weight("head", &[7, 6], 2), tensor(&[4, 6], 1));
    let targets = targets(4, 7, 0, None);
    let loss = || projected_cross_entropy(&x, &head, None, &targets).unwrap();
    loss().backward().unwrap();
    let once = head.grad().to_vec();
    loss().backward().unwrap();
    drop(loss());
    let twice: Vec<f32> = once.iter().map(|grad| grad * 2.0).collect();
    assert_near(&head.grad(), &twice, 1e-6, "two micro-batches");
    head.zero_grad();
    drop(loss());
    assert!(head.grad().is_empty());
    // Two losses at once: the second takes the buffer of the first.
    let (one, other) = (loss(), loss());
    (one + other).unwrap().backward().unwrap();
    assert_near(&head.grad(), &twice, 1e-6, "two losses of one backward pass");
}

#[test]
fn projection_caps_its_logits() {
    let weights = [weight("head", &[9, 6], 2)];
    same_as_reference(&|x, w| project(&x[0], &w[0], Some(0.7)), &[tensor(&[5, 6], 1)], &weights);
    same_as_reference(&|x, _| add(&x[0], &x[1]), &[tensor(&[5, 6], 1), tensor(&[5, 6], 2)], &[]);
}

#[test]
fn recomputed_layers_give_the_same_gradients() {
    let weights = [weight("w", &[6, 6], 2), weight("n", &[6], 3)];
    let layer = |x: &Tensor, states: &Tensor, w: &[Weight]| {
        linear(&rms_norm(&add(x, states)?, &w[1], 1e-5, 0.0)?, &w[0], None)
    };
    let inputs = [tensor(&[2, 5, 6], 1), tensor(&[2, 5, 6], 4)];
    let plain = run(&|x, w| layer(&layer(&x[0], &x[1], w)?, &x[1], w), &inputs, &weights);
    let again = run(
        &|x, w| {
            let (w1, w2) = (w.to_vec(), w.to_vec());
            let y = recompute_with(&x[0], &x[1], move |x, states| layer(x, states, &w1))?;
            recompute_with(&y, &x[1], move |x, states| layer(x, states, &w2))
        },
        &inputs,
        &weights,
    );
    assert_near(&again.value, &plain.value, 1e-6, "result");
    for (again, plain) in again.grads.iter().zip(&plain.grads) {
        assert_near(again, plain, 1e-6, "gradient");
    }
    // An untracked input still trains the weights.
    weights[0].zero_grad();
    let w = weights[0].clone();
    recompute(&inputs[0], move |x| linear(x, &w, None)).unwrap().sum_all().unwrap().backward().unwrap();
    assert_eq!(weights[0].grad().len(), 36);
}

#[test]
fn gradients_match_finite_differences() {
    let x = tensor(&[3, 7], 1);
    matches_differences(
        &|x, w| linear(&x[0], &w[0], Some(&w[1])),
        std::slice::from_ref(&x),
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
        bias: None,
    };
    let inputs = [tensor(&[2, 9, 4, 6], 1), tensor(&[2, 9, 2, 6], 2), tensor(&[2, 9, 2, 6], 3)];
    matches_differences(&|x, _| attention(&x[0], &x[1], &x[2], &spec), &inputs, &[]);
    for kind in [Activation::Silu, Activation::GeluTanh, Activation::Gelu] {
        matches_differences(
            &|x, _| gated(&x[0], &x[1], kind),
            &[tensor(&[5, 9], 1), tensor(&[5, 9], 2)],
            &[],
        );
    }
    for temperature in [None, Some(1.0), Some(2.5)] {
        let targets = targets(6, 11, 1, temperature);
        let op = |x: &[Tensor], w: &[Weight]| projected_cross_entropy(&x[0], &w[0], Some(3.0), &targets);
        matches_differences(&op, &[tensor(&[6, 5], 1)], &[weight("head", &[11, 5], 2)]);
    }
    let (cos, sin) = (tensor(&[1, 5, 3], 2), tensor(&[1, 5, 3], 3));
    matches_differences(&|x, _| rope(&x[0], &cos, &sin), &[tensor(&[2, 5, 2, 6], 1)], &[]);
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
        bias: None,
    };
    let y = attention(&q, &k, &k, &spec).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert!(y.iter().all(|value| value.is_nan()));
}

#[test]
fn a_stored_matrix_passes_gradients_to_its_input() {
    for rows in [2, 9] {
        let w = values(11 * 6, 2);
        let bytes = SharedBytes::from_vec(w.iter().flat_map(|value| value.to_le_bytes()).collect());
        let stored = Weight::stored(
            "w",
            StoredMatrix {
                block_type: BlockType::F32,
                bytes,
                rows: 11,
                cols: 6,
                precision: Precision::Precise,
            },
        );
        let dense = Weight::dense("w", &Tensor::from_vec(w, (11, 6), &Device::Cpu).unwrap(), false).unwrap();
        let x = tensor(&[rows, 6], 1);
        let one = run(&|x, _| linear(&x[0], &stored, None), std::slice::from_ref(&x), &[]);
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
    let mut unknown = targets(4, 3, 0, None);
    unknown.ids[2] = 3;
    assert!(projected_cross_entropy(&tensor(&[4, 6], 1), &w, None, &unknown).is_err());
    unknown.weights[2] = 0.0;
    assert!(projected_cross_entropy(&tensor(&[4, 6], 1), &w, None, &unknown).is_ok());
    let ids = Tensor::from_vec(vec![1u32, 3], (1, 2), &Device::Cpu).unwrap();
    assert!(embedding(&ids, &w, 1.0).is_err());
    let mut cache = KvCache::new();
    cache.append(&tensor(&[1, 2, 2, 4], 1), &tensor(&[1, 2, 2, 4], 2)).unwrap();
    assert!(cache.append(&tensor(&[1, 2, 1, 4], 1), &tensor(&[1, 2, 1, 4], 2)).is_err());
}
