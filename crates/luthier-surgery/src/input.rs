//! A model that a verb reads, and how the output's record names it.

use luthier_checkpoint::Checkpoint;
use luthier_checkpoint::lineage;

use crate::Result;

/// A model that a verb reads.
#[derive(Clone)]
pub struct Input {
    /// The place as the user gave it; messages and records use it.
    pub label: String,
    /// The model.
    pub checkpoint: Checkpoint,
    /// Its files' hashes where they are known already (the built-in model's); none: those of the checkpoint's place.
    pub record: Option<lineage::Parent>,
}

impl Input {
    /// A model that lies where its checkpoint says.
    pub fn new(label: &str, checkpoint: Checkpoint) -> Input {
        Input { label: label.to_string(), checkpoint, record: None }
    }

    /// Its files' hashes: those that are known, or computed from its place.
    pub fn parent(&self) -> Result<lineage::Parent> {
        match &self.record {
            Some(record) => Ok(record.clone()),
            None => Ok(lineage::Parent::of_place(&self.label, &self.checkpoint.place)?),
        }
    }

    /// As [`Input::parent`], with blanks of the same length for hashes that would have to be computed.
    pub(crate) fn parent_without_hashes(&self) -> Result<lineage::Parent> {
        match &self.record {
            Some(record) => Ok(record.clone()),
            None => Ok(lineage::Parent::of_place_without_hashes(&self.label, &self.checkpoint.place)?),
        }
    }
}
