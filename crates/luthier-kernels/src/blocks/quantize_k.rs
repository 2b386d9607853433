//! Rounding to ggml's blocks of 256 values (Q2_K to Q6_K), with and without importance weights.
//!
//! Three stages over up to sixteen blocks: a scale (and minimum) for each group of 16 or 32 values, sixteen groups side by
//! side; then the block's scale of those scales; then every value again with the scales as they are stored. Results equal
//! llama.cpp's reference bit for bit (see blocks/fit.rs), infinitely small groups aside.

use super::fit::{Affine, Lanes, NEGLIGIBLE, Search, Signed, between, nearest};
use super::fit::{fit_affine, fit_signed, refine_signed, side_by_side, whole};
use super::k_stages::{
    BATCH, Groups, LEN, groups, put_codes, root_mean_square_and_magnitude, round_affine, round_signed,
    second_stage, signed_second_stage, stored, sum_of_squares, totals, weighted, weighted_search, weights_of,
};

/// Four values' two lower bits a byte, 32 values apart.
#[inline(always)]
fn put_two_bits(bytes: &mut [u8], codes: &[u8; LEN]) {
    for half in 0..2 {
        for i in 0..32 {
            let code = |quarter: usize| (codes[half * 128 + quarter * 32 + i] & 3) << (2 * quarter);
            bytes[half * 32 + i] = code(0) | code(1) | code(2) | code(3);
        }
    }
}

/// Small scales and minima of eight groups, six bits each, in 12 bytes.
#[inline(always)]
fn put_six_bits(bytes: &mut [u8], scales: &[u8; 8], below: &[u8; 8]) {
    for i in 0..4 {
        bytes[i] = scales[i] | scales[i + 4] >> 4 << 6;
        bytes[i + 4] = below[i] | below[i + 4] >> 4 << 6;
        bytes[i + 8] = (scales[i + 4] & 15) | (below[i + 4] & 15) << 4;
    }
}

#[inline(always)]
pub(super) fn quantize_q2_k(
    source: &[f32],
    first_block: usize,
    importance: Option<&[f32]>,
    target: &mut [u8],
) {
    const PLAIN: Search = Search { top: 3.0, from: -0.5, step: 0.1, steps: 15, absolute: true };
    for (batch, (values, bytes)) in source.chunks(BATCH * LEN).zip(target.chunks_mut(BATCH * 84)).enumerate()
    {
        let n_blocks = values.len() / LEN;
        let mut groups_found = Groups::<16>::new();
        let mut codes = [[0u8; LEN]; BATCH];
        for block in 0..n_blocks {
            let x: [Lanes; 16] = side_by_side(groups::<16>(values, block));
            let (search, w) = match weights_of(importance, first_block + batch * BATCH + block) {
                Some(weights) => {
                    let mean = sum_of_squares(&values[block * LEN..][..LEN]) / LEN as f32;
                    let weights = side_by_side(groups::<16>(weights, 0));
                    (weighted_search(3.0), weighted(&x, &weights, &[mean; 16]))
                }
                None => (PLAIN, x.map(|x| x.map(f32::abs))),
            };
            let Affine { scale, below, codes: found } = fit_affine(search, &x, &w);
            (groups_found.scales[block], groups_found.below[block]) = (scale, below);
            groups_found.weights[block] = totals(&w);
            put_codes(&found, &mut codes, block);
        }
        let second = second_stage(&groups_found, 15.0, importance.is_some(), n_blocks);
        for (block, bytes) in bytes.chunks_exact_mut(84).enumerate() {
            let (scale, small_scales, minimum, small_minima) = &second[block];
            let (scale, minimum) = (stored(&mut bytes[80..82], *scale), stored(&mut bytes[82..84], *minimum));
            for group in 0..16 {
                bytes[group] = small_scales[group] | small_minima[group] << 4;
                let scale = scale * f32::from(small_scales[group]);
                let below = minimum * f32::from(small_minima[group]);
                let codes = &mut codes[block][group * 16..][..16];
                round_affine(&values[block * LEN + group * 16..][..16], scale, below, 3.0, codes);
            }
            put_two_bits(&mut bytes[16..80], &codes[block]);
        }
    }
}

