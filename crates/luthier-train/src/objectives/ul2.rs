//! UL2, a mixture of denoisers (arXiv:2205.05131 section 3.1): each document in a window draws one by its share, and
//! the loss is `-1/N sum_i log p(y_i | x, y_<i)` over the targets y that restore what is missing from x.
//!
//! R and X corrupt spans as T5 does (arXiv:1910.10683 section 3.1.4, `random_spans_noise_mask` of its code): of n
//! tokens `round(n density)` are noise in `round(noise / mean_span)` spans; noise and the rest are each cut into that
//! many parts, every composition equally likely, and alternate, the rest first. The input has one sentinel in the place
//! of each span; the target is each sentinel and its span in order, then the end token where the tokenizer names one.
//! S splits the document in prefix and target, the target's share uniform between 0 and twice `density`, one token at
//! least on either side. With `mode_tokens` the input begins with the token of its kind.
//!
//! Sentinels are `<extra_id_0>, <extra_id_1>, ...` and mode tokens `[NLU]` (R), `[S2S]` (S), `[NLG]` (X) where the
//! tokenizer has them, else its `<unused..>` tokens (the first three for the modes), else the last ids of the
//! vocabulary: R, S, X are the last three, sentinel i is the (4 + i)th from the end. At most 100 sentinels are used, an
//! eighth of the vocabulary where that is less; where fewer are left than spans wanted, spans grow longer.
//!
//! An encoder-decoder reads the input in its encoder and the target after its start token in its decoder; a decoder-only
//! model reads input and target one behind the other and is scored on the target alone. Documents of one token in a
//! window are left out. A decoder-only teacher of an encoder-decoder reads the document as it is and teaches the target's
//! tokens from the ones before them.

use luthier_text::Tokenizer;

use crate::batch::Row;
use crate::objectives::{ModelShape, Objective};
use crate::random::Random;
use crate::recipe::{DenoiserKind, DenoiserRecipe, Ul2Recipe};
use crate::windows::Window;
use crate::{Error, Result};

/// Most sentinels, as T5 has.
const MAX_SENTINELS: usize = 100;

/// The objective.
#[derive(Clone, Debug)]
pub struct Ul2 {
    denoisers: Vec<DenoiserRecipe>,
    tokens: Markers,
    mode_tokens: bool,
    end_token: Option<u32>,
    /// None: the model is decoder-only.
    decoder_start_token: Option<u32>,
}

/// The tokens that mark spans and modes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Markers {
    /// In the order in which they stand in an input.
    pub sentinels: Vec<u32>,
    /// Of kinds R, S and X.
    pub modes: [u32; 3],
}

/// What a denoiser makes of one document.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Denoised {
    /// What is read.
    pub input: Vec<u32>,
    /// What is to be said.
    pub target: Vec<u32>,
    /// Where each target token stands in the document; none for sentinels and the end token.
    pub sources: Vec<Option<usize>>,
}

impl Denoised {
    /// Asks for `ids[range]`.
    fn want(&mut self, ids: &[u32], range: std::ops::Range<usize>) {
        self.target.extend(&ids[range.clone()]);
        self.sources.extend(range.map(Some));
    }

    /// Asks for a token that is none of the document's.
    fn want_marker(&mut self, marker: u32) {
        self.target.push(marker);
        self.sources.push(None);
    }
}

impl Ul2 {
    /// From a resolved recipe. An error where the vocabulary has no room for sentinels.
    pub fn new(mixture: &Ul2Recipe, shape: ModelShape, tokenizer: Option<&Tokenizer>) -> Result<Ul2> {
        let decoder_start_token = shape.decoder_start_token.filter(|_| shape.is_encoder_decoder);
        if shape.is_encoder_decoder && decoder_start_token.is_none() {
            let what = "the encoder-decoder has no decoder_start_token_id; set it in config.json";
            return Err(Error::recipe("objective", what));
        }
        Ok(Ul2 {
            denoisers: mixture.denoisers.clone(),
            tokens: Markers::find(tokenizer, shape.vocab_size)?,
            mode_tokens: mixture.mode_tokens,
            end_token: tokenizer.and_then(Tokenizer::eos),
            decoder_start_token,
        })
    }

