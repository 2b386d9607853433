//! Documents packed into windows of one length, in a seeded order that a counter alone determines.
//!
//! All documents stand one behind the other in one stream, cut every `sequence_length` tokens; a window knows where
//! documents begin in it, so that nothing attends or predicts across them.

use crate::random::{Purpose, Random};
use crate::{Error, Result};

/// A run of tokens of one document inside a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// First token, counted in the window.
    pub start: usize,
    /// One past the last token.
    pub end: usize,
}

/// `sequence_length` tokens of the stream (fewer in its last window).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// The tokens.
    pub ids: Vec<u32>,
    /// The documents in it, covering `ids` in order. The first may have begun before the window.
    pub pieces: Vec<Piece>,
    /// The token after the window, where it belongs to the last piece's document.
    pub next: Option<u32>,
}

/// Documents as one stream of tokens.
#[derive(Clone, Debug, Default)]
pub struct TokenStream {
    ids: Vec<u32>,
    /// First token of each document in `ids`, ascending.
    starts: Vec<usize>,
}

impl TokenStream {
    /// Packs documents in the order given; empty ones vanish.
    pub fn new(documents: impl IntoIterator<Item = Vec<u32>>) -> TokenStream {
        let mut stream = TokenStream::default();
        for document in documents.into_iter().filter(|document| !document.is_empty()) {
            stream.starts.push(stream.ids.len());
            stream.ids.extend(document);
        }
        stream
    }

    /// Tokens of all documents.
    pub fn n_tokens(&self) -> usize {
        self.ids.len()
    }

    /// Number of documents.
    pub fn n_documents(&self) -> usize {
        self.starts.len()
    }

    /// All tokens, documents one behind the other.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// First token of each document in [`TokenStream::ids`].
    pub fn starts(&self) -> &[usize] {
        &self.starts
    }

    /// Number of windows; a single token left at the end makes none, for nothing precedes it.
    pub fn n_windows(&self, sequence_length: usize) -> usize {
        let whole = self.ids.len() / sequence_length;
        whole + usize::from(self.ids.len() % sequence_length >= 2)
    }

    /// Window number `index` of [`TokenStream::n_windows`].
    pub fn window(&self, index: usize, sequence_length: usize) -> Window {
        let start = index * sequence_length;
        let end = (start + sequence_length).min(self.ids.len());
        let first_inside = self.starts.partition_point(|&at| at <= start);
        let mut pieces = Vec::new();
        let mut piece_start = start;
        for &at in self.starts[first_inside..].iter().take_while(|&&at| at < end) {
            pieces.push(Piece { start: piece_start - start, end: at - start });
            piece_start = at;
        }
        pieces.push(Piece { start: piece_start - start, end: end - start });
        let next_is_document = self.starts.binary_search(&end).is_ok();
        let next = if next_is_document { None } else { self.ids.get(end).copied() };
        Window { ids: self.ids[start..end].to_vec(), pieces, next }
    }
}

/// The order in which a run reads the windows of a stream: each epoch all of them once, shuffled by seed and epoch.
#[derive(Debug)]
pub struct WindowOrder {
    seed: u64,
    n_windows: u64,
    epoch: Option<(u64, Vec<u32>)>,
}

impl WindowOrder {
    /// An order over `n_windows` windows; an error where there are none.
    pub fn new(seed: u64, n_windows: usize) -> Result<WindowOrder> {
        if n_windows == 0 || u32::try_from(n_windows).is_err() {
            let what = format!(
                "the training text makes {n_windows} windows; give a longer text or a fitting sequence_length"
            );
            return Err(Error::data(what));
        }
        Ok(WindowOrder { seed, n_windows: n_windows as u64, epoch: None })
    }

    /// The window that sequence number `counter` of the run reads.
    pub fn window_of(&mut self, counter: u64) -> usize {
        let epoch = counter / self.n_windows;
        if self.epoch.as_ref().is_none_or(|(current, _)| *current != epoch) {
            let mut order: Vec<u32> = (0..self.n_windows as u32).collect();
            Random::new(self.seed, Purpose::Order, epoch).shuffle(&mut order);
            self.epoch = Some((epoch, order));
        }
        let (_, order) = self.epoch.as_ref().expect("set above");
        order[(counter % self.n_windows) as usize] as usize
    }

    /// Epochs read after `counter` sequences.
    pub fn epochs(&self, counter: u64) -> f64 {
        counter as f64 / self.n_windows as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_cover_the_stream_and_know_their_documents() {
        let stream = TokenStream::new([vec![1, 2, 3], vec![], vec![4, 5], vec![6, 7, 8, 9, 10]]);
        assert_eq!(stream.n_windows(4), 3);
        let first = stream.window(0, 4);
        assert_eq!(first.ids, [1, 2, 3, 4]);
        assert_eq!(first.pieces, [Piece { start: 0, end: 3 }, Piece { start: 3, end: 4 }]);
        assert_eq!(first.next, Some(5));
        let second = stream.window(1, 4);
        assert_eq!(second.ids, [5, 6, 7, 8]);
        assert_eq!(second.pieces, [Piece { start: 0, end: 1 }, Piece { start: 1, end: 4 }]);
        assert_eq!(second.next, Some(9));
        let last = stream.window(2, 4);
        assert_eq!((last.ids, last.pieces, last.next), (vec![9, 10], vec![Piece { start: 0, end: 2 }], None));
    }

    #[test]
    fn a_window_that_ends_with_its_document_has_no_next() {
        let stream = TokenStream::new([vec![1, 2], vec![3, 4]]);
        assert_eq!(stream.window(0, 2).next, None);
        // A single left token makes no window.
        assert_eq!(TokenStream::new([vec![1, 2, 3]]).n_windows(2), 1);
    }

    #[test]
    fn each_epoch_reads_every_window_once() {
        let mut order = WindowOrder::new(9, 5).unwrap();
        let epochs: Vec<Vec<usize>> =
            (0..3).map(|epoch| (0..5).map(|i| order.window_of(epoch * 5 + i)).collect()).collect();
        for epoch in &epochs {
            let mut sorted = epoch.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 1, 2, 3, 4]);
        }
        assert!(epochs[0] != epochs[1] || epochs[1] != epochs[2]);
        assert_eq!(WindowOrder::new(9, 5).unwrap().window_of(7), epochs[1][2]);
    }

    #[test]
    fn no_window_is_refused() {
        assert!(WindowOrder::new(1, 0).unwrap_err().to_string().contains("longer text"));
    }
}
