//! PrefixLM: a window is split in prefix and target, `-1/N sum_(i>=p) log p(x_i | x_<i)` (arXiv:1910.10683 section
//! 3.2.1; the adaptation objective of T5Gemma, arXiv:2504.06225).
//!
//! One share per step is drawn uniformly between the two bounds of `prefix_fraction` and rounded to a token, so that
//! all rows of a step split at one point and none is padded; validation splits at the mean of the bounds. An
//! encoder-decoder reads the prefix in its encoder and the target, after `decoder_start_token`, in its decoder. A
//! decoder-only model reads the whole window causally (the prefix too) and is scored on the same targets. Where
//! documents meet, each is its own sequence: one that begins inside the target has an empty prefix, and its first
//! token is not scored.

use crate::batch::Row;
use crate::objectives::{ModelShape, Objective};
use crate::random::Random;
use crate::recipe::PrefixLmRecipe;
use crate::windows::Window;

/// The objective.
#[derive(Clone, Debug)]
pub struct PrefixLm {
    prefix_fraction: [f64; 2],
    /// None: the model is decoder-only.
    decoder_start_token: Option<u32>,
}

impl PrefixLm {
    /// From a resolved recipe.
    pub fn new(split: &PrefixLmRecipe, shape: ModelShape) -> PrefixLm {
        let decoder_start_token = shape.decoder_start_token.filter(|_| shape.is_encoder_decoder);
        PrefixLm { prefix_fraction: split.prefix_fraction, decoder_start_token }
    }

    /// The row of a window whose prefix is this share of it.
    fn split(&self, window: &Window, share: f64) -> Row {
        let n_tokens = window.ids.len();
        let prefix_tokens = ((share * n_tokens as f64).round() as usize).clamp(1, n_tokens - 1);
        let whole = whole_window(window, prefix_tokens);
        match self.decoder_start_token {
            None => whole,
            Some(start) => encoder_decoder(window, prefix_tokens, start, whole),
        }
    }
}

impl Objective for PrefixLm {
    fn row(&self, window: &Window, step: &mut Random, _: &mut Random) -> Row {
        let [low, high] = self.prefix_fraction;
        self.split(window, low + (high - low) * step.unit())
    }

    fn validation_row(&self, window: &Window, _: &mut Random) -> Row {
        let [low, high] = self.prefix_fraction;
        self.split(window, (low + high) / 2.0)
    }
}

/// The decoder-only row: all tokens but the last are read, those from `prefix_tokens` on are targets.
fn whole_window(window: &Window, prefix_tokens: usize) -> Row {
    let mut row = Row::default();
    for (segment, piece) in window.pieces.iter().enumerate() {
        for position in piece.start..piece.end.min(window.ids.len() - 1) {
            let target = position + 1;
            let scored = target >= prefix_tokens && target < piece.end;
            row.push(window.ids[position], segment as u32, window.ids[target], scored);
        }
    }
    row
}