    fn draw(&self, random: &mut Random) -> &DenoiserRecipe {
        let total: f64 = self.denoisers.iter().map(|denoiser| denoiser.share).sum();
        let mut left = random.unit() * total;
        for denoiser in &self.denoisers {
            left -= denoiser.share;
            if left < 0.0 {
                return denoiser;
            }
        }
        self.denoisers.last().expect("a resolved mixture is not empty")
    }

    /// ids: two or more tokens of one document.
    fn denoise(&self, ids: &[u32], random: &mut Random) -> Denoised {
        let denoiser = self.draw(random);
        let mut denoised = match denoiser.mean_span {
            Some(mean_span) => {
                let spans =
                    noise_spans(ids.len(), denoiser.density, mean_span, self.tokens.sentinels.len(), random);
                let mut denoised = corrupt(ids, &spans, &self.tokens.sentinels);
                self.end_token.iter().for_each(|&end| denoised.want_marker(end));
                denoised
            }
            None => {
                let most = 2.0 * denoiser.density * ids.len() as f64;
                let target_tokens = ((random.unit() * most).round() as usize).clamp(1, ids.len() - 1);
                let split = ids.len() - target_tokens;
                let mut denoised = Denoised { input: ids[..split].to_vec(), ..Denoised::default() };
                denoised.want(ids, split..ids.len());
                denoised
            }
        };
        if self.mode_tokens {
            let mode = match denoiser.kind {
                DenoiserKind::R => self.tokens.modes[0],
                DenoiserKind::S => self.tokens.modes[1],
                DenoiserKind::X => self.tokens.modes[2],
            };
            denoised.input.insert(0, mode);
        }
        denoised
    }

    fn append(&self, row: &mut Row, segment: u32, ids: &[u32], denoised: &Denoised) {
        let Denoised { input, target, sources } = denoised;
        match self.decoder_start_token {
            Some(start) => {
                // The first token of a document is never a target: each has one before it in the text.
                let first = row.teacher.ids.len();
                let before = |source: &Option<usize>| source.map(|at| first + at - 1);
                row.teacher_positions.extend(sources.iter().map(before));
                ids.iter().for_each(|&id| row.teacher.push(id, segment));
                input.iter().for_each(|&id| row.encoder.push(id, segment));
                let mut previous = start;
                for &id in target {
                    row.push(previous, segment, id, true);
                    previous = id;
                }
            }
            None => {
                let whole: Vec<u32> = input.iter().chain(target).copied().collect();
                for (position, pair) in whole.windows(2).enumerate() {
                    row.push(pair[0], segment, pair[1], position + 1 >= input.len());
                }
            }
        }
    }
}

impl Objective for Ul2 {
    fn row(&self, window: &Window, _: &mut Random, sequence: &mut Random) -> Row {
        let mut row = Row::default();
        for (segment, piece) in window.pieces.iter().enumerate() {
            if piece.end - piece.start >= 2 {
                let ids = &window.ids[piece.start..piece.end];
                let denoised = self.denoise(ids, sequence);
                self.append(&mut row, segment as u32, ids, &denoised);
            }
        }
        row
    }

    fn validation_row(&self, window: &Window, sequence: &mut Random) -> Row {
        self.row(window, &mut sequence.clone(), sequence)
    }
}

