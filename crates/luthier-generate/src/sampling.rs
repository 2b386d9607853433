//! From logits to the next token: penalty, temperature, top-k, top-p, min-p, draw.
//!
//! Definitions and order are those of transformers' logits processors (`RepetitionPenaltyLogitsProcessor`,
//! `TemperatureLogitsWarper`, `TopKLogitsWarper`, `TopPLogitsWarper`, `MinPLogitsWarper`):
//!
//! 1. penalty (CTRL, arXiv:1909.05858): a token already in the decoder's input or output has its logit divided by the
//!    penalty where it is positive, multiplied where it is negative. Each token once, however often it stands there.
//! 2. greedy ends here: the largest logit, of equal ones the lowest id.
//! 3. temperature: `p = softmax(logits / temperature)`.
//! 4. top-k: what is less likely than the k-th most likely token goes; equals of the k-th stay.
//! 5. top-p (nucleus, arXiv:1904.09751), over what is left, renormalised: in falling order (equals by rising id), a
//!    token stays while the tokens before it sum to less than `top_p`; the first always stays.
//! 6. min-p (arXiv:2407.01082): what is less likely than `min_p` times the most likely goes.
//! 7. draw: one number u in 0..1; the tokens that are left, renormalised, in rising order of id; the first whose
//!    running sum passes u.
//!
//! Sums are f64. A greedy choice draws no number.

use crate::options::GenerateOptions;
use crate::random::Random;

/// A token that is still in the race, and `exp((logit - largest) / temperature)`.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Candidate {
    id: u32,
    weight: f64,
}

/// Penalises `logits` (`[v]`) of the tokens in `context`. Ids that the head does not have are passed over.
pub fn penalize(logits: &mut [f32], context: &[u32], penalty: f64) {
    if penalty == 1.0 {
        return;
    }
    let mut seen = vec![false; logits.len()];
    for &id in context {
        let id = id as usize;
        if id < logits.len() && !std::mem::replace(&mut seen[id], true) {
            let logit = f64::from(logits[id]);
            logits[id] = (if logit < 0.0 { logit * penalty } else { logit / penalty }) as f32;
        }
    }
}

/// The index of the largest value, the lowest of equal ones. `values` is not empty and holds no NaN.
pub fn greedy(values: &[f32]) -> u32 {
    // The largest of each piece first, lane by lane, which the compiler makes vectors of.
    let mut best = (f32::NEG_INFINITY, 0);
    for (at, piece) in values.chunks(PIECE).enumerate() {
        let mut tops = [f32::NEG_INFINITY; LANES];
        let lanes = piece.chunks_exact(LANES);
        let rest = lanes.remainder();
        for values in lanes {
            for (top, value) in tops.iter_mut().zip(values) {
                *top = if *value > *top { *value } else { *top };
            }
        }
        let top = tops.iter().chain(rest).fold(f32::NEG_INFINITY, |top, &value| top.max(value));
        if top > best.0 {
            best = (top, at * PIECE);
        }
    }
    let place = values[best.1..].iter().position(|&value| value == best.0);
    (best.1 + place.unwrap_or(0)) as u32
}

/// Values of which the largest is found before those of the next ones.
const PIECE: usize = 256;
/// Values that are compared side by side.
const LANES: usize = 16;

/// The next token. logits: `[v]`, penalised already, without NaN, at least one of them finite.
pub fn choose(logits: &[f32], options: &GenerateOptions, random: &mut Random) -> u32 {
    if options.temperature == 0.0 {
        return greedy(logits);
    }
    let candidates = filter(logits, options);
    let total: f64 = candidates.iter().map(|candidate| candidate.weight).sum();
    let target = random.next_f64() * total;
    let mut running = 0.0;
    for candidate in &candidates {
        running += candidate.weight;
        if running > target {
            return candidate.id;
        }
    }
    // Rounding can leave the last sum at the target itself.
    candidates.last().expect("every filter leaves the most likely token").id
}

