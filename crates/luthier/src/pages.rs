//! Pages as outputs.

use std::path::Path;

use anyhow::bail;
use luthier_checkpoint::Output;

/// Refuses a place that no page can go to, before any work: one that exists, without `force`, and with it anything but a page.
pub fn check_page_out(out: &Path, force: bool, inputs: &[&Path]) -> anyhow::Result<()> {
    Output::check(out, false, force, inputs)?;
    let Ok(bytes) = std::fs::read(out) else { return Ok(()) };
    if !bytes.to_ascii_lowercase().starts_with(b"<!doctype html") {
        bail!("{}: is no page, and would be lost; choose another --out", out.display());
    }
    Ok(())
}

/// Writes a page, whole or not at all.
pub fn write_page(out: &Path, force: bool, inputs: &[&Path], page: &str) -> anyhow::Result<()> {
    check_page_out(out, force, inputs)?;
    let output = Output::file(out, force, inputs)?;
    std::fs::write(output.path(), page)?;
    Ok(output.commit()?)
}