fn encoder_decoder(window: &Window, prefix_tokens: usize, start: u32, whole: Row) -> Row {
    let mut row = Row::default();
    for (segment, piece) in window.pieces.iter().enumerate() {
        for position in piece.start..piece.end {
            if position < prefix_tokens {
                row.encoder.push(window.ids[position], segment as u32);
                continue;
            }
            let begins_document = position == piece.start;
            let begins_target = position == prefix_tokens;
            let input = if begins_document || begins_target { start } else { window.ids[position - 1] };
            row.push(input, segment as u32, window.ids[position], !begins_document);
            if !begins_document {
                row.teacher_positions.push(Some(position - 1));
            }
        }
    }
    row.teacher = whole.decoder;
    row
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Purpose;
    use crate::windows::TokenStream;

    fn objective(start: Option<u32>, prefix_fraction: [f64; 2]) -> PrefixLm {
        let shape =
            ModelShape { decoder_start_token: start, is_encoder_decoder: start.is_some(), vocab_size: 100 };
        PrefixLm::new(&PrefixLmRecipe { prefix_fraction }, shape)
    }

    fn random() -> Random {
        Random::new(1, Purpose::Step, 0)
    }

    #[test]
    fn the_encoder_reads_the_prefix_and_the_decoder_the_rest_after_the_start_token() {
        let window = TokenStream::new([vec![1, 2, 3, 4, 5, 6]]).window(0, 6);
        let row = objective(Some(99), [0.5, 0.5]).row(&window, &mut random(), &mut random());
        assert_eq!(row.encoder.ids, [1, 2, 3]);
        assert_eq!(row.decoder.ids, [99, 4, 5]);
        assert_eq!(
            (row.targets.as_slice(), row.weights.as_slice()),
            ([4, 5, 6].as_slice(), [1.0; 3].as_slice())
        );
        // The decoder-only view predicts the same tokens from positions 2, 3, 4 of the whole window.
        assert_eq!(
            (row.teacher.ids, row.teacher_positions),
            (vec![1, 2, 3, 4, 5], vec![Some(2), Some(3), Some(4)])
        );
    }

    #[test]
    fn both_kinds_of_model_are_scored_on_the_same_tokens() {
        // Documents 1..=4 | 5 6 | 7 8 9, one window, split after 3.
        let window = TokenStream::new([vec![1, 2, 3, 4], vec![5, 6], vec![7, 8, 9]]).window(0, 9);
        let share = [1.0 / 3.0; 2];
        let scored = |row: &Row| -> Vec<u32> {
            row.targets.iter().zip(&row.weights).filter(|(_, w)| **w > 0.0).map(|(id, _)| *id).collect()
        };
        let encoder_decoder = objective(Some(99), share).row(&window, &mut random(), &mut random());
        let decoder_only = objective(None, share).row(&window, &mut random(), &mut random());
        assert_eq!(scored(&encoder_decoder), [4, 6, 8, 9]);
        assert_eq!(scored(&decoder_only), [4, 6, 8, 9]);
        // Each document of the target begins with the start token and keeps its number.
        assert_eq!(encoder_decoder.decoder.ids, [99, 99, 5, 99, 7, 8]);
        assert_eq!(encoder_decoder.decoder.segments, [0, 1, 1, 2, 2, 2]);
        assert_eq!(encoder_decoder.encoder.segments, [0, 0, 0]);
        // And the teacher's positions predict those very tokens.
        let taught: Vec<u32> =
            encoder_decoder.teacher_positions.iter().flatten().map(|&p| decoder_only.targets[p]).collect();
        assert_eq!(taught, [4, 6, 8, 9]);
    }

    #[test]
    fn a_step_splits_all_its_windows_at_one_point_within_the_bounds() {
        let window = TokenStream::new([(0..100).collect::<Vec<u32>>()]).window(0, 100);
        let objective = objective(Some(99), [0.25, 0.75]);
        let prefix = |counter| {
            let mut step = Random::new(1, Purpose::Step, counter);
            objective.row(&window, &mut step, &mut random()).encoder.ids.len()
        };
        assert_eq!(prefix(4), prefix(4));
        let drawn: Vec<usize> = (0..200).map(prefix).collect();
        assert!(drawn.iter().all(|tokens| (25..=75).contains(tokens)));
        assert!(drawn.iter().any(|&tokens| tokens < 35) && drawn.iter().any(|&tokens| tokens > 65));
        assert_eq!(objective.validation_row(&window, &mut random()).encoder.ids.len(), 50);
    }

    #[test]
    fn a_window_of_two_tokens_still_has_a_prefix_and_a_target() {
        let window = TokenStream::new([vec![1, 2]]).window(0, 8);
        let row = objective(Some(99), [0.9, 0.9]).row(&window, &mut random(), &mut random());
        assert_eq!((row.encoder.ids, row.targets), (vec![1], vec![2]));
    }
}
