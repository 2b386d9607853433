//! What changed, and what the adapter holds of it: pairs and whole tensors, with their names in peft's form.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use luthier_checkpoint::adapter::PREFIX;
use luthier_checkpoint::{Dtype, MemoryTensors, TensorInfo, TensorSource, values as floats};
use luthier_kernels::bytes::SharedBytes;
use luthier_kernels::pool;

use super::classify::{Kind, Shared, last};
use super::factor::{Factored, factor};
use super::{Options, Prepared};
use crate::view::find;
use crate::writing::Origin;
use crate::{Input, Result};

/// How a change is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// By two factors.
    Pair,
    /// By the whole module (`modules_to_save`).
    Module,
    /// By the bias itself.
    Bias,
}

/// Where the two models differ.
#[derive(Default)]
pub(super) struct Changes {
    /// By name: the factors of those that are held by pairs; none for the others that changed.
    changed: BTreeMap<String, Option<Factored>>,
    pub(super) unchanged: Vec<String>,
    /// Changed matrices that are no targets.
    pub(super) untargeted: Vec<String>,
}

impl Changes {
    pub(super) fn is_changed(&self, name: &str) -> bool {
        self.changed.contains_key(name)
    }
}

/// The finite values of a tensor.
pub(super) fn values(input: &Input, name: &str) -> luthier_checkpoint::Result<Vec<f32>> {
    let source = &input.checkpoint.tensors;
    let dtype = find(source.infos(), name)?.dtype;
    let bytes = source.read(name)?;
    floats::check_finite(name, dtype, &bytes)?;
    floats::to_f32(name, dtype, &bytes)
}

/// Bytes that are held while a tensor of that shape is worked on: it twice as f32, a square matrix of its shorter side in f64,
/// vectors and products as large as the square at most, and tiles.
pub(super) fn memory_bytes(shape: &[usize]) -> usize {
    let len: usize = shape.iter().product();
    match shape {
        [rows, cols] => {
            let (least, most) = (*rows.min(cols), *rows.max(cols));
            8 * len + 8 * (2 * least * least + 2 * least * most) + 8 * 256 * most
        }
        _ => 8 * len,
    }
}

/// Compares all tensors, and factors the differences that pairs hold, a tensor a task.
pub(super) fn find_changes(prepared: &Prepared, options: &Options) -> Result<Changes> {
    let shared = &prepared.classified.shared;
    let results: Vec<Mutex<Option<Result<Found>>>> = shared.iter().map(|_| Mutex::new(None)).collect();
    // Large tensors first, so that no thread ends on one alone.
    let mut order: Vec<usize> = (0..shared.len()).collect();
    order.sort_by_key(|at| std::cmp::Reverse(shared[*at].shape.iter().product::<usize>()));
    pool::run(order.len(), &|task| {
        let at = order[task];
        let found = compare(prepared, &shared[at], options);
        *results[at].lock().unwrap_or_else(PoisonError::into_inner) = Some(found);
    });
    let mut changes = Changes::default();
    for (tensor, result) in shared.iter().zip(results) {
        let result = result.into_inner().unwrap_or_else(PoisonError::into_inner);
        match result.expect("every task was run")? {
            Found::Same => changes.unchanged.push(tensor.name.clone()),
            Found::Changed(factored) => {
                let is_lost = factored.is_none() && tensor.kind == Kind::Linear;
                if is_lost {
                    changes.untargeted.push(tensor.name.clone());
                }
                changes.changed.insert(tensor.name.clone(), factored);
            }
        }
    }
    Ok(changes)
}

enum Found {
    Same,
    Changed(Option<Factored>),
}

fn compare(prepared: &Prepared, tensor: &Shared, options: &Options) -> Result<Found> {
    let name = tensor.name.as_str();
    let is_float = |input: &Input| -> Result<bool> {
        Ok(find(input.checkpoint.tensors.infos(), name)?.dtype.is_float())
    };
    if !is_float(&prepared.base)? || !is_float(&prepared.tuned)? {
        let (a, b) =
            (prepared.base.checkpoint.tensors.read(name)?, prepared.tuned.checkpoint.tensors.read(name)?);
        return Ok(if a[..] == b[..] { Found::Same } else { Found::Changed(None) });
    }
    let mut difference = values(&prepared.tuned, name)?;
    let base = values(&prepared.base, name)?;
    difference.iter_mut().zip(&base).for_each(|(value, base)| *value -= base);
    drop(base);
    if difference.iter().all(|value| *value == 0.0) {
        return Ok(Found::Same);
    }
    match (prepared.way(tensor, options), &tensor.shape[..]) {
        (Some(Way::Pair), [rows, cols]) => {
            Ok(Found::Changed(factor(name, &difference, [*rows, *cols], options.size, options.dtype)?))
        }
        _ => Ok(Found::Changed(None)),
    }
}

