//! Everything about a grown model that is decided before a weight is written, and the model as a source of tensors.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use luthier_arch::sizes::{ModelSizes, NewStack, resized, sizes};
use luthier_checkpoint::layout::{Layout, Role, StackKind, TensorSpec};
use luthier_checkpoint::{Checkpoint, Dtype, SideFile, TensorInfo, TensorSource, values};
use luthier_kernels::bytes::SharedBytes;
use serde_json::{Map, Value};

use super::depth;
use super::moments::Moments;
use super::piece::{Fill, Form, Piece, widened};
use super::post_norm;
use super::width::{self, Widener};
use super::{Axis, Operation, Options};
use crate::function_check::{N_TOKENS, gives_logits};
use crate::view::{Cast, find, folder_type};
use crate::writing::Origin;
use crate::{Error, Input, Result, config, fit, sentence_width};

const SILENT: &str = "zeros, so that the copy of the layer adds nothing";
const NEUTRAL: &str = "ones, for a norm of what is normed already";
const FRESH: &str = "fresh, of a new layer";

pub(super) struct Prepared {
    config: Map<String, Value>,
    side_files: Vec<SideFile>,
    view: Arc<Grown>,
    /// The input in the types of the output.
    cast: Arc<dyn TensorSource>,
    before: Layout,
    after: Layout,
    pub(super) moments: Option<Moments>,
    pub(super) origins: Vec<Origin>,
    pub(super) dropped: Vec<(usize, String, String)>,
    pub(super) notes: Vec<String>,
}

impl Prepared {
    pub(super) fn new(input: &Input, options: &Options) -> Result<Prepared> {
        let checkpoint = &input.checkpoint;
        let before = fit::checked_layout(checkpoint)?;
        let old = sizes(&checkpoint.config)?;
        let is_same = options.axis.times() == 1;
        check_norms(&before, options)?;
        let (config, mut notes) = match is_same {
            true => (checkpoint.config.clone(), Vec::new()),
            false => resized(&checkpoint.config, &new_sizes(&old, options))?,
        };
        let after = luthier_arch::layout_with(&config, checkpoint.tensors.infos())?;
        let new = sizes(&config)?;
        let type_of = |info: &TensorInfo| folder_type(info.dtype, options.dtype);
        let cast: Arc<dyn TensorSource> = Arc::new(Cast::new(Arc::clone(&checkpoint.tensors), type_of));
        let pieces = pieces(&before, &after, (&old, &new), cast.as_ref(), options)?;
        let view = Grown::new(checkpoint, &cast, pieces, (&after, is_same), &config, options.seed)?;
        let same_types = cast.infos() == checkpoint.tensors.infos();
        let config = if same_types { config } else { config::with_dtype(&config, &view.infos) };
        if options.dtype.is_none() && checkpoint.tensors.infos().iter().any(|info| info.dtype.block().0 > 1) {
            let note = "quantised weights are widened to F32, which keeps their values; --dtype bf16 halves the file";
            notes.push(note.to_string());
        }
        Ok(Prepared {
            origins: view.origins(checkpoint, options),
            dropped: dropped(checkpoint, &before, &view),
            moments: Moments::beside(&checkpoint.place)?,
            config,
            side_files: sentence_width::side_files(checkpoint, &old, &new)?,
            view: Arc::new(view),
            cast,
            before,
            after,
            notes,
        })
    }

    pub(super) fn model(&self, place: &Path) -> Checkpoint {
        Checkpoint {
            place: place.to_path_buf(),
            config: self.config.clone(),
            tensors: Arc::clone(&self.view) as Arc<dyn TensorSource>,
            side_files: self.side_files.clone(),
        }
    }

    /// The input in the types of the output.
    pub(super) fn parent(&self, input: &Input) -> Checkpoint {
        Checkpoint { tensors: Arc::clone(&self.cast), ..input.checkpoint.clone() }
    }

    pub(super) fn infos(&self) -> &[TensorInfo] {
        &self.view.infos
    }

