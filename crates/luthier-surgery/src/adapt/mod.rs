//! `luthier adapt MODEL OUT [--encoder MODEL2] [--decoder MODEL3]`: a decoder-only model becomes an encoder-decoder.
//!
//! Reads one or two decoder-only models of one vocabulary, of equal or different sizes. Writes a model folder, or a GGUF
//! file where OUT ends in `.gguf`: encoder and decoder are the parents' layers, cross-attention is the decoder parent's
//! self-attention where the widths are equal and fresh (from the seed) where they are not; then train cross-attention
//! alone first. Stored types are kept, quantised weights are widened to F32, which keeps their values. Guarantees: every
//! parent tensor is in the ledger; with cross-attention silent the decoder's logits are those of its parent, checked
//! before the output gets its name. Leaves the parents alone. Refuses: an architecture that has no encoder-decoder,
//! parents of different vocabularies, weights that the config contradicts or that are not finite, a tokenizer that does
//! not fit.
//! Paper: arXiv:2504.06225. Example: `luthier adapt builtin runs/adapted`.

mod check;
mod fill;
mod source;

use std::path::Path;
use std::sync::Arc;

use luthier_checkpoint::gguf::is_gguf_name;
use luthier_checkpoint::layout::{Layout, Part, StackKind};
use luthier_checkpoint::{Checkpoint, Dtype, TensorInfo, TensorSource};
use serde::Serialize;
use serde_json::{Map, Value, json};

use self::fill::{Fill, Parent, fills};
use self::source::{Adapted, Silenced};
use crate::convert::gguf::{planned_model, write_model};
use crate::plan::Plan;
use crate::view::{Cast, find, folder_type};
use crate::writing::{Job, Origin, write_folder};
use crate::{Error, Input, Result, config, fit};

/// How the ledger names tensors that come from no parent.
const FRESH: &str = "fresh, from the seed";

/// How an encoder-decoder is made.
#[derive(Clone, Debug)]
pub struct Options {
    /// The type of all float weights; none keeps them.
    pub dtype: Option<Dtype>,
    /// Where fresh weights come from.
    pub seed: u64,
    /// Whether an existing output is replaced.
    pub force: bool,
}

/// What came of it.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Report {
    /// Number of weights of the encoder-decoder.
    pub parameters: usize,
    /// Tensors taken from a parent.
    pub copied_tensors: usize,
    /// Tensors that are fresh.
    pub fresh_tensors: usize,
    /// Largest difference between the decoder's logits with silent cross-attention and its parent's.
    pub silenced_max_abs_difference: f64,
    /// What to know and to do next.
    pub notes: Vec<String>,
}

/// What `run` would write, from headers alone. Refuses what `run` would refuse before it reads a weight.
pub fn plan(encoder: &Input, decoder: &Input, out: &Path, options: &Options) -> Result<Plan> {
    let prepared = Prepared::new(encoder, decoder, options)?;
    let from = prepared.adapted.fills().iter().map(|fill| match fill {
        Fill::Copy { parent: Parent::Encoder, name } => format!("{name} of {}", encoder.label),
        Fill::Copy { parent: Parent::Decoder, name } => format!("{name} of {}", decoder.label),
        Fill::Fresh => FRESH.to_string(),
    });
    let from: Vec<String> = from.collect();
    if !is_gguf_name(out) {
        return Ok(Plan::new(prepared.adapted.infos(), from, prepared.notes.clone()));
    }
    let model = Checkpoint {
        place: out.to_path_buf(),
        side_files: Vec::new(),
        tensors: Arc::new(prepared.adapted.clone()),
        config: prepared.config.clone(),
    };
    let origins: Vec<Origin> = from.into_iter().map(Origin::Made).collect();
    let (infos, origins) = planned_model(&model, None, &origins)?;
    Ok(Plan::new(&infos, origins.iter().map(Origin::describe).collect(), prepared.notes.clone()))
}

