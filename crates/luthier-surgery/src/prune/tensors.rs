//! The output's tensors: where each comes from, what is done to it, and which of the input's go.

use std::collections::HashMap;
use std::sync::Arc;

use luthier_checkpoint::layout::{Layout, TensorSpec};
use luthier_checkpoint::{Checkpoint, Dtype, TensorInfo, TensorSource};

use super::Options;
use super::cut::{Cutter, Places};
use super::keep::StackKeep;
use super::sparse::{Criterion, Sparse, Sparsity, is_thinned};
use super::view::{Piece, Pruned};
use crate::view::find;
use crate::writing::Origin;
use crate::{Error, Input, Result};

pub(super) struct Made {
    pub(super) view: Pruned,
    pub(super) origins: Vec<Origin>,
    /// Tensors of the input that are in the output.
    pub(super) used: Vec<String>,
}

/// The output's tensors, in the order of the input's.
pub(super) fn made(
    checkpoint: &Checkpoint,
    cast: &Arc<dyn TensorSource>,
    after: &Layout,
    cutter: &Cutter,
    options: &Options,
) -> Result<Made> {
    let mut pieces = HashMap::new();
    let mut made: HashMap<String, (TensorInfo, Origin)> = HashMap::new();
    for spec in &after.tensors {
        let cut = cutter.cut(spec)?;
        let thinned = match options.sparsity.filter(|_| is_thinned(spec)) {
            Some(sparsity) => Some(thinned(spec, &cut.source, &cut.places, cutter, sparsity)?),
            None => None,
        };
        let piece = Piece { cut, thinned };
        for name in names(spec, after, checkpoint) {
            let dtype = find(cast.infos(), &piece.cut.source)?.dtype;
            let info = TensorInfo { name: name.clone(), dtype, shape: spec.shape.clone() };
            // A second name of a weight is cut from the first.
            let origin =
                origin(&piece, find(checkpoint.tensors.infos(), &piece.cut.source)?.dtype, dtype, options);
            pieces.insert(name.clone(), piece.clone());
            made.insert(name, (info, origin));
        }
    }
    let (mut infos, mut origins, mut used) = (Vec::new(), Vec::new(), Vec::new());
    let mut order: Vec<(&str, String)> = Vec::new();
    for (name, piece) in &pieces {
        order.push((piece.cut.source.as_str(), name.clone()));
    }
    let place = |name: &str| checkpoint.tensors.infos().iter().position(|info| info.name == name);
    order.sort_by_cached_key(|(source, name)| (place(name).or_else(|| place(source)), name.clone()));
    for (source, name) in order {
        if let Some((info, origin)) = made.remove(&name) {
            infos.push(info);
            origins.push(origin);
            used.push(source.to_string());
        }
    }
    Ok(Made { view: Pruned { source: Arc::clone(cast), infos, pieces }, origins, used })
}

/// The names under which a weight is written: its own, and second ones that the input has or that others look for.
fn names(spec: &TensorSpec, after: &Layout, checkpoint: &Checkpoint) -> Vec<String> {
    let carried = |name: &str| checkpoint.tensors.infos().iter().any(|info| info.name == name);
    let ties = after.ties.iter().filter(|tie| tie.target == spec.name && (tie.written || carried(&tie.name)));
    let mut names = vec![spec.name.clone()];
    names.extend(ties.map(|tie| tie.name.clone()));
    names
}

