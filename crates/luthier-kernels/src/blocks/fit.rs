//! Searches for the scale (and minimum) with which a group of values loses least when it is rounded to few levels.
//!
//! Sixteen groups are searched side by side, one a lane: value i of all groups stands in one vector. Each lane adds up
//! its values one after another, unfused, as the reference does for its one group, so that the results are equal to
//! its bits. Source: the searches of ggml-quants.c of llama.cpp (make_qx, make_q3, make_qkx2/3, make_qp).
//!
//! The weighted squared error of rounding x to s q is least for s = sum(w x q) / sum(w q q); what is then gained over
//! dropping x is sum(w x q)^2 / sum(w q q).

/// One number of each of the sixteen groups.
pub(super) type Lanes = [f32; 16];

/// Groups whose values are all smaller are stored as zeros.
pub(super) const NEGLIGIBLE: f32 = 1e-15;

/// Sixteen groups of N values: `parts[group][value]` as `lanes[value][group]`.
#[inline(always)]
pub(super) fn side_by_side<const N: usize>(parts: [&[f32]; 16]) -> [Lanes; N] {
    let mut lanes = [[0f32; 16]; N];
    for (lane, part) in parts.into_iter().enumerate() {
        for (row, value) in lanes.iter_mut().zip(part) {
            row[lane] = *value;
        }
    }
    lanes
}

/// The whole part of a number, which codes keep far below a thousand: the conversion that is safe for all numbers is not
/// made vector instructions of.
#[inline(always)]
pub(super) fn whole(value: f32) -> i32 {
    const LIMIT: f32 = 1024.0;
    let value = if value > -LIMIT { value } else { -LIMIT };
    let value = if value < LIMIT { value } else { LIMIT };
    // SAFETY: neither NaN, which the first line makes -LIMIT, nor out of the range of i32.
    unsafe { value.to_int_unchecked() }
}

/// To the nearest whole number, to even on a tie. Exact for magnitudes up to 2^22.
#[inline(always)]
pub(super) fn nearest(value: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0; // 1.5 * 2^23: the sum has no bits below 1.
    (value + SHIFT) - SHIFT
}

/// Between the bounds; the lower one for NaN.
#[inline(always)]
pub(super) fn between(low: f32, value: f32, high: f32) -> f32 {
    let value = if value > low { value } else { low };
    if value < high { value } else { high }
}

/// The first value of the largest magnitude in each lane, and that magnitude.
#[inline(always)]
fn first_largest<const N: usize>(x: &[Lanes; N]) -> (Lanes, Lanes) {
    let (mut first, mut largest) = ([0f32; 16], [0f32; 16]);
    for x in x {
        for l in 0..16 {
            let magnitude = x[l].abs();
            first[l] = if magnitude > largest[l] { x[l] } else { first[l] };
            largest[l] = if magnitude > largest[l] { magnitude } else { largest[l] };
        }
    }
    (first, largest)
}

/// A scale for each lane, and codes from 0 to 2 n - 1 that stand for -n to n - 1 times it.
pub(super) struct Signed<const N: usize> {
    pub(super) scale: Lanes,
    pub(super) codes: [Lanes; N],
}

