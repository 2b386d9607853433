//! Perplexity of a text: `exp(mean of -ln p(token | tokens before it))`, by one of three ways to cut the text.
//!
//! - `strided`: windows of `window` tokens that start `stride` tokens apart, up to the one that reaches the end of the
//!   text. Each token is scored once, in the first window that holds it; the rest of a window is context. So with
//!   `stride = window` every token of a window but its first is scored, and with a smaller stride every token of the
//!   text but its first. This is the evaluation of <https://huggingface.co/docs/transformers/perplexity>, whose code
//!   weighs the mean of an overlapping window by one token less than it scored; here each token weighs the same.
//!   The text is encoded once, with the tokens that the tokenizer adds around it.
//! - `llama.cpp`: as its perplexity tool does it (tools/perplexity/perplexity.cpp): windows side by side, an incomplete
//!   last one dropped; where the tokenizer adds a start token, it takes the place of each window's first token, and
//!   stands before the text too; with `h = window / 2`, the tokens from `h + 1` on of each window are scored.
//! - `prefix`: windows side by side, the last one as long as it comes; the first half (rounded down) of a window is
//!   given, the second scored, by [`super::prefix_loss`]'s rule. The one way for an encoder-decoder, whose encoder
//!   reads the first half; it works for decoder-only models alike, to compare the two.
//!
//! Bits per byte: the bits of the scored tokens over the bytes of the text that they cover. A token covers the bytes
//! from the end of the token before it to its own end, so a token that the tokenizer adds covers none.

use std::time::Instant;

use luthier_arch::model::Model;
use luthier_text::{TextError, Tokenizer};

use crate::scoring::{Window, total_nats};
use crate::{Error, Result};

/// How the text is cut into windows; see the top of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Windows `stride` apart, each token scored once.
    Strided {
        /// Tokens of a window, at least 2.
        window: usize,
        /// Tokens from one window's start to the next, 1 to `window`.
        stride: usize,
    },
    /// The second half of each full window.
    LlamaCpp {
        /// Tokens of a window, at least 4.
        window: usize,
    },
    /// The second half of each window after the first half.
    Prefix {
        /// Tokens of a window, at least 2.
        window: usize,
    },
}

impl Method {
    /// The name in recipes and results.
    pub fn name(self) -> &'static str {
        match self {
            Method::Strided { .. } => "strided",
            Method::LlamaCpp { .. } => "llama.cpp",
            Method::Prefix { .. } => "prefix",
        }
    }

    /// What a model is measured by when nothing is said: `strided` without overlap, `prefix` for an encoder-decoder;
    /// windows of 1024 tokens, or of the model's context where it is shorter.
    pub fn default_of(model: &dyn Model) -> Method {
        let window = model.context_length().map_or(1024, |length| length.min(1024));
        match model.is_encoder_decoder() {
            true => Method::Prefix { window },
            false => Method::Strided { window, stride: window },
        }
    }
}

/// A perplexity and what it was measured over.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Perplexity {
    /// `exp(nll_nats_per_token)`.
    pub perplexity: f64,
    /// Mean over the scored tokens.
    pub nll_nats_per_token: f64,
    /// Bits of the scored tokens over the bytes that they cover; none without a text.
    pub bits_per_byte: Option<f64>,
    /// Tokens that were scored.
    pub tokens_scored: usize,
    /// Tokens of the text, added ones included.
    pub tokens: usize,
    /// [`Method::name`].
    pub method: &'static str,
    /// Tokens of a window.
    pub window: usize,
    /// Tokens from one window's start to the next.
    pub stride: usize,
    /// Time taken, tokenizing included.
    pub seconds: f64,
}