/// Writes the encoder-decoder of an encoder's and a decoder's parent, which may be the same model, to `out`.
pub fn run(encoder: &Input, decoder: &Input, out: &Path, options: &Options) -> Result<Report> {
    let prepared = Prepared::new(encoder, decoder, options)?;
    let config = config::with_dtype(&prepared.config, prepared.adapted.infos());
    let model = Checkpoint {
        place: out.to_path_buf(),
        side_files: config::encoder_decoder_side_files(&decoder.checkpoint.side_files, &config),
        tensors: Arc::new(prepared.adapted.clone()),
        config,
    };
    let inputs = if prepared.one_parent { vec![decoder] } else { vec![decoder, encoder] };
    let job = Job {
        verb: "adapt",
        recipe: json!({
            "model": decoder.label,
            "encoder": encoder.label,
            "decoder": decoder.label,
            "dtype": options.dtype.map(Dtype::name),
            "seed": options.seed,
        }),
        seed: Some(options.seed),
        origins: prepared.adapted.fills().iter().map(|fill| prepared.origin(fill)).collect(),
        dropped: prepared.dropped(&inputs),
        inputs,
    };
    let mut difference = 0.0;
    let mut check = |made: &Checkpoint| -> Result<Map<String, Value>> {
        let silenced = Arc::new(Silenced::new(&prepared.target, Arc::clone(&made.tensors)));
        let parent = Checkpoint { tensors: Arc::clone(&prepared.decoder), ..decoder.checkpoint.clone() };
        difference = check::decoder_equals_parent(made, silenced, &parent)?;
        Ok(Map::from_iter([("silenced_max_abs_difference".to_string(), json!(difference))]))
    };
    if is_gguf_name(out) {
        let measurements = check(&model)?;
        write_model(&model, None, out, options.force, job, measurements)?;
    } else {
        write_folder(&model, out, options.force, job, check)?;
    }
    let fresh_tensors = prepared.adapted.fills().iter().filter(|fill| **fill == Fill::Fresh).count();
    Ok(Report {
        parameters: prepared.target.parameters(),
        copied_tensors: prepared.adapted.fills().len() - fresh_tensors,
        fresh_tensors,
        silenced_max_abs_difference: difference,
        notes: prepared.notes,
    })
}

/// Everything that is decided before a weight is written.
struct Prepared {
    config: Map<String, Value>,
    target: Layout,
    adapted: Adapted,
    /// The decoder's parent in the types of the output.
    decoder: Arc<dyn TensorSource>,
    one_parent: bool,
    notes: Vec<String>,
}

impl Prepared {
    fn new(encoder: &Input, decoder: &Input, options: &Options) -> Result<Prepared> {
        let (encoder_layout, decoder_layout) =
            (fit::checked_layout(&encoder.checkpoint)?, fit::checked_layout(&decoder.checkpoint)?);
        fit::same_vocabulary((encoder, &encoder_layout), (decoder, &decoder_layout))?;
        let mut config =
            luthier_arch::encoder_decoder_config(&encoder.checkpoint.config, &decoder.checkpoint.config)?;
        let mut target = luthier_arch::layout(&config)?;
        if shares_embedding(&target)
            && !same_embedding((encoder, &encoder_layout), (decoder, &decoder_layout))?
        {
            config.insert("tie_encoder_embeddings".to_string(), json!(false));
            target = luthier_arch::layout(&config)?;
        }
        let fills = fills(&target, &encoder_layout, &decoder_layout)?;
        let cast = |input: &Input| -> Arc<dyn TensorSource> {
            let folder_type = |info: &TensorInfo| folder_type(info.dtype, options.dtype);
            Arc::new(Cast::new(Arc::clone(&input.checkpoint.tensors), folder_type))
        };
        let (encoder_cast, decoder_cast) = (cast(encoder), cast(decoder));
        let parents = (encoder_cast, Arc::clone(&decoder_cast));
        let fresh_type = config::main_type(decoder_cast.infos()).unwrap_or(Dtype::F32);
        let adapted = Adapted::new(&config, &target, &fills, parents, fresh_type, options.seed)?;
        let notes = notes(&fills, &[encoder, decoder], options);
        let one_parent = encoder.checkpoint.place == decoder.checkpoint.place;
        Ok(Prepared { config, target, adapted, decoder: decoder_cast, one_parent, notes })
    }

