//! Rotary position embedding over halves (arXiv:2104.09864): the pair (i, i + d/2) of each head is turned.

use crate::pool::run_chunks;
use crate::rows::rows_a_task;
use crate::simd::{dispatch, mul_add};

// t tokens (of all sequences), h heads, d head width

/// x: [t, h, d] -> y: [t, h, d]; cos, sin: [n, d/2] with n dividing t, token i taking row i % n. `sense` is 1, or -1
/// to turn back, which is the gradient.
pub fn rope(x: &[f32], cos: &[f32], sin: &[f32], heads: usize, head_dim: usize, sense: f32, y: &mut [f32]) {
    let (width, half) = (heads * head_dim, head_dim / 2);
    if width == 0 || x.is_empty() {
        return;
    }
    assert_eq!(head_dim % 2, 0, "heads of {head_dim}");
    assert!(x.len() == y.len() && x.len().is_multiple_of(width), "tokens of {width} in {}", x.len());
    assert!(
        cos.len() == sin.len() && !cos.is_empty() && (x.len() / width * half).is_multiple_of(cos.len()),
        "angles"
    );
    let n_angles = cos.len() / half;
    let step = rows_a_task(x.len() / width, width);
    run_chunks(y, step * width, &|chunk, part| {
        for (at, y) in part.chunks_exact_mut(width).enumerate() {
            let token = chunk * step + at;
            let angles = token % n_angles * half..(token % n_angles + 1) * half;
            turn(&x[token * width..][..width], &cos[angles.clone()], &sin[angles], sense, y);
        }
    });
}

dispatch! {
    fn turn(x: &[f32], cos: &[f32], sin: &[f32], sense: f32, y: &mut [f32]) = turn_body
}

#[inline(always)]
fn turn_body<const FMA: bool>(x: &[f32], cos: &[f32], sin: &[f32], sense: f32, y: &mut [f32]) {
    let half = cos.len();
    let sin = &sin[..half];
    for (x, y) in x.chunks_exact(2 * half).zip(y.chunks_exact_mut(2 * half)) {
        let ((low, high), (low_out, high_out)) = (x.split_at(half), y.split_at_mut(half));
        // Of one length each, seen by the compiler.
        let (high, high_out) = (&high[..half], &mut high_out[..half]);
        for i in 0..half {
            let sin = sense * sin[i];
            low_out[i] = mul_add::<FMA>(low[i], cos[i], -(high[i] * sin));
            high_out[i] = mul_add::<FMA>(high[i], cos[i], low[i] * sin);
        }
    }
}
