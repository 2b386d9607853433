//! RMSNorm over rows: `y = x / sqrt(mean(x^2) + eps) * (offset + w)` (arXiv:1910.07467), and its gradient.

use crate::matmul::Write;
use crate::pool::{self, Shared, run_chunks};
use crate::rows::rows_a_task;
use crate::simd::{LANES, dispatch, mul_add, reduce};

/// What the norm is made of.
#[derive(Clone, Copy, Debug)]
pub struct Norm<'a> {
    /// [m].
    pub weight: &'a [f32],
    /// Added to the mean square.
    pub eps: f32,
    /// Added to the weight (Gemma: 1).
    pub offset: f32,
}

/// x: [rows, m] -> y: [rows, m].
pub fn rms_norm(x: &[f32], norm: Norm, y: &mut [f32]) {
    let m = norm.weight.len();
    assert!(m > 0 && x.len() == y.len() && x.len().is_multiple_of(m), "rows of {m} in {}", x.len());
    let step = rows_a_task(x.len() / m, m) * m;
    run_chunks(y, step, &|chunk, part| forward(&x[chunk * step..][..part.len()], norm, part));
}

/// Gradients of [`rms_norm`]: dx [rows, m] is overwritten, dw [m] written as `write` says; either may be absent.
pub fn rms_norm_backward(
    x: &[f32],
    norm: Norm,
    dy: &[f32],
    dx: Option<&mut [f32]>,
    dw: Option<(&mut [f32], Write)>,
) {
    let m = norm.weight.len();
    assert!(m > 0 && x.len() == dy.len() && x.len().is_multiple_of(m), "rows of {m} in {}", x.len());
    let step = rows_a_task(x.len() / m, m) * m;
    let n_tasks = x.len().div_ceil(step);
    let with_dx = dx.is_some();
    let mut sums = vec![0f32; if dw.is_some() { n_tasks * m } else { 0 }];
    let mut none = [];
    let (dx, parts) = (Shared::new(dx.unwrap_or(&mut none)), Shared::new(&mut sums));
    let with_dw = dw.is_some();
    pool::run(n_tasks, &|task| {
        let start = task * step;
        let len = step.min(x.len() - start);
        // SAFETY: tasks own disjoint rows of dx and their own row of the partial sums.
        let (dx, dw) = unsafe {
            let dx = dx.slice(if with_dx { start } else { 0 }, if with_dx { len } else { 0 });
            (dx, parts.slice(if with_dw { task * m } else { 0 }, if with_dw { m } else { 0 }))
        };
        backward(&x[start..][..len], norm, &dy[start..][..len], dx, dw);
    });
    if let Some((dw, write)) = dw {
        if write == Write::Overwrite {
            dw.fill(0.0);
        }
        for part in sums.chunks_exact(m) {
            dw.iter_mut().zip(part).for_each(|(sum, x)| *sum += x);
        }
    }
}

dispatch! {
    fn forward(x: &[f32], norm: Norm, y: &mut [f32]) = forward_body
}

#[inline(always)]
fn forward_body<const FMA: bool>(x: &[f32], norm: Norm, y: &mut [f32]) {
    let m = norm.weight.len();
    for (x, y) in x.chunks_exact(m).zip(y.chunks_exact_mut(m)) {
        let scale = 1.0 / (mean_product::<FMA>(x, x) + norm.eps).sqrt();
        for ((y, x), w) in y.iter_mut().zip(x).zip(norm.weight) {
            *y = x * scale * (norm.offset + w);
        }
    }
}

dispatch! {
    fn backward(x: &[f32], norm: Norm, dy: &[f32], dx: &mut [f32], dw: &mut [f32]) = backward_body
}

#[inline(always)]
fn backward_body<const FMA: bool>(x: &[f32], norm: Norm, dy: &[f32], dx: &mut [f32], dw: &mut [f32]) {
    let m = norm.weight.len();
    for (row, (x, dy)) in x.chunks_exact(m).zip(dy.chunks_exact(m)).enumerate() {
        let scale = 1.0 / (mean_product::<FMA>(x, x) + norm.eps).sqrt();
        if !dx.is_empty() {
            let dx = &mut dx[row * m..][..m];
            // g = dy (offset + w) is the gradient of the normalised row.
            for ((g, dy), w) in dx.iter_mut().zip(dy).zip(norm.weight) {
                *g = dy * (norm.offset + w);
            }
            let pull = mean_product::<FMA>(dx, x) * scale * scale;
            for (g, x) in dx.iter_mut().zip(x) {
                *g = scale * (*g - x * pull);
            }
        }
        for ((sum, dy), x) in dw.iter_mut().zip(dy).zip(x) {
            *sum = mul_add::<FMA>(dy * scale, *x, *sum);
        }
    }
}

#[inline(always)]
fn mean_product<const FMA: bool>(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0f32; LANES];
    let (a_lanes, b_lanes) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let (a_tail, b_tail) = (a_lanes.remainder(), b_lanes.remainder());
    for (a, b) in a_lanes.zip(b_lanes) {
        for lane in 0..LANES {
            sums[lane] = mul_add::<FMA>(a[lane], b[lane], sums[lane]);
        }
    }
    for (lane, (a, b)) in a_tail.iter().zip(b_tail).enumerate() {
        sums[lane] = mul_add::<FMA>(*a, *b, sums[lane]);
    }
    reduce(sums) / a.len() as f32
}
