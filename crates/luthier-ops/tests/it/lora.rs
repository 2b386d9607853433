//! Adapted linear maps: values and gradients of both factors and of the input, whatever encoding the frozen weight has.

use luthier_kernels::blocks::{BlockType, quantize};
use luthier_kernels::bytes::SharedBytes;
use luthier_kernels::packed::Precision;
use luthier_ops::linear::{linear, linear_all};
use luthier_ops::{Device, Lora, StoredMatrix, Tensor, Weight, recompute, with_reference};
use proptest::prelude::*;

use crate::check::{assert_near, run, same_as_reference, tensor, values, weight};

/// A frozen weight [n, m] in one of five encodings, or dense; m is a multiple of 32.
fn frozen(kind: usize, n: usize, m: usize) -> Weight {
    let plain = values(n * m, 2);
    let block_type =
        [BlockType::F32, BlockType::F16, BlockType::BF16, BlockType::Q8_0, BlockType::Q4_0][kind % 5];
    if kind == 5 {
        return Weight::dense("w", &Tensor::from_vec(plain, (n, m), &Device::Cpu).unwrap(), false).unwrap();
    }
    let mut bytes = vec![0; n * m / block_type.block_len() * block_type.block_bytes()];
    let source: Vec<u8> = plain.iter().flat_map(|value| value.to_le_bytes()).collect();
    quantize((BlockType::F32, &source), block_type, m, None, &mut bytes).unwrap();
    let bytes = SharedBytes::from_vec(bytes);
    Weight::stored("w", StoredMatrix { block_type, bytes, rows: n, cols: m, precision: Precision::Precise })
}

/// The weight with its factors, which are `weights[0]` and `weights[1]`.
fn adapt(base: &Weight, weights: &[Weight], scale: f32) {
    let lora = Lora { down: weights[0].clone(), up: weights[1].clone(), scale };
    base.adapt(lora).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn adapted_maps_match_their_reference(
        rows in 1usize..70, blocks in 1usize..4, n in 1usize..70, r in 1usize..9, kind in 0usize..6, biased: bool,
    ) {
        let m = blocks * 32;
        let base = frozen(kind, n, m);
        let mut weights = vec![weight("a", &[r, m], 3), weight("b", &[n, r], 4)];
        adapt(&base, &weights, 0.7);
        if biased {
            weights.push(weight("bias", &[n], 5));
        }
        same_as_reference(&|x, w| linear(&x[0], &base, w.get(2)), &[tensor(&[rows, m], 1)], &weights);
    }
}

#[test]
fn the_sum_is_what_the_fused_weight_gives() {
    let (n, m, r) = (11, 32, 3);
    let base = frozen(0, n, m);
    let weights = [weight("a", &[r, m], 3), weight("b", &[n, r], 4)];
    let [down, up] = [0, 1].map(|at| weights[at].to_tensor(&Device::Cpu).unwrap().detach());
    let plain = base.to_tensor(&Device::Cpu).unwrap();
    let fused = (plain + (up.matmul(&down).unwrap() * 1.5).unwrap()).unwrap();
    let fused = Weight::dense("fused", &fused, false).unwrap();
    let x = tensor(&[2, 5, m], 1);
    let wanted: Vec<f32> = linear(&x, &fused, None).unwrap().flatten_all().unwrap().to_vec1().unwrap();
    adapt(&base, &weights, 1.5);
    let [together, again] = linear_all(&x, [(&base, None), (&base, None)]).unwrap();
    for y in [linear(&x, &base, None).unwrap(), together, again] {
        assert_near(&y.flatten_all().unwrap().to_vec1::<f32>().unwrap(), &wanted, 2e-5, "adapted");
    }
}

#[test]
fn factors_learn_under_an_untracked_input_and_when_recomputed() {
    let base = frozen(3, 6, 32);
    let weights = [weight("a", &[2, 32], 3), weight("b", &[6, 2], 4)];
    adapt(&base, &weights, 2.0);
    let plain = |x: &[Tensor], _: &[Weight]| linear(&x[0], &base, None);
    let x = [tensor(&[4, 32], 1)];
    let wanted = run(&plain, &x, &weights);
    let again = |x: &[Tensor], _: &[Weight]| {
        let base = base.clone();
        recompute(&x[0], move |x| linear(x, &base, None))
    };
    let got = run(&again, &x, &weights);
    assert_eq!((got.value, got.grads), (wanted.value, wanted.grads.clone()));
    weights.iter().for_each(Weight::zero_grad);
    let y = linear(&x[0], &base, None).unwrap();
    y.mul(&tensor(&[4, 6], 99)).unwrap().sum_all().unwrap().backward().unwrap();
    assert_eq!((weights[0].grad().to_vec(), weights[1].grad().to_vec()), {
        (wanted.grads[1].clone(), wanted.grads[2].clone())
    });
}

#[test]
fn what_cannot_be_adapted_is_refused() {
    let pair = |r: usize, inner: usize| Lora {
        down: weight("a", &[r, 32], 3),
        up: weight("b", &[6, inner], 4),
        scale: 1.0,
    };
    let base = frozen(0, 6, 32);
    let error = base.adapt(pair(2, 3)).unwrap_err().to_string();
    assert!(error.contains("[2, 32]") && error.contains("[6, 3]") && error.contains("[6, 32]"), "{error}");
    assert!(frozen(0, 5, 32).adapt(pair(2, 2)).is_err());
    assert!(weight("trained", &[6, 32], 1).adapt(pair(2, 2)).is_err());
    base.adapt(pair(2, 2)).unwrap();
    assert!(base.adapt(pair(2, 2)).is_err(), "twice");
    with_reference(|| linear(&tensor(&[3, 32], 1), &base, None).unwrap());
}
