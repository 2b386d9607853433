//! One query over a cache beside attention over all that it holds.

use proptest::prelude::*;

use super::super::{DistanceBias, Heads, Sizes, attention};
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

#[derive(Clone, Copy)]
struct Case<'r> {
    b: usize,
    t: usize,
    s: usize,
    k: usize,
    group: usize,
    d: usize,
    rule: Rule<'r>,
}

fn check<E: Element>(case: Case, rounding: f32) {
    let Case { b, t, s, k, group, d, rule } = case;
    let heads = k * group;
    let q = values(b * t * heads * d, 1);
    let round = |values: Vec<f32>| -> Vec<f32> {
        values.into_iter().map(|value| E::from_f32(value).to_f32()).collect()
    };
    let (keys, vals) = (round(values(b * s * k * d, 2)), round(values(b * s * k * d, 3)));
    let sizes = Sizes { batch: b, queries: t, keys: s, heads, kv_heads: k, head_dim: d };
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
        with_level(level, || match t {
            1 => attend_cached(rule, &q, heads, cached, &mut out),
            _ => attend_prompt(rule, &q, heads, cached, &mut out),
        });
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
        capped: bool, window in 0usize..400, causal: bool, biased: bool,
    ) {
        let window = (window > 0).then_some(window);
        let bias = values(k * group * 41, 5);
        let rule = Rule {
            scale: 0.3, softcap: (capped && !biased).then_some(2.0), causal, window, query_offset: s - 1, segments: None,
            bias: biased.then_some(DistanceBias { values: &bias, reach: 20 }),
        };
        let case = Case { b, t: 1, s, k, group, d: 2 * half_d, rule };
        check::<f32>(case, 2e-6);
        check::<half::f16>(case, 2e-6);
    }

    #[test]
    fn many_queries_see_what_attention_over_all_sees(
        b in 1usize..3, t in 2usize..110, before in 0usize..300, k in 1usize..3, group in 1usize..4, half_d in 1usize..45,
        capped: bool, window in 0usize..400, causal: bool, documents: bool, biased: bool,
    ) {
        let (s, heads) = (before + t, k * group);
        let window = (window > 0).then_some(window);
        let number = |at: usize| if at % 7 == 3 { u32::MAX } else { (at / 40) as u32 };
        let query_docs: Vec<u32> = (0..b * t).map(|at| number(before + at % t)).collect();
        let key_docs: Vec<u32> = (0..b * s).map(|at| number(at % s)).collect();
        let bias = values(heads * 41, 5);
        let rule = Rule {
            scale: 0.3, softcap: (capped && !biased).then_some(2.0), causal, window, query_offset: before,
            segments: documents.then_some((&query_docs[..], &key_docs[..])),
            bias: biased.then_some(DistanceBias { values: &bias, reach: 20 }),
        };
        let case = Case { b, t, s, k, group, d: 2 * half_d, rule };
        check::<f32>(case, 2e-6);
        check::<half::bf16>(case, 2e-6);
    }
}
