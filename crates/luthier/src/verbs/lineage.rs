//! `luthier lineage`: how a model came to be.

use luthier_checkpoint::Lineage;
use serde::Deserialize;

use super::Act;
use crate::session::{Report, Session};
use crate::{builtin, places};

/// Shows the record that every output of luthier carries: parents and their hashes, verb, recipe, seed, ledger.
#[derive(Debug, clap::Args, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ShowLineage {
    /// A model that luthier made
    model: String,
}

impl Act for ShowLineage {
    const NAME: &'static str = "lineage";
    const ABOUT: &'static str =
        "Show how a model was made: parents, verb, recipe, seed, what became of each tensor";

    fn act(self, _session: &Session) -> anyhow::Result<Report> {
        let lineage = match self.model == builtin::NAME {
            true => Some(builtin::lineage()?),
            false => Lineage::read(&places::local_path(&self.model)?)?,
        };
        let Some(lineage) = lineage else {
            anyhow::bail!(
                "{}: it carries no lineage; luthier did not make it, or the record was removed",
                self.model
            )
        };
        Ok(Report { text: lineage.to_text(), json: serde_json::to_value(&lineage)? })
    }
}