/// Tries nineteen scales around the one that maps the largest value to -n and keeps what gains most under weights `w`.
#[inline(always)]
pub(super) fn fit_signed<const N: usize>(n: f32, x: &[Lanes; N], w: &[Lanes; N]) -> Signed<N> {
    let (first, largest) = first_largest(x);
    let mut best = Signed { scale: [0f32; 16], codes: [[0f32; 16]; N] };
    let (mut gain, mut best_inverse) = ([0f32; 16], [0f32; 16]);
    let mut wx = [[0f32; 16]; N];
    for i in 0..N {
        for l in 0..16 {
            wx[i][l] = w[i][l] * x[i][l];
        }
    }
    for step in [0i32].into_iter().chain(-9..0).chain(1..=9) {
        let mut inverse = [0f32; 16];
        for l in 0..16 {
            inverse[l] = if step == 0 { -n / first[l] } else { -(n + 0.1 * step as f32) / first[l] };
        }
        let (mut sum_xq, mut sum_qq) = ([0f32; 16], [0f32; 16]);
        for i in 0..N {
            for l in 0..16 {
                let q = between(-n, nearest(inverse[l] * x[i][l]), n - 1.0);
                sum_xq[l] += wx[i][l] * q;
                sum_qq[l] += w[i][l] * q * q;
            }
        }
        for l in 0..16 {
            let gains = sum_qq[l] > 0.0 && sum_xq[l] * sum_xq[l] > gain[l] * sum_qq[l];
            let better = largest[l] >= NEGLIGIBLE && (step == 0 || gains);
            let scale = if sum_qq[l] != 0.0 { sum_xq[l] / sum_qq[l] } else { 0.0 };
            best.scale[l] = if better { scale } else { best.scale[l] };
            gain[l] = if better { scale * sum_xq[l] } else { gain[l] };
            best_inverse[l] = if better { inverse[l] } else { best_inverse[l] };
        }
    }
    for (codes, x) in best.codes.iter_mut().zip(x) {
        for l in 0..16 {
            let q = between(-n, nearest(best_inverse[l] * x[l]), n - 1.0) + n;
            codes[l] = if largest[l] >= NEGLIGIBLE { q } else { 0.0 };
        }
    }
    best
}

/// As [`fit_signed`], weights being the squares: starts from the scale that maps the largest value to -n and moves single
/// codes, five times over at most, while the gain grows.
#[inline(always)]
pub(super) fn refine_signed<const N: usize>(n: f32, x: &[Lanes; N]) -> Signed<N> {
    let (first, largest) = first_largest(x);
    let mut codes = [[0f32; 16]; N];
    let (mut sum_xq, mut sum_qq) = ([0f32; 16], [0f32; 16]);
    for (codes, x) in codes.iter_mut().zip(x) {
        for l in 0..16 {
            let q = between(-n, nearest(-n / first[l] * x[l]), n - 1.0);
            codes[l] = q;
            let w = x[l] * x[l];
            sum_xq[l] += w * x[l] * q;
            sum_qq[l] += w * q * q;
        }
    }
    let mut active = [true; 16];
    for _ in 0..5 {
        let mut changed = [false; 16];
        for (codes, x) in codes.iter_mut().zip(x) {
            for l in 0..16 {
                let w = x[l] * x[l];
                let rest_xq = sum_xq[l] - w * x[l] * codes[l];
                let rest_qq = sum_qq[l] - w * codes[l] * codes[l];
                let q = between(-n, nearest(x[l] * rest_qq / rest_xq), n - 1.0);
                let (xq, qq) = (rest_xq + w * x[l] * q, rest_qq + w * q * q);
                let moves = active[l]
                    & (rest_xq > 0.0)
                    & (q != codes[l])
                    & (qq > 0.0)
                    & (xq * xq * sum_qq[l] > sum_xq[l] * sum_xq[l] * qq);
                codes[l] = if moves { q } else { codes[l] };
                sum_xq[l] = if moves { xq } else { sum_xq[l] };
                sum_qq[l] = if moves { qq } else { sum_qq[l] };
                changed[l] |= moves;
            }
        }
        active = changed;
        if !active.contains(&true) {
            break;
        }
    }
    let mut scale = [0f32; 16];
    for l in 0..16 {
        let usable = largest[l] >= NEGLIGIBLE && sum_qq[l] > 0.0;
        scale[l] = if usable { sum_xq[l] / sum_qq[l] } else { 0.0 };
    }
    for codes in &mut codes {
        for l in 0..16 {
            codes[l] = if largest[l] >= NEGLIGIBLE { codes[l] + n } else { 0.0 };
        }
    }
    Signed { scale, codes }
}

/// Which scales [`fit_affine`] tries: the range of a group mapped to `top + from + i * step` for i from 0 to `steps`.
#[derive(Clone, Copy)]
pub(super) struct Search {
    pub(super) top: f32,
    pub(super) from: f32,
    pub(super) step: f32,
    pub(super) steps: u32,
    /// Whether magnitudes of errors are added up, not their squares.
    pub(super) absolute: bool,
}

/// A scale and a minimum for each lane (`scale * code - below`, below >= 0), and codes from 0 to `top`.
pub(super) struct Affine<const N: usize> {
    pub(super) scale: Lanes,
    pub(super) below: Lanes,
    pub(super) codes: [Lanes; N],
}

