//! Packed products beside those of the widened values, on every kind of processor.

use proptest::prelude::*;

use super::*;
use crate::blocks::{dequantize, quantize};
use crate::simd::Level;
use crate::simd::with_level;

const TYPES: [BlockType; 12] = {
    use BlockType::*;
    [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2K, Q3K, Q4K, Q5K, Q6K, TQ1_0, TQ2_0]
};

fn values(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..len).map(next).collect()
}

/// A matrix as its file has it, and its values.
fn matrix(block_type: BlockType, rows: usize, cols: usize, seed: u64) -> (Vec<u8>, Vec<f32>) {
    let dense: Vec<u8> = values(rows * cols, seed).iter().flat_map(|v| v.to_le_bytes()).collect();
    let mut bytes = vec![0u8; rows * block_type.bytes_for(cols).unwrap()];
    quantize((BlockType::F32, &dense), block_type, cols, None, &mut bytes).unwrap();
    let mut widened = vec![0f32; rows * cols];
    dequantize(block_type, &bytes, &mut widened);
    (bytes, widened)
}

fn packed(block_type: BlockType, rows: usize, cols: usize, bytes: &[u8]) -> Packed {
    let mut target = vec![0u8; Packed::bytes_for(block_type, rows, cols).unwrap()];
    Packed::pack(block_type, bytes, rows, cols, &mut target);
    Packed::new(block_type, (rows, cols), SharedBytes::from_vec(target), Precision::Fast)
}

/// Products in f64, and the sum of their magnitudes.
fn plain(x: &[f32], w: &[f32], m: usize, rows: usize, cols: usize) -> Vec<(f64, f64)> {
    let mut out = Vec::new();
    for t in 0..m {
        for row in 0..rows {
            let products = (0..cols).map(|k| f64::from(x[t * cols + k]) * f64::from(w[row * cols + k]));
            out.push(products.fold((0.0, 0.0), |(sum, size), product| (sum + product, size + product.abs())));
        }
    }
    out
}

fn check(block_type: BlockType, m: usize, rows: usize, blocks: usize, seed: u64) {
    let cols = blocks * block_type.block_len();
    let (bytes, widened) = matrix(block_type, rows, cols, seed);
    let packed = packed(block_type, rows, cols, &bytes);
    for row in [0, rows / 2, rows - 1] {
        let mut own = vec![f32::NAN; cols];
        packed.widen_rows(row, &mut own);
        for (own, wanted) in own.iter().zip(&widened[row * cols..]) {
            assert_eq!(own, wanted, "{block_type:?}");
        }
    }
    let x = values(m * cols, seed + 1);
    let wanted = plain(&x, &widened, m, rows, cols);
    // The rounding of inputs: half a step of the largest of each 32, which is at most 1.
    let step = if m <= PRECISE_ROWS { 0.5 / 32_512.0 } else { 0.5 / 127.0 };
    let mut first: Option<Vec<f32>> = None;
    for level in [Level::V4, Level::V3, Level::Baseline] {
        let mut y = vec![f32::NAN; m * rows];
        with_level(level, || packed.multiply(&x, m, &mut y));
        for (at, (own, (sum, size))) in y.iter().zip(&wanted).enumerate() {
            let row = at % rows;
            let weights: f64 = widened[row * cols..][..cols].iter().map(|w| f64::from(w.abs())).sum();
            let allowed = 1.01 * step * weights + 4e-6 * size + 1e-6;
            assert!((f64::from(*own) - sum).abs() <= allowed, "{block_type:?} {level:?} {at}: {own} {sum}");
        }
        if level >= Level::V3 {
            let first = first.get_or_insert_with(|| y.clone());
            assert_eq!(first, &y, "{block_type:?}: kinds of processors differ");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn packed_products_are_those_of_the_values(
        kind in 0usize..12, m in 1usize..20, rows in 1usize..70, blocks in 1usize..6, seed in 1u64..10_000, threads in 1usize..4,
    ) {
        pool::set_threads(threads);
        let block_type = TYPES[kind];
        let blocks = if block_type.block_len() == 256 { blocks.min(2) } else { blocks };
        check(block_type, m, rows, blocks, seed);
    }
}

#[test]
fn many_rows_are_rounded_to_bytes() {
    for block_type in TYPES {
        check(block_type, PRECISE_ROWS + 3, 37, 2, 7);
    }
}

#[test]
fn several_products_share_inputs_and_equal_single_ones() {
    let cols = 256;
    let shapes = [(BlockType::Q4_0, 40), (BlockType::Q4_0, 16), (BlockType::Q6K, 33), (BlockType::Q8_0, 5)];
    let matrices: Vec<Packed> = shapes
        .iter()
        .map(|(block_type, rows)| packed(*block_type, *rows, cols, &matrix(*block_type, *rows, cols, 3).0))
        .collect();
    for m in [1, 5, 70] {
        let x = values(m * cols, 9);
        let mut alone: Vec<Vec<f32>> = matrices.iter().map(|w| vec![f32::NAN; m * w.rows()]).collect();
        let mut together = alone.clone();
        matrices.iter().zip(&mut alone).for_each(|(w, y)| w.multiply(&x, m, y));
        let mut products: Vec<(&Packed, &mut [f32])> =
            matrices.iter().zip(together.iter_mut().map(Vec::as_mut_slice)).collect();
        multiply_all(&x, m, &mut products);
        assert_eq!(alone, together);
    }
}

#[test]
fn what_is_not_finite_stays_so() {
    let (bytes, _) = matrix(BlockType::Q8_0, 16, 64, 1);
    let packed = packed(BlockType::Q8_0, 16, 64, &bytes);
    for wrong in [f32::NAN, f32::INFINITY] {
        let mut x = values(64, 2);
        x[40] = wrong;
        let mut y = vec![0f32; 16];
        packed.multiply(&x, 1, &mut y);
        assert!(y.iter().all(|value| !value.is_finite()), "{y:?}");
    }
}
