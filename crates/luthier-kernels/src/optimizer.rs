//! Optimiser steps, gradient norms and rounding over flat slices.

use crate::pool::{self, Shared, run_chunks};
use crate::simd::{LANES, dispatch, mul_add, reduce};

/// Values of one task; fixed, so that sums do not depend on the number of threads.
const CHUNK: usize = 1 << 15;

/// The numbers of one AdamW step (arXiv:1711.05101).
#[derive(Clone, Copy, Debug)]
pub struct AdamW {
    /// Learning rate of this step.
    pub lr: f64,
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of squared gradients.
    pub beta2: f64,
    /// Added to the root of the mean square.
    pub eps: f64,
    /// Decoupled decay, times `lr`.
    pub weight_decay: f64,
    /// Steps done with these means, this one included: from 1 on.
    pub step: u64,
    /// Factor on the gradient (clipping, accumulation).
    pub grad_scale: f32,
}

/// One step over a parameter; all slices have one length.
pub fn adamw(values: &mut [f32], grad: &[f32], mean: &mut [f32], square: &mut [f32], settings: AdamW) {
    let len = values.len();
    assert!(grad.len() == len && mean.len() == len && square.len() == len, "four slices of {len}");
    let step = settings.step.min(i32::MAX as u64) as i32;
    let first = 1.0 - settings.beta1.powi(step);
    let second = 1.0 - settings.beta2.powi(step);
    let numbers = Numbers {
        keep: (1.0 - settings.lr * settings.weight_decay) as f32,
        rate: (settings.lr / first) as f32,
        beta1: settings.beta1 as f32,
        rest1: (1.0 - settings.beta1) as f32,
        beta2: settings.beta2 as f32,
        rest2: (1.0 - settings.beta2) as f32,
        inverse_root: (1.0 / second.sqrt()) as f32,
        eps: settings.eps as f32,
        grad_scale: settings.grad_scale,
    };
    let (values, mean, square) = (Shared::new(values), Shared::new(mean), Shared::new(square));
    pool::run(len.div_ceil(CHUNK), &|task| {
        let (start, len) = (task * CHUNK, CHUNK.min(len - task * CHUNK));
        // SAFETY: tasks own disjoint ranges.
        let (values, mean, square) =
            unsafe { (values.slice(start, len), mean.slice(start, len), square.slice(start, len)) };
        adamw_part(values, &grad[start..][..len], mean, square, numbers);
    });
}

#[derive(Clone, Copy)]
struct Numbers {
    keep: f32,
    rate: f32,
    beta1: f32,
    rest1: f32,
    beta2: f32,
    rest2: f32,
    inverse_root: f32,
    eps: f32,
    grad_scale: f32,
}

dispatch! {
    fn adamw_part(values: &mut [f32], grad: &[f32], mean: &mut [f32], square: &mut [f32], n: Numbers) = adamw_body
}

#[inline(always)]
fn adamw_body<const FMA: bool>(
    values: &mut [f32],
    grad: &[f32],
    mean: &mut [f32],
    square: &mut [f32],
    n: Numbers,
) {
    for (((value, grad), mean), square) in values.iter_mut().zip(grad).zip(mean).zip(square) {
        let grad = grad * n.grad_scale;
        *mean = mul_add::<FMA>(n.beta1, *mean, n.rest1 * grad);
        *square = mul_add::<FMA>(n.beta2, *square, n.rest2 * grad * grad);
        let root = square.sqrt() * n.inverse_root + n.eps;
        *value = *value * n.keep - n.rate * (*mean / root);
    }
}

/// Sum of squares, the same for any number of threads.
pub fn sum_of_squares(values: &[f32]) -> f64 {
    let mut sums = vec![0f64; values.len().div_ceil(CHUNK)];
    run_chunks(&mut sums, 1, &|chunk, sum| {
        let start = chunk * CHUNK;
        sum[0] = squares_part(&values[start..values.len().min(start + CHUNK)]);
    });
    sums.iter().sum()
}

dispatch! { fn squares_part(values: &[f32]) -> f64 = squares_body }

