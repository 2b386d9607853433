//! `luthier perplexity`: how well a model predicts a text.

use std::path::PathBuf;

use anyhow::bail;
use luthier_arch::Precision;
use luthier_measure::measurements::Measurement;
use luthier_measure::metrics::perplexity::{Method, perplexity};
use serde::Deserialize;

use super::Act;
use crate::bounded::AtLeast;
use crate::places::{self, Loaded};
use crate::session::{Report, Session};
use crate::{record, texts};

const METHODS: [&str; 3] = ["strided", "llama.cpp", "prefix"];

/// Measures how well a model predicts a text: perplexity, nats per token, bits per byte.
///
/// `strided` (the default) scores every token of a window but the first, and with a stride below the window each token
/// once with the rest as context. `llama.cpp` scores the second half of each full window, as llama-perplexity does.
/// An encoder-decoder is measured by `prefix`: its encoder reads the first half of a window, the second is scored.
#[derive(Debug, clap::Args, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Perplexity {
    /// The model
    model: String,
    /// The text, UTF-8
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// Tokens of a window [default: 1024, or the model's context where that is shorter; 512 for llama.cpp]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    window: Option<AtLeast<2>>,
    /// Tokens from one window's start to the next [default: the window]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    stride: Option<AtLeast<1>>,
    /// How the text is cut: strided, llama.cpp or prefix [default: strided; prefix for an encoder-decoder]
    #[arg(long, value_name = "METHOD", value_parser = METHODS)]
    method: Option<String>,
    /// Keep the numbers in DIR/measurements.json, from which `frontier` draws
    #[arg(long, value_name = "DIR")]
    record: Option<PathBuf>,
}

impl Act for Perplexity {
    const NAME: &'static str = "perplexity";
    const ABOUT: &'static str = "Measure how well a model predicts a text";

    fn check(&self) -> Result<(), String> {
        match (self.method.as_deref(), self.window, self.stride) {
            (None | Some("strided"), Some(AtLeast(window)), Some(AtLeast(stride))) if stride > window => {
                Err(format!(
                    "stride: wanted at most the window's {window}, so that no token is skipped, came {stride}"
                ))
            }
            (Some(name @ ("llama.cpp" | "prefix")), _, Some(_)) => {
                Err(format!("stride: method {name} has none; it is for strided"))
            }
            (Some("llama.cpp"), Some(AtLeast(window)), None) if window < 4 => {
                Err(format!("window: method llama.cpp wants 4 tokens or more, came {window}"))
            }
            (Some(name), ..) if !METHODS.contains(&name) => {
                Err(format!("method: wanted strided, llama.cpp or prefix, came {name}"))
            }
            _ => Ok(()),
        }
    }

    fn act(self, _session: &Session) -> anyhow::Result<Report> {
        let loaded = places::load_packed(&self.model, Precision::Precise, true)?;
        let method = self.method(&loaded)?;
        let text = texts::bytes(&self.text)?;
        let tokenizer = loaded.tokenizer()?;
        let name = self.text.display().to_string();
        let result = perplexity(loaded.model.as_ref(), &tokenizer, &name, &text, method)?;
        if let Some(dir) = &self.record {
            let numbers = Measurement {
                validation_loss_nats: Some(result.nll_nats_per_token),
                bits_per_byte: result.bits_per_byte,
                perplexity: Some(result.perplexity),
                text: Some(format!("{name}, {}, window {}", result.method, result.window)),
                ..Measurement::default()
            };
            record::record(dir, &self.model, &loaded.checkpoint, numbers)?;
        }
        let text = format!(
            "perplexity {:.4} ({:.4} nats per token, {} bits per byte) over {} of {} tokens, {}, window {}",
            result.perplexity,
            result.nll_nats_per_token,
            result.bits_per_byte.map_or("no".to_string(), |bits| format!("{bits:.4}")),
            result.tokens_scored,
            result.tokens,
            result.method,
            result.window
        );
        Ok(Report { json: serde_json::to_value(&result)?, text })
    }
}

impl Perplexity {
    fn method(&self, loaded: &Loaded) -> anyhow::Result<Method> {
        let context = loaded.model.context_length().unwrap_or(usize::MAX);
        let name = match (&self.method, loaded.model.is_encoder_decoder()) {
            (Some(name), _) => name.as_str(),
            (None, true) => "prefix",
            (None, false) => "strided",
        };
        let window = self.window.map(|window| window.0);
        let window = window.unwrap_or(if name == "llama.cpp" { 512 } else { 1024 }.min(context));
        match (name, self.stride) {
            ("strided", stride) => {
                Ok(Method::Strided { window, stride: stride.map_or(window, |stride| stride.0) })
            }
            (_, Some(_)) => bail!("stride: method {name} has none; it is for strided"),
            ("llama.cpp", None) => Ok(Method::LlamaCpp { window }),
            ("prefix", None) => Ok(Method::Prefix { window }),
            _ => bail!("method: wanted strided, llama.cpp or prefix, got {name}"),
        }
    }
}
