//! From a checkpoint to a model: every tensor is used, a known repetition, a known leftover, or an error.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use candle_core::{Device, Tensor};
use luthier_checkpoint::layout::{Layout, TensorSpec};
use luthier_checkpoint::{Checkpoint, Dtype, TensorInfo};
use luthier_kernels::blocks::{BlockType, dequantize};
use luthier_kernels::bytes::SharedBytes;
use luthier_kernels::packed::{Packed, Precision};
use luthier_kernels::pages::LargePages;
use luthier_ops::{StoredMatrix, Weight};

use crate::model::Model;
use crate::packing::{kind, pack};
use crate::weights::WeightSet;
use crate::{Error, Result, finite, memory, table};

/// How a model is loaded.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Whether weights become f32 values that can be trained; otherwise matrices stay as their file stores them.
    pub trainable: bool,
    /// Where the model computes.
    pub device: Device,
}

/// The model of a checkpoint. Errors name the tensor or the config key that is at fault.
pub fn load(checkpoint: &Checkpoint, options: &LoadOptions) -> Result<Box<dyn Model>> {
    let shape = table::shape(&checkpoint.config)?.fitted(checkpoint.tensors.infos());
    let layout = shape.layout();
    let stored = check_tensors(&layout, checkpoint)?;
    compare_ties(&layout, checkpoint, &stored)?;
    if options.trainable && options.device.is_cpu() {
        memory::check_parameters(layout.parameters())?;
    }
    let mut pieces = Vec::with_capacity(layout.tensors.len());
    for spec in &layout.tensors {
        let (block_type, bytes) = (stored[spec.name.as_str()], checkpoint.tensors.read(&spec.name)?);
        check_bytes(&spec.name, &spec.shape, block_type, bytes.len())?;
        pieces.push((spec, block_type, bytes));
    }
    check_values(&pieces)?;
    let weights =
        pieces.into_iter().map(|piece| weight(piece, options, Precision::Precise)).collect::<Result<_>>()?;
    shape.build(&checkpoint.config, WeightSet::new(&layout, weights, &options.device)?)
}

/// The model of a checkpoint, to score and to generate with: quantised matrices are packed for products in whole numbers, one
/// after the other, so that no more than one of them is held in its file's form; the rest stays as it is stored.
pub fn load_packed(checkpoint: &Checkpoint, precision: Precision) -> Result<Box<dyn Model>> {
    let shape = table::shape(&checkpoint.config)?.fitted(checkpoint.tensors.infos());
    let layout = shape.layout();
    let stored = check_tensors(&layout, checkpoint)?;
    compare_ties(&layout, checkpoint, &stored)?;
    let kind = |spec: &TensorSpec| kind(checkpoint, &spec.name, stored[spec.name.as_str()]);
    let packed_bytes = |spec: &TensorSpec| match spec.shape[..] {
        [rows, cols] => Packed::bytes_for(kind(spec), rows, cols),
        _ => None,
    };
    let total: usize = layout.tensors.iter().filter_map(packed_bytes).sum();
    let mut pages = LargePages::zeroed(total)
        .map_err(|source| Error::Use(format!("{total} bytes for the weights: the system says {source}")))?;
    let (mut start, mut places, mut plain) = (0, Vec::new(), Vec::new());
    for spec in &layout.tensors {
        let place = packed_bytes(spec).map(|len| start..start + len);
        places.push(match place {
            Some(place) => {
                start = place.end;
                let packed = pack(checkpoint, spec, kind(spec), &mut pages.as_mut()[place.clone()])?;
                Some((packed, place))
            }
            None => {
                let (block_type, bytes) = (stored[spec.name.as_str()], checkpoint.tensors.read(&spec.name)?);
                check_bytes(&spec.name, &spec.shape, block_type, bytes.len())?;
                plain.push((spec, block_type, bytes));
                None
            }
        });
    }
    check_values(&plain)?;
    let options = LoadOptions { trainable: false, device: Device::Cpu };
    let mut plain = plain.into_iter();
    let owner: Arc<dyn AsRef<[u8]> + Send + Sync> = Arc::new(pages);
    let weights = layout.tensors.iter().zip(places).map(|(spec, place)| {
        let Some((packed, place)) = place else {
            return weight(plain.next().expect("one for each that is not packed"), &options, precision);
        };
        let bytes = SharedBytes::new(Arc::clone(&owner), place).expect("a place inside the pages");
        Ok(Weight::packed(&spec.name, Packed::new(packed, bytes, precision)))
    });
    let weights = weights.collect::<Result<_>>()?;
    shape.build(&checkpoint.config, WeightSet::new(&layout, weights, &options.device)?)
}

