//! `luthier upcycle`: a dense model's feed-forward blocks become experts.

use std::path::PathBuf;

use luthier_surgery::upcycle;
use serde::Deserialize;

use super::Act;
use crate::dtype::FloatType;
use crate::places;
use crate::session::{Report, Session};

/// Makes a model with experts of a dense one (sparse upcycling, arXiv:2212.05055), in the layout of its family that
/// transformers and llama.cpp open: Mixtral for Llama and Mistral, Qwen2-MoE for Qwen2, Qwen3-MoE for Qwen3. Every expert
/// is a copy of the feed-forward block, so that the model computes what its parent does until it is trained; the largest
/// difference of their logits is measured and printed. Qwen2-MoE always has a shared expert: it gives half of the block's
/// output, the routed experts the other half. `--noise` and `--drop` make the experts differ from the start, and the model
/// from its parent. llama.cpp wants `--norm-topk-prob false` for Qwen2-MoE; with it the logits are the parent's where
/// `--router-std` is 0 or every expert is chosen.
#[derive(Debug, clap::Args, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Upcycle {
    /// The dense model
    model: String,
    /// The folder or .gguf file to write
    out: PathBuf,
    /// Experts of every layer
    #[arg(long, value_name = "E")]
    experts: usize,
    /// Of these, how many each token goes through
    #[arg(long, value_name = "K")]
    top_k: usize,
    /// Copies of the block in the expert that all tokens share [default: 1 where the family has one]
    #[arg(long, value_name = "S")]
    shared: Option<usize>,
    /// Cut every copy of the block into G slices, each an expert; G divides E and K (arXiv:2410.07524) [default: 1]
    #[arg(long, value_name = "G")]
    granularity: Option<usize>,
    /// Put the inner dimensions of every copy into a random order of its own before it is cut
    #[arg(long)]
    #[serde(default)]
    shuffle: bool,
    /// Add normal noise of this deviation to the experts [default: 0]
    #[arg(long, value_name = "STD")]
    noise: Option<f64>,
    /// Draw this share of the inner dimensions of every expert anew (Drop-Upcycling, arXiv:2502.19261) [default: 0]
    #[arg(long, value_name = "RATIO")]
    drop: Option<f64>,
    /// Deviation of the random routers [default: 0.02]
    #[arg(long, value_name = "STD")]
    router_std: Option<f64>,
    /// Whether the weights of the chosen experts sum to 1 [default: true]
    #[arg(long, value_name = "BOOL")]
    norm_topk_prob: Option<bool>,
    /// The type of all weights; without it types are kept
    #[arg(long)]
    dtype: Option<FloatType>,
    /// Seed of all random numbers [default: 1]
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

impl Act for Upcycle {
    const NAME: &'static str = "upcycle";
    const ABOUT: &'static str = "Turn a dense model into one with experts";

    fn act(self, session: &Session) -> anyhow::Result<Report> {
        let input = places::input(&self.model)?;
        let options = upcycle::Options {
            experts: self.experts,
            top_k: self.top_k,
            shared: self.shared,
            granularity: self.granularity.unwrap_or(1),
            shuffle: self.shuffle,
            noise: self.noise.unwrap_or(0.0),
            drop: self.drop.unwrap_or(0.0),
            router_std: self.router_std.unwrap_or(0.02),
            normalized: self.norm_topk_prob.unwrap_or(true),
            dtype: self.dtype.map(FloatType::dtype),
            seed: self.seed.unwrap_or(1),
            force: self.force,
        };
        places::check_out(&self.out, self.force, &[&input])?;
        if self.plan {
            return super::plan_report(&upcycle::plan(&input, &self.out, &options)?);
        }
        let result = upcycle::run(&input, &self.out, &options)?;
        for note in &result.notes {
            session.note(note);
        }
        let text = format!(
            "{}: {}, {} parameters, {} of them for a token (the parent has {}); the logits differ from the parent's by {:.1e} at most",
            self.out.display(),
            result.model_type,
            result.parameters,
            result.active_parameters,
            result.parent_parameters,
            result.max_abs_difference
        );
        let mut json = serde_json::to_value(&result)?;
        json["out"] = serde_json::json!(self.out);
        Ok(Report { json, text })
    }
}
