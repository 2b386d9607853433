//! Everything about a pruned model that is decided before a weight is written.

use std::path::Path;
use std::sync::Arc;

use luthier_arch::sizes::{ModelSizes, resized, sizes};
use luthier_checkpoint::layout::{Layout, StackKind};
use luthier_checkpoint::scores::{Scores, model_sha256};
use luthier_checkpoint::{Checkpoint, TensorInfo, TensorSource};
use serde_json::{Map, Value};

use super::cut::Cutter;
use super::keep::{HeadKeep, StackKeep, keep, shares_channels};
use super::scored::Scored;
use super::search::{Candidate, Search, reported};
use super::shape::{StackShape, shapes};
use super::tensors::{dropped, made, memory_bytes};
use super::view::Pruned;
use super::{Options, REASON, StackReport};
use crate::view::{Cast, find, folder_type};
use crate::writing::Origin;
use crate::{Error, Input, Result, config, fit, sentence_width};

pub(super) struct Prepared {
    config: Map<String, Value>,
    side_files: Vec<luthier_checkpoint::SideFile>,
    view: Arc<Pruned>,
    before: Layout,
    after: Layout,
    old: ModelSizes,
    keeps: Vec<StackKeep>,
    memory_bytes: usize,
    pub(super) origins: Vec<Origin>,
    pub(super) dropped: Vec<(usize, String, String)>,
    pub(super) candidates: Vec<Candidate>,
    pub(super) notes: Vec<String>,
}

/// A model that is to be pruned.
struct Subject<'s> {
    input: &'s Input,
    options: &'s Options,
    before: Layout,
    old: ModelSizes,
    scored: Scored,
    /// Its tensors in the types of the output.
    cast: Arc<dyn TensorSource>,
    /// Why a layer goes.
    reason: &'static str,
}

impl Prepared {
    /// `hashes`: whether the scores' model is compared with this one, for which all of it is read.
    pub(super) fn new(input: &Input, options: &Options, hashes: bool) -> Result<Prepared> {
        let subject = Subject::new(input, options, hashes)?;
        let mut notes = quantised_note(input, options);
        let (keeps, candidates) = subject.choose(&mut notes)?;
        let prepared = subject.prepared(keeps, notes)?;
        Ok(Prepared { candidates, ..prepared })
    }

    /// Of units that `score` finds the highest scores for; it sees the layout, the sizes and the weights, and the scores that
    /// the options name. `reason`: why a layer that goes does.
    pub(super) fn scored(
        input: &Input,
        options: &Options,
        hashes: bool,
        reason: &'static str,
        score: impl FnOnce(&Layout, &ModelSizes, &dyn TensorSource, Option<Scores>) -> Result<Scores>,
    ) -> Result<Prepared> {
        let mut subject = Subject::new(input, options, hashes)?;
        subject.reason = reason;
        let given = subject.scored.take();
        let scores = score(&subject.before, &subject.old, subject.cast.as_ref(), given)?;
        subject.scored = Scored::new(Some(scores), None);
        let mut notes = quantised_note(input, options);
        let (keeps, _) = subject.choose(&mut notes)?;
        subject.prepared(keeps, notes)
    }

    /// Of the units that `keep` names. `reason`: why a layer that goes does.
    pub(super) fn kept(
        input: &Input,
        options: &Options,
        reason: &'static str,
        keep: impl FnOnce(&Layout, &ModelSizes) -> Result<Vec<StackKeep>>,
    ) -> Result<Prepared> {
        let mut subject = Subject::new(input, options, false)?;
        subject.reason = reason;
        let keeps = keep(&subject.before, &subject.old)?;
        let notes = quantised_note(input, options);
        subject.prepared(keeps, notes)
    }

    /// Adds files that travel with the model, in place of those of the same names.
    pub(super) fn add_side_files(&mut self, files: Vec<luthier_checkpoint::SideFile>) {
        self.side_files.retain(|old| files.iter().all(|new| new.name != old.name));
        self.side_files.extend(files);
    }

    /// The model without one layer of stack number `stack`.
    pub(super) fn without_layer(input: &Input, stack: usize, layer: usize) -> Result<Prepared> {
        let options = Options::default();
        let subject = Subject::new(input, &options, false)?;
        let whole: Vec<StackShape> = subject.old.stacks.iter().map(StackShape::of).collect();
        let mut keeps = keep(&subject.before, &subject.old, &whole, &subject.scored, false)?;
        let layers = keeps.get_mut(stack).map(|keep| &mut keep.layers);
        match layers {
            Some(layers) if layers.len() > 1 && layer < layers.len() => _ = layers.remove(layer),
            _ => {
                let what = format!(
                    "layer {layer} of stack {stack} cannot be left out: it is the only one, or not there"
                );
                return Err(Error::Use(what));
            }
        }
        subject.prepared(keeps, Vec::new())
    }

