//! `rope_freqs.weight`: what each pair's turning speed is divided by.

use serde_json::{Map, Value, json};

use crate::Result;
use crate::blocks::rope::Rope;
use crate::config::Keys;

/// How far a factor may be off to count as the same; they went through f32 twice.
const TOLERANCE: f32 = 1e-4;

/// The `rope_parameters` under which Hugging Face tools turn at theta's plain speeds divided by `factors`: Llama 3's
/// where they fit, else a longrope whose two lists are the same.
pub(crate) fn rope_parameters(factors: &[f32], theta: f64) -> Result<Value> {
    if factors.iter().all(|factor| *factor == 1.0) {
        return Ok(json!({"rope_type": "default", "rope_theta": theta}));
    }
    let factor = factors.iter().copied().fold(1.0, f32::max);
    for trained in [8192u32, 4096, 2048, 16384, 32768, 131_072] {
        let parameters = json!({
            "rope_type": "llama3",
            "rope_theta": theta,
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": trained,
        });
        let made = of_parameters(&parameters, theta, factors.len())?;
        if made.iter().zip(factors).all(|(made, wanted)| (made - wanted).abs() <= TOLERANCE * wanted) {
            return Ok(parameters);
        }
    }
    Ok(json!({
        "rope_type": "longrope",
        "rope_theta": theta,
        "attention_factor": 1.0,
        "short_factor": factors,
        "long_factor": factors,
    }))
}

fn of_parameters(parameters: &Value, theta: f64, pairs: usize) -> Result<Vec<f32>> {
    let mut config = Map::new();
    config.insert("rope_parameters".to_string(), parameters.clone());
    let rope = Rope::read(&Keys::new(&config)?, 2 * pairs, None, theta)?;
    Ok(factors(&rope, theta))
}

/// What `rope`'s speeds are divided by, compared with theta's plain ones.
pub(crate) fn factors(rope: &Rope, theta: f64) -> Vec<f32> {
    let plain = Rope::plain(theta, 2 * rope.inverse_frequencies().len());
    let pairs = plain.inverse_frequencies().iter().zip(rope.inverse_frequencies());
    pairs.map(|(plain, stretched)| plain / stretched).collect()
}
