//! Dot products of a few rows with rows of stored floats, widened in registers: each weight is read once.

use crate::blocks::BlockType;
use crate::isa::{Element, Isa, ROWS, on_processor};

/// Rows of x that are multiplied with a row of weights at a time.
const ROWS_AT_ONCE: usize = 4;

/// Whether rows of this type are multiplied here.
pub(crate) fn covers(block_type: BlockType) -> bool {
    matches!(block_type, BlockType::F16 | BlockType::BF16)
}

/// y[t * stride + row] for `weights`, rows of k stored floats, and `m` rows x [m, k].
///
/// # Safety
/// Nobody else touches these values of y.
pub(crate) unsafe fn products(
    block_type: BlockType,
    x: &[f32],
    k: usize,
    weights: &[u8],
    y: *mut f32,
    stride: usize,
) {
    let target = Target { y, stride };
    match block_type {
        BlockType::F16 => rows::<half::f16>(x, k, weights, target),
        BlockType::BF16 => rows::<half::bf16>(x, k, weights, target),
        _ => unreachable!("the caller asks `covers` first"),
    }
}

#[derive(Clone, Copy)]
struct Target {
    y: *mut f32,
    stride: usize,
}

on_processor! {
    fn rows<E: Element>(x: &[f32], k: usize, weights: &[u8], target: Target) = rows_on
}

/// # Safety
/// As [`Isa`] and [`products`].
#[inline(always)]
unsafe fn rows_on<I: Isa, E: Element>(x: &[f32], k: usize, weights: &[u8], target: Target) {
    for (row, weights) in weights.chunks_exact(k * size_of::<E>()).enumerate() {
        for (at, x) in x.chunks(ROWS_AT_ONCE * k).enumerate() {
            // SAFETY: the caller's promise.
            unsafe {
                let y = target.y.add(at * ROWS_AT_ONCE * target.stride + row);
                match x.len() / k {
                    1 => dot::<I, E, 1>(x, k, weights, y, target.stride),
                    2 => dot::<I, E, 2>(x, k, weights, y, target.stride),
                    3 => dot::<I, E, 3>(x, k, weights, y, target.stride),
                    _ => dot::<I, E, 4>(x, k, weights, y, target.stride),
                }
            }
        }
    }
}

/// # Safety
/// As [`Isa`] and [`products`].
#[inline(always)]
unsafe fn dot<I: Isa, E: Element, const M: usize>(
    x: &[f32],
    k: usize,
    weights: &[u8],
    y: *mut f32,
    stride: usize,
) {
    /// Sums of a row side by side, so that no addition waits for the one before.
    const SUMS: usize = 4;
    assert!(x.len() >= M * k && weights.len() >= k * size_of::<E>());
    let whole = k / ROWS;
    // SAFETY: whole registers inside the slices, as compared above.
    unsafe {
        let mut sums = [[I::float(0.0); SUMS]; M];
        let step = |sums: &mut [[I::Floats; SUMS]; M], part: usize, lane: usize| {
            let weight = E::load::<I>(weights.as_ptr().cast::<E>().add(part * ROWS));
            for row in 0..M {
                let x = I::load_floats(x.as_ptr().add(row * k + part * ROWS));
                sums[row][lane] = I::mul_add(weight, x, sums[row][lane]);
            }
        };
        let mut part = 0;
        while part + SUMS <= whole {
            for lane in 0..SUMS {
                step(&mut sums, part + lane, lane);
            }
            part += SUMS;
        }
        while part < whole {
            step(&mut sums, part, 0);
            part += 1;
        }
        for row in 0..M {
            let [a, b, c, d] = sums[row];
            let one = I::float(1.0);
            let all = I::mul_add(I::mul_add(a, one, b), one, I::mul_add(c, one, d));
            let mut lanes = [0f32; ROWS];
            I::store_floats(lanes.as_mut_ptr(), all);
            let mut sum = crate::simd::reduce(lanes);
            for at in whole * ROWS..k {
                let weight = weights.as_ptr().cast::<E>().add(at).read_unaligned();
                sum += weight.to_f32() * x[row * k + at];
            }
            y.add(row * stride).write(sum);
        }
    }
}