/// One tensor of the adapter.
struct Piece {
    info: TensorInfo,
    from: From,
}

enum From {
    /// A factor of the change of this tensor.
    Factor { of: String, bytes: SharedBytes },
    /// The tuned model's tensor.
    Tuned { name: String },
}

/// All tensors of the adapter.
pub(super) struct Held {
    pieces: Vec<Piece>,
    /// Path, rank, sum of squares missed and of the difference.
    pairs: Vec<(String, usize, f64, f64)>,
    /// Modules that are stored whole.
    modules: Vec<String>,
    /// Modules whose bias is stored.
    biases: Vec<String>,
    tuned: Arc<dyn TensorSource>,
    dtype: Dtype,
}

/// The names and shapes of what holds a tensor's change.
pub(super) fn infos(tensor: &Shared, way: Way, rank: usize, dtype: Dtype) -> Vec<TensorInfo> {
    let info = |ending: &str, shape: Vec<usize>| TensorInfo {
        name: format!("{PREFIX}{}.{ending}", tensor.path),
        dtype,
        shape,
    };
    match (way, tensor.kind, &tensor.shape[..]) {
        // An embedding is [vocab, width]: A reads tokens, B gives the width.
        (Way::Pair, Kind::Embedding, [rows, cols]) => {
            vec![info("lora_embedding_A", vec![rank, *rows]), info("lora_embedding_B", vec![*cols, rank])]
        }
        (Way::Pair, _, [rows, cols]) => {
            let (n_out, n_in) = if tensor.swapped { (*cols, *rows) } else { (*rows, *cols) };
            vec![info("lora_A.weight", vec![rank, n_in]), info("lora_B.weight", vec![n_out, rank])]
        }
        _ => vec![info(last(&tensor.name), tensor.shape.clone())],
    }
}

impl Held {
    pub(super) fn new(prepared: &Prepared, changes: &Changes, options: &Options) -> Result<Held> {
        let mut held = Held {
            pieces: Vec::new(),
            pairs: Vec::new(),
            modules: Vec::new(),
            biases: Vec::new(),
            tuned: Arc::clone(&prepared.tuned.checkpoint.tensors),
            dtype: options.dtype,
        };
        for tensor in &prepared.classified.shared {
            let (Some(factored), Some(way)) =
                (changes.changed.get(&tensor.name), prepared.way(tensor, options))
            else {
                continue;
            };
            match (way, factored) {
                (Way::Pair, Some(factored)) => held.add_pair(tensor, factored, options.dtype),
                (Way::Pair, None) => {}
                (Way::Module, _) => held.add_module(prepared, tensor),
                (Way::Bias, _) => held.biases.push(tensor.path.clone()),
            }
        }
        // Where the module has a pair, its own weights lie inside peft's layer.
        for path in &held.biases {
            let is_paired = held.pairs.iter().any(|(paired, ..)| paired == path);
            let inner = if is_paired { "base_layer.bias" } else { "bias" };
            let name = if path.is_empty() { "bias".to_string() } else { format!("{path}.bias") };
            let stored =
                if path.is_empty() { format!("{PREFIX}bias") } else { format!("{PREFIX}{path}.{inner}") };
            let shape = find(held.tuned.infos(), &name)?.shape.clone();
            let info = TensorInfo { name: stored, dtype: options.dtype, shape };
            held.pieces.push(Piece { info, from: From::Tuned { name } });
        }
        Ok(held)
    }

    fn add_pair(&mut self, tensor: &Shared, factored: &Factored, dtype: Dtype) {
        let rank = factored.rank;
        let bytes = |bytes: &[u8], rows: usize, is_turned: bool| {
            let bytes = if is_turned { turned(bytes, rows, dtype.block().1) } else { bytes.to_vec() };
            SharedBytes::from_vec(bytes)
        };
        let is_turned = tensor.swapped || tensor.kind == Kind::Embedding;
        let rows = tensor.shape[0];
        // W = left right: B A as it stands, or its transpose A^T B^T.
        let (a, b) = match is_turned {
            false => (bytes(&factored.right, rank, false), bytes(&factored.left, rows, false)),
            true => (bytes(&factored.left, rows, true), bytes(&factored.right, rank, true)),
        };
        let infos = infos(tensor, Way::Pair, rank, dtype);
        for (info, bytes) in infos.into_iter().zip([a, b]) {
            self.pieces.push(Piece { info, from: From::Factor { of: tensor.name.clone(), bytes } });
        }
        self.pairs.push((tensor.path.clone(), rank, factored.error, factored.energy));
    }

