//! Next-token prediction: `-1/N sum_i log p(x_i | x_<i)` within each document (Bengio et al. 2003, JMLR 3:1137).
//!
//! A window of n tokens predicts n tokens: its own but the first, and the one after it. Nothing predicts the first
//! token of a document.

use crate::batch::Row;
use crate::objectives::{ModelShape, Objective};
use crate::random::Random;
use crate::windows::Window;
use crate::{Error, Result};

/// The objective; it has no parameters.
#[derive(Clone, Copy, Debug)]
pub struct NextToken;

impl NextToken {
    /// For a decoder-only model; an encoder would have nothing to read.
    pub fn new(shape: ModelShape) -> Result<NextToken> {
        if shape.is_encoder_decoder {
            let what = "next-token trains decoder-only models, this one has an encoder; use prefixlm or ul2";
            return Err(Error::recipe("objective", what));
        }
        Ok(NextToken)
    }
}

impl Objective for NextToken {
    fn row(&self, window: &Window, _: &mut Random, _: &mut Random) -> Row {
        let mut row = Row::default();
        for (segment, piece) in window.pieces.iter().enumerate() {
            for position in piece.start..piece.end {
                let last_of_piece = position + 1 == piece.end;
                let target = if position + 1 == window.ids.len() {
                    window.next
                } else if last_of_piece {
                    None
                } else {
                    Some(window.ids[position + 1])
                };
                row.push(window.ids[position], segment as u32, target.unwrap_or(0), target.is_some());
            }
        }
        row
    }

    fn validation_row(&self, window: &Window, sequence: &mut Random) -> Row {
        self.row(window, &mut sequence.clone(), sequence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Purpose;
    use crate::windows::TokenStream;

    #[test]
    fn every_token_but_the_first_of_a_document_is_predicted() {
        // Documents 1 2 3 | 4 5 6 7 in windows of 4: of the first window, 1->2, 2->3 and 4->5 count.
        let stream = TokenStream::new([vec![1, 2, 3], vec![4, 5, 6, 7]]);
        let random = Random::new(0, Purpose::Sequence, 0);
        let row = |index| NextToken.row(&stream.window(index, 4), &mut random.clone(), &mut random.clone());
        let first = row(0);
        assert_eq!(first.decoder.ids, [1, 2, 3, 4]);
        assert_eq!(first.decoder.segments, [0, 0, 0, 1]);
        assert_eq!(first.targets, [2, 3, 0, 5]);
        assert_eq!(first.weights, [1.0, 1.0, 0.0, 1.0]);
        let second = row(1);
        assert_eq!((second.targets, second.weights), (vec![6, 7, 0], vec![1.0, 1.0, 0.0]));
    }

    #[test]
    fn an_encoder_decoder_is_refused() {
        let shape = ModelShape { decoder_start_token: Some(0), is_encoder_decoder: true, vocab_size: 9 };
        assert!(NextToken::new(shape).unwrap_err().to_string().contains("prefixlm or ul2"));
    }
}
