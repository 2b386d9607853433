//! One query over a cache beside attention over all that it holds.

use proptest::prelude::*;

use super::super::{Heads, Sizes, attention};
use super::*;
use crate::simd::{Level, with_level};

fn values(len: usize, seed: usize) -> Vec<f32> {
    (0..len).map(|at| ((at * 7919 + seed * 104_729) % 211) as f32 / 105.0 - 1.0).collect()
}

/// Keys and values [b, s, k, d] as a cache of them.
fn cache<E: Element>(keys: &[f32], values: &[f32], [b, s, k, d]: [usize; 4]) -> (Vec<E>, Vec<E>, usize) {
    let (capacity, width) = ((s + 5).next_multiple_of(ROWS), d.next_multiple_of(ROWS));
    // What no token wrote must not matter.
    let mut cached_keys = vec![E::from_f32(f32::NAN); b * k * capacity * d];
    let mut cached_values = vec![E::from_f32(0.0); b * k * capacity * width];
    for row in 0..b {
        for token in 0..s {
            for head in 0..k {
                let from = ((row * s + token) * k + head) * d;
                let place = row * k + head;
                for channel in 0..d {
                    let at = (place * capacity + token / ROWS * ROWS) * d + channel * ROWS + token % ROWS;
                    cached_keys[at] = E::from_f32(keys[from + channel]);
                    cached_values[(place * capacity + token) * width + channel] =
                        E::from_f32(values[from + channel]);
                }
            }
        }
    }
    (cached_keys, cached_values, capacity)
}

#[allow(clippy::too_many_arguments)]
fn check<E: Element>(b: usize, s: usize, k: usize, group: usize, d: usize, rule: Rule, rounding: f32) {
    let heads = k * group;
    let q = values(b * heads * d, 1);
    let round = |values: Vec<f32>| -> Vec<f32> {
        values.into_iter().map(|value| E::from_f32(value).to_f32()).collect()
    };
    let (keys, vals) = (round(values(b * s * k * d, 2)), round(values(b * s * k * d, 3)));
    let sizes = Sizes { batch: b, queries: 1, keys: s, heads, kv_heads: k, head_dim: d };
    let mut wanted = vec![0f32; q.len()];
    let side = |values| Heads::contiguous(values, s, k, d);
    attention(sizes, rule, &q, side(&keys), side(&vals), &mut wanted, None);
    let (cached_keys, cached_values, capacity) = cache::<E>(&keys, &vals, [b, s, k, d]);
    let cached = Cached {
        keys: &cached_keys,
        values: &cached_values,
        batch: b,
        kv_heads: k,
        head_dim: d,
        capacity,
        len: s,
    };
    for level in [Level::V4, Level::V3, Level::Baseline] {
        let mut out = vec![f32::NAN; q.len()];
        with_level(level, || attend_cached(rule, &q, heads, cached, &mut out));
        for (own, wanted) in out.iter().zip(&wanted) {
            assert!((own - wanted).abs() <= rounding, "{level:?}: {own} {wanted}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn one_query_sees_what_attention_over_all_sees(
        b in 1usize..3, s in 1usize..300, k in 1usize..4, group in 1usize..8, half_d in 1usize..45,
        capped: bool, window in 0usize..400, causal: bool,
    ) {
        let window = (window > 0).then_some(window);
        let rule = Rule {
            scale: 0.3, softcap: capped.then_some(2.0), causal, window, query_offset: s - 1, segments: None, bias: None,
        };
        check::<f32>(b, s, k, group, 2 * half_d, rule, 2e-6);
        check::<half::f16>(b, s, k, group, 2 * half_d, rule, 2e-6);
    }
}
