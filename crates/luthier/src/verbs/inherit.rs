//! `luthier inherit`: a small model that begins with what a larger one knows.

use std::path::PathBuf;

use luthier_surgery::inherit;
use luthier_surgery::prune::Amounts;
use serde::Deserialize;

use super::Act;
use crate::bounded::Typed;
use crate::dtype::FloatType;
use crate::places;
use crate::session::{Report, Session};

/// Makes a small model of a larger one, to be trained further, without a calibration text (PanGu-pi Pro, arXiv:2402.02791):
/// the first and the last layers stay and the middle ones go; neurons and channels of the largest weights (L1 norm) stay, or
/// those of the highest scores where `luthier score` made some. VALUE is a new size, or below 1 the share that is kept; an
/// encoder-decoder takes one VALUE for both stacks, or two. `luthier prune` chooses layers by what they do to a text.
#[derive(Debug, clap::Args, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Inherit {
    /// The larger model
    #[arg(value_name = "MODEL")]
    model: String,
    /// The folder or .gguf file to write
    out: PathBuf,
    /// Layers
    #[arg(long, value_name = "VALUE", allow_negative_numbers = true)]
    layers: Option<Typed<Amounts>>,
    /// Inner width of the feed-forward blocks
    #[arg(long, value_name = "VALUE", allow_negative_numbers = true)]
    ffn: Option<Typed<Amounts>>,
    /// Width of the residual stream
    #[arg(long, value_name = "VALUE", allow_negative_numbers = true)]
    hidden: Option<Typed<Amounts>>,
    /// What `luthier score` wrote of this model, to choose neurons and channels by
    #[arg(long, value_name = "FILE")]
    scores: Option<PathBuf>,
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

impl Act for Inherit {
    const NAME: &'static str = "inherit";
    const ABOUT: &'static str =
        "Begin a small model with the outer layers and the largest neurons of a larger one";

    fn check(&self) -> Result<(), String> {
        match [&self.layers, &self.ffn, &self.hidden].iter().any(|axis| axis.is_some()) {
            true => Ok(()),
            false => Err("wanted what gets smaller: one or more of --layers, --ffn and --hidden".to_string()),
        }
    }

    fn act(self, session: &Session) -> anyhow::Result<Report> {
        let input = places::input(&self.model)?;
        let amounts = |axis: &Option<Typed<Amounts>>| axis.as_ref().map(|Typed(amounts)| amounts.clone());
        let options = inherit::Options {
            layers: amounts(&self.layers),
            ffn: amounts(&self.ffn),
            hidden: amounts(&self.hidden),
            scores: self.scores.clone(),
            dtype: self.dtype.map(FloatType::dtype),
            force: self.force,
        };
        places::check_out(&self.out, self.force, &[&input])?;
        if self.plan {
            return super::plan_report(&inherit::plan(&input, &self.out, &options)?);
        }
        let result = inherit::run(&input, &self.out, &options)?;
        super::prune::report(session, &self.out, &result)
    }
}
