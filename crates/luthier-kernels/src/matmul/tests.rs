//! Products of all orientations and types beside plain sums.

use proptest::prelude::*;

use super::*;

fn values(len: usize, seed: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919 + seed * 104_729) % 211) as f32 / 105.0 - 1.0).collect()
}

fn plain(m: usize, k: usize, n: usize, a: View, b: View, c: &[f32], write: Write) -> Vec<f32> {
    let mut out = if write == Write::Add { c.to_vec() } else { vec![0.0; m * n] };
    for row in 0..m {
        for col in 0..n {
            let sum: f64 = (0..k)
                .map(|i| {
                    let a = a.values[row * a.row_stride + i * a.col_stride];
                    f64::from(a) * f64::from(b.values[i * b.row_stride + col * b.col_stride])
                })
                .sum();
            out[row * n + col] += sum as f32;
        }
    }
    out
}

fn near(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-4 * (1.0 + b.abs()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn products_of_any_orientation_match_the_plain_sum(
        m in 0usize..70, k in 0usize..90, n in 0usize..150, ta: bool, tb: bool, add: bool, threads in 1usize..4,
    ) {
        pool::set_threads(threads);
        let (a, b) = (values(m * k, 1), values(k * n, 2));
        let a = if ta { View::rows(&a, m).transposed() } else { View::rows(&a, k) };
        let b = if tb { View::rows(&b, k).transposed() } else { View::rows(&b, n) };
        let write = if add { Write::Add } else { Write::Overwrite };
        let mut c = values(m * n, 3);
        let expected = plain(m, k, n, a, b, &c, write);
        matmul(m, k, n, a, b, &mut c, write);
        prop_assert!(near(&c, &expected));
    }

    #[test]
    fn stored_rows_multiply_like_their_widened_values(
        m in 1usize..24, k in 1usize..80, n in 1usize..700, kind in 0usize..3,
    ) {
        let weights = values(n * k, 4);
        let (block_type, bytes): (BlockType, Vec<u8>) = match kind {
            0 => (BlockType::F32, weights.iter().flat_map(|v| v.to_le_bytes()).collect()),
            1 => (BlockType::F16, weights.iter().flat_map(|&v| half::f16::from_f32(v).to_le_bytes()).collect()),
            _ => (BlockType::BF16, weights.iter().flat_map(|&v| half::bf16::from_f32(v).to_le_bytes()).collect()),
        };
        let mut widened = vec![0.0; n * k];
        widen_rows(block_type, &bytes, &mut widened);
        let x = values(m * k, 5);
        let mut y = vec![f32::NAN; m * n];
        matmul_stored(&x, m, k, block_type, &bytes, n, &mut y, Precision::Precise);
        let expected = plain(m, k, n, View::rows(&x, k), View::rows(&widened, k).transposed(), &[], Write::Overwrite);
        prop_assert!(near(&y, &expected));
        let dy = values(m * n, 6);
        let mut dx = vec![f32::NAN; m * k];
        matmul_stored_transposed(&dy, m, n, block_type, &bytes, k, &mut dx);
        let expected = plain(m, n, k, View::rows(&dy, n), View::rows(&widened, k), &[], Write::Overwrite);
        prop_assert!(near(&dx, &expected));
    }

    #[test]
    fn quantised_rows_multiply_like_their_widened_values(
        m in 1usize..9, blocks in 1usize..6, n in 1usize..90, kind in 0usize..4, seed in 0usize..1000,
    ) {
        let block_type = [BlockType::Q4_0, BlockType::Q4_1, BlockType::Q8_0, BlockType::Q5_1][kind];
        let k = blocks * 32;
        let mut bytes: Vec<u8> =
            (0..n * blocks * block_type.block_bytes()).map(|i| ((i * 2_654_435_761 + seed * 97) >> 7) as u8).collect();
        for block in bytes.chunks_exact_mut(block_type.block_bytes()) {
            // Scales and minima of order one.
            block[1] = 0x2c | (block[1] & 0x83);
            block[3] = if kind == 1 || kind == 3 { 0x2c | (block[3] & 0x83) } else { block[3] };
        }
        let mut widened = vec![0.0; n * k];
        widen_rows(block_type, &bytes, &mut widened);
        let x = values(m * k, 5);
        let mut y = vec![f32::NAN; m * n];
        matmul_stored(&x, m, k, block_type, &bytes, n, &mut y, Precision::Precise);
        let expected = plain(m, k, n, View::rows(&x, k), View::rows(&widened, k).transposed(), &[], Write::Overwrite);
        prop_assert!(near(&y, &expected));
    }
}