    /// Whether the model gives logits, to compare by.
    pub(super) fn has_logits(&self) -> bool {
        gives_logits(&self.before)
    }

    /// Weights before and after.
    pub(super) fn parameters(&self) -> (usize, usize) {
        (self.before.parameters(), self.after.parameters())
    }

    /// Every weight once, with the shape of its source.
    pub(super) fn weights(&self) -> Vec<(&Piece, Vec<usize>)> {
        let shape = |piece: &Piece| {
            let source = self.before.tensors.iter().find(|spec| spec.name == piece.source);
            source.map(|spec| spec.shape.clone()).unwrap_or_default()
        };
        let weights = self.after.tensors.iter().filter_map(|spec| self.view.pieces.get(&spec.name));
        weights.map(|piece| (piece, shape(piece))).collect()
    }

    /// What `run` holds at most, mapped files apart. `in_memory`: whether the check sees a model that no file holds yet.
    pub(super) fn memory_bytes(&self, stored: &[TensorInfo], in_memory: bool) -> usize {
        let size = |info: &TensorInfo| info.dtype.size_bytes(&info.shape).unwrap_or(0);
        let values = |info: &TensorInfo| info.shape.iter().product::<usize>();
        let working = |info: &TensorInfo| {
            let Some(piece) = self.view.pieces.get(&info.name) else { return 0 };
            let source = find(self.cast.infos(), &piece.source).ok();
            let is_cast = source.is_some_and(|source| {
                find(stored, &piece.source).is_ok_and(|stored| stored.dtype != source.dtype)
            });
            let read = if is_cast { source.map_or(0, |source| size(source) + 4 * values(source)) } else { 0 };
            let made = match &piece.form {
                Form::Copied { .. } => 0,
                Form::Silent => size(info),
                Form::Neutral => 4 * values(info) + size(info),
                Form::Fresh => 8 * values(info) + size(info),
                Form::Wider(wider) if wider.fill == Fill::Fresh => 12 * values(info) + size(info),
                Form::Wider(_) => 8 * values(info) + size(info),
            };
            read + made
        };
        let largest = self.view.infos.iter().map(size).max().unwrap_or(0);
        let write = self.view.infos.iter().map(working).max().unwrap_or(0) + 3 * largest;
        // The check holds one model after the other, and what a file has as it is stays there.
        let parent = if self.cast.infos() == stored { 0 } else { self.cast.infos().iter().map(size).sum() };
        let child = if in_memory { self.view.infos.iter().map(size).sum() } else { 0 };
        let moments = self.moments.as_ref().map_or(0, Moments::largest_bytes);
        let grown_moments = moments * times_larger(&self.before, &self.after);
        // Two sets of logits, and what computing one takes.
        let check = parent.max(child) + 4 * 4 * N_TOKENS * fit::vocab_size(&self.after);
        write.max(check).max(grown_moments) + (64 << 20)
    }
}

/// Refuses zeros beside norms that take the mean off.
fn check_norms(layout: &Layout, options: &Options) -> Result<()> {
    let centred = layout.tensors.iter().find(|spec| spec.role.part.centred_norm().is_some());
    match (options.operation, options.axis, centred) {
        (Operation::Zero, Axis::Width(2..), Some(spec)) => Err(Error::Use(format!(
            "--op zero --width: {} stands in a norm that takes the mean off (LayerNorm), and among zeros the mean is another for \
             every token, which no weights make up for; take --op split, which keeps the function",
            spec.name
        ))),
        _ => Ok(()),
    }
}

/// How many times the largest tensor at most.
fn times_larger(before: &Layout, after: &Layout) -> usize {
    let largest = |layout: &Layout| {
        layout.tensors.iter().map(|spec| spec.shape.iter().product::<usize>()).max().unwrap_or(1)
    };
    largest(after).div_ceil(largest(before).max(1))
}

