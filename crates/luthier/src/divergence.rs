//! Two models on the same tokens: a text, or what stands for one where none is given.

use std::path::Path;

use anyhow::Context;
use candle_core::Device;
use luthier_arch::{LoadOptions, Model};
use luthier_checkpoint::Checkpoint;
use luthier_measure::metrics::{Divergence, divergence};
use serde_json::{Map, json};

use crate::{builtin, places};

/// Tokens of the text that comes with the program which models are compared on.
const STANDARD_TOKENS: usize = 512;

/// Bytes of it that surely come to as many.
const STANDARD_BYTES: usize = 8192;

/// Tokens to compare models on.
pub struct Sample {
    /// Where they come from.
    pub name: String,
    ids: Vec<u32>,
}

impl Sample {
    /// The tokens of a text, by the model's tokenizer.
    pub fn of_file(path: &Path, checkpoint: &Checkpoint) -> anyhow::Result<Sample> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("--text {name}: wanted the name of a file that holds the text"))?;
        let ids = places::tokenizer(checkpoint)?.encode_prompt(&text)?;
        Ok(Sample { name, ids })
    }

    /// The beginning of the text that comes with the program; for a model without a tokenizer ids from all over its vocabulary,
    /// the same each time.
    pub fn standard(checkpoint: &Checkpoint) -> anyhow::Result<Sample> {
        if let Some(tokenizer) = places::tokenizer_if_any(checkpoint)? {
            let text = builtin::text(Path::new(builtin::VALIDATION_TEXT)).unwrap_or_default();
            let end = text.floor_char_boundary(STANDARD_BYTES.min(text.len()));
            let mut ids = tokenizer.encode_prompt(&text[..end])?;
            ids.truncate(STANDARD_TOKENS);
            return Ok(Sample { name: builtin::VALIDATION_TEXT.to_string(), ids });
        }
        let vocab_size =
            checkpoint.config.get("vocab_size").and_then(|size| size.as_u64()).unwrap_or(1).max(1);
        let mut state = 1u64;
        let ids = (0..STANDARD_TOKENS).map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 33) % vocab_size) as u32
        });
        Ok(Sample { name: "tokens drawn by chance".to_string(), ids: ids.collect() })
    }
}

/// How far `other` is from `reference`.
pub fn between(reference: &Checkpoint, other: &Checkpoint, sample: &Sample) -> anyhow::Result<Divergence> {
    let load = |checkpoint: &Checkpoint| -> anyhow::Result<Box<dyn Model>> {
        let options = LoadOptions { trainable: false, device: Device::Cpu };
        Ok(luthier_arch::load(checkpoint, &options)?)
    };
    let (reference, other) = (load(reference)?, load(other)?);
    Ok(divergence(reference.as_ref(), other.as_ref(), &sample.ids)?)
}

/// Whether a model cannot be run because its architecture is not known.
pub fn is_unknown(problem: &anyhow::Error) -> bool {
    match problem.downcast_ref::<luthier_arch::Error>() {
        Some(luthier_arch::Error::UnknownArchitecture { .. }) => true,
        Some(luthier_arch::Error::Checkpoint(luthier_checkpoint::Error::Config { key, .. })) => {
            key == "model_type"
        }
        _ => false,
    }
}

/// As a lineage keeps it.
pub fn measurements(divergence: &Divergence) -> Map<String, serde_json::Value> {
    let mut measured = Map::new();
    measured.insert("compared_tokens".to_string(), json!(divergence.tokens));
    measured.insert("kl_mean_nats".to_string(), json!(divergence.kl_mean_nats));
    measured.insert("kl_max_nats".to_string(), json!(divergence.kl_max_nats));
    measured.insert("greedy_agreement".to_string(), json!(divergence.greedy_agreement));
    measured
}

/// For people.
pub fn words(divergence: &Divergence) -> String {
    format!(
        "KL {:.3e} nats on average, {:.3e} at most; {:.1}% of {} greedy tokens the same",
        divergence.kl_mean_nats,
        divergence.kl_max_nats,
        100.0 * divergence.greedy_agreement,
        divergence.tokens
    )
}