impl Markers {
    /// Those of a tokenizer, or the last ids of a vocabulary without any; see the file's head.
    pub fn find(tokenizer: Option<&Tokenizer>, vocab_size: usize) -> Result<Markers> {
        let numbered = |pattern: &str| -> Vec<u32> {
            let id = |n: usize| {
                tokenizer.and_then(|tokenizer| tokenizer.id(&pattern.replace('#', &n.to_string())))
            };
            (0..MAX_SENTINELS + 3).map_while(id).collect()
        };
        let named_modes: Vec<u32> =
            ["[NLU]", "[S2S]", "[NLG]"].iter().filter_map(|name| tokenizer?.id(name)).collect();
        let room = (vocab_size / 8).min(MAX_SENTINELS);
        if room == 0 {
            return Err(Error::recipe(
                "objective",
                format!("a vocabulary of {vocab_size} has no room for sentinels"),
            ));
        }
        let (extra, mut unused) = (numbered("<extra_id_#>"), numbered("<unused#>"));
        let mut last_ids = (0..vocab_size as u32).rev();
        let modes: [u32; 3] = match <[u32; 3]>::try_from(named_modes) {
            Ok(modes) => modes,
            Err(_) if unused.len() > 3 => {
                let modes = [unused[0], unused[1], unused[2]];
                unused.drain(..3);
                modes
            }
            Err(_) => {
                let mut from_end: Vec<u32> = last_ids.by_ref().take(3).collect();
                from_end.reverse();
                [from_end[0], from_end[1], from_end[2]]
            }
        };
        let named = if extra.is_empty() { unused } else { extra };
        let sentinels: Vec<u32> = match named.is_empty() {
            true => last_ids.filter(|id| !modes.contains(id)).take(room).collect(),
            false => named.into_iter().filter(|id| !modes.contains(id)).take(MAX_SENTINELS).collect(),
        };
        Ok(Markers { sentinels, modes })
    }
}

/// Start and end of each noise span in n tokens, ascending: T5's partition.
fn noise_spans(
    n: usize,
    density: f64,
    mean_span: f64,
    max_spans: usize,
    random: &mut Random,
) -> Vec<(usize, usize)> {
    let noise = ((n as f64 * density).round() as usize).clamp(1, n - 1);
    let wanted = ((noise as f64 / mean_span).round() as usize).max(1);
    let n_spans = wanted.min(noise).min(n - noise).min(max_spans);
    let noise_parts = composition(noise, n_spans, random);
    let kept_parts = composition(n - noise, n_spans, random);
    let mut at = 0;
    let mut spans = Vec::with_capacity(n_spans);
    for (kept, noise) in kept_parts.into_iter().zip(noise_parts) {
        spans.push((at + kept, at + kept + noise));
        at += kept + noise;
    }
    spans
}

/// `total` as a sum of `parts` numbers of one or more, each such sum equally likely: `parts - 1` of the
/// `total - 1` gaps are chosen by a shuffle.
fn composition(total: usize, parts: usize, random: &mut Random) -> Vec<usize> {
    let mut cuts: Vec<usize> = (1..total).collect();
    random.shuffle(&mut cuts);
    cuts.truncate(parts - 1);
    cuts.sort_unstable();
    let ends = cuts.iter().copied().chain([total]);
    let starts = [0].into_iter().chain(cuts.iter().copied());
    starts.zip(ends).map(|(start, end)| end - start).collect()
}