/// For each scale that is tried, rounds, then solves scale and minimum by weighted least squares (the minimum never above
/// 0), and keeps what leaves the least error.
#[inline(always)]
pub(super) fn fit_affine<const N: usize>(search: Search, x: &[Lanes; N], w: &[Lanes; N]) -> Affine<N> {
    let top = search.top;
    let (mut minimum, mut maximum) = (x[0], x[0]);
    let mut sum_w = w[0];
    let mut sum_x = [0f32; 16];
    for l in 0..16 {
        sum_x[l] = w[0][l] * x[0][l];
    }
    for (x, w) in x.iter().zip(w).skip(1) {
        for l in 0..16 {
            minimum[l] = if x[l] < minimum[l] { x[l] } else { minimum[l] };
            maximum[l] = if x[l] > maximum[l] { x[l] } else { maximum[l] };
            sum_w[l] += w[l];
            sum_x[l] += w[l] * x[l];
        }
    }
    let (mut scale, mut error, mut flat) = ([0f32; 16], [0f32; 16], [false; 16]);
    let mut inverse = [0f32; 16];
    for l in 0..16 {
        minimum[l] = if minimum[l] > 0.0 { 0.0 } else { minimum[l] };
        flat[l] = maximum[l] <= minimum[l];
        inverse[l] = top / (maximum[l] - minimum[l]);
        scale[l] = 1.0 / inverse[l];
    }
    let mut codes = [[0f32; 16]; N];
    for ((codes, x), w) in codes.iter_mut().zip(x).zip(w) {
        for l in 0..16 {
            codes[l] = between(0.0, nearest(inverse[l] * (x[l] - minimum[l])), top);
            let off = scale[l] * codes[l] + minimum[l] - x[l];
            error[l] += w[l] * if search.absolute { off.abs() } else { off * off };
        }
    }
    let mut tried = [[0f32; 16]; N];
    for step in 0..=search.steps {
        let levels = search.from + search.step * step as f32 + top;
        let (mut sum_q, mut sum_qq, mut sum_xq) = ([0f32; 16], [0f32; 16], [0f32; 16]);
        for l in 0..16 {
            inverse[l] = levels / (maximum[l] - minimum[l]);
        }
        for ((tried, x), w) in tried.iter_mut().zip(x).zip(w) {
            for l in 0..16 {
                let q = between(0.0, nearest(inverse[l] * (x[l] - minimum[l])), top);
                tried[l] = q;
                let wq = w[l] * q;
                sum_q[l] += wq;
                sum_qq[l] += wq * q;
                sum_xq[l] += wq * x[l];
            }
        }
        let (mut determinant, mut this_scale, mut this_minimum) = ([0f32; 16], [0f32; 16], [0f32; 16]);
        for l in 0..16 {
            let d = sum_w[l] * sum_qq[l] - sum_q[l] * sum_q[l];
            let solved_scale = (sum_w[l] * sum_xq[l] - sum_x[l] * sum_q[l]) / d;
            let solved_minimum = (sum_qq[l] * sum_x[l] - sum_q[l] * sum_xq[l]) / d;
            let above = solved_minimum > 0.0;
            determinant[l] = d;
            this_scale[l] = if above { sum_xq[l] / sum_qq[l] } else { solved_scale };
            this_minimum[l] = if above { 0.0 } else { solved_minimum };
        }
        let mut this_error = [0f32; 16];
        for ((tried, x), w) in tried.iter().zip(x).zip(w) {
            for l in 0..16 {
                let off = this_scale[l] * tried[l] + this_minimum[l] - x[l];
                this_error[l] += w[l] * if search.absolute { off.abs() } else { off * off };
            }
        }
        let (mut better, mut any) = ([false; 16], false);
        for l in 0..16 {
            better[l] = !flat[l] & (determinant[l] > 0.0) & (this_error[l] < error[l]);
            any |= better[l];
            error[l] = if better[l] { this_error[l] } else { error[l] };
            scale[l] = if better[l] { this_scale[l] } else { scale[l] };
            minimum[l] = if better[l] { this_minimum[l] } else { minimum[l] };
        }
        if any {
            for (codes, tried) in codes.iter_mut().zip(&tried) {
                for l in 0..16 {
                    codes[l] = if better[l] { tried[l] } else { codes[l] };
                }
            }
        }
    }
    let mut below = [0f32; 16];
    for l in 0..16 {
        below[l] = -minimum[l];
        scale[l] = if flat[l] { 0.0 } else { scale[l] };
    }
    for codes in &mut codes {
        for l in 0..16 {
            codes[l] = if flat[l] { 0.0 } else { codes[l] };
        }
    }
    Affine { scale, below, codes }
}

