//! When to grow a model by stacking: equations 2 and 3 of arXiv:2405.15319, fitted there to runs of up to 7B parameters.

use serde::Serialize;

/// How many times the layers; the paper's guideline.
pub const GROWTH_FACTOR: usize = 4;

/// When and how much to grow.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Timing {
    /// N, parameters of the grown model.
    pub parameters: f64,
    /// C, compute of its training, in FLOPs.
    pub flops: f64,
    /// D, tokens that C trains N parameters on: C / 6N.
    pub tokens: f64,
    /// d, tokens that the small model is trained on before it is grown.
    pub growth_tokens: f64,
    /// g, how many times the layers.
    pub growth_factor: usize,
    /// Whether d is less than D, so that there is something to gain.
    pub is_sensible: bool,
}

/// log10 d = 0.88 log10 N + 163.27 / log10 C - 5.74.
pub fn timing(parameters: f64, flops: f64) -> Timing {
    let tokens = flops / (6.0 * parameters);
    let growth_tokens = 10f64.powf(0.88 * parameters.log10() + 163.27 / flops.log10() - 5.74);
    let is_sensible = growth_tokens < tokens;
    Timing { parameters, flops, tokens, growth_tokens, growth_factor: GROWTH_FACTOR, is_sensible }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_value_comes_out() {
        // Llama 3 8B with its 15T tokens: 6.58B.
        let found = timing(8e9, 6.0 * 8e9 * 15e12);
        assert!((found.growth_tokens / 1e9 - 6.58).abs() < 0.005, "{found:?}");
        assert!((found.tokens / 15e12 - 1.0).abs() < 1e-12 && found.is_sensible);
        assert_eq!(found.growth_factor, 4);
        assert!(!timing(1e9, 1e19).is_sensible);
    }
}
