//! Gated activations `act(gate) * up` and soft caps `c tanh(x / c)`, with their gradients.

use crate::math;
use crate::pool::{Shared, run, run_chunks};
use crate::rows::rows_a_task;
use crate::simd::dispatch;

/// The non-linearity of a feed-forward block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// x / (1 + e^-x).
    Silu,
    /// 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).
    GeluTanh,
    /// 0.5 x (1 + erf(x / sqrt(2))).
    Gelu,
    /// max(x, 0).
    Relu,
}

/// y = act(gate) * up, all of one length.
pub fn gated(gate: &[f32], up: &[f32], kind: Gate, y: &mut [f32]) {
    assert!(gate.len() == up.len() && gate.len() == y.len(), "gate, up and result of one length");
    let step = rows_a_task(y.len(), 1);
    run_chunks(y, step, &|chunk, part| {
        let range = chunk * step..chunk * step + part.len();
        let (gate, up) = (&gate[range.clone()], &up[range]);
        match kind {
            Gate::Silu => forward_silu(gate, up, part),
            Gate::GeluTanh => forward_gelu_tanh(gate, up, part),
            Gate::Gelu => forward_gelu(gate, up, part),
            Gate::Relu => forward_relu(gate, up, part),
        }
    });
}

/// Gradients of [`gated`] by gate and by up, both overwritten.
pub fn gated_backward(gate: &[f32], up: &[f32], kind: Gate, dy: &[f32], dgate: &mut [f32], dup: &mut [f32]) {
    let len = gate.len();
    assert!(
        up.len() == len && dy.len() == len && dgate.len() == len && dup.len() == len,
        "values of one length"
    );
    let step = rows_a_task(len, 1);
    let (dgate, dup) = (Shared::new(dgate), Shared::new(dup));
    run(len.div_ceil(step), &|task| {
        let (start, len) = (task * step, step.min(len - task * step));
        let operands = (&gate[start..][..len], &up[start..][..len], &dy[start..][..len]);
        // SAFETY: tasks own disjoint ranges.
        let (dgate, dup) = unsafe { (dgate.slice(start, len), dup.slice(start, len)) };
        match kind {
            Gate::Silu => backward_silu(operands, dgate, dup),
            Gate::GeluTanh => backward_gelu_tanh(operands, dgate, dup),
            Gate::Gelu => backward_gelu(operands, dgate, dup),
            Gate::Relu => backward_relu(operands, dgate, dup),
        }
    });
}

/// x = c tanh(x / c).
pub fn softcap(x: &mut [f32], cap: f32) {
    let step = rows_a_task(x.len(), 1);
    run_chunks(x, step, &|_, part| softcap_part(part, cap));
}

/// dx = dy (1 - (y / c)^2), y being the capped value.
pub fn softcap_backward(y: &[f32], dy: &[f32], cap: f32, dx: &mut [f32]) {
    assert!(y.len() == dy.len() && y.len() == dx.len(), "values of one length");
    let step = rows_a_task(y.len(), 1);
    run_chunks(dx, step, &|chunk, part| {
        let range = chunk * step..chunk * step + part.len();
        for ((dx, y), dy) in part.iter_mut().zip(&y[range.clone()]).zip(&dy[range]) {
            let share = y / cap;
            *dx = dy * (1.0 - share * share);
        }
    });
}

dispatch! { pub(crate) fn softcap_part(x: &mut [f32], cap: f32) = softcap_body }

#[inline(always)]
fn softcap_body<const FMA: bool>(x: &mut [f32], cap: f32) {
    let inverse = 1.0 / cap;
    for x in x {
        *x = cap * math::tanh::<FMA>(*x * inverse);
    }
}

type Operands<'a> = (&'a [f32], &'a [f32], &'a [f32]);

/// Value and slope at x.
type Point = (f32, f32);

#[inline(always)]
fn silu<const FMA: bool>(x: f32) -> Point {
    let share = math::logistic::<FMA>(x);
    (x * share, share * (1.0 + x * (1.0 - share)))
}

#[inline(always)]
fn gelu_tanh<const FMA: bool>(x: f32) -> Point {
    // The approximation of arXiv:1606.08415.
    const ROOT: f32 = 0.797_884_6;
    const CUBIC: f32 = 0.044_715;
    let inner = ROOT * x * (1.0 + CUBIC * x * x);
    let turn = math::tanh::<FMA>(inner);
    let slope = 0.5 * (1.0 + turn) + 0.5 * x * (1.0 - turn * turn) * ROOT * (1.0 + 3.0 * CUBIC * x * x);
    (0.5 * x * (1.0 + turn), slope)
}

#[inline(always)]
fn gelu<const FMA: bool>(x: f32) -> Point {
    const INVERSE_ROOT_TWO_PI: f32 = 0.398_942_3;
    let share = 0.5 * (1.0 + math::erf::<FMA>(x * std::f32::consts::FRAC_1_SQRT_2));
    (x * share, share + x * INVERSE_ROOT_TWO_PI * math::exp::<FMA>(-0.5 * x * x))
}

#[inline(always)]
fn relu<const FMA: bool>(x: f32) -> Point {
    // Not max(x, 0): NaN must pass.
    if x <= 0.0 { (0.0, 0.0) } else { (x, 1.0) }
}

macro_rules! gate {
    ($point:ident, $forward:ident, $forward_body:ident, $backward:ident, $backward_body:ident) => {
        dispatch! { fn $forward(gate: &[f32], up: &[f32], y: &mut [f32]) = $forward_body }

        #[inline(always)]
        fn $forward_body<const FMA: bool>(gate: &[f32], up: &[f32], y: &mut [f32]) {
            for ((y, gate), up) in y.iter_mut().zip(gate).zip(up) {
                *y = $point::<FMA>(*gate).0 * up;
            }
        }

        dispatch! { fn $backward(operands: Operands, dgate: &mut [f32], dup: &mut [f32]) = $backward_body }

        #[inline(always)]
        fn $backward_body<const FMA: bool>((gate, up, dy): Operands, dgate: &mut [f32], dup: &mut [f32]) {
            let len = gate.len();
            let (up, dy, dgate, dup) = (&up[..len], &dy[..len], &mut dgate[..len], &mut dup[..len]);
            for i in 0..len {
                let (value, slope) = $point::<FMA>(gate[i]);
                dgate[i] = dy[i] * up[i] * slope;
                dup[i] = dy[i] * value;
            }
        }
    };
}

gate!(silu, forward_silu, forward_silu_body, backward_silu, backward_silu_body);
gate!(gelu_tanh, forward_gelu_tanh, forward_gelu_tanh_body, backward_gelu_tanh, backward_gelu_tanh_body);
gate!(gelu, forward_gelu, forward_gelu_body, backward_gelu, backward_gelu_body);
gate!(relu, forward_relu, forward_relu_body, backward_relu, backward_relu_body);
