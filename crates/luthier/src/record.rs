//! `--record DIR`: numbers of a model kept in DIR/measurements.json, from which `frontier` draws.

use std::path::Path;

use anyhow::Context;
use luthier_checkpoint::Checkpoint;
use luthier_measure::measurements::{Measurement, record_measurements};

use crate::builtin;

/// Adds what was measured of MODEL, and its sizes. Numbers that were kept before and not measured now stay.
pub fn record(dir: &Path, model: &str, checkpoint: &Checkpoint, measured: Measurement) -> anyhow::Result<()> {
    let facts = luthier_surgery::info::run(checkpoint)?;
    let file_bytes = if model == builtin::NAME { builtin::file_bytes() } else { facts.file_bytes };
    std::fs::create_dir_all(dir).with_context(|| format!("--record {}", dir.display()))?;
    let measurement = Measurement {
        name: model.to_string(),
        parameters: Some(facts.parameters as u64),
        file_bytes: Some(file_bytes),
        ..measured
    };
    Ok(record_measurements(dir, &[measurement])?)
}
