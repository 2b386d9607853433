//! Everything that a merge decides before a weight is read, and what its ledger says.

use std::collections::{HashMap, HashSet};

use luthier_checkpoint::SideFile;
use luthier_checkpoint::layout::Layout;
use serde_json::{Map, Value};

use super::by_layout::Brought;
use super::checks::{check_parameters, exactly_one, layouts, same_family, tokenizer_rows, wanted_type};
use super::layers::{portions, unknown_portion, with_layers};
use super::merged::Merged;
use super::pairing::{Pairing, Piece};
use super::parts::Parts;
use super::recipe::Recipe;
use super::vocabulary::Mapping;
use super::{Options, method, prefix, tokenizer, vocabulary};
use crate::writing::Origin;
use crate::{Error, Input, Result, fit};

/// Everything that is decided before a weight is read.
pub(super) struct Prepared {
    pub(super) config: Map<String, Value>,
    pub(super) merged: Merged,
    layouts: Vec<Layout>,
    pub(super) side_files: Vec<SideFile>,
    pub(super) known: bool,
    n_merged: usize,
    /// Tensors that not all models have and that the recipe lets go.
    left_out: HashSet<(usize, String)>,
    pub(super) mapping: Option<Mapping>,
    pub(super) notes: Vec<String>,
}

impl Prepared {
    pub(super) fn new(recipe: &Recipe, inputs: &[Input], options: &Options) -> Result<Prepared> {
        let method = method::find(&recipe.merge_method)?;
        exactly_one(recipe)?;
        let mut notes = check_parameters(recipe, method)?;
        let places = recipe.places();
        if places.len() != inputs.len() || inputs.is_empty() {
            return Err(Error::Use(format!(
                "the recipe names {} models, {} were opened",
                places.len(),
                inputs.len()
            )));
        }
        let numbers: HashMap<String, usize> =
            places.into_iter().enumerate().map(|(number, place)| (place, number)).collect();
        let dtype = wanted_type(recipe)?;
        let n_merged = recipe.merged_places().len();
        let merged = &inputs[..n_merged];
        let layouts = layouts(merged)?;
        let renamed = layouts.is_none().then(|| prefix::under_one_name(merged, &mut notes));
        let merged = renamed.as_deref().unwrap_or(merged);
        let aligned = match &layouts {
            Some(layouts) => {
                let mut rows: Vec<usize> = layouts.iter().map(fit::vocab_size).collect();
                rows.extend(inputs[n_merged..].iter().map(tokenizer_rows).collect::<Result<Vec<_>>>()?);
                vocabulary::align(recipe, inputs, &rows, n_merged, &numbers, &mut notes)?
            }
            None => {
                tokenizer::by_number(recipe, inputs)?;
                None
            }
        };
        let (chosen, vocabulary) = aligned.unzip();
        let pairing =
            Pairing { recipe, method, inputs: merged, numbers, dtype, vocabulary: vocabulary.as_ref() };
        let donor = &inputs[0].checkpoint;
        let mut side_files = tokenizer::side_files(recipe, inputs, chosen.as_ref(), &mut notes)?;
        let mut left_out = HashSet::new();
        let (config, pieces) = match &layouts {
            Some(layouts) => {
                same_family(merged)?;
                let parts = portions(&pairing, layouts)?;
                let mut config = with_layers(&donor.config, merged, &parts)?;
                if let (Some(chosen), Some(vocabulary)) = (&chosen, &vocabulary) {
                    tokenizer::with_vocab_size(&mut config, vocabulary.rows);
                    tokenizer::with_token_ids(&mut config, &mut side_files, inputs, chosen, &mut notes)?;
                }
                let paired = pairing.by_layout(&config, &Brought { layouts, parts: &parts })?;
                left_out = paired.left_out;
                (config, paired.pieces)
            }
            None => {
                notes.push("architecture not known: tensors are merged by name".to_string());
                let part = unknown_portion(&pairing)?;
                (donor.config.clone(), pairing.by_name(&part)?)
            }
        };
        let mapping = vocabulary.map(|vocabulary| vocabulary.mapping);
        notes.extend(mapping.iter().flat_map(Mapping::lines));
        let known = layouts.is_some();
        let inputs: Vec<Input> = merged.iter().chain(&inputs[n_merged..]).map(Input::without_files).collect();
        let merged = Merged::new(method, &inputs, pieces, options.seed);
        let layouts = layouts.unwrap_or_default();
        Ok(Prepared { config, merged, layouts, side_files, known, n_merged, left_out, mapping, notes })
    }

