//! Frequencies of rotary positions (arXiv:2104.09864) and the ways in which configs stretch them.

use std::f64::consts::PI;

use luthier_ops::{Device, Tensor};

use crate::config::{Keys, MAX_POSITIONS};
use crate::{Error, Result};

// b batch, t tokens, d head width

/// The turning speed of each pair of a head.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// `[d / 2]`, radians a token.
    inverse_frequencies: Vec<f32>,
    /// On cosines and sines (yarn).
    attention_factor: f32,
}

impl Rope {
    /// Reads `rope_parameters`, or in older files `rope_theta` and `rope_scaling`.
    pub fn read(
        keys: &Keys,
        head_dim: usize,
        max_positions: Option<usize>,
        default_theta: f64,
    ) -> Result<Rope> {
        let outer_theta = keys.optional_positive("rope_theta")?;
        let newer = keys.object("rope_parameters")?;
        let older = keys.object("rope_scaling")?;
        // The reference lets a filled rope_scaling win over rope_parameters.
        let parameters = older.filter(|keys| !keys.map().is_empty()).or(newer);
        let partial = keys.optional_positive("partial_rotary_factor")?;
        check_whole(partial, &keys.name("partial_rotary_factor"))?;
        let Some(parameters) = parameters else {
            return Ok(Rope::plain(outer_theta.unwrap_or(default_theta), head_dim));
        };
        for nested in ["full_attention", "sliding_attention"] {
            if parameters.map().contains_key(nested) {
                let what =
                    "rotary parameters that differ by layer type are not supported for this architecture";
                return Err(Error::config(parameters.name(nested), what));
            }
        }
        let partial = parameters.optional_positive("partial_rotary_factor")?;
        check_whole(partial, &parameters.name("partial_rotary_factor"))?;
        let theta = parameters.optional_positive("rope_theta")?.or(outer_theta).unwrap_or(default_theta);
        let kind = match parameters.optional_text("rope_type")? {
            Some(kind) => kind,
            None => parameters.optional_text("type")?.unwrap_or("default"),
        };
        let plain = Rope::plain(theta, head_dim);
        match kind {
            "default" => Ok(plain),
            "linear" => Ok(plain.slowed(required(&parameters, "factor")?)),
            "llama3" => Rope::llama3(plain, &parameters, max_positions),
            "yarn" => Rope::yarn(theta, head_dim, &parameters, max_positions),
            "longrope" => plain.divided(&parameters),
            other => {
                let what = format!("expected default, linear, llama3, yarn or longrope, found {other:?}");
                Err(Error::config(parameters.name("rope_type"), what))
            }
        }
    }

    /// `theta^(-2i/d)`.
    pub fn plain(theta: f64, head_dim: usize) -> Rope {
        let frequency = |pair: usize| {
            let exponent = (2 * pair) as f32 / head_dim as f32;
            1.0 / (theta.powf(f64::from(exponent)) as f32)
        };
        Rope { inverse_frequencies: (0..head_dim / 2).map(frequency).collect(), attention_factor: 1.0 }
    }

    /// `[d / 2]`, radians a token.
    pub fn inverse_frequencies(&self) -> &[f32] {
        &self.inverse_frequencies
    }

    /// Cosines and sines of positions `[rows * t]`: two of [rows, t, d/2].
    pub fn tables(&self, positions: &[u32], rows: usize, device: &Device) -> Result<(Tensor, Tensor)> {
        let (t, half) = (positions.len() / rows, self.inverse_frequencies.len());
        let mut cos = Vec::with_capacity(positions.len() * half);
        let mut sin = Vec::with_capacity(positions.len() * half);
        for position in positions {
            for frequency in &self.inverse_frequencies {
                let (s, c) = (*position as f32 * frequency).sin_cos();
                cos.push(c * self.attention_factor);
                sin.push(s * self.attention_factor);
            }
        }
        let shape = (rows, t, half);
        Ok((Tensor::from_vec(cos, shape, device)?, Tensor::from_vec(sin, shape, device)?))
    }

    /// Position interpolation (arXiv:2306.15595).
    fn slowed(mut self, factor: f64) -> Rope {
        for frequency in &mut self.inverse_frequencies {
            *frequency /= factor as f32;
        }
        self
    }

