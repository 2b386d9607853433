//! A recipe's `ul2`: the mixture of denoisers.

use serde::{Deserialize, Serialize};

/// The mixture of denoisers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ul2Recipe {
    /// The denoisers, each document drawing one by its share.
    pub denoisers: Vec<DenoiserRecipe>,
    /// Whether each input begins with the token of its denoiser's kind.
    pub mode_tokens: bool,
}

/// One denoiser.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DenoiserRecipe {
    /// Which mode token announces it, and whether it cuts spans or a prefix.
    pub kind: DenoiserKind,
    /// Mean length of a span in tokens; kind S has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean_span: Option<f64>,
    /// Share of the tokens to be restored, in (0, 1); for kind S the mean, drawn uniformly between 0 and twice it.
    pub density: f64,
    /// Weight of this denoiser in the mixture.
    pub share: f64,
}

/// The kinds of UL2's denoisers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DenoiserKind {
    /// Regular: short spans, few of them.
    R,
    /// Sequential: a prefix and what follows.
    S,
    /// Extreme: long spans or many.
    X,
}

impl Ul2Recipe {
    /// The mixture of table 4 of arXiv:2205.05131 in equal shares.
    pub fn of_the_paper() -> Ul2Recipe {
        let denoiser = |kind, mean_span, density| DenoiserRecipe { kind, mean_span, density, share: 1.0 };
        Ul2Recipe {
            denoisers: vec![
                denoiser(DenoiserKind::R, Some(3.0), 0.15),
                denoiser(DenoiserKind::R, Some(8.0), 0.15),
                denoiser(DenoiserKind::S, None, 0.25),
                denoiser(DenoiserKind::X, Some(3.0), 0.5),
                denoiser(DenoiserKind::X, Some(8.0), 0.5),
                denoiser(DenoiserKind::X, Some(64.0), 0.15),
                denoiser(DenoiserKind::X, Some(64.0), 0.5),
            ],
            mode_tokens: true,
        }
    }
}
