//! Tokens to text as they come, never splitting a character.
//!
//! What has been given out plus what `flush` gives is exactly what decoding all tokens at once gives. So text
//! is held back while a later token could still change it: while it ends in an incomplete character, and
//! within a run of byte tokens (`<0xE2>`), which the byte-fallback decoder reads as a whole.

use crate::tokenizer::Tokenizer;

/// Decodes one token after the other. Made by [`Tokenizer::decoder`].
#[derive(Debug, Clone)]
pub struct StreamDecoder {
    tokenizer: Tokenizer,
    keep_special: bool,
    /// Every token that counts, for `flush`.
    ids: Vec<u32>,
    /// Start of the tokens that are decoded again as context for the next ones.
    context_start: usize,
    /// End of the tokens whose text is out.
    given_end: usize,
    given_bytes: usize,
}

impl StreamDecoder {
    pub(crate) fn new(tokenizer: Tokenizer, keep_special: bool) -> StreamDecoder {
        StreamDecoder {
            tokenizer,
            keep_special,
            ids: Vec::new(),
            context_start: 0,
            given_end: 0,
            given_bytes: 0,
        }
    }

    /// Takes the next token; gives the text that is certain now, if any.
    pub fn push(&mut self, id: u32) -> Option<String> {
        if !self.keep_special && self.tokenizer.is_special(id) {
            return None;
        }
        self.ids.push(id);
        if self.tokenizer.is_byte_token(id) {
            return None;
        }
        let context = self.decode(self.context_start, self.given_end)?;
        let text = self.decode(self.context_start, self.ids.len())?;
        let more = text.strip_prefix(context.as_str())?;
        if more.is_empty() || more.ends_with('\u{fffd}') {
            return None;
        }
        self.context_start = self.given_end;
        self.given_end = self.ids.len();
        self.given_bytes += more.len();
        Some(more.to_owned())
    }

    /// Gives what was held back: an incomplete character comes as U+FFFD. The decoder starts anew after it.
    pub fn flush(&mut self) -> Option<String> {
        let text = self.decode(0, self.ids.len()).unwrap_or_default();
        let rest = text.get(self.given_bytes..).unwrap_or_default().to_owned();
        *self = StreamDecoder::new(self.tokenizer.clone(), self.keep_special);
        (!rest.is_empty()).then_some(rest)
    }

    fn decode(&self, start: usize, end: usize) -> Option<String> {
        self.tokenizer.decode(&self.ids[start..end], true).ok()
    }
}