    pub(super) fn model(&self, place: &Path) -> Checkpoint {
        Checkpoint {
            place: place.to_path_buf(),
            config: self.config.clone(),
            tensors: Arc::clone(&self.view) as Arc<dyn TensorSource>,
            side_files: self.side_files.clone(),
        }
    }

    pub(super) fn infos(&self) -> &[TensorInfo] {
        &self.view.infos
    }

    pub(super) fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    /// Weights before and after.
    pub(super) fn parameters(&self) -> (usize, usize) {
        (self.before.parameters(), self.after.parameters())
    }

    pub(super) fn report(&self) -> Vec<StackReport> {
        let report = |(stack, keep): (&luthier_arch::sizes::StackSizes, &StackKeep)| {
            let heads = |of: fn(&HeadKeep) -> usize| {
                keep.layers.iter().map(|layer| layer.own.as_ref().map_or(0, of)).collect()
            };
            let kept: Vec<usize> = keep.layers.iter().map(|layer| layer.before).collect();
            StackReport {
                stack: if keep.kind == StackKind::Encoder { "encoder" } else { "decoder" },
                layers: (stack.layers.len(), keep.layers.len()),
                dropped_layers: (0..stack.layers.len()).filter(|layer| !kept.contains(layer)).collect(),
                hidden: (stack.width, keep.channels.len()),
                ffn: keep.layers.iter().map(|layer| layer.neurons.as_ref().map_or(0, Vec::len)).collect(),
                experts: keep.layers.iter().map(|layer| layer.experts.as_ref().map_or(0, Vec::len)).collect(),
                heads: heads(|heads| heads.query.len()),
                kv_groups: heads(|heads| heads.kv.len()),
            }
        };
        self.old.stacks.iter().zip(&self.keeps).map(report).collect()
    }

    /// The shape in words.
    pub(super) fn shape_lines(&self) -> Vec<String> {
        let sizes = |sizes: &[usize]| match sizes.iter().all(|size| *size == sizes[0]) {
            true => sizes.first().map_or("none".to_string(), usize::to_string),
            false => format!("{sizes:?}"),
        };
        let line = |stack: &StackReport| {
            let dropped = match stack.dropped_layers.is_empty() {
                true => String::new(),
                false => format!(" (without {:?})", stack.dropped_layers),
            };
            let experts = match stack.experts.iter().all(|experts| *experts == 0) {
                true => String::new(),
                false => format!(", experts {}", sizes(&stack.experts)),
            };
            format!(
                "{}: {} of {} layers{dropped}, hidden {} of {}, ffn {}{experts}, heads {}, kv-groups {}",
                stack.stack,
                stack.layers.1,
                stack.layers.0,
                stack.hidden.1,
                stack.hidden.0,
                sizes(&stack.ffn),
                sizes(&stack.heads),
                sizes(&stack.kv_groups)
            )
        };
        let mut lines: Vec<String> = self.report().iter().map(line).collect();
        let (before, after) = self.parameters();
        lines.push(format!("{after} of {before} parameters"));
        lines
    }
}

fn check_joint(layout: &Layout, sizes: &ModelSizes, shapes: &[StackShape]) -> Result<()> {
    match shapes {
        [encoder, decoder] if shares_channels(layout, sizes) && encoder.width != decoder.width => {
            Err(Error::Use(format!(
                "--hidden {},{}: encoder and decoder read one embedding and keep one width; give one value",
                encoder.width, decoder.width
            )))
        }
        _ => Ok(()),
    }
}

fn quantised_note(input: &Input, options: &Options) -> Vec<String> {
    let is_quantised = |info: &TensorInfo| info.dtype.block().0 > 1;
    let widened = options.dtype.is_none() && input.checkpoint.tensors.infos().iter().any(is_quantised);
    let note = "quantised weights are widened to F32, which keeps their values; --dtype bf16 halves the file";
    if widened { vec![note.to_string()] } else { Vec::new() }
}