#[inline(always)]
fn squares_body<const FMA: bool>(values: &[f32]) -> f64 {
    // Pieces of 64 lanes' length, so that f32 lanes lose nothing that matters.
    values
        .chunks(64 * LANES)
        .map(|piece| {
            let mut sums = [0f32; LANES];
            let lanes = piece.chunks_exact(LANES);
            let tail = lanes.remainder();
            for values in lanes {
                for lane in 0..LANES {
                    sums[lane] = mul_add::<FMA>(values[lane], values[lane], sums[lane]);
                }
            }
            for (lane, value) in tail.iter().enumerate() {
                sums[lane] = mul_add::<FMA>(*value, *value, sums[lane]);
            }
            f64::from(reduce(sums))
        })
        .sum()
}

/// Rounds each value to the nearest bf16 (ties to even), kept as f32.
pub fn round_to_bf16(values: &mut [f32]) {
    run_chunks(values, CHUNK, &|_, part| {
        part.iter_mut().for_each(|value| *value = f32::from_bits(u32::from(bf16_bits(*value)) << 16));
    });
}

/// The bf16 bits nearest to each value (ties to even).
pub fn to_bf16(values: &[f32], out: &mut [u16]) {
    assert_eq!(values.len(), out.len());
    run_chunks(out, CHUNK, &|chunk, part| {
        for (out, value) in part.iter_mut().zip(&values[chunk * CHUNK..]) {
            *out = bf16_bits(*value);
        }
    });
}

#[inline(always)]
fn bf16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16;
    // A NaN must not round to infinity.
    if value.is_nan() { (bits >> 16) as u16 | 0x40 } else { rounded }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(len: usize, seed: u32) -> Vec<f32> {
        (0..len as u32)
            .map(|i| (i.wrapping_mul(2_654_435_761).wrapping_add(seed * 97) >> 8) as f32 / 8.4e6 - 1.0)
            .collect()
    }

    #[test]
    fn adamw_follows_the_paper() {
        let len = CHUNK + 37;
        let (mut x, g) = (values(len, 1), values(len, 2));
        let (mut m, mut v) = (vec![0.0; len], vec![0.0; len]);
        let mut wide: Vec<[f64; 3]> = x.iter().map(|&x| [f64::from(x), 0.0, 0.0]).collect();
        for step in 1..=3 {
            let settings = AdamW {
                lr: 1e-2,
                beta1: 0.9,
                beta2: 0.95,
                eps: 1e-8,
                weight_decay: 0.1,
                step,
                grad_scale: 0.5,
            };
            adamw(&mut x, &g, &mut m, &mut v, settings);
            for ([x, m, v], g) in wide.iter_mut().zip(&g) {
                let g = f64::from(*g) * 0.5;
                *m = 0.9 * *m + 0.1 * g;
                *v = 0.95 * *v + 0.05 * g * g;
                let (mean, square) =
                    (*m / (1.0 - 0.9f64.powi(step as i32)), *v / (1.0 - 0.95f64.powi(step as i32)));
                *x -= 1e-2 * 0.1 * *x + 1e-2 * mean / (square.sqrt() + 1e-8);
            }
        }
        for (x, wide) in x.iter().zip(&wide) {
            assert!((f64::from(*x) - wide[0]).abs() < 1e-6, "{x} and {}", wide[0]);
        }
    }

    #[test]
    fn squares_and_bf16_match_plain_arithmetic() {
        let x = values(3 * CHUNK + 5, 3);
        let plain: f64 = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        assert!((sum_of_squares(&x) / plain - 1.0).abs() < 1e-6);
        let special =
            [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, f32::MAX, 1.003_906_3, f32::MIN_POSITIVE];
        let all: Vec<f32> = x.iter().copied().chain(special).collect();
        let mut bits = vec![0u16; all.len()];
        to_bf16(&all, &mut bits);
        let mut rounded = all.clone();
        round_to_bf16(&mut rounded);
        for ((value, bits), rounded) in all.iter().zip(&bits).zip(&rounded) {
            let expected = half::bf16::from_f32(*value);
            assert!(expected.to_bits() == *bits || (value.is_nan() && half::bf16::from_bits(*bits).is_nan()));
            assert_eq!(rounded.to_bits() >> 16, u32::from(*bits));
        }
    }
}
