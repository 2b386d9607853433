//! Row-wise helpers: a bias added to each row, sums of columns, sums of vectors.

use crate::matmul::Write;
use crate::pool::{self, run_chunks};
use crate::simd::dispatch;

/// Values that one task of an elementwise operation handles at least.
pub(crate) const TASK_VALUES: usize = 1 << 14;

/// Rows of `width` values that one task handles: a few tasks a thread, none too small.
pub(crate) fn rows_a_task(rows: usize, width: usize) -> usize {
    let threads = pool::threads();
    // As many for each thread.
    let n_tasks = (rows * width).div_ceil(TASK_VALUES).next_multiple_of(threads).min(threads * 4);
    let enough = TASK_VALUES.div_ceil(width.max(1)) / 2;
    rows.div_ceil(n_tasks.max(1)).max(enough).max(1)
}

/// Adds `bias` [n] to every row of y [.., n].
pub fn add_bias(y: &mut [f32], bias: &[f32]) {
    let n = bias.len();
    if n == 0 {
        return;
    }
    run_chunks(y, rows_a_task(y.len() / n, n) * n, &|_, part| {
        for row in part.chunks_exact_mut(n) {
            row.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
        }
    });
}

/// Sums of the columns of x [rows, n] into out [n].
pub fn column_sums(x: &[f32], out: &mut [f32], write: Write) {
    let n = out.len();
    run_chunks(out, n.div_ceil(pool::threads()).max(16), &|chunk, part| {
        if write == Write::Overwrite {
            part.fill(0.0);
        }
        let start = chunk * n.div_ceil(pool::threads()).max(16);
        for row in x.chunks_exact(n) {
            part.iter_mut().zip(&row[start..]).for_each(|(sum, x)| *sum += x);
        }
    });
}

dispatch! {
    fn sum_of(a: &[f32], b: &[f32], out: &mut [f32]) = sum_of_body
}

#[inline(always)]
fn sum_of_body<const FMA: bool>(a: &[f32], b: &[f32], out: &mut [f32]) {
    for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
        *out = a + b;
    }
}

/// out = a + b.
pub fn add(a: &[f32], b: &[f32], out: &mut [f32]) {
    assert!(a.len() == out.len() && b.len() == out.len(), "{} + {} into {}", a.len(), b.len(), out.len());
    let step = rows_a_task(out.len(), 1);
    run_chunks(out, step, &|chunk, part| {
        let range = chunk * step..chunk * step + part.len();
        sum_of(&a[range.clone()], &b[range], part);
    });
}

/// values *= factor.
pub fn scale(values: &mut [f32], factor: f32) {
    run_chunks(values, rows_a_task(values.len(), 1), &|_, part| part.iter_mut().for_each(|x| *x *= factor));
}

/// target += factor * source.
pub fn add_scaled(target: &mut [f32], source: &[f32], factor: f32) {
    assert_eq!(target.len(), source.len());
    let step = rows_a_task(target.len(), 1);
    run_chunks(target, step, &|chunk, part| {
        part.iter_mut().zip(&source[chunk * step..]).for_each(|(y, x)| *y += factor * x);
    });
}

/// values = value.
pub fn fill(values: &mut [f32], value: f32) {
    run_chunks(values, TASK_VALUES * 4, &|_, part| part.fill(value));
}
