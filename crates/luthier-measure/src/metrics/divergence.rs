//! How far the predictions of one model are from another's, on the same tokens: KL divergence and equal greedy choices.
//!
//! KL(p || q) = sum over tokens of p (ln p - ln q), p being the reference, in nats, at every position (Kullback and Leibler 1951).

use luthier_arch::model::Model;
use serde::Serialize;

use super::logits::{Logits, logits};
use crate::{Error, Result};

/// Tokens that are compared together; each such window is read by itself.
const WINDOW: usize = 128;

/// How far two models are apart.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Divergence {
    /// Positions that were compared.
    pub tokens: usize,
    /// KL divergence from the reference, mean over positions.
    pub kl_mean_nats: f64,
    /// The largest of a position.
    pub kl_max_nats: f64,
    /// Share of positions whose likeliest token is the same.
    pub greedy_agreement: f64,
}

/// Compares `other` with `reference` on `ids`, cut into windows; of each, the encoder of an encoder-decoder reads the first half.
///
/// # Errors
/// No token, models of different vocabularies, ids that they cannot read, logits that are NaN.
pub fn divergence(reference: &dyn Model, other: &dyn Model, ids: &[u32]) -> Result<Divergence> {
    let (mut tokens, mut sum, mut largest, mut equal) = (0, 0.0, 0.0f64, 0);
    for window in ids.chunks(WINDOW) {
        let of = |model: &dyn Model| -> Result<Logits> {
            if !model.is_encoder_decoder() {
                return logits(model, window, None);
            }
            let (prefix, target) = window.split_at(window.len().div_ceil(2));
            let start = model.decoder_start_token().ok_or(luthier_generate::Error::NoDecoderStart)?;
            logits(model, prefix, Some(&[&[start], target].concat()))
        };
        let (p, q) = (of(reference)?, of(other)?);
        if p.vocabulary != q.vocabulary || p.tokens != q.tokens {
            return Err(Error::Vocabularies { reference: p.vocabulary, other: q.vocabulary });
        }
        for (p, q) in p.values.chunks_exact(p.vocabulary).zip(q.values.chunks_exact(q.vocabulary)) {
            let kl = kl(p, q);
            (tokens, sum, largest) = (tokens + 1, sum + kl, largest.max(kl));
            equal += usize::from(likeliest(p) == likeliest(q));
        }
    }
    if tokens == 0 {
        return Err(Error::NothingToCompare);
    }
    let share = |count: f64| count / tokens as f64;
    Ok(Divergence {
        tokens,
        kl_mean_nats: share(sum),
        kl_max_nats: largest,
        greedy_agreement: share(equal as f64),
    })
}

/// KL(p || q) of two rows of logits, in nats.
fn kl(p: &[f32], q: &[f32]) -> f64 {
    let (p_norm, q_norm) = (log_sum(p), log_sum(q));
    let term = |(p, q): (&f32, &f32)| {
        let (p, q) = (f64::from(*p) - p_norm, f64::from(*q) - q_norm);
        // A token that is impossible counts nothing, in whichever way -inf - -inf comes out.
        if p == f64::NEG_INFINITY { 0.0 } else { p.exp() * (p - q) }
    };
    // Rounding may leave a little less than nothing.
    p.iter().zip(q).map(term).sum::<f64>().max(0.0)
}

/// ln of the sum of e to each.
fn log_sum(values: &[f32]) -> f64 {
    let largest = values.iter().fold(f32::NEG_INFINITY, |largest, value| largest.max(*value));
    let largest = f64::from(largest);
    largest + values.iter().map(|value| (f64::from(*value) - largest).exp()).sum::<f64>().ln()
}

/// The first of the largest.
fn likeliest(values: &[f32]) -> usize {
    let mut best = 0;
    for (at, value) in values.iter().enumerate() {
        if *value > values[best] {
            best = at;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_divergence_is_that_of_the_formula() {
        // p = (1/2, 1/2), q = (1/4, 3/4): ln 2 - ln 3 / 2.
        let q = [1f32.ln(), 3f32.ln()];
        assert!((kl(&[5.0, 5.0], &q) - (2f64.ln() - 0.5 * 3f64.ln())).abs() < 1e-7);
        assert_eq!(kl(&q, &q), 0.0);
        assert!(kl(&[0.0, f32::NEG_INFINITY], &q).is_finite());
        assert_eq!(likeliest(&[0.0, 2.0, 2.0]), 1);
    }
}