    /// All tensors of the module, changed or not, and of a head that is tied to it.
    fn add_module(&mut self, prepared: &Prepared, tensor: &Shared) {
        if self.modules.contains(&tensor.path) {
            return;
        }
        self.modules.push(tensor.path.clone());
        let of_module = prepared.classified.shared.iter().filter(|other| other.path == tensor.path);
        let mut names: Vec<(String, String, Vec<usize>)> =
            of_module.map(|other| (other.name.clone(), other.name.clone(), other.shape.clone())).collect();
        let ties = prepared.layout.iter().flat_map(|layout| &layout.ties);
        for tie in ties.filter(|tie| tie.target == tensor.name && prepared.classified.has_tied_head) {
            names.push((tie.name.clone(), tensor.name.clone(), tensor.shape.clone()));
        }
        for (name, source, shape) in names {
            let info = TensorInfo { name: format!("{PREFIX}{name}"), dtype: self.dtype, shape };
            self.pieces.push(Piece { info, from: From::Tuned { name: source } });
        }
    }

    pub(super) fn infos(&self) -> Vec<TensorInfo> {
        self.pieces.iter().map(|piece| piece.info.clone()).collect()
    }

    pub(super) fn pairs(&self) -> impl Iterator<Item = (&str, usize, f64, f64)> {
        self.pairs.iter().map(|(path, rank, error, energy)| (path.as_str(), *rank, *error, *energy))
    }

    pub(super) fn saved_modules(&self) -> Vec<String> {
        self.modules.clone()
    }

    pub(super) fn biases(&self) -> Vec<String> {
        self.biases.clone()
    }

    pub(super) fn saved_tensors(&self) -> Vec<String> {
        let tuned = self.pieces.iter().filter(|piece| matches!(piece.from, From::Tuned { .. }));
        tuned.map(|piece| piece.info.name[PREFIX.len()..].to_string()).collect()
    }

    /// The tensors themselves.
    pub(super) fn tensors(&self) -> Result<Arc<dyn TensorSource>> {
        let tensors = self.pieces.iter().map(|piece| {
            let bytes = match &piece.from {
                From::Factor { bytes, .. } => bytes.clone(),
                From::Tuned { name } => {
                    let stored = find(self.tuned.infos(), name)?;
                    let bytes = self.tuned.read(name)?;
                    floats::check_finite(name, stored.dtype, &bytes)?;
                    SharedBytes::from_vec(floats::cast(name, stored.dtype, &bytes, piece.info.dtype)?)
                }
            };
            Ok((piece.info.clone(), bytes))
        });
        Ok(Arc::new(MemoryTensors::new(tensors.collect::<Result<Vec<_>>>()?)?))
    }

    /// Where they come from.
    pub(super) fn origins(&self, prepared: &Prepared) -> Vec<Origin> {
        let origin = |piece: &Piece| match &piece.from {
            From::Factor { of, .. } => {
                let sources = [0, 1].iter().flat_map(|model| prepared.sources(*model, of)).collect();
                Origin::Merged { sources, how: "factor of the difference, by singular values".to_string() }
            }
            From::Tuned { name } => match &prepared.sources(1, name)[..] {
                [(input, name)] => Origin::From { input: *input, name: name.clone() },
                sources => Origin::Merged { sources: sources.to_vec(), how: "the tuned model's".to_string() },
            },
        };
        self.pieces.iter().map(origin).collect()
    }

    /// Tensors of the models that nothing is made of, and why.
    pub(super) fn dropped(&self, prepared: &Prepared, changes: &Changes) -> Vec<(usize, String, String)> {
        let mut dropped = Vec::new();
        let mut drop = |model: usize, name: &str, reason: &str| {
            let sources = prepared.sources(model, name).into_iter();
            dropped.extend(sources.map(|(part, name)| (part, name, reason.to_string())));
        };
        let is_used = |model: usize, name: &str| {
            self.pieces.iter().any(|piece| match &piece.from {
                From::Factor { of, .. } => of == name,
                From::Tuned { name: own } => model == 1 && own == name,
            })
        };
        for tensor in &prepared.classified.shared {
            for model in [0, 1] {
                if is_used(model, &tensor.name) {
                    continue;
                }
                let reason = if !changes.is_changed(&tensor.name) {
                    "did not change"
                } else if tensor.kind == Kind::Linear {
                    "--target-modules does not name it"
                } else {
                    "the adapter brings the tuned model's"
                };
                drop(model, &tensor.name, reason);
            }
        }
        for (model, name, reason) in &prepared.classified.left_out {
            drop(*model, name, reason);
        }
        for (model, name, target) in &prepared.classified.ties {
            drop(*model, name, &format!("repeats {target}"));
        }
        dropped
    }
}

/// A matrix of that many rows, its values `width` bytes each, with rows and columns exchanged.
fn turned(bytes: &[u8], rows: usize, width: usize) -> Vec<u8> {
    let cols = bytes.len() / width / rows.max(1);
    let mut target = Vec::with_capacity(bytes.len());
    for col in 0..cols {
        for row in 0..rows {
            target.extend_from_slice(&bytes[(row * cols + col) * width..][..width]);
        }
    }
    target
}