/// The layout of a checkpoint whose tensors are those that its config describes, by their headers alone.
pub fn check_headers(checkpoint: &Checkpoint) -> Result<Layout> {
    let layout = table::layout_of(checkpoint)?;
    check_tensors(&layout, checkpoint)?;
    Ok(layout)
}

/// The same checkpoint with the `model_type` that its config.json lacks, as those of 2019 do, where its tensors are those of
/// one architecture alone.
pub(crate) fn recognised(mut checkpoint: Checkpoint) -> Checkpoint {
    if checkpoint.config.contains_key("model_type") {
        return checkpoint;
    }
    let named = |architecture: &table::Architecture| {
        let mut config = checkpoint.config.clone();
        config.insert("model_type".to_string(), architecture.model_type.into());
        Checkpoint { config, ..checkpoint.clone() }
    };
    let fitting = table::ARCHITECTURES.iter().map(named).filter(|named| check_headers(named).is_ok());
    if let [one] = &fitting.collect::<Vec<_>>()[..] {
        checkpoint.config.clone_from(&one.config);
    }
    checkpoint
}

/// Compares the layout with the headers; the tensors' block types by name.
fn check_tensors<'a>(layout: &'a Layout, checkpoint: &Checkpoint) -> Result<HashMap<&'a str, BlockType>> {
    let infos: HashMap<&str, &TensorInfo> =
        checkpoint.tensors.infos().iter().map(|info| (info.name.as_str(), info)).collect();
    let mut stored = HashMap::new();
    for spec in &layout.tensors {
        let info = infos.get(spec.name.as_str()).ok_or_else(|| missing(spec, checkpoint))?;
        check_shape(&spec.name, &spec.shape, info)?;
        stored.insert(spec.name.as_str(), block_type(info)?);
    }
    for tie in &layout.ties {
        if let Some(info) = infos.get(tie.name.as_str()) {
            let target = layout.tensors.iter().find(|spec| spec.name == tie.target);
            let target = target.ok_or_else(|| Error::tensor(&tie.target, "missing"))?;
            check_shape(&tie.name, &target.shape, info)?;
            stored.insert(tie.name.as_str(), block_type(info)?);
        }
    }
    for info in checkpoint.tensors.infos() {
        let known = stored.contains_key(info.name.as_str()) || is_leftover(&info.name);
        if !known {
            let what = format!(
                "shape {:?}: a model of this config.json has no such tensor; does model_type or a size fit?",
                info.shape
            );
            return Err(Error::tensor(&info.name, what));
        }
    }
    Ok(stored)
}

fn missing(spec: &TensorSpec, checkpoint: &Checkpoint) -> Error {
    let what =
        format!("missing from {}; the config asks for shape {:?}", checkpoint.place.display(), spec.shape);
    Error::tensor(&spec.name, what)
}

fn check_shape(name: &str, wanted: &[usize], info: &TensorInfo) -> Result<()> {
    if info.shape == wanted {
        return Ok(());
    }
    let what = format!("expected shape {wanted:?} from the config, found {:?}", info.shape);
    Err(Error::tensor(name, what))
}

fn block_type(info: &TensorInfo) -> Result<BlockType> {
    match info.dtype {
        Dtype::Weights(block_type) => Ok(block_type),
        other => {
            Err(Error::tensor(&info.name, format!("expected floats or quantised blocks, found {other:?}")))
        }
    }
}

