//! `luthier convert`: a model in another format or type.

use std::path::PathBuf;

use luthier_surgery::convert;
use serde::Deserialize;

use super::Act;
use crate::dtype::FloatType;
use crate::places;
use crate::session::{Report, Session};

/// Writes a model as a Hugging Face folder, or as a GGUF file where OUT ends in .gguf. Without --dtype types are kept
/// (quantised blocks become f32 in a folder, one-dimensional tensors f32 in GGUF).
#[derive(Debug, clap::Args, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Convert {
    /// The model
    #[arg(value_name = "IN")]
    model: String,
    /// The folder or .gguf file to write
    out: PathBuf,
    /// The type of all float weights
    #[arg(long)]
    dtype: Option<FloatType>,
    /// Replace an existing output
    #[arg(long)]
    #[serde(default)]
    force: bool,
    /// Say what would be done, from headers alone, and do nothing
    #[arg(long)]
    #[serde(default)]
    plan: bool,
}

impl Act for Convert {
    const NAME: &'static str = "convert";
    const ABOUT: &'static str = "Write a model as a Hugging Face folder or a GGUF file";

    fn act(self, session: &Session) -> anyhow::Result<Report> {
        let input = places::input(&self.model)?;
        let options = convert::Options { dtype: self.dtype.map(FloatType::dtype), force: self.force };
        places::check_out(&self.out, self.force, &[&input])?;
        if self.plan {
            return super::plan_report(&convert::plan(&input, &self.out, &options)?);
        }
        let result =
            convert::run(&input, &self.out, &options).map_err(|error| places::about(&self.model, error))?;
        for note in &result.notes {
            session.note(note);
        }
        let text = format!(
            "{}: {} tensors, {} byte for byte",
            self.out.display(),
            result.tensors,
            result.copied_tensors
        );
        let mut json = serde_json::to_value(&result)?;
        json["out"] = serde_json::json!(self.out);
        Ok(Report { json, text })
    }
}
