//! `luthier adapt`: a decoder-only model becomes an encoder-decoder.

use std::path::PathBuf;

use luthier_surgery::adapt;
use serde::Deserialize;

use super::Act;
use crate::dtype::FloatType;
use crate::places;
use crate::session::{Report, Session};

/// Makes an encoder-decoder of a pretrained decoder-only model (T5Gemma, arXiv:2504.06225): the encoder is the decoder
/// with full attention, cross-attention starts from self-attention where the widths are equal and from random values
/// where they differ. A Gemma 2 parent gives a T5Gemma checkpoint that transformers opens; others give
/// `luthier_encoder_decoder`, described in docs/formats.md. With cross-attention silenced, the decoder's logits are
/// checked to equal the parent's to 1e-5 before the output is put in place.
#[derive(Debug, clap::Args, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Adapt {
    /// The parent of both sides
    model: String,
    /// The folder or .gguf file to write
    out: PathBuf,
    /// Another parent for the encoder
    #[arg(long, value_name = "MODEL2")]
    encoder: Option<String>,
    /// Another parent for the decoder
    #[arg(long, value_name = "MODEL3")]
    decoder: Option<String>,
    /// The type of all weights; without it types are kept
    #[arg(long)]
    dtype: Option<FloatType>,
    /// Seed of cross-attention that starts from random values [default: 1]
    #[arg(long)]
    seed: Option<u64>,
    /// Replace an existing output
    #[arg(long)]
    #[serde(default)]
    force: bool,
    /// Say what would be done, from headers alone, and do nothing
    #[arg(long)]
    #[serde(default)]
    plan: bool,
}

impl Act for Adapt {
    const NAME: &'static str = "adapt";
    const ABOUT: &'static str = "Turn a decoder-only model into an encoder-decoder";

    fn act(self, session: &Session) -> anyhow::Result<Report> {
        let encoder = places::input(self.encoder.as_deref().unwrap_or(&self.model))?;
        let decoder = places::input(self.decoder.as_deref().unwrap_or(&self.model))?;
        let options = adapt::Options {
            dtype: self.dtype.map(FloatType::dtype),
            seed: self.seed.unwrap_or(1),
            force: self.force,
        };
        places::check_out(&self.out, self.force, &[&encoder, &decoder])?;
        if self.plan {
            return super::plan_report(&adapt::plan(&encoder, &decoder, &self.out, &options)?);
        }
        let result = adapt::run(&encoder, &decoder, &self.out, &options)?;
        for note in &result.notes {
            session.note(note);
        }
        let text = format!(
            "{}: {} parameters, {} tensors from the parents, {} fresh; with silent cross-attention the logits differ from the parent's by {:.1e} at most",
            self.out.display(),
            result.parameters,
            result.copied_tensors,
            result.fresh_tensors,
            result.silenced_max_abs_difference
        );
        let mut json = serde_json::to_value(&result)?;
        json["out"] = serde_json::json!(self.out);
        Ok(Report { json, text })
    }
}
