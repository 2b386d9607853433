//! Whether a model can be held at all, so that one too large ends in an error and not in the system's killer.

use crate::model::Model;
use crate::{Error, Result};

/// An error where that many f32 parameters are more than the machine's memory.
pub(crate) fn check_parameters(parameters: usize) -> Result<()> {
    let Some(machine_bytes) = machine_bytes() else { return Ok(()) };
    let wanted_bytes = parameters.saturating_mul(size_of::<f32>());
    if wanted_bytes <= machine_bytes {
        return Ok(());
    }
    Err(Error::Use(format!(
        "the config's sizes make {parameters} parameters, {:.1} GiB as f32, but this machine has {:.1} GiB of memory",
        gib(wanted_bytes),
        gib(machine_bytes)
    )))
}

/// An error where the states of that many tokens, which a training step keeps of every layer at least once, are more than the
/// machine's memory.
pub fn check_tokens(model: &dyn Model, tokens: usize) -> Result<()> {
    let Some(machine_bytes) = machine_bytes() else { return Ok(()) };
    // The narrowest matrix is no wider than the states.
    let matrices = model.weights().iter().filter(|weight| weight.shape().len() == 2);
    let width = matrices.filter_map(|weight| weight.shape().last().copied()).min().unwrap_or(0);
    let wanted_bytes =
        tokens.saturating_mul(width).saturating_mul(size_of::<f32>()).saturating_mul(model.n_layers() + 1);
    if wanted_bytes <= machine_bytes {
        return Ok(());
    }
    Err(Error::Use(format!(
        "a step of {tokens} tokens keeps {:.1} GiB of states at least, but this machine has {:.1} GiB of memory; take fewer or shorter \
         sequences, or more parts of a step (gradient_accumulation)",
        gib(wanted_bytes),
        gib(machine_bytes)
    )))
}

fn gib(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

/// Of the whole machine, where the system says so.
fn machine_bytes() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}
