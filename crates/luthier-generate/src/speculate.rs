//! Speculative decoding (arXiv:2211.17192): something cheap drafts a few tokens, the model reads them all in one pass, which
//! reads its weights once, and keeps those that it might have drawn itself.
//!
//! A drafted token x, drawn from q, stays with probability min(1, p(x) / q(x)), p being the model's own distribution after all
//! filters; the first that does not is drawn anew from max(0, p - q), normalised. What comes out has the model's distribution
//! exactly; greedily, it is the model's own tokens.

use luthier_arch::model::{Cache, Model};

use crate::generate::{check_logits, new_cache, next_logits, prefill};
use crate::options::GenerateOptions;
use crate::random::Random;
use crate::sampling::{choose, distribution, greedy, penalize};
use crate::{Error, Result};

/// Drafted tokens of a step, unless the caller says otherwise.
pub const DRAFT_TOKENS: usize = 5;

/// A drafted token and the distribution that it was drawn from, in rising order of id; empty: it was certain.
#[derive(Clone, Debug, PartialEq)]
pub struct Drafted {
    /// The token.
    pub id: u32,
    /// (id, probability) of all that might have been drawn.
    pub distribution: Vec<(u32, f64)>,
}

/// What drafts.
pub trait Drafter {
    /// Up to `count` tokens that may follow `context`.
    ///
    /// # Errors
    /// Where what drafts cannot read the context.
    fn draft(
        &mut self,
        context: &[u32],
        count: usize,
        options: &GenerateOptions,
        random: &mut Random,
    ) -> Result<Vec<Drafted>>;
}

/// Drafts what followed the last tokens where they stood before in the context: costs nothing, and often holds where text is
/// quoted, corrected or filled in.
#[derive(Clone, Copy, Debug)]
pub struct Lookup {
    /// Last tokens that are looked for at most, at least 1; fewer where more are not found.
    pub longest: usize,
}

impl Drafter for Lookup {
    fn draft(
        &mut self,
        context: &[u32],
        count: usize,
        _: &GenerateOptions,
        _: &mut Random,
    ) -> Result<Vec<Drafted>> {
        for length in (1..=self.longest.min(context.len().saturating_sub(1))).rev() {
            let last = &context[context.len() - length..];
            // The latest place before the end itself.
            let before = context[..context.len() - 1].windows(length).rposition(|window| window == last);
            if let Some(at) = before {
                let following = context[at + length..].iter().take(count);
                return Ok(following.map(|id| Drafted { id: *id, distribution: Vec::new() }).collect());
            }
        }
        Ok(Vec::new())
    }
}

/// Drafts with a smaller decoder-only model of the same vocabulary.
pub struct DraftModel<'m> {
    model: &'m dyn Model,
    cache: Cache,
    /// The tokens that the cache holds.
    read: Vec<u32>,
}

impl<'m> DraftModel<'m> {
    /// # Errors
    /// Where the vocabularies differ in size or the model has an encoder.
    pub fn new(model: &'m dyn Model, vocab_size: usize) -> Result<DraftModel<'m>> {
        if model.is_encoder_decoder() || model.is_encoder_only() || model.vocab_size() != vocab_size {
            return Err(Error::Option {
                name: "draft",
                expected: "a decoder-only model of the same vocabulary",
                got: format!("{} tokens where the model has {vocab_size}", model.vocab_size()),
            });
        }
        Ok(DraftModel { cache: new_cache(model, None, 0), model, read: Vec::new() })
    }

    /// The logits after `context`, of which only what is new is read.
    fn logits(&mut self, context: &[u32]) -> Result<Vec<f32>> {
        let same = self.read.iter().zip(context).take_while(|(read, wanted)| read == wanted).count();
        // The last token is read again where all of them were: its logits are wanted.
        let same = same.min(context.len() - 1);
        self.cache.truncate(same)?;
        self.read.truncate(same);
        let new = &context[same..];
        let mut rows = match new.len() {
            1 => next_logits(self.model, &[new], None, &mut self.cache)?,
            _ => prefill(self.model, &[new.to_vec()], None, &mut self.cache)?,
        };
        self.read.extend_from_slice(new);
        Ok(rows.swap_remove(0))
    }
}

impl Drafter for DraftModel<'_> {
    fn draft(
        &mut self,
        context: &[u32],
        count: usize,
        options: &GenerateOptions,
        random: &mut Random,
    ) -> Result<Vec<Drafted>> {
        let room = self.model.context_length().map_or(usize::MAX, |all| all.saturating_sub(context.len()));
        let mut context = context.to_vec();
        let mut drafted = Vec::new();
        for _ in 0..count.min(room) {
            let mut logits = self.logits(&context)?;
            check_logits(&logits, context.len() - 1)?;
            penalize(&mut logits, &context, options.repetition_penalty);
            let id = choose(&logits, options, random);
            let is_certain = options.temperature == 0.0;
            let distribution = if is_certain { Vec::new() } else { distribution(&logits, options) };
            drafted.push(Drafted { id, distribution });
            context.push(id);
        }
        Ok(drafted)
    }
}

