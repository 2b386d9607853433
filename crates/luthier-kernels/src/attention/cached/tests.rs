//! One query over a cache beside attention over all that it holds.

use proptest::prelude::*;

use super::super::{DistanceBias, Heads, Sizes, attention};
use super::*;
use crate::simd::{Level, with_level};

fn values(len: usize, seed: usize) -> Vec<f32> {
    (0..len).map(|at| ((at * 7919 + seed * 104_729) % 211) as f32 / 105.0 - 1.0).collect()
}

/// A cache of its own memory.
struct Held<E> {
    keys: Vec<E>,
    values: Vec<E>,
    key_scales: Vec<f32>,
    value_scales: Vec<f32>,
    capacity: usize,
}

/// Keys and values [b, s, k, d] as a cache of them, which rounds both in place.
fn cache<E: Element>(keys: &mut [f32], values: &mut [f32], [b, s, k, d]: [usize; 4]) -> Held<E> {
    let (capacity, width, scales) =
        ((s + 5).next_multiple_of(ROWS), d.next_multiple_of(ROWS), scales_of::<E>(d));
    // What no token wrote must not matter.
    let mut held = Held {
        keys: vec![E::from_f32(f32::NAN); b * k * capacity * d],
        values: vec![E::from_f32(0.0); b * k * capacity * width],
        key_scales: vec![f32::NAN; b * k * capacity * scales],
        value_scales: vec![0.0; b * k * capacity * scales],
        capacity,
    };
    let mut rounded = (vec![E::default(); d], vec![0f32; scales]);
    let mut round = |row: &mut [f32]| {
        narrow_row(row, &mut rounded.0, &mut rounded.1);
        E::widen(&rounded.0, row);
        for (part, scale) in row.chunks_mut(SCALED_TOGETHER).zip(&rounded.1) {
            part.iter_mut().for_each(|value| *value *= scale);
        }
        rounded.clone()
    };
    for at in 0..b * s * k {
        let (row, token, head) = (at / k / s, at / k % s, at % k);
        let place = row * k + head;
        let block = place * capacity + token / ROWS * ROWS;
        let (key, key_scales) = round(&mut keys[at * d..][..d]);
        for (channel, key) in key.into_iter().enumerate() {
            held.keys[block * d + channel * ROWS + token % ROWS] = key;
        }
        for (number, scale) in key_scales.into_iter().enumerate() {
            held.key_scales[block * scales + number * ROWS + token % ROWS] = scale;
        }
        let (value, value_scales) = round(&mut values[at * d..][..d]);
        held.values[(place * capacity + token) * width..][..d].copy_from_slice(&value);
        held.value_scales[(place * capacity + token) * scales..][..scales].copy_from_slice(&value_scales);
    }
    held
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
    let (mut keys, mut vals) = (values(b * s * k * d, 2), values(b * s * k * d, 3));
    let held = cache::<E>(&mut keys, &mut vals, [b, s, k, d]);
    let sizes = Sizes { batch: b, queries: t, keys: s, heads, kv_heads: k, head_dim: d };
    let mut wanted = vec![0f32; q.len()];
    let side = |values| Heads::contiguous(values, s, k, d);
    attention(sizes, rule, &q, side(&keys), side(&vals), &mut wanted, None);
    let cached = Cached {
        keys: &held.keys,
        values: &held.values,
        key_scales: &held.key_scales,
        value_scales: &held.value_scales,
        batch: b,
        kv_heads: k,
        head_dim: d,
        capacity: held.capacity,
        len: s,
    };
    let (wide_keys, wide_values) = cached.widened();
    let at = |row: usize, head: usize, token: usize| ((row * k + head) * s + token) * d;
    for row in 0..b * s * k {
        let place = at(row / k / s, row % k, row / k % s);
        assert_eq!(wide_keys[place..place + d], keys[row * d..(row + 1) * d]);
        assert_eq!(wide_values[place..place + d], vals[row * d..(row + 1) * d]);
    }
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
        check::<i8>(case, 4e-6);
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
        check::<i8>(case, 4e-6);
    }
}

#[test]
fn rows_keep_their_largest_value_and_show_what_is_not_finite() {
    let mut row = values(130, 4);
    row[3] = -7.0;
    row[70] = 1e-42;
    let (mut codes, mut scales) = (vec![0i8; 130], vec![0f32; 3]);
    narrow_row(&row, &mut codes, &mut scales);
    assert_eq!((codes[3], scales[0]), (-127, 7.0 / 127.0));
    for (at, (value, code)) in row.iter().zip(&codes).enumerate() {
        let scale = scales[at / SCALED_TOGETHER];
        assert!((value - f32::from(*code) * scale).abs() <= scale * 0.5001, "{at}: {value} {code}");
    }
    row[128..].copy_from_slice(&[1e-42, 0.0]);
    row[100] = f32::NEG_INFINITY;
    narrow_row(&row, &mut codes, &mut scales);
    assert!(scales[1].is_nan() && scales[0] == 7.0 / 127.0);
    assert_eq!(codes[128..], [0, 0]);
}
