//! Products of many rows with matrices stored in f16 or bf16, in whole numbers of 14 bits.
//!
//! y = x W^T. The values of each row are rounded in blocks of 32 that share a scale, inputs once and weights while they are
//! multiplied, so that two products fit into the place of one in f32. An error of half a step, 1/16382 of the largest value
//! of a block, is below that of the types themselves: half a step of f16 is 1/2048 of each value, of bf16 1/256.

mod inputs;
#[cfg(test)]
mod tests;
mod weights;

use std::cell::RefCell;

use crate::blocks::BlockType;
use crate::isa::{Isa, ROWS, on_processor};
use crate::packed::{TILE, tile_rows};
use crate::pool::{self, Shared};
use inputs::Inputs;
use weights::{Group, Half};

/// Columns that share a scale: 32 products of two numbers up to [`REACH`] stay below 2^31.
const BLOCK: usize = 32;
/// The largest number.
const REACH: f32 = 8191.0;
/// Pairs of columns in a block.
const PAIRS: usize = BLOCK / 2;
/// Values at most that count as nothing: their scale would not have an inverse.
const NOTHING: f32 = 1e-30;

thread_local! {
    static INPUTS: RefCell<Inputs> = RefCell::default();
    static GROUP: RefCell<Group> = RefCell::default();
}

/// Whether matrices of this type are multiplied here.
pub(crate) fn covers(block_type: BlockType) -> bool {
    matches!(block_type, BlockType::F16 | BlockType::BF16)
}

/// y = x W^T; x: [m, cols], W: `rows` rows of `cols` values, y: [m, rows], overwritten.
///
/// # Panics
/// Where lengths do not belong together, or the type is not covered.
pub(crate) fn multiply(
    block_type: BlockType,
    x: &[f32],
    m: usize,
    weights: &[u8],
    (rows, cols): (usize, usize),
    y: &mut [f32],
) {
    assert_eq!((x.len(), y.len()), (m * cols, m * rows), "x of {m}x{cols}, y of {m}x{rows}");
    assert_eq!(weights.len(), 2 * rows * cols, "bytes of {rows} rows");
    let groups = rows.div_ceil(ROWS);
    // So many that no thread waits long for another.
    let groups_a_task = groups.div_ceil(pool::threads() * 16).max(1);
    let y = Shared::new(y);
    INPUTS.with_borrow_mut(|inputs| {
        inputs.round(x, m, cols);
        pool::run(groups.div_ceil(groups_a_task), &|task| {
            for group in task * groups_a_task..groups.min((task + 1) * groups_a_task) {
                let row = group * ROWS;
                let count = ROWS.min(rows - row);
                let weights = &weights[2 * row * cols..][..2 * count * cols];
                GROUP.with_borrow_mut(|group| {
                    let part = Part { inputs, m, row, rows };
                    match block_type {
                        BlockType::F16 => one_group::<half::f16>(weights, count, cols, group, part, &y),
                        BlockType::BF16 => one_group::<half::bf16>(weights, count, cols, group, part, &y),
                        _ => unreachable!("the caller asks `covers` first"),
                    }
                });
            }
        });
    });
}

/// What a group is multiplied with, and where its results go.
#[derive(Clone, Copy)]
struct Part<'i> {
    inputs: &'i Inputs,
    m: usize,
    /// The group's first row of the matrix.
    row: usize,
    /// All rows of the matrix.
    rows: usize,
}

on_processor! {
    fn one_group<H: Half>(
        weights: &[u8], count: usize, cols: usize, group: &mut Group, part: Part, y: &Shared<f32>,
    ) = group_on
}

/// # Safety
/// As [`Isa`].
#[inline(always)]
unsafe fn group_on<I: Isa, H: Half>(
    weights: &[u8],
    count: usize,
    cols: usize,
    group: &mut Group,
    part: Part,
    y: &Shared<f32>,
) {
    // SAFETY: the caller's promise.
    unsafe { group.take::<I, H>(weights, count, cols) };
    let mut token = 0;
    while token < part.m {
        // SAFETY: the caller's promise; tiles are those in which the inputs lie.
        unsafe {
            token += match tile_rows(token, part.m) {
                TILE => tile::<I, TILE>(group, part, token, y),
                4 => tile::<I, 4>(group, part, token, y),
                2 => tile::<I, 2>(group, part, token, y),
                _ => tile::<I, 1>(group, part, token, y),
            };
        }
    }
}

/// 16 rows of the matrix times `T` rows of inputs.
///
/// # Safety
/// As [`Isa`]; the inputs hold a tile of `T` rows from `token` on.
#[inline(always)]
unsafe fn tile<I: Isa, const T: usize>(group: &Group, part: Part, token: usize, y: &Shared<f32>) -> usize {
    let blocks = part.inputs.blocks;
    assert!(group.codes.len() >= blocks * BLOCK * ROWS && group.scales.len() >= blocks * ROWS);
    assert!((token + T) * blocks <= part.inputs.scales.len());
    // SAFETY: both sides hold whole blocks, as compared above.
    let sums = unsafe {
        let numbers = part.inputs.numbers.as_ptr().add(token * blocks * BLOCK);
        let scales = part.inputs.scales.as_ptr().add(token * blocks);
        let mut sums = [I::float(0.0); T];
        for block in 0..blocks {
            let codes = group.codes.as_ptr().add(block * BLOCK * ROWS);
            let x = numbers.add(block * T * BLOCK);
            let mut whole = [I::whole(0); T];
            for pair in 0..PAIRS {
                let codes = I::load(codes.add(pair * 2 * ROWS).cast());
                for t in 0..T {
                    whole[t] = I::dot_words(whole[t], codes, x.add(t * BLOCK + 2 * pair));
                }
            }
            let weight_scales = I::load_floats(group.scales.as_ptr().add(block * ROWS));
            for t in 0..T {
                let scale = I::mul(weight_scales, I::float(*scales.add(block * T + t)));
                sums[t] = I::mul_add(I::to_floats(whole[t]), scale, sums[t]);
            }
        }
        sums
    };
    for (at, sums) in sums.into_iter().enumerate() {
        let mut lanes = [0f32; ROWS];
        let len = ROWS.min(part.rows - part.row);
        // SAFETY: 16 floats; groups have different rows of the matrix.
        unsafe {
            I::store_floats(lanes.as_mut_ptr(), sums);
            y.slice((token + at) * part.rows + part.row, len).copy_from_slice(&lanes[..len]);
        }
    }
    T
}
