//! `luthier convert`: a model in another format or type.

use std::path::PathBuf;

use anyhow::{Context, bail};
use luthier_checkpoint::Output;
use luthier_checkpoint::adapter::Adapter;
use luthier_checkpoint::gguf::is_gguf_name;
use luthier_surgery::convert;
use serde::Deserialize;

use super::Act;
use crate::dtype::FloatType;
use crate::places;
use crate::session::{Report, Session};

/// Writes a model as a Hugging Face folder, or as a GGUF file where OUT ends in .gguf. Without --dtype types are kept
/// (quantised blocks become f32 in a folder, one-dimensional tensors f32 in GGUF). A LoRA adapter goes from PEFT's form to
/// llama.cpp's and back.
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
    /// The base that an adapter belongs to, where IN is one and does not name a base that is there
    #[arg(long, value_name = "MODEL")]
    base: Option<String>,
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
        let options = convert::Options { dtype: self.dtype.map(FloatType::dtype), force: self.force };
        if places::is_adapter(&self.model)? {
            return self.adapter(&options, session);
        }
        if let Some(base) = &self.base {
            bail!("--base {base}: {} is a model; only adapters have a base", self.model);
        }
        let input = places::input(&self.model)?;
        places::check_out(&self.out, self.force, &[&input])?;
        if self.plan {
            return super::plan_report(&convert::plan(&input, &self.out, &options)?);
        }
        let result =
            convert::run(&input, &self.out, &options).with_context(|| format!("model {}", self.model))?;
        self.report(&result, session)
    }
}

impl Convert {
    /// An adapter from PEFT's form to llama.cpp's, or back.
    fn adapter(&self, options: &convert::Options, session: &Session) -> anyhow::Result<Report> {
        let place = places::local_path(&self.model)?;
        let base = match &self.base {
            Some(base) => base.clone(),
            None => {
                let named = place.is_dir().then(|| Adapter::open(&place)).transpose()?;
                named.and_then(|adapter| adapter.config.base_model).with_context(|| {
                    format!(
                        "adapter {}: it names no base, whose config says where its weights go; give --base",
                        self.model
                    )
                })?
            }
        };
        let base = places::input(&base)
            .with_context(|| format!("the base of adapter {}; name it with --base", self.model))?;
        places::check_out(&self.out, self.force, &[&base])?;
        Output::check(&self.out, !is_gguf_name(&self.out), self.force, &[&place])?;
        if self.plan {
            return super::plan_report(&convert::plan_adapter(
                &self.model,
                &place,
                &base,
                &self.out,
                options,
            )?);
        }
        let result = convert::adapter(&self.model, &place, &base, &self.out, options)
            .with_context(|| format!("adapter {}", self.model))?;
        self.report(&result, session)
    }

    fn report(&self, result: &convert::Report, session: &Session) -> anyhow::Result<Report> {
        for note in &result.notes {
            session.note(note);
        }
        let text = format!(
            "{}: {} tensors, {} byte for byte",
            self.out.display(),
            result.tensors,
            result.copied_tensors
        );
        let mut json = serde_json::to_value(result)?;
        json["out"] = serde_json::json!(self.out);
        Ok(Report { json, text })
    }
}
