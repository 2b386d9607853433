//! How much each part of a model matters on a text, from forward passes alone: heads, key/value groups, feed-forward
//! neurons, channels of the residual stream (Minitron, arXiv:2407.14679 section 2.2), whole layers (block influence,
//! ShortGPT, arXiv:2403.03853 eq. 1), inputs of every matrix (Wanda, arXiv:2306.11695).
//!
//! With x an activation of token t in window b and `agg` the aggregations that the caller names:
//! - a head: agg_b agg_t of the Euclidean norm of its output; a group: of the output of its heads together;
//! - an expert: agg_b agg_t of its share in what a token becomes, 0 where it is not chosen (soft counts, arXiv:2404.05089);
//! - a neuron: agg_b agg_t of |x| that goes into the down projection;
//! - a channel: agg_b agg_t of |x| that comes out of a norm, for each norm on its own;
//! - energy of a channel: its mean share in the sum of squares that a norm reads, the mean taken off where the norm does;
//! - shift of a channel, of norms that take the mean off: its mean after that, in deviations of its token;
//! - an input: the root of the sum of squares over all tokens;
//! - a layer: 1 - mean cosine of what goes into it and what comes out.

mod masked;
mod sums;
mod watch;

use std::collections::BTreeMap;
use std::sync::Arc;

use luthier_arch::Model;
use luthier_arch::sizes;
use luthier_checkpoint::layout::{Layout, Part};
use luthier_checkpoint::scores::Aggregation;
use luthier_checkpoint::{Dtype, TensorInfo};
use luthier_text::Tokenizer;

use self::masked::Masked;
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
    /// What an encoder, which predicts no next token, is asked.
    masked: Option<Masked>,
}

impl Calibration {
    /// Cuts `text`, which comes from the file `source_name`, into windows side by side; the last one is as long as it comes.
    /// Every window of an encoder's has the tokens around it that the tokenizer adds to a text.
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
        let (mut ids, _) = tokenizer.encode_with_ends(text)?;
        let (before, after) = (tokenizer.added_before(), tokenizer.added_after());
        let max_tokens = options.max_tokens.unwrap_or(usize::MAX);
        if !model.is_encoder_only() {
            ids = [before, &ids, after].concat();
            ids.truncate(max_tokens);
            return Calibration::of_ids(model, source_name, &ids, options.window);
        }
        ids.truncate(max_tokens);
        let added = before.len() + after.len();
        let inner = options.window.saturating_sub(added);
        let mut calibration = Calibration::of_ids(model, source_name, &ids, inner)?;
        for window in &mut calibration.windows {
            window.input_ids = [before, &window.input_ids, after].concat();
            window.target_ids.clone_from(&window.input_ids);
        }
        calibration.tokens += calibration.windows.len() * added;
        let mask = tokenizer.special_tokens().mask.as_deref().and_then(|mask| tokenizer.id(mask));
        calibration.masked = mask.map(|mask| Masked { mask, before: before.len(), after: after.len() });
        Ok(calibration)
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
        Ok(Calibration { windows, tokens, masked: None })
    }

    /// Mean nats of a token of the text, the first of each window aside; of an encoder, of every seventh token, masked.
    ///
    /// # Errors
    /// An encoder without a head, or whose tokenizer has no token for what is masked.
    pub fn loss(&self, model: &dyn Model) -> Result<f64> {
        if model.is_encoder_only() {
            let missing = || {
                let what = "an encoder's loss is that of masked tokens, and this tokenizer has no mask_token";
                luthier_arch::Error::Use(what.to_string())
            };
            return self.masked.ok_or_else(missing)?.loss(model, &self.windows);
        }
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
    let (layout, sizes) = (layout_of(model)?, sizes::sizes(model.config())?);
    let watch = Arc::new(Watch::new(&layout, &sizes, options));
    model.observe(Some(Arc::clone(&watch) as Arc<dyn luthier_arch::Observer>))?;
    // What stands in a head for masked tokens is seen when it is asked.
    let has_norm = layout.tensors.iter().any(|spec| spec.role.part == Part::HeadNorm);
    let ran = batches(&calibration.windows).try_for_each(|batch| match has_norm {
        true => masked::read(model, batch),
        false => states(model, batch).map(drop),
    });
    model.observe(None)?;
    ran?;
    watch.scores()
}

/// All weights of a model, in the form that it has.
fn layout_of(model: &dyn Model) -> Result<Layout> {
    let infos: Vec<TensorInfo> = model
        .weights()
        .iter()
        .map(|weight| TensorInfo {
            name: weight.name().to_string(),
            dtype: Dtype::F32,
            shape: weight.shape().to_vec(),
        })
        .collect();
    Ok(luthier_arch::layout_with(model.config(), &infos)?)
}