    pub(super) fn origins(&self, parts: &Parts) -> Vec<Origin> {
        let merged = &self.merged;
        let origin = |piece: &Piece| {
            let sources: Vec<(usize, String)> =
                piece.inputs.iter().flat_map(|(input, name)| parts.sources(*input, name)).collect();
            if merged.is_copy(piece)
                && let [(input, name)] = &sources[..]
            {
                return Origin::From { input: *input, name: name.clone() };
            }
            let by_token = if piece.rows.is_some() { ", rows by token" } else { "" };
            let with_adapter = if sources.len() > piece.inputs.len() { ", with an adapter" } else { "" };
            let how = match piece.kept {
                true => format!("kept, only some models have it{with_adapter}"),
                false => format!("merged by {}{by_token}{with_adapter}", merged.method.name),
            };
            Origin::Merged { sources, how }
        };
        merged.pieces.iter().map(origin).collect()
    }

    /// Tensors of the inputs that nothing is made of, and why.
    pub(super) fn dropped(&self, parts: &Parts) -> Vec<(usize, String, String)> {
        let used: HashSet<(usize, String)> = self
            .merged
            .pieces
            .iter()
            .flat_map(|piece| &piece.inputs)
            .flat_map(|(input, name)| parts.sources(*input, name))
            .collect();
        let mut dropped = Vec::new();
        let mut seen = HashSet::new();
        let mut drop = |at: (usize, String), reason: String| {
            if !used.contains(&at) && seen.insert(at.clone()) {
                dropped.push((at.0, at.1, reason));
            }
        };
        for (number, input) in self.merged.inputs.iter().enumerate() {
            for (at, reason) in parts.unused(number) {
                drop(at, reason);
            }
            for info in input.checkpoint.tensors.infos() {
                for at in parts.sources(number, &info.name) {
                    drop(at, self.reason(number, &info.name));
                }
            }
        }
        dropped
    }

    /// Why nothing is made of a tensor.
    fn reason(&self, number: usize, name: &str) -> String {
        let layout = self.layouts.get(number);
        let tie = layout.and_then(|layout| layout.ties.iter().find(|tie| tie.name == name));
        let in_layout = layout.is_some_and(|layout| layout.tensors.iter().any(|spec| spec.name == name));
        match tie {
            Some(tie) => format!("repeats {}", tie.target),
            None if number >= self.n_merged => "the model brings nothing but its tokenizer".to_string(),
            None if !self.known || self.left_out.contains(&(number, name.to_string())) => {
                "not all models have it, and the recipe lets it go".to_string()
            }
            None if in_layout => "the recipe's slices leave it out".to_string(),
            None => "a buffer that follows from the config".to_string(),
        }
    }

    /// Refuses a tied weight that a file carries twice with different values.
    pub(super) fn check_ties(&self, inputs: &[Input]) -> Result<()> {
        for (input, layout) in inputs.iter().zip(&self.layouts) {
            let tensors = &input.checkpoint.tensors;
            for tie in &layout.ties {
                if !tensors.infos().iter().any(|info| info.name == tie.name) {
                    continue;
                }
                if tensors.read(&tie.name)?[..] != tensors.read(&tie.target)?[..] {
                    let what = format!(
                        "differs from {} in {}, but its config ties them; set tie_word_embeddings to false to keep both",
                        tie.target, input.label
                    );
                    return Err(luthier_checkpoint::Error::tensor(&tie.name, what).into());
                }
            }
        }
        Ok(())
    }
}
