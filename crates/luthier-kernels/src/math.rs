//! exp, tanh, logistic and error function without branches, so that loops over them become vector code.

use crate::simd::mul_add;

/// e^x to about 2 units in the last place; 0 below -86.9 and infinity above 88.72.
#[inline(always)]
pub(crate) fn exp<const FMA: bool>(x: f32) -> f32 {
    // Cephes expf: e^x = 2^n e^r, |r| <= ln(2) / 2.
    const SHIFT: f32 = 12_582_912.0;
    let shifted = mul_add::<FMA>(x, std::f32::consts::LOG2_E, SHIFT);
    let n = shifted - SHIFT;
    let r = mul_add::<FMA>(n, -0.693_359_4, x);
    let r = mul_add::<FMA>(n, 2.121_944_4e-4, r);
    let mut p = 1.987_569_1e-4;
    p = mul_add::<FMA>(p, r, 1.398_199_9e-3);
    p = mul_add::<FMA>(p, r, 8.333_452e-3);
    p = mul_add::<FMA>(p, r, 4.166_579_6e-2);
    p = mul_add::<FMA>(p, r, 1.666_666_5e-1);
    p = mul_add::<FMA>(p, r, 5.000_000_1e-1);
    p = mul_add::<FMA>(p * r, r, r) + 1.0;
    // 2^(n-1), doubled afterwards, so that n = 128 does not overflow.
    let half_scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(0x3f00_0000));
    let y = p * half_scale * 2.0;
    let y = if x < -86.9 { 0.0 } else { y };
    if x > 88.722_84 { f32::INFINITY } else { y }
}

/// 1 / (1 + e^-x).
#[inline(always)]
pub(crate) fn logistic<const FMA: bool>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<FMA>(-x))
}

/// Hyperbolic tangent: Cephes' polynomial near zero, by e^2x elsewhere.
#[inline(always)]
pub(crate) fn tanh<const FMA: bool>(x: f32) -> f32 {
    let size = x.abs();
    let square = x * x;
    let mut p = -5.704_988_7e-3;
    p = mul_add::<FMA>(p, square, 2.063_908_9e-2);
    p = mul_add::<FMA>(p, square, -5.373_971_5e-2);
    p = mul_add::<FMA>(p, square, 1.333_144_2e-1);
    p = mul_add::<FMA>(p, square, -3.333_328_2e-1);
    let near = mul_add::<FMA>(p * square, x, x);
    let far = (1.0 - 2.0 / (exp::<FMA>(2.0 * size) + 1.0)).copysign(x);
    if size < 0.625 { near } else { far }
}

/// Error function, to about 6e-7 absolute: a rational approximation over [-4, 4].
#[inline(always)]
pub(crate) fn erf<const FMA: bool>(x: f32) -> f32 {
    let x = if x > 4.0 { 4.0 } else { x };
    let x = if x < -4.0 { -4.0 } else { x };
    let s = x * x;
    let mut p = -2.726_142_3e-10;
    p = mul_add::<FMA>(p, s, 2.770_681_4e-8);
    p = mul_add::<FMA>(p, s, -2.101_024e-6);
    p = mul_add::<FMA>(p, s, -5.692_506_4e-5);
    p = mul_add::<FMA>(p, s, -7.349_906_3e-4);
    p = mul_add::<FMA>(p, s, -2.954_599_8e-3);
    p = mul_add::<FMA>(p, s, -1.609_603_3e-2);
    let mut q = -1.456_607_2e-5;
    q = mul_add::<FMA>(q, s, -2.133_740_6e-4);
    q = mul_add::<FMA>(q, s, -1.682_827e-3);
    q = mul_add::<FMA>(q, s, -7.373_329e-3);
    q = mul_add::<FMA>(q, s, -1.426_473_9e-2);
    x * p / q
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid(low: f32, high: f32) -> impl Iterator<Item = f32> {
        let n = 200_000;
        (0..=n).map(move |i| low + (high - low) * i as f32 / n as f32)
    }

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        for x in grid(-86.8, 88.7) {
            let (got, expected) = (f64::from(exp::<false>(x)), f64::from(x).exp());
            assert!((got / expected - 1.0).abs() < 2.5e-7, "exp({x}) = {got}, not {expected}");
        }
        assert_eq!(exp::<false>(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp::<false>(0.0), 1.0);
        assert_eq!(exp::<false>(f32::INFINITY), f32::INFINITY);
        assert!(exp::<false>(f32::NAN).is_nan());
    }

    #[test]
    fn tanh_and_logistic_hold_seven_digits() {
        for x in grid(-30.0, 30.0) {
            let wide = f64::from(x);
            let error = (f64::from(tanh::<false>(x)) - wide.tanh()).abs();
            assert!(error <= 2.5e-7 * wide.tanh().abs(), "tanh({x}) off by {error}");
            let expected = 1.0 / (1.0 + (-wide).exp());
            assert!((f64::from(logistic::<false>(x)) / expected - 1.0).abs() < 4e-7, "logistic({x})");
        }
        assert!(tanh::<false>(f32::NAN).is_nan() && logistic::<false>(f32::NAN).is_nan());
        assert_eq!(tanh::<false>(f32::INFINITY), 1.0);
        assert_eq!(tanh::<false>(f32::NEG_INFINITY), -1.0);
    }

    #[test]
    fn erf_agrees_with_its_series() {
        for x in grid(-3.5, 3.5) {
            let wide = f64::from(x);
            let (mut term, mut sum) = (wide, wide);
            for n in 1..120 {
                term *= -wide * wide / f64::from(n);
                sum += term / f64::from(2 * n + 1);
            }
            let expected = sum * 2.0 / std::f64::consts::PI.sqrt();
            assert!((f64::from(erf::<false>(x)) - expected).abs() < 6e-7, "erf({x})");
        }
        assert!(erf::<false>(f32::NAN).is_nan());
    }
}