/// The perplexity of `text`, which comes from the file `source_name` (for messages).
///
/// # Errors
/// A text that is not UTF-8 or too short, a tokenizer that does not fit, windows that do not fit the model, and those of
/// [`total_nats`].
pub fn perplexity(
    model: &dyn Model,
    tokenizer: &Tokenizer,
    source_name: &str,
    text: &[u8],
    method: Method,
) -> Result<Perplexity> {
    let started = Instant::now();
    tokenizer.check_fits(model.vocab_size())?;
    let text = std::str::from_utf8(text).map_err(|error| {
        let offset = error.valid_up_to();
        TextError::NotUtf8 { file: source_name.to_string(), offset, byte: text[offset] }
    })?;
    let (text_ids, text_ends) = tokenizer.encode_with_ends(text)?;
    let before = tokenizer.added_before();
    let after = match method {
        Method::LlamaCpp { .. } => &[],
        Method::Strided { .. } | Method::Prefix { .. } => tokenizer.added_after(),
    };
    let ids = [before, &text_ids, after].concat();
    let last_end = text_ends.last().copied().unwrap_or(0);
    let ends = [vec![0; before.len()], text_ends, vec![last_end; after.len()]].concat();
    let mut measured =
        perplexity_of_ids(model, source_name, &ids, Some(&ends), before.first().copied(), method)?;
    measured.seconds = started.elapsed().as_secs_f64();
    Ok(measured)
}

