//! Run-time dispatch: one body, compiled for AVX-512, for AVX2 with FMA, and for what the target always has.
//!
//! Bodies are plain loops over lanes that the compiler vectorises; `FMA` says whether `mul_add` is one instruction.

use std::sync::atomic::{AtomicU8, Ordering};

/// What this processor offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// What the compilation target always has.
    Baseline,
    /// AVX2, FMA, F16C.
    V3,
    /// AVX-512 F, BW, DQ, VL.
    V4,
}

/// Whether the baseline has a fused multiply-add.
pub(crate) const BASELINE_FMA: bool = cfg!(any(target_feature = "fma", target_arch = "aarch64"));

#[cfg(test)]
thread_local! {
    static AT_MOST: std::cell::Cell<Level> = const { std::cell::Cell::new(Level::V4) };
}

/// Runs `work` as on a processor of at most this level, on this thread alone.
#[cfg(test)]
pub(crate) fn with_level<R>(level: Level, work: impl FnOnce() -> R) -> R {
    let before = (AT_MOST.replace(level), crate::pool::threads());
    crate::pool::set_threads(1);
    let result = work();
    AT_MOST.set(before.0);
    crate::pool::set_threads(before.1);
    result
}

/// The level to compute on: the processor's best.
#[inline]
pub(crate) fn level() -> Level {
    #[cfg(test)]
    return best().min(AT_MOST.get());
    #[cfg(not(test))]
    best()
}

/// Whether it multiplies bytes four at a time (AVX-512 VNNI).
#[cfg(target_arch = "x86_64")]
#[inline]
pub(crate) fn has_vnni() -> bool {
    is_x86_feature_detected!("avx512vnni")
}

static LEVEL: AtomicU8 = AtomicU8::new(u8::MAX);

/// What is computed with: `plain`, `avx2`, `avx512`.
pub fn level_name() -> &'static str {
    match level() {
        Level::Baseline => "plain",
        Level::V3 => "avx2",
        Level::V4 => "avx512",
    }
}

/// Computes from now on as on a processor without more than `avx2`, or with nothing special (`plain`); false for another
/// word. To compare with, and for processors that slow down with wide registers.
pub fn limit(word: &str) -> bool {
    let most = match word {
        "avx2" => Level::V3,
        "plain" => Level::Baseline,
        _ => return false,
    };
    LEVEL.store(detect().min(most) as u8, Ordering::Relaxed);
    true
}

/// The best level of this processor.
#[inline]
fn best() -> Level {
    match LEVEL.load(Ordering::Relaxed) {
        0 => Level::Baseline,
        1 => Level::V3,
        2 => Level::V4,
        _ => {
            let found = detect();
            LEVEL.store(found as u8, Ordering::Relaxed);
            found
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Level {
    let v3 = is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c");
    let v4 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    match (v3, v4) {
        (true, true) => Level::V4,
        (true, false) => Level::V3,
        _ => Level::Baseline,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Level {
    Level::Baseline
}

/// `a * b + c`, fused where that is one instruction.
#[inline(always)]
pub(crate) fn mul_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Defines a function that runs `body::<FMA>` compiled for the best level of the processor.
macro_rules! dispatch {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:ident) => {
        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
                fn v4($($arg: $ty),*) $(-> $ret)? { $body::<true>($($arg),*) }
                #[target_feature(enable = "avx2,fma,f16c")]
                fn v3($($arg: $ty),*) $(-> $ret)? { $body::<true>($($arg),*) }
                match $crate::simd::level() {
                    // SAFETY: the processor has these features.
                    $crate::simd::Level::V4 => return unsafe { v4($($arg),*) },
                    // SAFETY: as above.
                    $crate::simd::Level::V3 => return unsafe { v3($($arg),*) },
                    $crate::simd::Level::Baseline => {}
                }
            }
            $body::<{ $crate::simd::BASELINE_FMA }>($($arg),*)
        }
    };
}
pub(crate) use dispatch;

/// Lanes of one accumulator.
pub(crate) const LANES: usize = 16;

/// Dot product of equally long slices, in a fixed order of summation.
#[inline(always)]
pub(crate) fn dot<const FMA: bool>(a: &[f32], b: &[f32]) -> f32 {
    const STEP: usize = 4 * LANES;
    let mut sums = [[0f32; LANES]; 4];
    let (a_steps, b_steps) = (a.chunks_exact(STEP), b.chunks_exact(STEP));
    let (a_rest, b_rest) = (a_steps.remainder(), b_steps.remainder());
    for (a, b) in a_steps.zip(b_steps) {
        for (part, sums) in sums.iter_mut().enumerate() {
            for lane in 0..LANES {
                let at = part * LANES + lane;
                sums[lane] = mul_add::<FMA>(a[at], b[at], sums[lane]);
            }
        }
    }
    let (a_lanes, b_lanes) = (a_rest.chunks_exact(LANES), b_rest.chunks_exact(LANES));
    let (a_tail, b_tail) = (a_lanes.remainder(), b_lanes.remainder());
    for (a, b) in a_lanes.zip(b_lanes) {
        for lane in 0..LANES {
            sums[0][lane] = mul_add::<FMA>(a[lane], b[lane], sums[0][lane]);
        }
    }
    for (lane, (a, b)) in a_tail.iter().zip(b_tail).enumerate() {
        sums[1][lane] = mul_add::<FMA>(*a, *b, sums[1][lane]);
    }
    let mut total = [0f32; LANES];
    for lane in 0..LANES {
        total[lane] = (sums[0][lane] + sums[1][lane]) + (sums[2][lane] + sums[3][lane]);
    }
    reduce(total)
}

/// Sum of the lanes, pairwise.
#[inline(always)]
pub(crate) fn reduce(mut lanes: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// `y += a * x`.
#[inline(always)]
pub(crate) fn axpy<const FMA: bool>(a: f32, x: &[f32], y: &mut [f32]) {
    for (y, &x) in y.iter_mut().zip(x) {
        *y = mul_add::<FMA>(a, x, *y);
    }
}
