//! LayerNorm over rows: `y = (x - mean(x)) / sqrt(var(x) + eps) * w + b` (arXiv:1607.06450), and its gradient.

use crate::matmul::Write;
use crate::pool::{self, Shared, run_chunks};
use crate::rows::rows_a_task;
use crate::simd::dispatch;

/// What the norm is made of.
#[derive(Clone, Copy, Debug)]
pub struct LayerNorm<'a> {
    /// [m].
    pub weight: &'a [f32],
    /// [m].
    pub bias: &'a [f32],
    /// Added to the variance.
    pub eps: f32,
}

/// Where the gradients of weight and bias go, [m] each.
#[derive(Debug)]
pub struct LayerNormGrads<'a> {
    /// Of the weight; none where it is frozen.
    pub weight: Option<(&'a mut [f32], Write)>,
    /// Of the bias; none where it is frozen.
    pub bias: Option<(&'a mut [f32], Write)>,
}

/// x: [rows, m] -> y: [rows, m].
pub fn layer_norm(x: &[f32], norm: LayerNorm, y: &mut [f32]) {
    let m = checked_width(x, norm, y);
    let step = rows_a_task(x.len() / m, m) * m;
    run_chunks(y, step, &|chunk, part| forward(&x[chunk * step..][..part.len()], norm, part));
}

/// Gradients of [`layer_norm`]: dx [rows, m] is overwritten, or absent.
pub fn layer_norm_backward(
    x: &[f32],
    norm: LayerNorm,
    dy: &[f32],
    dx: Option<&mut [f32]>,
    grads: LayerNormGrads,
) {
    let m = checked_width(x, norm, dy);
    let step = rows_a_task(x.len() / m, m) * m;
    let n_tasks = x.len().div_ceil(step);
    let with_dx = dx.is_some();
    // Of each task: the gradient of the weight, then that of the bias.
    let mut sums = vec![0f32; n_tasks * 2 * m];
    let mut none = [];
    let (dx, parts) = (Shared::new(dx.unwrap_or(&mut none)), Shared::new(&mut sums));
    pool::run(n_tasks, &|task| {
        let start = task * step;
        let len = step.min(x.len() - start);
        // SAFETY: tasks own disjoint rows of dx and their own row of the partial sums.
        let (dx, part) = unsafe {
            let dx = dx.slice(if with_dx { start } else { 0 }, if with_dx { len } else { 0 });
            (dx, parts.slice(task * 2 * m, 2 * m))
        };
        backward(&x[start..][..len], norm, &dy[start..][..len], dx, part);
    });
    for (at, target) in [grads.weight, grads.bias].into_iter().enumerate() {
        let Some((target, write)) = target else { continue };
        if write == Write::Overwrite {
            target.fill(0.0);
        }
        for part in sums.chunks_exact(2 * m) {
            target.iter_mut().zip(&part[at * m..]).for_each(|(sum, x)| *sum += x);
        }
    }
}

fn checked_width(x: &[f32], norm: LayerNorm, y: &[f32]) -> usize {
    let m = norm.weight.len();
    assert!(
        m > 0 && norm.bias.len() == m && x.len() == y.len() && x.len().is_multiple_of(m),
        "rows of {m} in {}",
        x.len()
    );
    m
}

/// Mean and 1 / sqrt(var + eps), summed in f64: the variance of a row far from zero survives.
#[inline(always)]
fn moments(x: &[f32], eps: f32) -> (f32, f32) {
    let n = x.len() as f64;
    let mean = x.iter().map(|x| f64::from(*x)).sum::<f64>() / n;
    let var = x.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / n;
    (mean as f32, (1.0 / (var + f64::from(eps)).sqrt()) as f32)
}

dispatch! {
    fn forward(x: &[f32], norm: LayerNorm, y: &mut [f32]) = forward_body
}

#[inline(always)]
fn forward_body<const FMA: bool>(x: &[f32], norm: LayerNorm, y: &mut [f32]) {
    let m = norm.weight.len();
    for (x, y) in x.chunks_exact(m).zip(y.chunks_exact_mut(m)) {
        let (mean, scale) = moments(x, norm.eps);
        for (((y, x), w), b) in y.iter_mut().zip(x).zip(norm.weight).zip(norm.bias) {
            *y = (x - mean) * scale * w + b;
        }
    }
}

dispatch! {
    fn backward(x: &[f32], norm: LayerNorm, dy: &[f32], dx: &mut [f32], sums: &mut [f32]) = backward_body
}

#[inline(always)]
fn backward_body<const FMA: bool>(x: &[f32], norm: LayerNorm, dy: &[f32], dx: &mut [f32], sums: &mut [f32]) {
    let m = norm.weight.len();
    let (dw, db) = sums.split_at_mut(m);
    for (row, (x, dy)) in x.chunks_exact(m).zip(dy.chunks_exact(m)).enumerate() {
        let (mean, scale) = moments(x, norm.eps);
        for (((dw, db), dy), x) in dw.iter_mut().zip(db.iter_mut()).zip(dy).zip(x) {
            *dw += dy * (x - mean) * scale;
            *db += dy;
        }
        if dx.is_empty() {
            continue;
        }
        // With z the normalised row and g = dy w: dx = scale (g - mean(g) - z mean(g z)).
        let (mut g_sum, mut gz_sum) = (0f64, 0f64);
        for ((dy, w), x) in dy.iter().zip(norm.weight).zip(x) {
            let g = f64::from(dy * w);
            g_sum += g;
            gz_sum += g * f64::from((x - mean) * scale);
        }
        let (g_mean, gz_mean) = ((g_sum / m as f64) as f32, (gz_sum / m as f64) as f32);
        let dx = &mut dx[row * m..][..m];
        for (((dx, dy), w), x) in dx.iter_mut().zip(dy).zip(norm.weight).zip(x) {
            *dx = scale * (dy * w - g_mean - (x - mean) * scale * gz_mean);
        }
    }
}