/// The token that stands at a drafted place: (the drafted one, true) where it stays, otherwise another and false. `logits` are
/// the model's there, penalised.
pub(crate) fn judge(
    drafted: &Drafted,
    logits: &[f32],
    options: &GenerateOptions,
    random: &mut Random,
) -> (u32, bool) {
    if options.temperature == 0.0 {
        let own = greedy(logits);
        return (own, own == drafted.id);
    }
    let own = distribution(logits, options);
    let of = |distribution: &[(u32, f64)], id: u32| {
        distribution.binary_search_by_key(&id, |(id, _)| *id).map_or(0.0, |at| distribution[at].1)
    };
    let draft_of = |id: u32| match drafted.distribution.is_empty() {
        true => f64::from(u8::from(id == drafted.id)),
        false => of(&drafted.distribution, id),
    };
    if random.next_f64() * draft_of(drafted.id) < of(&own, drafted.id) {
        return (drafted.id, true);
    }
    let rest: Vec<(u32, f64)> =
        own.iter().map(|(id, p)| (*id, (p - draft_of(*id)).max(0.0))).filter(|(_, p)| *p > 0.0).collect();
    let target = random.next_f64() * rest.iter().map(|(_, p)| p).sum::<f64>();
    let mut running = 0.0;
    for (id, p) in &rest {
        running += p;
        if running > target {
            return (*id, false);
        }
    }
    // Nothing is left where both distributions are one up to rounding.
    let likeliest = rest.last().copied().or_else(|| own.iter().copied().max_by(|a, b| a.1.total_cmp(&b.1)));
    (likeliest.map_or(drafted.id, |(id, _)| id), false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(drafted: &[Drafted]) -> Vec<u32> {
        drafted.iter().map(|one| one.id).collect()
    }

    #[test]
    fn lookup_finds_the_latest_longest_match() {
        let (options, mut random) = (GenerateOptions::default(), Random::new(0));
        let mut draft = |longest, context: &[u32], count| {
            ids(&Lookup { longest }.draft(context, count, &options, &mut random).unwrap())
        };
        assert_eq!(draft(3, &[1, 2, 3, 9, 2, 3, 8, 7, 2, 3], 2), [8, 7]);
        assert_eq!(draft(3, &[1, 2, 3, 9, 5, 2, 3, 8, 1, 2, 3], 4), [9, 5, 2, 3]);
        assert_eq!(draft(3, &[4, 4], 3), [4]);
        assert_eq!(draft(3, &[1, 2, 3], 3), [0u32; 0]);
        assert_eq!(draft(2, &[7], 3), [0u32; 0]);
    }

    #[test]
    fn what_is_drawn_has_the_models_distribution() {
        let options = GenerateOptions { temperature: 1.0, ..GenerateOptions::default() };
        let p = [0.5f64, 0.2, 0.2, 0.1];
        let logits: Vec<f32> = p.iter().map(|p| p.ln() as f32).collect();
        let q = [(0u32, 0.1f64), (1, 0.6), (3, 0.3)];
        let mut random = Random::new(3);
        for certain in [false, true] {
            let mut counts = [0f64; 4];
            const DRAWS: usize = 40_000;
            for _ in 0..DRAWS {
                let u = random.next_f64();
                let id = if u < 0.1 {
                    0
                } else if u < 0.7 {
                    1
                } else {
                    3
                };
                let distribution = if certain { Vec::new() } else { q.to_vec() };
                let drafted = Drafted { id: if certain { 2 } else { id }, distribution };
                counts[judge(&drafted, &logits, &options, &mut random).0 as usize] += 1.0;
            }
            let square: f64 = counts
                .iter()
                .zip(p)
                .map(|(count, p)| (count - p * DRAWS as f64).powi(2) / (p * DRAWS as f64))
                .sum();
            // The 99.9% point of chi-square with 3 degrees of freedom.
            assert!(square < 16.27, "{counts:?}: {square}");
        }
    }
}
