//! f32 matrix products over the pool, and products with matrices left in the block type of their file.
//!
//! Large products run the `gemm` crate's sequential kernels on a part per task; products of up to four rows, which
//! are bound by reading the matrix once, run dot products of our own.

use std::cell::RefCell;

use crate::blocks::{BlockType, dequantize};
use crate::packed::Precision;
use crate::pool::{self, Shared};
use crate::simd::{dispatch, dot};
use crate::{fixed, float_dot, quant_dot, widen};

/// A matrix inside a slice: value (row, col) stands at `row * row_stride + col * col_stride`.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The slice it lies in.
    pub values: &'a [f32],
    /// Values from one row to the next.
    pub row_stride: usize,
    /// Values from one column to the next.
    pub col_stride: usize,
}

impl<'a> View<'a> {
    /// A row-major matrix of `cols` columns.
    pub fn rows(values: &'a [f32], cols: usize) -> View<'a> {
        View { values, row_stride: cols, col_stride: 1 }
    }

    /// The same values with rows and columns exchanged.
    pub fn transposed(self) -> View<'a> {
        View { row_stride: self.col_stride, col_stride: self.row_stride, ..self }
    }

    fn from(self, row: usize, col: usize) -> View<'a> {
        View { values: &self.values[row * self.row_stride + col * self.col_stride..], ..self }
    }

    fn check(&self, rows: usize, cols: usize) {
        let last = (rows.max(1) - 1) * self.row_stride + (cols.max(1) - 1) * self.col_stride;
        assert!(
            rows == 0 || cols == 0 || last < self.values.len(),
            "a view of {rows}x{cols} with strides {}, {} over {} values",
            self.row_stride,
            self.col_stride,
            self.values.len()
        );
    }
}

/// What becomes of the values that the target holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// They are replaced, never read.
    Overwrite,
    /// The product is added to them.
    Add,
}

/// Rows up to which a product counts as bound by reading the matrix.
const FEW_ROWS: usize = 4;
/// The same of stored floats, which are widened in registers.
const FEW_FLOAT_ROWS: usize = 16;
/// Multiplications below which a second thread costs more than it brings.
const SMALL: usize = 1 << 15;
/// Multiplications that make a task of a large product worth its own packing.
const TASK: usize = 1 << 24;

/// c = a b or c += a b; a: [m, k], b: [k, n], c: [m, n] row-major.
pub fn matmul(m: usize, k: usize, n: usize, a: View, b: View, c: &mut [f32], write: Write) {
    assert_eq!(c.len(), m * n, "a target of {m}x{n}");
    a.check(m, k);
    b.check(k, n);
    if m <= FEW_ROWS && a.col_stride == 1 && b.row_stride == 1 && k > 0 {
        return matvec(m, k, n, a, b, c, write);
    }
    let c = Shared::new(c);
    let work = m * n * k.max(1);
    let n_tasks = match pool::threads() {
        1 => 1,
        _ if work < SMALL * 4 => 1,
        n_threads => n_threads * (work / n_threads / TASK).clamp(1, 4),
    };
    let (long, unit) = (m.max(n), 16);
    let step = long.div_ceil(n_tasks).next_multiple_of(unit);
    pool::run(long.div_ceil(step.max(1)), &|task| {
        let start = task * step;
        let len = step.min(long - start);
        // The longer side is split: each task packs the other operand, which is then the smaller one.
        let (row, rows, col, cols) = if m >= n { (start, len, 0, n) } else { (0, m, start, len) };
        // SAFETY: tasks write disjoint rows or columns of c, which the lengths checked above contain.
        unsafe {
            sequential(rows, k, cols, a.from(row, 0), b.from(0, col), c.pointer(row * n + col), n, write)
        };
    });
}