#[inline(always)]
pub(super) fn quantize_q3_k(
    source: &[f32],
    first_block: usize,
    importance: Option<&[f32]>,
    target: &mut [u8],
) {
    for (batch, (values, bytes)) in source.chunks(BATCH * LEN).zip(target.chunks_mut(BATCH * 110)).enumerate()
    {
        let n_blocks = values.len() / LEN;
        let mut groups_found = Groups::<16>::new();
        let mut codes = [[0u8; LEN]; BATCH];
        for block in 0..n_blocks {
            let x: [Lanes; 16] = side_by_side(groups::<16>(values, block));
            let found = match weights_of(importance, first_block + batch * BATCH + block) {
                Some(weights) => {
                    let mean = 2.0 * sum_of_squares(&values[block * LEN..][..LEN]) / LEN as f32;
                    let w = weighted(&x, &side_by_side(groups::<16>(weights, 0)), &[mean; 16]);
                    groups_found.weights[block] = totals(&w);
                    fit_signed(4.0, &x, &w)
                }
                None => refine_signed(4.0, &x),
            };
            groups_found.scales[block] = found.scale;
            put_codes(&found.codes, &mut codes, block);
        }
        let second = signed_second_stage(&groups_found, importance.is_some(), n_blocks);
        for (block, bytes) in bytes.chunks_exact_mut(110).enumerate() {
            let (scale, small_scales) = &second[block];
            let scale = stored(&mut bytes[108..110], *scale);
            bytes[96..108].fill(0);
            for group in 0..16 {
                let small = small_scales[group];
                bytes[96 + group % 8] |= (small & 15) << (group / 8 * 4);
                bytes[104 + group % 4] |= small >> 4 << (group / 4 * 2);
                let scale = scale * (f32::from(small) - 32.0);
                let codes = &mut codes[block][group * 16..][..16];
                round_signed(&values[block * LEN + group * 16..][..16], scale, 4.0, codes);
            }
            bytes[..32].fill(0);
            for part in 0..8 {
                for i in 0..32 {
                    bytes[i] |= (codes[block][part * 32 + i] >> 2) << part;
                }
            }
            put_two_bits(&mut bytes[32..96], &codes[block]);
        }
    }
}

/// Q4_K and Q5_K up to where their codes are packed: writes the first 16 bytes of each block.
#[inline(always)]
fn quantize_q45_k<const BLOCK_BYTES: usize>(
    plain: Search,
    values: &[f32],
    first_block: usize,
    importance: Option<&[f32]>,
    target: &mut [u8],
) -> [[u8; LEN]; BATCH] {
    let top = plain.top;
    let n_blocks = values.len() / LEN;
    let mut groups_found = Groups::<8>::new();
    let mut codes = [[0u8; LEN]; BATCH];
    for block in (0..n_blocks).step_by(2) {
        let x: [Lanes; 32] = side_by_side(groups::<32>(values, block));
        let second_block = if block + 1 < n_blocks { block + 1 } else { block };
        let weights = weights_of(importance, first_block + block);
        let (search, w) = match (weights, weights_of(importance, first_block + second_block)) {
            (Some(a), Some(b)) => {
                let mean = |block: usize| 2.0 * sum_of_squares(&values[block * LEN..][..LEN]) / LEN as f32;
                let (mean_a, mean_b) = (mean(block), mean(second_block));
                let mean = std::array::from_fn(|lane| if lane < 8 { mean_a } else { mean_b });
                let parts =
                    std::array::from_fn(|lane| &(if lane < 8 { a } else { b })[lane % 8 * 32..][..32]);
                (weighted_search(top), weighted(&x, &side_by_side(parts), &mean))
            }
            _ => (plain, root_mean_square_and_magnitude(&x)),
        };
        let found = fit_affine(search, &x, &w);
        let totals = totals(&w);
        for lane in 0..16 {
            let (block, group) = (block + lane / 8, lane % 8);
            if block < n_blocks {
                groups_found.scales[block][group] = found.scale[lane];
                groups_found.below[block][group] = found.below[lane];
                groups_found.weights[block][group] = totals[lane];
            }
        }
        put_codes(&found.codes, &mut codes, block);
    }
    let second = second_stage(&groups_found, 63.0, importance.is_some(), n_blocks);
    for (block, bytes) in target.chunks_exact_mut(BLOCK_BYTES).enumerate() {
        let (scale, small_scales, minimum, small_minima) = &second[block];
        let (scale, minimum) = (stored(&mut bytes[..2], *scale), stored(&mut bytes[2..4], *minimum));
        put_six_bits(&mut bytes[4..16], small_scales, small_minima);
        for group in 0..8 {
            let (scale, below) =
                (scale * f32::from(small_scales[group]), minimum * f32::from(small_minima[group]));
            let codes = &mut codes[block][group * 32..][..32];
            round_affine(&values[block * LEN + group * 32..][..32], scale, below, top, codes);
        }
    }
    codes
}

