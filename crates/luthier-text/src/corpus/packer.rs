//! Documents as tokens, packed into windows of one length.

use super::order::{Order, Position, mix};
use crate::error::{Result, TextError};
use crate::tokenizer::Tokenizer;

/// A stretch of `sequence_length + 1` tokens (inputs and, one place on, targets).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Number of the document that each token belongs to, from 0, rising: tokens of different numbers must
    /// not see each other.
    pub segments: Vec<u32>,
}

/// A tokenized corpus, cut into windows.
///
/// Documents stand one after the other in an order drawn from the seed, each as start token (where the
/// tokenizer names one), text, end token. Windows begin `sequence_length` tokens apart and hold one token
/// more, so that every token but the first is a target once; a document that is longer than a window goes on
/// in the next. The last tokens that do not fill a window, fewer than `sequence_length`, are left out.
#[derive(Debug, Clone)]
pub struct Packer {
    ids: Vec<u32>,
    /// End of each document in `ids`.
    ends: Vec<usize>,
    sequence_length: usize,
}

impl Packer {
    /// Tokenizes `documents`. Refuses a sequence length of 0, a tokenizer without an end token, and texts that
    /// do not fill one window.
    pub fn new(
        documents: &[String],
        tokenizer: &Tokenizer,
        sequence_length: usize,
        seed: u64,
    ) -> Result<Packer> {
        let Some(end) = tokenizer.eos() else {
            let what = "the tokenizer names no end token, which has to part the documents; name eos_token";
            return Err(TextError::Corpus(what.to_owned()));
        };
        let mut tokenized = Vec::with_capacity(documents.len());
        for document in documents {
            let mut ids: Vec<u32> = tokenizer.bos().into_iter().collect();
            ids.extend(tokenizer.encode(document)?);
            ids.push(end);
            tokenized.push(ids);
        }
        Packer::from_tokens(tokenized, sequence_length, seed)
    }

    /// From documents that are tokens already, with their start and end tokens.
    pub fn from_tokens(documents: Vec<Vec<u32>>, sequence_length: usize, seed: u64) -> Result<Packer> {
        let tokens: usize = documents.iter().map(Vec::len).sum();
        if sequence_length == 0 || tokens < sequence_length + 1 {
            let what =
                format!("{tokens} tokens do not fill a window of sequence_length {sequence_length} and one");
            return Err(TextError::Corpus(what));
        }
        let mut packer = Packer {
            ids: Vec::with_capacity(tokens),
            ends: Vec::with_capacity(documents.len()),
            sequence_length,
        };
        // The documents' order is drawn from another stream than the windows' order.
        let order = Order::new(documents.len(), mix(seed ^ 0x646f_6373), Position::default());
        for index in order.take(documents.len()) {
            packer.ids.extend_from_slice(&documents[index]);
            packer.ends.push(packer.ids.len());
        }
        Ok(packer)
    }

    /// Number of windows.
    pub fn len(&self) -> usize {
        (self.ids.len() - 1) / self.sequence_length
    }

    /// Never: a packer holds at least one window.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens in all, those of the left-out end included.
    pub fn tokens(&self) -> usize {
        self.ids.len()
    }

    /// Window `index`, in the order of the text; below [`Packer::len`].
    pub fn window(&self, index: usize) -> Window {
        let start = index * self.sequence_length;
        let end = start + self.sequence_length + 1;
        let first = self.ends.partition_point(|end| *end <= start);
        let mut document = first;
        let segments = (start..end).map(|at| {
            while self.ends[document] <= at {
                document += 1;
            }
            (document - first) as u32
        });
        Window { segments: segments.collect(), ids: self.ids[start..end].to_vec() }
    }

    /// The endless order in which training visits the windows, from `position` on.
    pub fn order(&self, seed: u64, position: Position) -> Order {
        Order::new(self.len(), seed, position)
    }
}