/// One thread's product into rows of `c_stride`.
///
/// # Safety
/// `c` points at `m` rows of `n` values that nobody else touches; the views hold what their sizes say.
#[allow(clippy::too_many_arguments)]
pub(crate) unsafe fn sequential(
    m: usize,
    k: usize,
    n: usize,
    a: View,
    b: View,
    c: *mut f32,
    c_stride: usize,
    write: Write,
) {
    let add = write == Write::Add;
    debug_assert!(m == 0 || k == 0 || (m - 1) * a.row_stride + (k - 1) * a.col_stride < a.values.len());
    debug_assert!(n == 0 || k == 0 || (k - 1) * b.row_stride + (n - 1) * b.col_stride < b.values.len());
    // SAFETY: the caller's promise; gemm reads and writes within the given strides.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c,
            1,
            c_stride as isize,
            add,
            a.values.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.values.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            1.0f32,
            1.0f32,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

fn matvec(m: usize, k: usize, n: usize, a: View, b: View, c: &mut [f32], write: Write) {
    let c = Shared::new(c);
    let step = columns_a_task(k * m, n);
    pool::run(n.div_ceil(step), &|task| {
        let start = task * step;
        let part = Part { m, k, n, start, len: step.min(n - start) };
        dot_rows(part, a, b, &c, write);
    });
}

/// The columns `start .. start + len` of a product [m, k] x [k, n].
#[derive(Clone, Copy)]
struct Part {
    m: usize,
    k: usize,
    n: usize,
    start: usize,
    len: usize,
}

/// Columns that one task of a product of few rows computes.
fn columns_a_task(work_a_column: usize, n: usize) -> usize {
    let n_threads = pool::threads();
    let enough = SMALL.div_ceil(work_a_column.max(1));
    n.div_ceil(n_threads * 2).max(enough).clamp(1, n.max(1))
}

dispatch! {
    fn dot_rows(part: Part, a: View, b: View, c: &Shared<f32>, write: Write) = dot_rows_body
}

#[inline(always)]
fn dot_rows_body<const FMA: bool>(part: Part, a: View, b: View, c: &Shared<f32>, write: Write) {
    for col in part.start..part.start + part.len {
        let weights = &b.values[col * b.col_stride..][..part.k];
        for row in 0..part.m {
            let value = dot::<FMA>(&a.values[row * a.row_stride..][..part.k], weights);
            // SAFETY: tasks own disjoint columns.
            let target = unsafe { &mut c.slice(row * part.n + col, 1)[0] };
            *target = if write == Write::Add { *target + value } else { value };
        }
    }
}

thread_local! {
    static ROWS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Rows of a stored matrix that a task widens together before it multiplies them: enough that packing x for each tile counts
/// little.
const TILE: usize = 256;
/// Rows that are widened together where the target is summed up over the tiles, and gone through once for each.
const SUMMED_TILE: usize = 512;

/// y = x W^T; x: [m, k] row-major, W: `n` rows of `k` values stored as `block_type`, y: [m, n] row-major.
#[allow(clippy::too_many_arguments)] // Those of every product.
pub fn matmul_stored(
    x: &[f32],
    m: usize,
    k: usize,
    block_type: BlockType,
    bytes: &[u8],
    n: usize,
    y: &mut [f32],
    precision: Precision,
) {
    let row_bytes = k / block_type.block_len() * block_type.block_bytes();
    assert_eq!(k % block_type.block_len(), 0, "rows of {k} in blocks of {}", block_type.block_len());
    assert_eq!(bytes.len(), n * row_bytes, "bytes of {n} rows");
    assert_eq!((x.len(), y.len()), (m * k, m * n), "x of {m}x{k}, y of {m}x{n}");
    if precision == Precision::Fast && m > FEW_FLOAT_ROWS && fixed::covers(block_type) {
        return fixed::multiply(block_type, x, m, bytes, (n, k), y);
    }
    if m > FEW_FLOAT_ROWS
        && let Some(values) = plain_f32(block_type, bytes)
    {
        return matmul(m, k, n, View::rows(x, k), View::rows(values, k).transposed(), y, Write::Overwrite);
    }
    let y = Shared::new(y);
    if m <= FEW_ROWS && quant_dot::covers(block_type) {
        let step = columns_a_task(k * m, n);
        return pool::run(n.div_ceil(step), &|task| {
            let start = task * step;
            let part = Part { m, k, n, start, len: step.min(n - start) };
            dot_quantised(part, x, block_type, bytes, &y);
        });
    }
    if m <= FEW_FLOAT_ROWS && float_dot::covers(block_type) && k > 0 {
        let step = columns_a_task(k * m, n);
        return pool::run(n.div_ceil(step), &|task| {
            let (start, end) = (task * step, n.min((task + 1) * step));
            let weights = &bytes[start * row_bytes..end * row_bytes];
            // SAFETY: tasks own disjoint columns of y.
            unsafe { float_dot::products(block_type, x, k, weights, y.pointer(start), n) };
        });
    }
    let (tile, unit) = if m <= FEW_ROWS { (1, 1) } else { (TILE, 16) };
    let step = columns_a_task(k * m, n).next_multiple_of(unit);
    let tile = tile.min(step);
    pool::run(n.div_ceil(step), &|task| {
        let end = ((task + 1) * step).min(n);
        ROWS.with_borrow_mut(|rows| {
            rows.resize(tile * k, 0.0);
            for start in (task * step..end).step_by(tile) {
                let len = tile.min(end - start);
                let rows = &mut rows[..len * k];
                widen_rows(block_type, &bytes[start * row_bytes..][..len * row_bytes], rows);
                let weights = View::rows(rows, k).transposed();
                if m <= FEW_ROWS {
                    let at_zero = View { values: rows, row_stride: 1, col_stride: 0 };
                    dot_rows(Part { m, k, n, start, len }, View::rows(x, k), at_zero, &y, Write::Overwrite);
                } else {
                    // SAFETY: tasks own disjoint columns of y.
                    unsafe {
                        let target = y.pointer(start);
                        sequential(m, k, len, View::rows(x, k), weights, target, n, Write::Overwrite);
                    }
                }
            }
        });
    });
}

dispatch! {
    fn dot_quantised(part: Part, x: &[f32], block_type: BlockType, bytes: &[u8], y: &Shared<f32>) = dot_quantised_body
}

#[inline(always)]
fn dot_quantised_body<const FMA: bool>(
    part: Part,
    x: &[f32],
    block_type: BlockType,
    bytes: &[u8],
    y: &Shared<f32>,
) {
    let row_bytes = part.k / block_type.block_len() * block_type.block_bytes();
    for col in part.start..part.start + part.len {
        let weights = &bytes[col * row_bytes..][..row_bytes];
        for row in 0..part.m {
            let value = quant_dot::dot_row::<FMA>(block_type, &x[row * part.k..][..part.k], weights);
            // SAFETY: tasks own disjoint columns.
            unsafe { y.slice(row * part.n + col, 1)[0] = value };
        }
    }
}

/// dx = dy W; dy: [m, n], W: `n` rows of `k` values stored as `block_type`, dx: [m, k], overwritten.
pub fn matmul_stored_transposed(
    dy: &[f32],
    m: usize,
    n: usize,
    block_type: BlockType,
    bytes: &[u8],
    k: usize,
    dx: &mut [f32],
) {
    let row_bytes = k / block_type.block_len() * block_type.block_bytes();
    assert_eq!(bytes.len(), n * row_bytes, "bytes of {n} rows");
    assert_eq!((dy.len(), dx.len()), (m * n, m * k), "dy of {m}x{n}, dx of {m}x{k}");
    if let Some(values) = plain_f32(block_type, bytes) {
        return matmul(m, n, k, View::rows(dy, n), View::rows(values, k), dx, Write::Overwrite);
    }
    let mut rows = vec![0f32; SUMMED_TILE.min(n) * k];
    if n == 0 {
        dx.fill(0.0);
    }
    for start in (0..n).step_by(SUMMED_TILE) {
        let len = SUMMED_TILE.min(n - start);
        let tile = &mut rows[..len * k];
        let source = &bytes[start * row_bytes..][..len * row_bytes];
        pool::run_chunks(tile, k.max(1) * 8, &|chunk, part| {
            let first = chunk * 8 * row_bytes;
            widen_rows(block_type, &source[first..][..part.len() / k * row_bytes], part);
        });
        let write = if start == 0 { Write::Overwrite } else { Write::Add };
        let part = View { values: &dy[start..], row_stride: n, col_stride: 1 };
        matmul(m, len, k, part, View::rows(tile, k), dx, write);
    }
}

/// Stored f32 values where they lie, where that is a place for them.
fn plain_f32(block_type: BlockType, bytes: &[u8]) -> Option<&[f32]> {
    if block_type != BlockType::F32 || cfg!(target_endian = "big") {
        return None;
    }
    // SAFETY: any bits are a float.
    let (before, values, after) = unsafe { bytes.align_to::<f32>() };
    (before.is_empty() && after.is_empty()).then_some(values)
}

/// Widens stored values to f32, the float types by vector instructions.
pub fn widen_rows(block_type: BlockType, source: &[u8], target: &mut [f32]) {
    match block_type {
        BlockType::F32 => widen::f32_bytes(source, target),
        BlockType::F16 => widen::f16_bytes(source, target),
        BlockType::BF16 => widen::bf16_bytes(source, target),
        _ => dequantize(block_type, source, target),
    }
}

#[cfg(test)]
mod tests;
