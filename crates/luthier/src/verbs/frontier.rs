//! `luthier frontier`: quality against cost of several models, as a page.

use std::path::{Path, PathBuf};

use luthier_measure::frontier::{collect_measurements, frontier_page};
use luthier_measure::measurements::MEASUREMENTS_FILE;
use serde::Deserialize;
use serde_json::json;

use super::Act;
use crate::pages::write_page;
use crate::session::{Report, Session};

/// Draws quality against parameters, size, speed and memory from the measurements.json of each folder, which
/// `perplexity` and `bench` write with --record DIR, and `demo` by itself. The page is self-contained and asks nothing of any network.
#[derive(Debug, clap::Args, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Frontier {
    /// Folders that hold a measurements.json
    #[arg(required = true, value_name = "DIR")]
    dirs: Vec<PathBuf>,
    /// The HTML page to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Replace an existing page
    #[arg(long)]
    #[serde(default)]
    force: bool,
}

impl Act for Frontier {
    const NAME: &'static str = "frontier";
    const ABOUT: &'static str = "Draw quality against cost of several models as a page";

    fn act(self, _session: &Session) -> anyhow::Result<Report> {
        let dirs: Vec<&Path> = self.dirs.iter().map(PathBuf::as_path).collect();
        let measurements = collect_measurements(&dirs)?;
        let page = frontier_page(&measurements)?;
        let read: Vec<PathBuf> = dirs.iter().map(|dir| dir.join(MEASUREMENTS_FILE)).collect();
        let inputs: Vec<&Path> = read.iter().map(PathBuf::as_path).collect();
        write_page(&self.out, self.force, &inputs, &page)?;
        let json = json!({ "report": self.out, "measurements": measurements });
        Ok(Report { json, text: format!("{} models in {}", measurements.len(), self.out.display()) })
    }
}
