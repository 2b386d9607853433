//! Loss of targets that follow prefixes, the same for decoder-only and encoder-decoder models (PrefixLM's validation
//! loss, arXiv:1910.10683 section 3.2.1).
//!
//! A decoder-only model reads prefix and target in one context; an encoder-decoder reads the prefix in its encoder, and
//! its decoder reads the start token and the target. Both predict every target token, the first included, from the
//! whole prefix and the target before it: the same conditional probabilities, so the numbers compare.

use luthier_arch::model::Model;

use crate::scoring::{Window, total_nats};
use crate::{Error, Result};

/// A prefix and what follows it, both of at least one token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrefixTarget {
    /// What is given.
    pub prefix: Vec<u32>,
    /// What is scored.
    pub target: Vec<u32>,
}

/// The loss over all targets.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct PrefixLoss {
    /// Mean over all target tokens.
    pub nats_per_token: f64,
    /// Target tokens.
    pub tokens_scored: usize,
}

/// Mean nats per target token of `windows`.
///
/// # Errors
/// No windows, an empty prefix or target, and those of [`total_nats`].
pub fn prefix_loss(model: &dyn Model, windows: &[PrefixTarget]) -> Result<PrefixLoss> {
    let wrong = windows.iter().any(|window| window.prefix.is_empty() || window.target.is_empty());
    if wrong || windows.is_empty() {
        return Err(Error::Option {
            name: "windows",
            expected: "at least one, each with a prefix and a target of one token or more".into(),
            got: if wrong { "an empty prefix or target".into() } else { "none".into() },
        });
    }
    let mut first_token = 0;
    let mut scored = Vec::with_capacity(windows.len());
    for PrefixTarget { prefix, target } in windows {
        scored.push(Window::prefixed(model, prefix, target, first_token)?);
        first_token += prefix.len() + target.len();
    }
    let tokens_scored = scored.iter().map(Window::scored_tokens).sum::<usize>();
    let nats_per_token = total_nats(model, &scored)? / tokens_scored as f64;
    Ok(PrefixLoss { nats_per_token, tokens_scored })
}