fn new_sizes(old: &ModelSizes, options: &Options) -> Vec<NewStack> {
    let new = |stack: &luthier_arch::sizes::StackSizes| match options.axis {
        Axis::Depth(times) => {
            depth::sizes(stack, &depth::layers(stack.layers.len(), times, options.operation))
        }
        Axis::Width(times) => width::sizes(stack, times, options.operation),
    };
    old.stacks.iter().map(new).collect()
}

/// How each weight of the grown model comes about, in its layout's order.
fn pieces(
    before: &Layout,
    after: &Layout,
    (old, new): (&ModelSizes, &ModelSizes),
    cast: &dyn TensorSource,
    options: &Options,
) -> Result<Vec<Piece>> {
    let origins = |kind: StackKind| match (options.axis, old.stack(kind)) {
        (Axis::Depth(times), Some(stack)) => depth::layers(stack.layers.len(), times, options.operation),
        _ => Vec::new(),
    };
    let (encoder, decoder) = (origins(StackKind::Encoder), origins(StackKind::Decoder));
    let widener = Widener {
        before,
        old,
        new,
        times: options.axis.times(),
        operation: options.operation,
        asymmetry: options.asymmetry,
    };
    let piece = |spec: &TensorSpec| -> Result<Piece> {
        let layers = if spec.role.stack == StackKind::Encoder { &encoder } else { &decoder };
        let origin = spec.role.layer.and_then(|layer| layers.get(layer)).copied();
        let layer = origin.map(|origin| origin.layer).or(spec.role.layer);
        let norm = origin.and_then(|_| post_norm::norm(spec, layers));
        let role = norm.as_ref().map_or(Role { layer, ..spec.role }, |(role, _)| *role);
        let source = before.at(role);
        let missing = || Error::Use(format!("tensor {}: the model has nothing to make it of", spec.name));
        let source = source.ok_or_else(missing)?;
        let form = match (options.axis, origin) {
            _ if norm.is_some() => norm.map_or(Form::Fresh, |(_, form)| form),
            (Axis::Width(_), _) => widener.form(spec, source, find(cast.infos(), &source.name)?.dtype),
            (Axis::Depth(_), Some(origin)) => depth::form(spec, origin),
            (Axis::Depth(_), None) => Form::Copied { is_learnt: true },
        };
        Ok(Piece { source: source.name.clone(), spec: spec.clone(), form })
    };
    after.tensors.iter().map(piece).collect()
}

/// Tensors of the input that are not in the output, and why.
fn dropped(checkpoint: &Checkpoint, before: &Layout, view: &Grown) -> Vec<(usize, String, String)> {
    let used: HashSet<&str> = view.pieces.values().map(|piece| piece.source.as_str()).collect();
    let lost = |info: &&TensorInfo| !used.contains(info.name.as_str());
    let reason = |info: &TensorInfo| match before.ties.iter().find(|tie| tie.name == info.name) {
        Some(tie) => format!("repeats {}", tie.target),
        None => "a buffer that follows from the config".to_string(),
    };
    let infos = checkpoint.tensors.infos().iter().filter(lost);
    infos.map(|info| (0, info.name.clone(), reason(info))).collect()
}

/// A grown model as a source of tensors: each is made when it is asked for.
struct Grown {
    source: Arc<dyn TensorSource>,
    infos: Vec<TensorInfo>,
    /// By the name in the output; a tied weight stands under each of its names.
    pieces: HashMap<String, Piece>,
    config: Map<String, Value>,
    seed: u64,
}