#[inline(always)]
pub(super) fn quantize_q4_k(
    source: &[f32],
    first_block: usize,
    importance: Option<&[f32]>,
    target: &mut [u8],
) {
    const PLAIN: Search = Search { top: 15.0, from: -1.0, step: 0.1, steps: 20, absolute: false };
    for (batch, (values, bytes)) in source.chunks(BATCH * LEN).zip(target.chunks_mut(BATCH * 144)).enumerate()
    {
        let codes = quantize_q45_k::<144>(PLAIN, values, first_block + batch * BATCH, importance, bytes);
        for (codes, bytes) in codes.iter().zip(bytes.chunks_exact_mut(144)) {
            put_four_bits(&mut bytes[16..], codes);
        }
    }
}

#[inline(always)]
pub(super) fn quantize_q5_k(
    source: &[f32],
    first_block: usize,
    importance: Option<&[f32]>,
    target: &mut [u8],
) {
    const PLAIN: Search = Search { top: 31.0, from: -0.5, step: 0.1, steps: 15, absolute: false };
    for (batch, (values, bytes)) in source.chunks(BATCH * LEN).zip(target.chunks_mut(BATCH * 176)).enumerate()
    {
        let codes = quantize_q45_k::<176>(PLAIN, values, first_block + batch * BATCH, importance, bytes);
        for (codes, bytes) in codes.iter().zip(bytes.chunks_exact_mut(176)) {
            bytes[16..48].fill(0);
            for group in 0..8 {
                for i in 0..32 {
                    bytes[16 + i] |= (codes[group * 32 + i] >> 4 & 1) << group;
                }
            }
            put_four_bits(&mut bytes[48..], codes);
        }
    }
}

/// Two values' four lower bits a byte, 32 values apart.
#[inline(always)]
fn put_four_bits(bytes: &mut [u8], codes: &[u8; LEN]) {
    for pair in 0..4 {
        for i in 0..32 {
            bytes[pair * 32 + i] = (codes[pair * 64 + i] & 15) | codes[pair * 64 + 32 + i] << 4;
        }
    }
}

#[inline(always)]
pub(super) fn quantize_q6_k(
    source: &[f32],
    first_block: usize,
    importance: Option<&[f32]>,
    target: &mut [u8],
) {
    for (block, (values, bytes)) in source.chunks_exact(LEN).zip(target.chunks_exact_mut(210)).enumerate() {
        let x: [Lanes; 16] = side_by_side(groups::<16>(values, 0));
        let w = match weights_of(importance, first_block + block) {
            Some(weights) => side_by_side(groups::<16>(weights, 0)),
            None => x.map(|x| x.map(|x| x * x)),
        };
        let Signed { scale: scales, codes: found } = fit_signed(32.0, &x, &w);
        let (mut first, mut largest) = (0f32, 0f32);
        for scale in scales {
            if scale.abs() > largest {
                (first, largest) = (scale, scale.abs());
            }
        }
        if largest < NEGLIGIBLE {
            bytes.fill(0);
            continue;
        }
        let inverse = -128.0 / first;
        let scale = stored(&mut bytes[208..210], 1.0 / inverse);
        let mut codes = [[0u8; LEN]; BATCH];
        put_codes(&found, &mut codes, 0);
        let codes = &mut codes[0];
        for group in 0..16 {
            let small = between(-128.0, nearest(inverse * scales[group]), 127.0);
            bytes[192 + group] = whole(small) as u8;
            let values = &values[group * 16..][..16];
            round_signed(values, scale * small, 32.0, &mut codes[group * 16..][..16]);
        }
        put_six_bit_codes(bytes, codes);
    }
}

/// Lower four bits of values 64 apart in a byte, then the upper two of four values 32 apart.
#[inline(always)]
fn put_six_bit_codes(bytes: &mut [u8], codes: &[u8; LEN]) {
    for half in 0..2 {
        let codes = &codes[half * 128..][..128];
        for i in 0..64 {
            bytes[half * 64 + i] = (codes[i] & 15) | codes[i + 64] << 4;
        }
        for i in 0..32 {
            let upper = |quarter: usize| codes[quarter * 32 + i] >> 4 << (2 * quarter);
            bytes[128 + half * 32 + i] = upper(0) | upper(1) | upper(2) | upper(3);
        }
    }
}
