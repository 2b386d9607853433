//! Products beside those in f64 of the same values, on every kind of processor.

use proptest::prelude::*;

use super::*;
use crate::matmul::widen_rows;
use crate::simd::{Level, with_level};

fn check(block_type: BlockType, m: usize, rows: usize, cols: usize, seed: u64) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        // Of very different sizes.
        ((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * f32::powi(2.0, (state % 9) as i32 - 4)
    };
    let x: Vec<f32> = (0..m * cols).map(|_| next()).collect();
    let weights: Vec<u8> = (0..rows * cols)
        .flat_map(|_| match block_type {
            BlockType::F16 => half::f16::from_f32(next()).to_le_bytes(),
            _ => half::bf16::from_f32(next()).to_le_bytes(),
        })
        .collect();
    let mut w = vec![0f32; rows * cols];
    widen_rows(block_type, &weights, &mut w);
    let largest = |values: &[f32]| -> Vec<f64> {
        let most = |block: &[f32]| block.iter().fold(0f64, |most, value| most.max(f64::from(value.abs())));
        values.chunks(cols).flat_map(|row| row.chunks(BLOCK).map(most)).collect()
    };
    let (x_most, w_most, blocks) = (largest(&x), largest(&w), cols.div_ceil(BLOCK));
    let mut first: Option<Vec<f32>> = None;
    for level in [Level::V4, Level::V3, Level::Baseline] {
        let mut y = vec![f32::NAN; m * rows];
        with_level(level, || multiply(block_type, &x, m, &weights, (rows, cols), &mut y));
        for (at, own) in y.iter().enumerate() {
            let (token, row) = (at / rows, at % rows);
            let (mut sum, mut allowed) = (0f64, 1e-30);
            for col in 0..cols {
                let (a, b) = (f64::from(x[token * cols + col]), f64::from(w[row * cols + col]));
                let (a_most, b_most) =
                    (x_most[token * blocks + col / BLOCK], w_most[row * blocks + col / BLOCK]);
                sum += a * b;
                // Half a step of one times the other, and the rounding of f32.
                allowed += (a_most * b.abs() + b_most * a.abs()) * 0.505 / f64::from(REACH);
                allowed += a_most * b_most * 1e-8 + (a * b).abs() * 1e-6;
            }
            assert!((f64::from(*own) - sum).abs() <= allowed, "{block_type:?} {level:?} {at}: {own} {sum}");
        }
        if level >= Level::V3 {
            let first = first.get_or_insert_with(|| y.clone());
            assert_eq!(*first, y, "{level:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn products_are_those_of_the_values(m in 1usize..40, rows in 1usize..50, cols in 1usize..200, seed: u64) {
        check(BlockType::F16, m, rows, cols, seed);
        check(BlockType::BF16, m, rows, cols, seed);
    }
}

#[test]
fn the_largest_numbers_do_not_overflow() {
    for block_type in [BlockType::F16, BlockType::BF16] {
        let bits = match block_type {
            BlockType::F16 => half::f16::from_f32(-2.0).to_le_bytes(),
            _ => half::bf16::from_f32(-2.0).to_le_bytes(),
        };
        let mut y = [0f32; 2];
        multiply(block_type, &[-3.0; 64], 2, &bits.repeat(32), (1, 32), &mut y);
        assert!(y.iter().all(|y| (y - 192.0).abs() < 1e-3), "{y:?}");
    }
}

#[test]
fn what_is_not_finite_stays_so_and_tiny_values_count_nothing() {
    for level in [Level::V4, Level::V3, Level::Baseline] {
        with_level(level, || {
            let one = half::bf16::ONE.to_le_bytes();
            for bad in [f32::NAN, f32::INFINITY] {
                let mut x = vec![1f32; 64];
                x[40] = bad;
                let mut y = [0f32; 2];
                multiply(BlockType::BF16, &x, 2, &one.repeat(32), (1, 32), &mut y);
                assert!((y[0] - 32.0).abs() < 1e-4, "{y:?}");
                assert!(!y[1].is_finite());
                let mut weights = one.repeat(32);
                weights[10..12].copy_from_slice(&half::bf16::from_f32(bad).to_le_bytes());
                multiply(BlockType::BF16, &[1f32; 64], 2, &weights, (1, 32), &mut y);
                assert!(y.iter().all(|y| !y.is_finite()));
            }
            let mut y = [f32::NAN];
            multiply(BlockType::BF16, &[1e-40; 32], 1, &one.repeat(32), (1, 32), &mut y);
            assert_eq!(y[0], 0.0);
        });
    }
}