fn thinned(
    spec: &TensorSpec,
    source: &str,
    places: &Places,
    cutter: &Cutter,
    sparsity: Sparsity,
) -> Result<(Sparse, Option<Vec<f32>>)> {
    let columns = spec.shape.last().copied().unwrap_or(1);
    if let Sparse::Pattern { of, .. } = sparsity.amount
        && !columns.is_multiple_of(of)
    {
        return Err(Error::Use(format!(
            "--pattern {}: {} has rows of {columns}, which {of} does not divide",
            sparsity.amount.name(),
            spec.name
        )));
    }
    let inputs = match sparsity.by {
        Criterion::Magnitude => None,
        Criterion::Wanda => {
            let whole = cutter.before.tensors.iter().find(|spec| spec.name == source);
            let whole = whole.and_then(|spec| spec.shape.last().copied()).unwrap_or(columns);
            let inputs = cutter.scored.inputs(source, whole)?;
            let kept = |at: usize| inputs[at] as f32;
            Some(match places.last().cloned().flatten() {
                Some(places) => places.iter().map(|at| kept(*at)).collect(),
                None => (0..whole).map(kept).collect(),
            })
        }
    };
    Ok((sparsity.amount, inputs))
}

fn origin(piece: &Piece, stored: Dtype, dtype: Dtype, options: &Options) -> Origin {
    let mut how: Vec<String> = piece.cut.how.iter().cloned().collect();
    if let (Some(_), Some(sparsity)) = (&piece.thinned, options.sparsity) {
        how.push(format!("sparse {} by {}", sparsity.amount.name(), sparsity.by.name()));
    }
    let name = piece.cut.source.clone();
    if how.is_empty() {
        return Origin::From { input: 0, name };
    }
    if stored != dtype {
        how.insert(0, format!("{stored} as {dtype}"));
    }
    Origin::Changed { input: 0, name, how: how.join(", ") }
}

/// Tensors of the input that are not in the output, and why.
pub(super) fn dropped(
    input: &Input,
    before: &Layout,
    keeps: &[StackKeep],
    used: &[String],
    of_layer: &str,
) -> Vec<(usize, String, String)> {
    let stays = |spec: &TensorSpec| {
        let keep = keeps.iter().find(|keep| keep.kind == spec.role.stack);
        keep.is_some_and(|keep| keep.layers.iter().any(|layer| Some(layer.before) == spec.role.layer))
    };
    let mut dropped = Vec::new();
    for info in input.checkpoint.tensors.infos() {
        if used.contains(&info.name) {
            continue;
        }
        let spec = before.tensors.iter().find(|spec| spec.name == info.name);
        let tie = before.ties.iter().find(|tie| tie.name == info.name);
        let reason = match (spec, tie) {
            (Some(spec), _) if stays(spec) => "its expert counts less than others of its layer".to_string(),
            (Some(_), _) => of_layer.to_string(),
            (None, Some(tie)) => format!("repeats {}", tie.target),
            (None, None) => "a buffer that follows from the config".to_string(),
        };
        dropped.push((0, info.name.clone(), reason));
    }
    dropped
}

/// What `run` holds at most: the tensor that is worked on, its source where that is widened, and three finished ones on
/// their way to the disk.
pub(super) fn memory_bytes(view: &Pruned, stored: &[TensorInfo]) -> usize {
    let size = |info: &TensorInfo| info.dtype.size_bytes(&info.shape).unwrap_or(0);
    let values = |info: &TensorInfo| info.shape.iter().product::<usize>();
    let working = |info: &TensorInfo| {
        let Some(piece) = view.pieces.get(&info.name) else { return 0 };
        let source = find(view.source.infos(), &piece.cut.source).ok();
        let is_widened = source.is_some_and(|source| {
            find(stored, &piece.cut.source).is_ok_and(|stored| stored.dtype != source.dtype)
        });
        // Cast through f32.
        let widened =
            if is_widened { source.map_or(0, |source| size(source) + 4 * values(source)) } else { 0 };
        let is_changed = piece.cut.scaled.is_some() || piece.cut.added.is_some() || piece.thinned.is_some();
        let changed = if is_changed { 3 * 4 * values(info) } else { 0 };
        widened.max(changed + size(info)) + size(info)
    };
    let largest = view.infos.iter().map(size).max().unwrap_or(0);
    view.infos.iter().map(working).max().unwrap_or(0) + 3 * largest + (8 << 20)
}