fn corrupt(ids: &[u32], spans: &[(usize, usize)], sentinels: &[u32]) -> Denoised {
    let mut denoised = Denoised::default();
    let mut at = 0;
    for (&(start, end), &sentinel) in spans.iter().zip(sentinels) {
        denoised.input.extend(&ids[at..start]);
        denoised.input.push(sentinel);
        denoised.want_marker(sentinel);
        denoised.want(ids, start..end);
        at = end;
    }
    denoised.input.extend(&ids[at..]);
    denoised
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Purpose;
    use crate::windows::TokenStream;
    use proptest::prelude::*;

    fn random(counter: u64) -> Random {
        Random::new(5, Purpose::Sequence, counter)
    }

    fn objective(start: Option<u32>) -> Ul2 {
        let shape =
            ModelShape { decoder_start_token: start, is_encoder_decoder: start.is_some(), vocab_size: 1000 };
        Ul2::new(&Ul2Recipe::of_the_paper(), shape, None).unwrap()
    }

    #[test]
    fn spans_give_way_to_sentinels_as_in_t5() {
        let denoised = corrupt(&[1, 2, 3, 4, 5, 6, 7], &[(1, 3), (5, 6)], &[90, 91]);
        assert_eq!(denoised.input, [1, 90, 4, 5, 91, 7]);
        assert_eq!(denoised.target, [90, 2, 3, 91, 6]);
        assert_eq!(denoised.sources, [None, Some(1), Some(2), None, Some(5)]);
    }

    #[test]
    fn markers_without_named_tokens_are_the_last_ids() {
        let markers = Markers::find(None, 1000).unwrap();
        assert_eq!(markers.modes, [997, 998, 999]);
        assert_eq!((markers.sentinels[0], markers.sentinels[1], markers.sentinels.len()), (996, 995, 100));
        assert_eq!(Markers::find(None, 64).unwrap().sentinels.len(), 8);
        assert!(Markers::find(None, 7).is_err());
    }

    #[test]
    fn all_compositions_are_equally_likely() {
        // 4 = 1 + 3 = 2 + 2 = 3 + 1.
        let mut counts = [0; 4];
        let mut random = random(0);
        (0..3000).for_each(|_| counts[composition(4, 2, &mut random)[0]] += 1);
        assert!(counts[1..].iter().all(|&count| (900..1100).contains(&count)), "{counts:?}");
    }

    #[test]
    fn a_decoder_only_model_reads_input_and_target_and_is_scored_on_the_target() {
        let window = TokenStream::new([(0..40).collect::<Vec<u32>>()]).window(0, 40);
        for counter in 0..20 {
            let both = objective(Some(7)).row(&window, &mut random(0), &mut random(counter));
            let one = objective(None).row(&window, &mut random(0), &mut random(counter));
            let scored: Vec<u32> =
                one.targets.iter().zip(&one.weights).filter(|(_, w)| **w > 0.0).map(|(id, _)| *id).collect();
            assert_eq!(scored, both.targets);
            assert_eq!(one.decoder.ids[..both.encoder.ids.len()], both.encoder.ids);
            assert_eq!(both.decoder.ids[0], 7);
            assert_eq!(both.decoder.ids[1..], both.targets[..both.targets.len() - 1]);
        }
    }

    #[test]
    fn a_decoder_only_teacher_reads_the_text_and_predicts_its_tokens() {
        let window = TokenStream::new([(0..40).collect::<Vec<u32>>(), (40..60).collect()]).window(0, 60);
        for counter in 0..20 {
            let row = objective(Some(7)).row(&window, &mut random(0), &mut random(counter));
            assert_eq!(
                (row.teacher.ids.as_slice(), row.teacher_positions.len()),
                (&window.ids[..], row.targets.len())
            );
            assert_eq!(row.teacher.segments.iter().filter(|&&segment| segment == 1).count(), 20);
            for (&target, position) in row.targets.iter().zip(&row.teacher_positions) {
                // In this text each token is one more than the one before it.
                assert_eq!(position.map(|at| row.teacher.ids[at] + 1), (target < 60).then_some(target));
            }
        }
    }

    #[test]
    fn every_denoiser_of_the_mixture_is_drawn() {
        let objective = objective(Some(7));
        let mut modes = std::collections::BTreeMap::<u32, i32>::new();
        for counter in 0..700 {
            let denoised = objective.denoise(&(0..64).collect::<Vec<u32>>(), &mut random(counter));
            *modes.entry(denoised.input[0]).or_insert(0) += 1;
        }
        // Shares 2 : 1 : 4 of R, S and X.
        let expected = [(997, 200), (998, 100), (999, 400)];
        for (mode, expected) in expected {
            assert!((modes[&mode] - expected).abs() < 60, "{modes:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn input_and_target_together_restore_the_document(n in 2usize..300, counter: u64) {
            let ids: Vec<u32> = (0..n as u32).collect();
            let objective = objective(Some(7));
            let denoised = objective.denoise(&ids, &mut random(counter));
            let sentinels = &objective.tokens.sentinels;
            // Put each span of the target in the place of its sentinel.
            let mut restored = Vec::new();
            for &id in &denoised.input[1..] {
                if !sentinels.contains(&id) {
                    restored.push(id);
                    continue;
                }
                let from = denoised.target.iter().position(|&other| other == id).unwrap() + 1;
                restored.extend(denoised.target[from..].iter().take_while(|other| !sentinels.contains(other)));
            }
            if !denoised.input.iter().any(|id| sentinels.contains(id)) {
                restored.extend(&denoised.target);
            }
            prop_assert_eq!(restored, ids);
            prop_assert!(!denoised.target.is_empty());
        }
    }
}
