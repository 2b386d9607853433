//! A model that a verb reads, and how the output's record names it.

use std::collections::HashMap;
use std::sync::Arc;

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
    /// What it is put together of, where it is no model of its own on the disk.
    pub(crate) derived: Option<Arc<Derived>>,
}

/// Where the tensors of an input come from that is seen through something: an adapter fused in, other names.
pub(crate) struct Derived {
    /// What lies on the disk.
    pub(crate) parts: Vec<Input>,
    /// By tensor: numbers of parts and names there.
    pub(crate) sources: HashMap<String, Vec<(usize, String)>>,
    /// Tensors of parts that nothing is made of, and why.
    pub(crate) unused: Vec<(usize, String, String)>,
    /// What is held in memory beside a tensor to make it.
    pub(crate) size_bytes: usize,
}

impl Input {
    /// A model that lies where its checkpoint says.
    pub fn new(label: &str, checkpoint: Checkpoint) -> Input {
        Input { label: label.to_string(), checkpoint, record: None, derived: None }
    }

    /// The same without the files beside the weights, but for the card: tokenizers can be larger than what a verb holds of the
    /// weights.
    pub(crate) fn without_files(&self) -> Input {
        let Checkpoint { place, config, tensors, side_files } = &self.checkpoint;
        let card = side_files.iter().filter(|file| file.name == "README.md");
        Input {
            label: self.label.clone(),
            checkpoint: Checkpoint {
                place: place.clone(),
                config: config.clone(),
                tensors: Arc::clone(tensors),
                side_files: card.cloned().collect(),
            },
            record: self.record.clone(),
            derived: self.derived.clone(),
        }
    }

    /// The models and adapters on the disk that it consists of: itself, for most.
    pub fn parts(&self) -> Vec<&Input> {
        match &self.derived {
            None => vec![self],
            Some(derived) => derived.parts.iter().flat_map(Input::parts).collect(),
        }
    }

    /// Where a tensor comes from: numbers of [`Input::parts`] and names there.
    pub(crate) fn sources(&self, name: &str) -> Vec<(usize, String)> {
        let Some(derived) = &self.derived else { return vec![(0, name.to_string())] };
        let first = |part: usize| derived.parts[..part].iter().map(|part| part.parts().len()).sum::<usize>();
        let sources = derived.sources.get(name).into_iter().flatten();
        sources
            .flat_map(|(part, name)| {
                let inner = derived.parts[*part].sources(name).into_iter();
                inner.map(move |(at, name)| (first(*part) + at, name))
            })
            .collect()
    }

    /// Tensors of parts that nothing is made of, and why.
    pub(crate) fn unused(&self) -> Vec<(usize, String, String)> {
        let Some(derived) = &self.derived else { return Vec::new() };
        let first = |part: usize| derived.parts[..part].iter().map(|part| part.parts().len()).sum::<usize>();
        let own = derived.unused.iter().flat_map(|(part, name, reason)| {
            let inner = derived.parts[*part].sources(name).into_iter();
            inner.map(move |(at, name)| (first(*part) + at, name, reason.clone()))
        });
        let inner = derived.parts.iter().enumerate().flat_map(|(part, input)| {
            input.unused().into_iter().map(move |(at, name, reason)| (first(part) + at, name, reason))
        });
        own.chain(inner).collect()
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