/// The probabilities that [`choose`] draws from: (id, probability) in rising order of id.
pub fn distribution(logits: &[f32], options: &GenerateOptions) -> Vec<(u32, f64)> {
    let candidates = filter(logits, options);
    let total: f64 = candidates.iter().map(|candidate| candidate.weight).sum();
    candidates.iter().map(|candidate| (candidate.id, candidate.weight / total)).collect()
}

fn filter(logits: &[f32], options: &GenerateOptions) -> Vec<Candidate> {
    let top = f64::from(logits[greedy(logits) as usize]);
    let mut candidates: Vec<Candidate> = logits
        .iter()
        .enumerate()
        .map(|(id, &logit)| Candidate {
            id: id as u32,
            weight: ((f64::from(logit) - top) / options.temperature).exp(),
        })
        .collect();
    if options.top_k > 0 && options.top_k < candidates.len() {
        let mut weights: Vec<f32> = logits.to_vec();
        let (_, &mut kth, _) = weights.select_nth_unstable_by(options.top_k - 1, |a, b| b.total_cmp(a));
        candidates.retain(|candidate| logits[candidate.id as usize] >= kth);
    }
    if options.top_p < 1.0 {
        keep_nucleus(&mut candidates, options.top_p);
    }
    if options.min_p > 0.0 {
        candidates.retain(|candidate| candidate.weight >= options.min_p);
    }
    candidates.retain(|candidate| candidate.weight > 0.0);
    candidates
}

