//! How much each part of a model matters on a text, from forward passes alone: heads, key/value groups, feed-forward
//! neurons, channels of the residual stream (Minitron, arXiv:2407.14679 section 2.2), whole layers (block influence,
//! ShortGPT, arXiv:2403.03853 eq. 1), inputs of every matrix (Wanda, arXiv:2306.11695).
//!
//! With x an activation of token t in window b and `agg` the aggregations that the caller names:
//! - a head: agg_b agg_t of the Euclidean norm of its output; a group: of the output of its heads together;
//! - an expert: agg_b agg_t of its share in what a token becomes, 0 where it is not chosen (soft counts, arXiv:2404.05089);
//! - a neuron: agg_b agg_t of |x| that goes into the down projection;
//! - a channel: agg_b agg_t of |x| that comes out of a norm, for each norm on its own;
//! - energy of a channel: its mean share in the sum of squares that a norm reads;
//! - an input: the root of the sum of squares over all tokens;
//! - a layer: 1 - mean cosine of what goes into it and what comes out.

mod sums;
mod watch;

use std::collections::BTreeMap;
use std::sync::Arc;

use luthier_arch::Model;
use luthier_arch::sizes;
use luthier_checkpoint::scores::Aggregation;
use luthier_text::Tokenizer;

use self::watch::Watch;
use crate::scoring::{Window, batches, states, total_nats};
use crate::{Error, Result};

/// How the text is read and scores are formed.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Tokens of a window; an encoder-decoder's encoder reads the first half, its decoder the second.
    pub window: usize,
    /// Tokens of the text that are read at most.
    pub max_tokens: Option<usize>,
    /// Over the tokens of a window.
    pub sequence: Aggregation,
    /// Over the windows.
    pub batch: Aggregation,
}

/// The calibration text as a model reads it.
pub struct Calibration {
    windows: Vec<Window>,
    /// Tokens in all windows.
    pub tokens: usize,
}

impl Calibration {
    /// Cuts `text`, which comes from the file `source_name`, into windows side by side; the last one is as long as it comes.
    pub fn new(
        model: &dyn Model,
        tokenizer: &Tokenizer,
        source_name: &str,
        text: &[u8],
        options: &Options,
    ) -> Result<Calibration> {
        let text = std::str::from_utf8(text).map_err(|error| {
            let offset = error.valid_up_to();
            luthier_text::TextError::NotUtf8 { file: source_name.to_string(), offset, byte: text[offset] }
        })?;
        let (ids, _) = tokenizer.encode_with_ends(text)?;
        let mut ids = [tokenizer.added_before(), &ids, tokenizer.added_after()].concat();
        ids.truncate(options.max_tokens.unwrap_or(usize::MAX));
        Calibration::of_ids(model, source_name, &ids, options.window)
    }

    /// The same of token ids as they are.
    pub fn of_ids(model: &dyn Model, source_name: &str, ids: &[u32], window: usize) -> Result<Calibration> {
        let reach = if model.is_encoder_decoder() { window.div_ceil(2) } else { window };
        let context = model.context_length().unwrap_or(usize::MAX);
        if window < 2 || reach > context {
            return Err(Error::Option {
                name: "window",
                expected: format!(
                    "2 or more, and at most what the model's context of {context} tokens holds"
                ),
                got: window.to_string(),
            });
        }
        let mut windows = Vec::new();
        for (at, ids) in ids.chunks(window).enumerate().filter(|(_, ids)| ids.len() > 1) {
            let (prefix, target) = ids.split_at((ids.len() / 2).max(1));
            windows.push(match model.is_encoder_decoder() {
                true => Window::prefixed(model, prefix, target, at * window)?,
                false => Window {
                    encoder_ids: Vec::new(),
                    input_ids: ids.to_vec(),
                    target_ids: [&ids[1..], &ids[..1]].concat(),
                    first_scored: 0,
                    first_token: at * window,
                },
            });
        }
        if windows.is_empty() {
            return Err(Error::TooShort {
                source_name: source_name.to_string(),
                got_tokens: ids.len(),
                wanted_tokens: 2,
                why: "",
                hint: "",
            });
        }
        let tokens = windows.iter().map(|window| window.encoder_ids.len() + window.input_ids.len()).sum();
        Ok(Calibration { windows, tokens })
    }

    /// Mean nats of a token of the text, the first of each window aside.
    pub fn loss(&self, model: &dyn Model) -> Result<f64> {
        let windows = self.windows.iter().map(|window| match window.encoder_ids.is_empty() {
            true => Window::next_token(&window.input_ids, 1, window.first_token),
            false => window.clone(),
        });
        let windows: Vec<Window> = windows.collect();
        let tokens: usize = windows.iter().map(Window::scored_tokens).sum();
        Ok(total_nats(model, &windows)? / tokens as f64)
    }
}

/// The scores of every part of a model, by the names of docs/formats.md.
///
/// # Errors
/// An architecture that shows no activations, activations that are not finite.
pub fn importance(
    model: &dyn Model,
    calibration: &Calibration,
    options: &Options,
) -> Result<BTreeMap<String, Vec<f32>>> {
    let (layout, sizes) = (luthier_arch::layout(model.config())?, sizes::sizes(model.config())?);
    let watch = Arc::new(Watch::new(&layout, &sizes, options));
    model.observe(Some(Arc::clone(&watch) as Arc<dyn luthier_arch::Observer>))?;
    let ran = batches(&calibration.windows).try_for_each(|batch| states(model, batch).map(drop));
    model.observe(None)?;
    ran?;
    watch.scores()
}