impl<'s> Subject<'s> {
    fn new(input: &'s Input, options: &'s Options, hashes: bool) -> Result<Subject<'s>> {
        let checkpoint = &input.checkpoint;
        let before = fit::checked_layout(checkpoint)?;
        let old = sizes(&checkpoint.config)?;
        let scored = scored(input, &before, options, hashes)?;
        let folder_type = |info: &TensorInfo| folder_type(info.dtype, options.dtype);
        let cast = Arc::new(Cast::new(Arc::clone(&checkpoint.tensors), folder_type));
        Ok(Subject { input, options, before, old, scored, cast, reason: REASON })
    }

    /// The units that stay: of the shape that was asked for, or of the best that fits the budget and can be written.
    fn choose(&self, notes: &mut Vec<String>) -> Result<(Vec<StackKeep>, Vec<Candidate>)> {
        let asked = shapes(&self.old, &self.options.targets)?;
        check_joint(&self.before, &self.old, &asked)?;
        let kept =
            |shapes: &[StackShape]| keep(&self.before, &self.old, shapes, &self.scored, self.options.uneven);
        let Some(budget) = self.options.budget else { return Ok((kept(&asked)?, Vec::new())) };
        let value_bytes = self.before.tensors.iter().map(|spec| -> Result<f64> {
            let (len, bytes) = find(self.cast.infos(), &spec.name)?.dtype.block();
            Ok(bytes as f64 / len as f64)
        });
        let value_bytes: Vec<f64> = value_bytes.collect::<Result<_>>()?;
        let search = Search {
            layout: &self.before,
            sizes: &self.old,
            scored: &self.scored,
            shapes: &asked,
            targets: &self.options.targets,
            budget,
            divisors: self.options.divisors,
            value_bytes: &value_bytes,
        };
        let (mut found, search_notes) = search.run()?;
        notes.extend(search_notes);
        // Some shapes fit the budget but no config.
        let mut refused = None;
        let config = &self.input.checkpoint.config;
        let first = found.iter().position(|(_, shapes)| {
            let problem = kept(shapes).and_then(|keeps| new_config(config, &self.old, &keeps)).err();
            let fits = problem.is_none();
            refused = refused.take().or(problem);
            fits
        });
        let Some(first) = first else {
            return Err(refused.unwrap_or_else(|| Error::Use("no shape fits".to_string())));
        };
        found.drain(..first);
        let rank = self.options.rank.min(found.len() - 1);
        let taken = found.remove(rank);
        found.insert(0, taken);
        let (best, shapes) = &found[0];
        let next: Vec<String> = found.iter().skip(1).take(3).map(|(next, _)| in_words(next)).collect();
        notes.push(format!(
            "chosen: {} ({} bytes), {}",
            in_words(best),
            best.size_bytes,
            match rank {
                0 => "the least of those that fit".to_string(),
                rank => format!("number {} of those that fit", rank + 1),
            }
        ));
        if !next.is_empty() {
            notes.push(format!("next: {}", next.join("; ")));
        }
        Ok((kept(shapes)?, reported(&found)))
    }

    fn prepared(self, keeps: Vec<StackKeep>, mut notes: Vec<String>) -> Result<Prepared> {
        let checkpoint = &self.input.checkpoint;
        let (config, config_notes) = new_config(&checkpoint.config, &self.old, &keeps)?;
        notes.extend(config_notes);
        let after = luthier_arch::layout_with(&config, checkpoint.tensors.infos())?;
        let new = sizes(&config)?;
        let cutter =
            Cutter { before: &self.before, old: &self.old, new: &new, keeps: &keeps, scored: &self.scored };
        let made = made(checkpoint, &self.cast, &after, &cutter, self.options)?;
        let same_types = self.cast.infos() == checkpoint.tensors.infos();
        let config = if same_types { config } else { config::with_dtype(&config, &made.view.infos) };
        Ok(Prepared {
            config,
            side_files: sentence_width::side_files(checkpoint, &self.old, &new)?,
            memory_bytes: memory_bytes(&made.view, checkpoint.tensors.infos()),
            view: Arc::new(made.view),
            after,
            dropped: dropped(self.input, &self.before, &keeps, &made.used, self.reason),
            keeps,
            origins: made.origins,
            candidates: Vec::new(),
            notes,
            before: self.before,
            old: self.old,
        })
    }
}

/// The scores of this model.
fn scored(input: &Input, layout: &Layout, options: &Options, hashes: bool) -> Result<Scored> {
    let Some(path) = &options.scores else { return Ok(Scored::new(None, options.random)) };
    let scores = Scores::read(path)?;
    if hashes {
        let hash = model_sha256(layout, input.checkpoint.tensors.as_ref())?;
        if hash != scores.settings.model_sha256 {
            return Err(Error::Use(format!(
                "--scores {}: made of a model whose weights have the hash {}, and those of {} have {hash}; score this model",
                path.display(),
                scores.settings.model_sha256,
                input.label
            )));
        }
    }
    Ok(Scored::new(Some(scores), options.random))
}

fn in_words(candidate: &Candidate) -> String {
    let Candidate { layers, hidden, ffn, heads, parameters, loss, .. } = candidate;
    format!(
        "layers {layers:?} hidden {hidden:?} ffn {ffn:?} heads {heads:?}: {parameters} parameters, loses {loss:.4}"
    )
}

/// The config of what stays; the same where everything does.
fn new_config(
    config: &Map<String, Value>,
    old: &ModelSizes,
    keeps: &[StackKeep],
) -> Result<(Map<String, Value>, Vec<String>)> {
    let stacks = old.stacks.iter().zip(keeps);
    let is_whole = stacks.clone().all(|(stack, keep)| {
        let new = keep.sizes(stack);
        new.width == stack.width && new.layers == stack.layers
    });
    if is_whole {
        return Ok((config.clone(), Vec::new()));
    }
    let new: Vec<_> = stacks.map(|(stack, keep)| keep.sizes(stack)).collect();
    Ok(resized(config, &new)?)
}