/// Leaves the nucleus, in rising order of id. Only as many candidates are sorted as the nucleus needs.
fn keep_nucleus(candidates: &mut Vec<Candidate>, top_p: f64) {
    let falling = |a: &Candidate, b: &Candidate| b.weight.total_cmp(&a.weight).then(a.id.cmp(&b.id));
    let total: f64 = candidates.iter().map(|candidate| candidate.weight).sum();
    let mut sorted_len = 64;
    loop {
        sorted_len = sorted_len.min(candidates.len());
        if sorted_len < candidates.len() {
            candidates.select_nth_unstable_by(sorted_len - 1, falling);
        }
        candidates[..sorted_len].sort_unstable_by(falling);
        let mut before = 0.0;
        let mut kept = 0;
        while kept < sorted_len && (kept == 0 || before / total < top_p) {
            before += candidates[kept].weight;
            kept += 1;
        }
        if kept < sorted_len || sorted_len == candidates.len() {
            candidates.truncate(kept);
            candidates.sort_unstable_by_key(|candidate| candidate.id);
            return;
        }
        sorted_len *= 8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    /// Logits whose softmax is 0.5, 0.25, 0.125, 0.0625, 0.0625.
    fn halves() -> Vec<f32> {
        [0.5f32, 0.25, 0.125, 0.0625, 0.0625].iter().map(|p| p.ln()).collect()
    }

    fn check(logits: &[f32], set: impl FnOnce(&mut GenerateOptions), want: Expect) {
        let mut options = GenerateOptions { temperature: 1.0, ..GenerateOptions::default() };
        set(&mut options);
        let shown: Vec<String> =
            distribution(logits, &options).iter().map(|(id, p)| format!("{id}:{p:.4}")).collect();
        want.assert_eq(&shown.join(" "));
    }

    #[test]
    fn no_filter_is_the_softmax() {
        check(&halves(), |_| {}, expect!["0:0.5000 1:0.2500 2:0.1250 3:0.0625 4:0.0625"]);
    }

    #[test]
    fn temperature_divides_the_logits() {
        // At 0.5 the probabilities are squared: 64 16 4 1 1 of 86.
        check(&halves(), |o| o.temperature = 0.5, expect!["0:0.7442 1:0.1860 2:0.0465 3:0.0116 4:0.0116"]);
    }

    #[test]
    fn top_k_keeps_k_and_the_equals_of_the_last() {
        check(&halves(), |o| o.top_k = 2, expect!["0:0.6667 1:0.3333"]);
        check(&halves(), |o| o.top_k = 4, expect!["0:0.5000 1:0.2500 2:0.1250 3:0.0625 4:0.0625"]);
        check(&halves(), |o| o.top_k = 99, expect!["0:0.5000 1:0.2500 2:0.1250 3:0.0625 4:0.0625"]);
    }

    #[test]
    fn top_p_keeps_the_token_that_crosses_the_sum() {
        // 0.5 + 0.25 < 0.8, so the third is in; 0.5 alone reaches 0.5, so the second is out.
        check(&halves(), |o| o.top_p = 0.8, expect!["0:0.5714 1:0.2857 2:0.1429"]);
        check(&halves(), |o| o.top_p = 0.5, expect!["0:1.0000"]);
        check(&halves(), |o| o.top_p = 0.0, expect!["0:1.0000"]);
    }

    #[test]
    fn top_p_counts_what_top_k_left() {
        // After top-k 2 the shares are 2/3 and 1/3: 0.6 is reached by the first alone, though 0.5 < 0.6.
        check(
            &halves(),
            |o| {
                o.top_k = 2;
                o.top_p = 0.6;
            },
            expect!["0:1.0000"],
        );
    }

    #[test]
    fn min_p_is_a_fraction_of_the_most_likely() {
        check(&halves(), |o| o.min_p = 0.2, expect!["0:0.5714 1:0.2857 2:0.1429"]);
        check(&halves(), |o| o.min_p = 1.0, expect!["0:1.0000"]);
    }

    #[test]
    fn tiny_temperature_and_masked_tokens_do_not_overflow() {
        let logits = [1.0, f32::NEG_INFINITY, 3.0e38, -3.0e38];
        check(&logits, |o| o.temperature = 1e-300, expect!["2:1.0000"]);
        check(&logits, |o| o.top_p = 0.9999, expect!["2:1.0000"]);
    }

    #[test]
    fn penalty_pushes_seen_tokens_towards_less_likely() {
        let mut logits = [2.0, -2.0, 2.0, 0.0];
        penalize(&mut logits, &[0, 1, 0, 3, 9], 2.0);
        assert_eq!(logits, [1.0, -4.0, 2.0, 0.0]);
    }

    #[test]
    fn greedy_finds_the_largest_wherever_it_stands() {
        for len in [1usize, 16, 17, 255, 256, 257, 700] {
            for place in (0..len).step_by(5).chain([len - 1]) {
                let mut values: Vec<f32> = (0..len).map(|at| ((at * 37) % 101) as f32 - 200.0).collect();
                values[place] = -3.0;
                values[len - 1] = -3.0;
                assert_eq!(greedy(&values), place as u32, "{len}");
            }
        }
    }

    #[test]
    fn greedy_takes_the_lowest_id_of_equals() {
        assert_eq!(greedy(&[0.0, 3.0, 3.0, 1.0]), 1);
        assert_eq!(greedy(&[f32::NEG_INFINITY, -1.0]), 1);
    }

    #[test]
    fn draws_follow_the_distribution() {
        let options = GenerateOptions { temperature: 1.0, top_k: 2, ..GenerateOptions::default() };
        let mut random = Random::new(3);
        let first = (0..6000).filter(|_| choose(&halves(), &options, &mut random) == 0).count();
        assert!((first as f64 / 6000.0 - 2.0 / 3.0).abs() < 0.03, "{first}");
    }

    proptest::proptest! {
        #[test]
        fn nucleus_equals_its_definition(
            steps in proptest::collection::vec(0u8..40, 1..400), top_p in 0.0f64..1.0,
        ) {
            let logits: Vec<f32> = steps.iter().map(|&step| f32::from(step) / 8.0).collect();
            let options = GenerateOptions { temperature: 1.0, top_p, ..GenerateOptions::default() };
            let total: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
            let mut order: Vec<usize> = (0..logits.len()).collect();
            order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
            let mut before = 0.0;
            let mut kept = Vec::new();
            for id in order {
                // The two sums round differently; a case on the border decides nothing.
                proptest::prop_assume!((before / total - top_p).abs() > 1e-9);
                if kept.is_empty() || before / total < top_p {
                    kept.push(id as u32);
                }
                before += f64::from(logits[id]).exp();
            }
            kept.sort_unstable();
            let ids: Vec<u32> = distribution(&logits, &options).iter().map(|&(id, _)| id).collect();
            proptest::prop_assert_eq!(ids, kept);
        }
    }
}
