//! Whether a model can be held at all, so that one too large ends in an error and not in the system's killer.

use crate::{Error, Result};

/// An error where that many f32 parameters are more than the machine's memory.
pub(crate) fn check_parameters(parameters: usize) -> Result<()> {
    let Some(machine_bytes) = machine_bytes() else { return Ok(()) };
    let wanted_bytes = parameters.saturating_mul(size_of::<f32>());
    if wanted_bytes <= machine_bytes {
        return Ok(());
    }
    let gib = |bytes: usize| bytes as f64 / f64::from(1 << 30);
    Err(Error::Use(format!(
        "the config's sizes make {parameters} parameters, {:.1} GiB as f32, but this machine has {:.1} GiB of memory",
        gib(wanted_bytes),
        gib(machine_bytes)
    )))
}

/// Of the whole machine, where the system says so.
fn machine_bytes() -> Option<usize> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}
