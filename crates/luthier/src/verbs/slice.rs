//! `luthier slice`: one of the models that a nested model holds.

use std::path::PathBuf;

use anyhow::{Context, anyhow};
use luthier_surgery::sub_model;
use serde::Deserialize;

use super::Act;
use crate::bounded::{AtLeast, Typed};
use crate::dtype::FloatType;
use crate::places;
use crate::session::{Report, Session};

/// Cuts a sub-model out of a nested one, as a plain checkpoint. MatFormer (arXiv:2310.07707): --ffn gives the width of the
/// feed-forward blocks, one number for all layers or one for each (an encoder's first), and keeps their first neurons;
/// --table reads such a list, and the layers that are left out, from a published table of configurations (CSV, TSV or
/// Markdown with the columns name, # Layers, FFN Hidden Dims, Layers Skipped). Starbucks (arXiv:2410.13230): --layers keeps
/// the first layers, --dims the first coordinates of the embedding of a text, which modules.json then says to
/// sentence-transformers. For models that were trained that way; of others the first neurons are no better than any.
#[derive(Debug, clap::Args, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Slice {
    /// The model
    #[arg(value_name = "MODEL")]
    model: String,
    /// The folder or .gguf file to write
    out: PathBuf,
    /// Width of the feed-forward blocks: N, N,N,... with one for each layer, or [N] * 3 + [M] * 2
    #[arg(long, value_name = "LIST", allow_hyphen_values = true)]
    ffn: Option<Typed<Numbers>>,
    /// Keep the first N layers; N,M: of encoder and decoder
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    layers: Option<Typed<Numbers>>,
    /// Leave these layers out, by their numbers from 0, an encoder's first
    #[arg(long, value_name = "LIST", allow_hyphen_values = true)]
    skip: Option<Typed<Places>>,
    /// Keep the first D coordinates of the embedding of a text
    #[arg(long, value_name = "D", allow_negative_numbers = true)]
    dims: Option<AtLeast<1>>,
    /// A table of configurations
    #[arg(long, value_name = "FILE")]
    table: Option<PathBuf>,
    /// The row of the table
    #[arg(long, value_name = "ROW")]
    name: Option<String>,
    /// The type of all weights; without it types are kept
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

/// A list of numbers.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Numbers(Vec<usize>);

impl std::str::FromStr for Numbers {
    type Err = String;

    fn from_str(text: &str) -> Result<Numbers, String> {
        let numbers = sub_model::list(text)?;
        if numbers.contains(&0) {
            Err(format!("wanted numbers of 1 or more, came {text}"))
        } else {
            Ok(Numbers(numbers))
        }
    }
}

/// A list of numbers from 0.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Places(Vec<usize>);

impl std::str::FromStr for Places {
    type Err = String;

    fn from_str(text: &str) -> Result<Places, String> {
        sub_model::list(text).map(Places)
    }
}

impl Act for Slice {
    const NAME: &'static str = "slice";
    const ABOUT: &'static str = "Cut a sub-model out of a nested one";

    fn check(&self) -> Result<(), String> {
        let wrong = |what: &str| Err(what.to_string());
        match (&self.table, &self.name) {
            (Some(_), None) => return wrong("--table: wanted the row too, --name ROW"),
            (None, Some(_)) => return wrong("--name: wanted the table too, --table FILE"),
            (Some(_), Some(_)) if self.ffn.is_some() || self.layers.is_some() || self.skip.is_some() => {
                return wrong("--table says widths and layers; leave --ffn, --layers and --skip out");
            }
            _ => {}
        }
        let is_nothing =
            self.ffn.is_none() && self.layers.is_none() && self.skip.is_none() && self.dims.is_none();
        if self.table.is_none() && is_nothing {
            return wrong(
                "wanted what to keep: --ffn LIST, --table FILE --name ROW, --layers N, --skip LIST, --dims D",
            );
        }
        Ok(())
    }

    fn act(self, session: &Session) -> anyhow::Result<Report> {
        let input = places::input(&self.model)?;
        let options = self.options()?;
        places::check_out(&self.out, self.force, &[&input])?;
        if self.plan {
            return super::plan_report(&sub_model::plan(&input, &self.out, &options)?);
        }
        let result = sub_model::run(&input, &self.out, &options)?;
        super::prune::report(session, &self.out, &result)
    }
}

impl Slice {
    fn options(&self) -> anyhow::Result<sub_model::Options> {
        let numbers =
            |numbers: &Option<Typed<Numbers>>| numbers.as_ref().map(|Typed(Numbers(list))| list.clone());
        let options = sub_model::Options {
            ffn: numbers(&self.ffn),
            layers: numbers(&self.layers),
            skipped: self.skip.as_ref().map(|Typed(Places(list))| list.clone()).unwrap_or_default(),
            dims: self.dims.map(|AtLeast(dims)| dims),
            dtype: self.dtype.map(FloatType::dtype),
            force: self.force,
            ..sub_model::Options::default()
        };
        let (Some(table), Some(name)) = (&self.table, &self.name) else { return Ok(options) };
        let place = table.display().to_string();
        let text = std::fs::read_to_string(table).with_context(|| format!("--table {place}"))?;
        let row = sub_model::row(&text, name).map_err(|problem| anyhow!("--table {place}: {problem}"))?;
        Ok(sub_model::Options { ffn: Some(row.ffn), skipped: row.skipped, n_layers: row.layers, ..options })
    }
}