/// Buffers that old files carry and that follow from the config.
fn is_leftover(name: &str) -> bool {
    const BUFFERS: [&str; 2] = ["embeddings.position_ids", "embeddings.token_type_ids"];
    name.ends_with(".rotary_emb.inv_freq") || BUFFERS.iter().any(|buffer| name.ends_with(buffer))
}

/// Refuses a tied weight that the files carry twice with different values; reads those tensors.
pub fn check_ties(checkpoint: &Checkpoint) -> Result<()> {
    let layout = table::layout_of(checkpoint)?;
    let stored = check_tensors(&layout, checkpoint)?;
    compare_ties(&layout, checkpoint, &stored)
}

fn compare_ties(layout: &Layout, checkpoint: &Checkpoint, stored: &HashMap<&str, BlockType>) -> Result<()> {
    for tie in &layout.ties {
        let Some(own_type) = stored.get(tie.name.as_str()) else { continue };
        let target_type = stored[tie.target.as_str()];
        let (own, target) = (checkpoint.tensors.read(&tie.name)?, checkpoint.tensors.read(&tie.target)?);
        let same = *own_type == target_type && own[..] == target[..];
        if !same && widen(&tie.name, *own_type, &own)? != widen(&tie.target, target_type, &target)? {
            let what = format!(
                "differs from {}, but the config ties them; set tie_word_embeddings to false to keep both",
                tie.target
            );
            return Err(Error::tensor(&tie.name, what));
        }
    }
    Ok(())
}

/// A weight as its file has it.
type Piece<'a> = (&'a TensorSpec, BlockType, SharedBytes);

/// Looks for NaN and infinity on all threads; the error is that of the first bad tensor.
fn check_values(pieces: &[Piece]) -> Result<()> {
    let found: Vec<OnceLock<Error>> = pieces.iter().map(|_| OnceLock::new()).collect();
    luthier_kernels::pool::run(pieces.len(), &|at| {
        let (spec, block_type, bytes) = &pieces[at];
        if let Err(error) = finite::check(&spec.name, *block_type, bytes) {
            found[at].get_or_init(|| error);
        }
    });
    found.into_iter().find_map(OnceLock::into_inner).map_or(Ok(()), Err)
}

fn weight((spec, block_type, bytes): Piece, options: &LoadOptions, precision: Precision) -> Result<Weight> {
    if let ([rows, cols], false, true) = (&spec.shape[..], options.trainable, options.device.is_cpu()) {
        let (rows, cols) = (*rows, *cols);
        return Ok(Weight::stored(&spec.name, StoredMatrix { block_type, bytes, rows, cols, precision }));
    }
    let values = widen(&spec.name, block_type, &bytes)?;
    let values = Tensor::from_vec(values, spec.shape.as_slice(), &options.device)?;
    Ok(Weight::dense(&spec.name, &values, options.trainable)?)
}

pub(crate) fn check_bytes(name: &str, shape: &[usize], block_type: BlockType, got: usize) -> Result<()> {
    let cols = shape.last().copied().unwrap_or(1);
    let values: usize = shape.iter().product();
    let wanted = values / block_type.block_len() * block_type.block_bytes();
    if cols % block_type.block_len() != 0 || got != wanted {
        let what = format!("expected {wanted} bytes of {block_type:?} for shape {shape:?}, found {got}");
        return Err(Error::tensor(name, what));
    }
    Ok(())
}

fn widen(name: &str, block_type: BlockType, bytes: &[u8]) -> Result<Vec<f32>> {
    if !bytes.len().is_multiple_of(block_type.block_bytes()) {
        return Err(Error::tensor(
            name,
            format!("{} bytes are no whole number of {block_type:?} blocks", bytes.len()),
        ));
    }
    let mut values = vec![0f32; bytes.len() / block_type.block_bytes() * block_type.block_len()];
    dequantize(block_type, bytes, &mut values);
    Ok(values)
}