    /// LongRoPE (arXiv:2402.13753) where its factors do not depend on the length of the text, as GGUF files have them.
    fn divided(mut self, keys: &Keys) -> Result<Rope> {
        let factors = keys.optional_positives("short_factor")?.unwrap_or_default();
        if keys.optional_positives("long_factor")?.unwrap_or_default() != factors {
            let what =
                "differs from short_factor; factors that depend on the text's length are not supported";
            return Err(Error::config(keys.name("long_factor"), what));
        }
        if factors.len() != self.inverse_frequencies.len() {
            let what =
                format!("expected {} numbers, found {}", self.inverse_frequencies.len(), factors.len());
            return Err(Error::config(keys.name("short_factor"), what));
        }
        keys.optional_positive("original_max_position_embeddings")?;
        self.attention_factor = required(keys, "attention_factor")? as f32;
        for (frequency, factor) in self.inverse_frequencies.iter_mut().zip(factors) {
            *frequency /= factor as f32;
        }
        Ok(self)
    }

    /// Llama 3.1: slow turns are slowed by `factor`, fast ones kept, those between blended.
    fn llama3(plain: Rope, keys: &Keys, max_positions: Option<usize>) -> Result<Rope> {
        let factor = required(keys, "factor")?;
        let (low, high) = (required(keys, "low_freq_factor")?, required(keys, "high_freq_factor")?);
        if low >= high {
            let what = format!("expected more than low_freq_factor={low}, found {high}");
            return Err(Error::config(keys.name("high_freq_factor"), what));
        }
        let trained = trained_positions(keys, max_positions)?;
        let stretch = |frequency: &f32| {
            let frequency = f64::from(*frequency);
            let wavelength = 2.0 * PI / frequency;
            let stretched = if wavelength < trained / high {
                frequency
            } else if wavelength > trained / low {
                frequency / factor
            } else {
                let smooth = (trained / wavelength - low) / (high - low);
                (1.0 - smooth) * frequency / factor + smooth * frequency
            };
            stretched as f32
        };
        Ok(Rope { inverse_frequencies: plain.inverse_frequencies.iter().map(stretch).collect(), ..plain })
    }

    /// YaRN (arXiv:2309.00071), eq. 23 and its attention factor, with the reference's rounding of the ramp's ends.
    fn yarn(theta: f64, head_dim: usize, keys: &Keys, max_positions: Option<usize>) -> Result<Rope> {
        let trained = trained_positions(keys, max_positions)?;
        let factor = required(keys, "factor")?;
        let fast = keys.optional_positive("beta_fast")?.unwrap_or(32.0);
        let slow = keys.optional_positive("beta_slow")?.unwrap_or(1.0);
        let temperature =
            |scale: f64, weight: f64| if scale <= 1.0 { 1.0 } else { 0.1 * weight * scale.ln() + 1.0 };
        // The reference takes 0 for absent.
        let above_zero = |key: &'static str| {
            let is_zero =
                keys.map().get(key).and_then(serde_json::Value::as_f64).is_some_and(|number| number == 0.0);
            if is_zero { keys.number_or(key, 0.0).map(|_| None) } else { keys.optional_positive(key) }
        };
        let (mscale, mscale_all) = (above_zero("mscale")?, above_zero("mscale_all_dim")?);
        let attention_factor = match (keys.optional_positive("attention_factor")?, mscale, mscale_all) {
            (Some(given), _, _) => given,
            (None, Some(mscale), Some(all)) => temperature(factor, mscale) / temperature(factor, all),
            _ => temperature(factor, 1.0),
        };
        let d = head_dim as f64;
        let turns_at = |turns: f64| d * (trained / (turns * 2.0 * PI)).ln() / (2.0 * theta.ln());
        let (mut low, mut high) = (turns_at(fast), turns_at(slow));
        if keys.flag_or("truncate", true)? {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(d - 1.0));
        if low == high {
            high += 0.001;
        }
        let mut rope = Rope::plain(theta, head_dim);
        for (pair, frequency) in rope.inverse_frequencies.iter_mut().enumerate() {
            let slowed = ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
            let kept = f64::from(*frequency);
            *frequency = (kept / factor * slowed + kept * (1.0 - slowed)) as f32;
        }
        rope.attention_factor = attention_factor as f32;
        Ok(rope)
    }
}

fn required(keys: &Keys, key: &'static str) -> Result<f64> {
    let missing = || Error::config(keys.name(key), "missing; expected a number above 0");
    keys.optional_positive(key)?.ok_or_else(missing)
}

fn trained_positions(keys: &Keys, max_positions: Option<usize>) -> Result<f64> {
    const KEY: &str = "original_max_position_embeddings";
    let trained = keys.optional_size(KEY, MAX_POSITIONS)?.or(max_positions);
    let missing = || Error::config(keys.name(KEY), "missing; expected a whole number from 1 on");
    Ok(trained.ok_or_else(missing)? as f64)
}

fn check_whole(partial: Option<f64>, key: &str) -> Result<()> {
    match partial {
        None => Ok(()),
        Some(1.0) => Ok(()),
        Some(partial) => Err(Error::config(key, format!("expected 1, whole heads turn, found {partial}"))),
    }
}
