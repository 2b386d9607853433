//! Softmax cross-entropy over rows of logits, turning them into their gradients in place.

use crate::math;
use crate::pool::{self, Shared};
use crate::simd::{LANES, dispatch, reduce};

/// What the rows should predict. All slices have one entry per row.
#[derive(Clone, Copy, Debug)]
pub struct RowTargets<'a> {
    /// Below v.
    pub ids: &'a [u32],
    /// Factor on each row's loss.
    pub weights: &'a [f32],
    /// A teacher's part in the target.
    pub teacher: Option<RowTeacher<'a>>,
    /// `c` of `c tanh(logit / c)`.
    pub softcap: Option<f32>,
}

/// A teacher's part in the target (arXiv:1503.02531).
#[derive(Clone, Copy, Debug)]
pub struct RowTeacher<'a> {
    /// `[rows, v]`.
    pub logits: &'a [f32],
    /// One for each row, in 0..=1; the rest is the row's own id.
    pub shares: &'a [f32],
    /// T: divides the logits of both sides, and its square is a factor on the teacher's part of the loss, so that
    /// gradients keep their size.
    pub temperature: f32,
}

/// Writes each row's weighted loss (`[rows]`); where `grads` is asked for, `logits` [rows, v] become the gradients of
/// the sum of losses, otherwise their content is spent.
pub fn cross_entropy_rows(
    logits: &mut [f32],
    v: usize,
    targets: RowTargets,
    grads: bool,
    losses: &mut [f32],
) {
    assert_eq!(logits.len(), losses.len() * v, "logits of {} rows", losses.len());
    assert!(targets.ids.iter().all(|&id| (id as usize) < v), "target ids below {v}");
    assert!(targets.ids.len() == losses.len() && targets.weights.len() == losses.len(), "targets");
    if let Some(RowTeacher { logits: taught, shares, .. }) = targets.teacher {
        assert!(taught.len() == logits.len() && shares.len() == losses.len(), "teacher logits and shares");
    }
    let (logits, losses_out) = (Shared::new(logits), Shared::new(losses));
    pool::run(targets.ids.len(), &|row| {
        // SAFETY: each task owns its row.
        let (logits, loss) = unsafe { (logits.slice(row * v, v), losses_out.slice(row, 1)) };
        let target = RowTarget {
            id: targets.ids[row] as usize,
            weight: targets.weights[row],
            teacher: targets.teacher.and_then(|all| OneTeacher::of_row(all, row, v)),
            softcap: targets.softcap,
        };
        loss[0] = one_row(logits, target, grads);
    });
}

#[derive(Clone, Copy)]
struct RowTarget<'a> {
    id: usize,
    weight: f32,
    teacher: Option<OneTeacher<'a>>,
    softcap: Option<f32>,
}

#[derive(Clone, Copy)]
struct OneTeacher<'a> {
    logits: &'a [f32],
    share: f32,
    temperature: f32,
}