/// The perplexity of token ids as they are. `ends`: for each id the byte of the text at which it ends, where there is a
/// text. `start_token`: what the llama.cpp method puts in the place of each window's first token.
///
/// # Errors
/// As [`perplexity`]; `source_name` is what the messages call the ids.
pub fn perplexity_of_ids(
    model: &dyn Model,
    source_name: &str,
    ids: &[u32],
    ends: Option<&[usize]>,
    start_token: Option<u32>,
    method: Method,
) -> Result<Perplexity> {
    let started = Instant::now();
    check(model, method)?;
    let (window, stride) = match method {
        Method::Strided { window, stride } => (window, stride),
        Method::LlamaCpp { window } | Method::Prefix { window } => (window, window),
    };
    let too_short = |wanted_tokens, why, hint| Error::TooShort {
        source_name: source_name.to_string(),
        got_tokens: ids.len(),
        wanted_tokens,
        why,
        hint,
    };
    let spans = match method {
        Method::LlamaCpp { .. } if ids.len() < window => {
            return Err(too_short(window, " (one full window)", " or a smaller window"));
        }
        _ if ids.len() < 2 => return Err(too_short(2, " (one to read, one to score)", "")),
        _ => spans(ids.len(), method),
    };
    let mut windows = Vec::with_capacity(spans.len());
    let mut covered_bytes = 0;
    for span in &spans {
        let Span { start, scored, end } = *span;
        windows.push(match method {
            Method::Prefix { .. } => Window::prefixed(model, &ids[start..scored], &ids[scored..end], start)?,
            Method::Strided { .. } => Window::next_token(&ids[start..end], scored - start, start),
            Method::LlamaCpp { .. } => {
                let mut own = ids[start..end].to_vec();
                own[0] = start_token.unwrap_or(own[0]);
                Window::next_token(&own, scored - start, start)
            }
        });
        covered_bytes += ends.map_or(0, |ends| ends[end - 1] - ends[scored - 1]);
    }
    let tokens_scored = windows.iter().map(Window::scored_tokens).sum::<usize>();
    let total = total_nats(model, &windows)?;
    let nll_nats_per_token = total / tokens_scored as f64;
    let bits = total / std::f64::consts::LN_2;
    Ok(Perplexity {
        perplexity: nll_nats_per_token.exp(),
        nll_nats_per_token,
        bits_per_byte: (covered_bytes > 0).then(|| bits / covered_bytes as f64),
        tokens_scored,
        tokens: ids.len(),
        method: method.name(),
        window,
        stride,
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// A window's tokens `start..end`, of which `scored..end` are scored; `scored > start`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    start: usize,
    scored: usize,
    end: usize,
}

/// The windows that score something over `tokens` (2 or more) tokens.
fn spans(tokens: usize, method: Method) -> Vec<Span> {
    let mut spans = Vec::new();
    match method {
        Method::Strided { window, stride } => {
            let mut scored_end = 0;
            for start in (0..tokens).step_by(stride) {
                let end = tokens.min(start + window);
                spans.push(Span { start, scored: scored_end.max(start + 1), end });
                scored_end = end;
                if end == tokens {
                    break;
                }
            }
        }
        Method::LlamaCpp { window } => {
            for start in (0..tokens / window).map(|number| number * window) {
                spans.push(Span { start, scored: start + window / 2 + 1, end: start + window });
            }
        }
        Method::Prefix { window } => {
            for start in (0..tokens).step_by(window) {
                let end = tokens.min(start + window);
                let scored = start + ((end - start) / 2).max(1);
                spans.push(Span { start, scored, end });
            }
        }
    }
    spans.retain(|span| span.scored < span.end);
    spans
}

/// Windows that the model and the method can work with.
fn check(model: &dyn Model, method: Method) -> Result<()> {
    let refuse =
        |name, expected: String, got: usize| Err(Error::Option { name, expected, got: got.to_string() });
    let (window, least) = match method {
        Method::Strided { window, stride } => {
            if stride == 0 || stride > window {
                return refuse(
                    "stride",
                    format!("1 to the window's {window}, so that no token is skipped"),
                    stride,
                );
            }
            (window, 2)
        }
        Method::LlamaCpp { window } => (window, 4),
        Method::Prefix { window } => (window, 2),
    };
    luthier_arch::model::check_predicts_next(model, "perplexity")?;
    if window < least {
        return refuse("window", format!("{least} tokens or more for method {}", method.name()), window);
    }
    let is_prefix = matches!(method, Method::Prefix { .. });
    if model.is_encoder_decoder() && !is_prefix {
        return Err(Error::Option {
            name: "method",
            expected:
                "prefix for an encoder-decoder (its encoder reads the first half of a window, its decoder is \
                       scored on the second)"
                    .into(),
            got: method.name().into(),
        });
    }
    // An encoder-decoder has each half of a window in a context of its own.
    let reach = if model.is_encoder_decoder() { window.div_ceil(2) } else { window };
    match model.context_length() {
        Some(length) if reach > length => {
            refuse("window", format!("at most what the model's context of {length} tokens holds"), window)
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn check_spans(tokens: usize, method: Method, want: Expect) {
        let shown: Vec<String> = spans(tokens, method)
            .iter()
            .map(|span| format!("{}..{}>{}", span.start, span.end, span.scored))
            .collect();
        want.assert_eq(&shown.join(" "));
    }

    #[test]
    fn strides_without_overlap_score_all_but_each_first() {
        check_spans(10, Method::Strided { window: 4, stride: 4 }, expect!["0..4>1 4..8>5 8..10>9"]);
        // The ninth token stands alone in its window: nothing predicts it.
        check_spans(9, Method::Strided { window: 4, stride: 4 }, expect!["0..4>1 4..8>5"]);
    }

    #[test]
    fn overlapping_strides_score_each_token_once() {
        check_spans(9, Method::Strided { window: 4, stride: 2 }, expect!["0..4>1 2..6>4 4..8>6 6..9>8"]);
        check_spans(3, Method::Strided { window: 4, stride: 2 }, expect!["0..3>1"]);
    }

    #[test]
    fn llama_cpp_scores_the_second_half_of_full_windows() {
        // Of 512: positions 256 to 510 predict 257 to 511, 255 tokens.
        check_spans(1200, Method::LlamaCpp { window: 512 }, expect!["0..512>257 512..1024>769"]);
        check_spans(11, Method::LlamaCpp { window: 5 }, expect!["0..5>3 5..10>8"]);
    }

    #[test]
    fn prefixes_are_first_halves() {
        check_spans(11, Method::Prefix { window: 4 }, expect!["0..4>2 4..8>6 8..11>9"]);
        check_spans(9, Method::Prefix { window: 4 }, expect!["0..4>2 4..8>6"]);
    }

    proptest::proptest! {
        #[test]
        fn overlapping_windows_cover_every_token_but_the_first(
            tokens in 2usize..60, window in 2usize..20, stride in 1usize..20,
        ) {
            proptest::prop_assume!(stride < window);
            let spans = spans(tokens, Method::Strided { window, stride });
            let scored: Vec<usize> = spans.iter().flat_map(|span| span.scored..span.end).collect();
            proptest::prop_assert_eq!(scored, (1..tokens).collect::<Vec<_>>());
        }
    }
}