impl Grown {
    /// `is_same`: nothing grows, and tensors keep the order that they have.
    fn new(
        checkpoint: &Checkpoint,
        cast: &Arc<dyn TensorSource>,
        all: Vec<Piece>,
        (after, is_same): (&Layout, bool),
        config: &Map<String, Value>,
        seed: u64,
    ) -> Result<Grown> {
        let carried = |name: &str| checkpoint.tensors.infos().iter().any(|info| info.name == name);
        let (mut infos, mut pieces) = (Vec::new(), HashMap::new());
        for piece in all {
            let ties = after.ties.iter().filter(|tie| tie.target == piece.spec.name);
            let ties = ties.filter(|tie| tie.written || carried(&tie.name)).map(|tie| tie.name.clone());
            let dtype = find(cast.infos(), &piece.source)?.dtype;
            for name in std::iter::once(piece.spec.name.clone()).chain(ties) {
                infos.push(TensorInfo { name: name.clone(), dtype, shape: piece.spec.shape.clone() });
                pieces.insert(name, piece.clone());
            }
        }
        if is_same {
            let place = |info: &TensorInfo| cast.infos().iter().position(|other| other.name == info.name);
            infos.sort_by_key(|info| place(info).unwrap_or(usize::MAX));
        }
        let (source, config) = (Arc::clone(cast), config.clone());
        Ok(Grown { source, infos, pieces, config, seed })
    }

    /// Where each tensor comes from, in the order of `infos`.
    fn origins(&self, checkpoint: &Checkpoint, options: &Options) -> Vec<Origin> {
        let origin = |info: &TensorInfo| {
            let Some(piece) = self.pieces.get(&info.name) else { return Origin::Made(String::new()) };
            let name = piece.source.clone();
            match &piece.form {
                Form::Copied { .. } => Origin::From { input: 0, name },
                Form::Silent => Origin::Made(SILENT.to_string()),
                Form::Neutral => Origin::Made(NEUTRAL.to_string()),
                Form::Fresh => Origin::Made(format!("{FRESH}, seed {}", options.seed)),
                Form::Wider(wider) => {
                    let stored = find(checkpoint.tensors.infos(), &name).ok();
                    let stored = stored.filter(|stored| stored.dtype != info.dtype);
                    let cast = stored
                        .map_or(String::new(), |stored| format!("{} as {}, ", stored.dtype, info.dtype));
                    Origin::Changed { input: 0, name, how: cast + &wider.describe() }
                }
            }
        };
        self.infos.iter().map(origin).collect()
    }

    fn made(&self, name: &str) -> luthier_checkpoint::Result<SharedBytes> {
        let missing = || luthier_checkpoint::Error::tensor(name, "is not part of the grown model");
        let piece = self.pieces.get(name).ok_or_else(missing)?;
        let source = find(self.source.infos(), &piece.source)?;
        match &piece.form {
            Form::Copied { .. } => self.source.read(&piece.source),
            Form::Silent => {
                let bytes = source.dtype.size_bytes(&piece.spec.shape).unwrap_or(0);
                // All float types spell zero with zero bytes.
                Ok(SharedBytes::from_vec(vec![0; bytes]))
            }
            Form::Neutral => {
                let ones = vec![1f32.to_le_bytes(); piece.spec.shape.iter().product()].concat();
                Ok(SharedBytes::from_vec(values::cast(name, Dtype::F32, &ones, source.dtype)?))
            }
            Form::Fresh => {
                let fresh = luthier_arch::init::fresh(&self.config, &piece.spec, self.seed)
                    .map_err(|problem| luthier_checkpoint::Error::tensor(name, problem.to_string()))?;
                let bytes: Vec<u8> = fresh.iter().flat_map(|value| value.to_le_bytes()).collect();
                drop(fresh);
                Ok(SharedBytes::from_vec(values::cast(name, Dtype::F32, &bytes, source.dtype)?))
            }
            Form::Wider(wider) => {
                let bytes = self.source.read(&piece.source)?;
                let bytes = widened(piece, wider, source, &bytes, &self.config, self.seed)?;
                Ok(SharedBytes::from_vec(bytes))
            }
        }
    }
}

impl TensorSource for Grown {
    fn infos(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn read(&self, name: &str) -> luthier_checkpoint::Result<SharedBytes> {
        self.made(name)
    }
}

/// Whether an operation has to leave the function as it is.
pub(super) fn keeps_function(options: &Options) -> bool {
    options.axis.times() == 1 || matches!(options.operation, Operation::Split | Operation::Zero)
}