/// A scale for each lane and codes from 0 to `top`, for values that are not negative (the scales of groups): the scale of
/// nine around the largest value's that leaves the least squared error, then single codes are moved as in
/// [`refine_signed`].
#[inline(always)]
pub(super) fn fit_positive<const N: usize>(top: f32, x: &[Lanes; N], w: &[Lanes; N]) -> Signed<N> {
    let mut largest = [0f32; 16];
    for x in x {
        for l in 0..16 {
            largest[l] = if x[l] > largest[l] { x[l] } else { largest[l] };
        }
    }
    let (mut inverse, mut error) = ([0f32; 16], [0f32; 16]);
    for step in [0i32].into_iter().chain(-4..0).chain(1..=4) {
        let (mut this_inverse, mut this_scale, mut this_error) = ([0f32; 16], [0f32; 16], [0f32; 16]);
        for l in 0..16 {
            this_inverse[l] = (0.1 * step as f32 + top) / largest[l];
            this_scale[l] = 1.0 / this_inverse[l];
        }
        for (x, w) in x.iter().zip(w) {
            for l in 0..16 {
                let q = between(0.0, nearest(this_inverse[l] * x[l]), top);
                let off = x[l] - this_scale[l] * q;
                this_error[l] += w[l] * off * off;
            }
        }
        for l in 0..16 {
            let better = step == 0 || this_error[l] < error[l];
            error[l] = if better { this_error[l] } else { error[l] };
            inverse[l] = if better { this_inverse[l] } else { inverse[l] };
        }
    }
    let mut codes = [[0f32; 16]; N];
    let (mut sum_xq, mut sum_qq) = ([0f32; 16], [0f32; 16]);
    for ((codes, x), w) in codes.iter_mut().zip(x).zip(w) {
        for l in 0..16 {
            let q = between(0.0, nearest(inverse[l] * x[l]), top);
            codes[l] = q;
            sum_xq[l] += w[l] * x[l] * q;
            sum_qq[l] += w[l] * q * q;
        }
    }
    let mut active = [true; 16];
    for _ in 0..5 {
        let mut changed = [false; 16];
        for ((codes, x), w) in codes.iter_mut().zip(x).zip(w) {
            for l in 0..16 {
                let rest_xq = sum_xq[l] - w[l] * x[l] * codes[l];
                let rest_qq = sum_qq[l] - w[l] * codes[l] * codes[l];
                let q = between(0.0, nearest(x[l] * rest_qq / rest_xq), top);
                let (xq, qq) = (rest_xq + w[l] * x[l] * q, rest_qq + w[l] * q * q);
                let moves = active[l]
                    & (rest_xq > 0.0)
                    & (rest_qq > 0.0)
                    & (q != codes[l])
                    & (xq * xq * sum_qq[l] > sum_xq[l] * sum_xq[l] * qq);
                codes[l] = if moves { q } else { codes[l] };
                sum_xq[l] = if moves { xq } else { sum_xq[l] };
                sum_qq[l] = if moves { qq } else { sum_qq[l] };
                changed[l] |= moves;
            }
        }
        active = changed;
        if !active.contains(&true) {
            break;
        }
    }
    let mut scale = [0f32; 16];
    for l in 0..16 {
        let usable = largest[l] >= NEGLIGIBLE && sum_qq[l] > 0.0;
        scale[l] = if usable { sum_xq[l] / sum_qq[l] } else { 0.0 };
    }
    for codes in &mut codes {
        for l in 0..16 {
            codes[l] = if largest[l] >= NEGLIGIBLE { codes[l] } else { 0.0 };
        }
    }
    Signed { scale, codes }
}