    /// Where a tensor comes from; the decoder's parent is input 0, the encoder's 1 where it is another.
    fn origin(&self, fill: &Fill) -> Origin {
        match fill {
            Fill::Copy { parent: Parent::Encoder, name } if !self.one_parent => {
                Origin::From { input: 1, name: name.clone() }
            }
            Fill::Copy { name, .. } => Origin::From { input: 0, name: name.clone() },
            Fill::Fresh => Origin::Made(FRESH.to_string()),
        }
    }

    /// The parents' tensors that no tensor of the output is made of, and why.
    fn dropped(&self, inputs: &[&Input]) -> Vec<(usize, String, String)> {
        let origins: Vec<Origin> = self.adapted.fills().iter().map(|fill| self.origin(fill)).collect();
        let mut dropped = Vec::new();
        for (input_idx, input) in inputs.iter().enumerate() {
            let ties =
                luthier_arch::layout(&input.checkpoint.config).map(|layout| layout.ties).unwrap_or_default();
            for info in input.checkpoint.tensors.infos() {
                if origins.contains(&Origin::From { input: input_idx, name: info.name.clone() }) {
                    continue;
                }
                let reason = match ties.iter().find(|tie| tie.name == info.name) {
                    Some(tie) => format!("repeats {}", tie.target),
                    None if input_idx == 1 => {
                        "an encoder has no such part, or reads with the decoder's".to_string()
                    }
                    None => "a buffer that follows from the config".to_string(),
                };
                dropped.push((input_idx, info.name.clone(), reason));
            }
        }
        dropped
    }
}

/// Whether the encoder reads with the decoder's embedding.
fn shares_embedding(target: &Layout) -> bool {
    let mut embeddings = target.tensors.iter().filter(|spec| spec.role.part == Part::Embedding);
    embeddings.all(|spec| spec.role.stack == StackKind::Decoder)
}

/// Whether both parents have the same embedding, value for value.
fn same_embedding(encoder: (&Input, &Layout), decoder: (&Input, &Layout)) -> Result<bool> {
    let embedding = |(input, layout): (&Input, &Layout)| -> Result<_> {
        let spec = layout.tensors.iter().find(|spec| spec.role.part == Part::Embedding);
        let none = || Error::Use(format!("{}: a model without an embedding cannot be adapted", input.label));
        let name = &spec.ok_or_else(none)?.name;
        let tensors = &input.checkpoint.tensors;
        Ok((find(tensors.infos(), name)?.dtype, tensors.read(name)?))
    };
    let (encoder, decoder) = (embedding(encoder)?, embedding(decoder)?);
    Ok(encoder.0 == decoder.0
        && (std::ptr::eq(&encoder.1[..], &decoder.1[..]) || encoder.1[..] == decoder.1[..]))
}

fn notes(fills: &[Fill], parents: &[&Input], options: &Options) -> Vec<String> {
    let mut notes = Vec::new();
    if fills.contains(&Fill::Fresh) {
        let note = "encoder and decoder differ in width, so that cross-attention is fresh: train it alone first, then all";
        notes.push(note.to_string());
    }
    if parents.iter().any(|parent| parent.checkpoint.side_file("README.md").is_some()) {
        let note =
            "README.md describes the parent and is left out; `luthier card init` writes one of what was made";
        notes.push(note.to_string());
    }
    let quantised = |info: &TensorInfo| info.dtype.block().0 > 1;
    let any_quantised = parents.iter().any(|parent| parent.checkpoint.tensors.infos().iter().any(quantised));
    if options.dtype.is_none() && any_quantised {
        let note =
            "quantised weights are widened to F32, which keeps their values; --dtype bf16 halves the file";
        notes.push(note.to_string());
    }
    notes
}