impl<'a> OneTeacher<'a> {
    /// None where the teacher has no share in the row.
    fn of_row(all: RowTeacher<'a>, row: usize, v: usize) -> Option<OneTeacher<'a>> {
        let share = all.shares[row];
        let logits = &all.logits[row * v..][..v];
        (share != 0.0).then_some(OneTeacher { logits, share, temperature: all.temperature })
    }
}

dispatch! { fn one_row(logits: &mut [f32], target: RowTarget, grads: bool) -> f32 = one_row_body }

#[inline(always)]
fn one_row_body<const FMA: bool>(logits: &mut [f32], target: RowTarget, grads: bool) -> f32 {
    if let Some(cap) = target.softcap {
        let inverse = 1.0 / cap;
        logits.iter_mut().for_each(|x| *x = cap * math::tanh::<FMA>(*x * inverse));
    }
    if let Some(teacher) = target.teacher.filter(|teacher| teacher.temperature != 1.0) {
        return tempered_row::<FMA>(logits, target, teacher, grads);
    }
    let log_sum = log_sum_exp::<FMA>(logits);
    // loss = lse - sum_j target_j logit_j, the targets summing to one.
    let (share, teacher_log_sum) = match target.teacher {
        Some(teacher) => (teacher.share, log_sum_exp::<FMA>(teacher.logits)),
        None => (0.0, 0.0),
    };
    let mut expected = (1.0 - share) * logits[target.id];
    if let Some(teacher) = target.teacher {
        expected += share * expectation::<FMA>(teacher.logits, teacher_log_sum, logits);
    }
    let loss = target.weight * (log_sum - expected);
    if !grads {
        return loss;
    }
    let own = logits[target.id];
    match target.teacher {
        Some(teacher) => {
            for (x, teacher) in logits.iter_mut().zip(teacher.logits) {
                let p = math::exp::<FMA>(*x - log_sum) - share * math::exp::<FMA>(*teacher - teacher_log_sum);
                *x = target.weight * p * slope(*x, target.softcap);
            }
        }
        None if target.softcap.is_none() => {
            logits.iter_mut().for_each(|x| *x = target.weight * math::exp::<FMA>(*x - log_sum));
        }
        None => {
            for x in logits.iter_mut() {
                *x = target.weight * math::exp::<FMA>(*x - log_sum) * slope(*x, target.softcap);
            }
        }
    }
    logits[target.id] -= target.weight * (1.0 - share) * slope(own, target.softcap);
    loss
}

/// `(1 - s) (lse(z) - z_y) + s T^2 (lse(z / T) - sum_j p_j z_j / T)` with p the softmax of the teacher's logits over T;
/// `logits` are capped already.
#[inline(always)]
fn tempered_row<const FMA: bool>(
    logits: &mut [f32],
    target: RowTarget,
    teacher: OneTeacher,
    grads: bool,
) -> f32 {
    let OneTeacher { share, temperature, .. } = teacher;
    let cool = |x: &[f32]| -> Vec<f32> { x.iter().map(|x| x / temperature).collect() };
    let (student, teacher) = (cool(logits), cool(teacher.logits));
    let (student_log_sum, teacher_log_sum) = (log_sum_exp::<FMA>(&student), log_sum_exp::<FMA>(&teacher));
    let log_sum = log_sum_exp::<FMA>(logits);
    let own = logits[target.id];
    let soft = student_log_sum - expectation::<FMA>(&teacher, teacher_log_sum, &student);
    let soft_share = share * temperature;
    let loss = target.weight * ((1.0 - share) * (log_sum - own) + soft_share * temperature * soft);
    if !grads {
        return loss;
    }
    for ((x, student), teacher) in logits.iter_mut().zip(&student).zip(&teacher) {
        let hard = math::exp::<FMA>(*x - log_sum);
        let soft = math::exp::<FMA>(student - student_log_sum) - math::exp::<FMA>(teacher - teacher_log_sum);
        *x = target.weight * ((1.0 - share) * hard + soft_share * soft) * slope(*x, target.softcap);
    }
    logits[target.id] -= target.weight * (1.0 - share) * slope(own, target.softcap);
    loss
}

/// d cap tanh(x / cap) / dx in terms of the capped value.
#[inline(always)]
fn slope(y: f32, softcap: Option<f32>) -> f32 {
    match softcap {
        Some(cap) => 1.0 - (y / cap) * (y / cap),
        None => 1.0,
    }
}

#[inline(always)]
fn log_sum_exp<const FMA: bool>(x: &[f32]) -> f32 {
    let mut tops = [f32::NEG_INFINITY; LANES];
    let lanes = x.chunks_exact(LANES);
    let tail = lanes.remainder();
    for x in lanes.clone() {
        for lane in 0..LANES {
            tops[lane] = if x[lane] > tops[lane] { x[lane] } else { tops[lane] };
        }
    }
    let top = tops.iter().chain(tail).fold(f32::NEG_INFINITY, |top, &x| if x > top { x } else { top });
    let mut sums = [0f32; LANES];
    for x in lanes {
        for lane in 0..LANES {
            sums[lane] += math::exp::<FMA>(x[lane] - top);
        }
    }
    for (lane, x) in tail.iter().enumerate() {
        sums[lane] += math::exp::<FMA>(x - top);
    }
    top + reduce(sums).ln()
}

/// `sum_j p_j x_j` with p the softmax of `teacher`.
#[inline(always)]
fn expectation<const FMA: bool>(teacher: &[f32], log_sum: f32, x: &[f32]) -> f32 {
    let mut sums = [0f32; LANES];
    let (teacher_lanes, x_lanes) = (teacher.chunks_exact(LANES), x.chunks_exact(LANES));
    let (teacher_tail, x_tail) = (teacher_lanes.remainder(), x_lanes.remainder());
    for (teacher, x) in teacher_lanes.zip(x_lanes) {
        for lane in 0..LANES {
            sums[lane] += math::exp::<FMA>(teacher[lane] - log_sum) * x[lane];
        }
    }
    for (lane, (teacher, x)) in teacher_tail.iter().zip(x_tail).enumerate() {
        sums[lane] += math::exp::<FMA>(teacher - log_sum) * x;
    }
    reduce(sums)
}
