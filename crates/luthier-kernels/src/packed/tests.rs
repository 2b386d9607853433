//! Packed products beside those of the widened values, on every kind of processor.

use proptest::prelude::*;

use super::*;
use crate::bitsandbytes::{
    BLOCK_LEN, Levels, dequantize_4bit, dequantize_int8, quantize_4bit, quantize_int8,
};
use crate::blocks::{dequantize, quantize};
use crate::simd::Level;
use crate::simd::with_level;

const KINDS: [Kind; 14] = {
    use BlockType::*;
    [
        Kind::Blocks(Q4_0),
        Kind::Blocks(Q4_1),
        Kind::Blocks(Q5_0),
        Kind::Blocks(Q5_1),
        Kind::Blocks(Q8_0),
        Kind::Blocks(Q2K),
        Kind::Blocks(Q3K),
        Kind::Blocks(Q4K),
        Kind::Blocks(Q5K),
        Kind::Blocks(Q6K),
        Kind::Blocks(TQ1_0),
        Kind::Blocks(TQ2_0),
        Kind::Int8,
        Kind::FourBits,
    ]
};

/// Columns are a multiple of it.
fn step(kind: Kind) -> usize {
    match kind {
        Kind::Blocks(block_type) => block_type.block_len(),
        Kind::Int8 => 17,
        Kind::FourBits => SCALED,
    }
}

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

/// A matrix of random values, packed, and the values that its file gives.
fn matrix(kind: Kind, rows: usize, cols: usize, seed: u64) -> (Packed, Vec<f32>) {
    let dense: Vec<u8> = values(rows * cols, seed).iter().flat_map(|v| v.to_le_bytes()).collect();
    let dense = (BlockType::F32, &dense[..]);
    let mut widened = vec![0f32; rows * cols];
    let packed = |stored: Stored| {
        let mut target = vec![0u8; Packed::bytes_for(kind, rows, cols).unwrap()];
        let layout = Packed::pack(stored, rows, cols, &mut target);
        Packed::new(layout, SharedBytes::from_vec(target), Precision::Fast)
    };
    let packed = match kind {
        Kind::Blocks(block_type) => {
            let mut bytes = vec![0u8; rows * block_type.bytes_for(cols).unwrap()];
            quantize(dense, block_type, cols, None, &mut bytes).unwrap();
            dequantize(block_type, &bytes, &mut widened);
            packed(Stored::Blocks(block_type, &bytes))
        }
        Kind::Int8 => {
            let (mut codes, mut scales) = (vec![0u8; rows * cols], vec![0f32; rows]);
            quantize_int8(dense, cols, &mut codes, &mut scales).unwrap();
            let all = widened.chunks_exact_mut(cols).zip(codes.chunks_exact(cols)).zip(&scales);
            all.for_each(|((row, codes), scale)| dequantize_int8(codes, *scale, row));
            packed(Stored::Int8 { codes: &codes, scales: &scales })
        }
        Kind::FourBits => {
            let levels = if seed.is_multiple_of(2) { Levels::Nf4 } else { Levels::Fp4 };
            let (mut codes, mut scales) = (vec![0u8; rows * cols / 2], vec![0f32; rows * cols / BLOCK_LEN]);
            quantize_4bit(levels, dense, &mut codes, &mut scales).unwrap();
            let (levels, block_len) = (&levels.values(), BLOCK_LEN);
            dequantize_4bit(levels, &codes, &scales, block_len, &mut widened);
            packed(Stored::FourBits { levels, codes: &codes, scales: &scales, block_len })
        }
    };
    (packed, widened)
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

fn check(kind: Kind, m: usize, rows: usize, blocks: usize, seed: u64) {
    let cols = blocks * step(kind);
    let (packed, widened) = matrix(kind, rows, cols, seed);
    for row in [0, rows / 2, rows - 1] {
        let mut own = vec![f32::NAN; cols];
        packed.widen_rows(row, &mut own);
        for (own, wanted) in own.iter().zip(&widened[row * cols..]) {
            assert_eq!(own, wanted, "{kind:?}");
        }
    }
    let x = values(m * cols, seed + 1);
    let wanted = plain(&x, &widened, m, rows, cols);
    // The rounding of inputs: half a step of the largest of each 32, which is at most 1.
    let step = if m <= PRECISE_ROWS { 0.5 / 32_512.0 } else { 0.5 / 127.0 };
    // The rounding of levels, and what two low bytes give together: of each product, against the largest weight.
    let of_levels = if kind == Kind::FourBits { 1.51 / 32_512.0 * cols as f64 } else { 0.0 };
    let mut first: Option<Vec<f32>> = None;
    for level in [Level::V4, Level::V3, Level::Baseline] {
        let mut y = vec![f32::NAN; m * rows];
        with_level(level, || packed.multiply(&x, m, &mut y));
        for (at, (own, (sum, size))) in y.iter().zip(&wanted).enumerate() {
            let row = at % rows;
            let weights = widened[row * cols..][..cols].iter().map(|w| f64::from(w.abs()));
            let rounding =
                1.01 * step * weights.clone().sum::<f64>() + of_levels * weights.fold(0.0, f64::max);
            let allowed = rounding + 4e-6 * size + 1e-6;
            assert!((f64::from(*own) - sum).abs() <= allowed, "{kind:?} {level:?} {at}: {own} {sum}");
        }
        if level >= Level::V3 {
            let first = first.get_or_insert_with(|| y.clone());
            assert_eq!(first, &y, "{kind:?}: kinds of processors differ");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn packed_products_are_those_of_the_values(
        kind in 0usize..14, m in 1usize..20, rows in 1usize..70, blocks in 1usize..6, seed in 1u64..10_000, threads in 1usize..4,
    ) {
        pool::set_threads(threads);
        let kind = KINDS[kind];
        let blocks = if step(kind) == 256 { blocks.min(2) } else { blocks };
        check(kind, m, rows, blocks, seed);
    }
}

#[test]
fn many_rows_are_rounded_to_bytes() {
    for kind in KINDS {
        check(kind, PRECISE_ROWS + 3, 37, 2, 7);
    }
}

#[test]
fn several_products_share_inputs_and_equal_single_ones() {
    let cols = 256;
    let blocks = Kind::Blocks;
    let shapes = [
        (blocks(BlockType::Q4_0), 40),
        (blocks(BlockType::Q4_0), 16),
        (Kind::FourBits, 33),
        (Kind::FourBits, 20),
        (blocks(BlockType::Q6K), 33),
        (blocks(BlockType::Q8_0), 5),
        (Kind::Int8, 19),
    ];
    let matrices: Vec<Packed> = shapes.iter().map(|(kind, rows)| matrix(*kind, *rows, cols, 3).0).collect();
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
    for kind in [Kind::Blocks(BlockType::Q8_0), Kind::FourBits] {
        let (packed, _) = matrix(kind, 16, 64, 1);
        for wrong in [f32::NAN, f32::INFINITY] {
            let mut x = values(64, 2);
            x[40] = wrong;
            let mut y = vec![0f32; 16];
            packed.multiply(&x, 1, &mut y);
            assert!(y.iter().all(|value| !value.is_finite()), "{y:?}");
        }
    }
}
