//! The merged tensors as a source: each is computed when it is read.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use luthier_arch::random::{Stream, fraction, hash, mix};
use luthier_checkpoint::{Dtype, Error, Result, TensorInfo, TensorSource, values};
use luthier_kernels::blocks::{self, BlockType};
use luthier_kernels::bytes::SharedBytes;
use luthier_kernels::pool;

use super::cuts::TensorCut;
use super::method::{Cut, Group, Method, Reach};
use super::pairing::Piece;
use super::rows::{Rows, Whole};
use crate::Input;
use crate::view::find;

/// Values that one task handles: a whole number of blocks of every type, few enough to stay in a core's cache.
pub(super) const PIECE_LEN: usize = 1 << 14;

/// Values that are merged and handed on at once where a method does not need whole tensors.
pub(super) const PART_LEN: usize = 1 << 22;

/// Where the largest differences of each input end, in one tensor.
pub(super) type Cuts = Arc<Vec<Option<TensorCut>>>;

/// What the differences of each input are multiplied with, in one tensor.
pub(super) type Scales = Arc<Vec<Option<f32>>>;

/// The tensors of a merge.
pub(crate) struct Merged {
    pub(crate) method: &'static Method,
    pub(crate) inputs: Vec<Input>,
    pub(crate) pieces: Vec<Piece>,
    pub(crate) infos: Vec<TensorInfo>,
    pub(crate) numbers: HashMap<String, usize>,
    pub(crate) seed: u64,
    /// Of the tensor that was asked for last.
    pub(super) known_cuts: Mutex<Option<(String, Cuts)>>,
    /// Of the tensor that was asked for last.
    pub(super) known_scales: Mutex<Option<(String, Scales)>>,
    /// The inputs of the tensor whose rows were put together last.
    known_whole: Mutex<Option<(String, Arc<Whole>)>>,
}

impl Merged {
    pub(crate) fn new(method: &'static Method, inputs: &[Input], pieces: Vec<Piece>, seed: u64) -> Merged {
        let infos: Vec<TensorInfo> = pieces.iter().map(|piece| piece.info.clone()).collect();
        let numbers = infos.iter().enumerate().map(|(number, info)| (info.name.clone(), number)).collect();
        Merged {
            method,
            inputs: inputs.to_vec(),
            pieces,
            infos,
            numbers,
            seed,
            known_cuts: Mutex::default(),
            known_scales: Mutex::default(),
            known_whole: Mutex::default(),
        }
    }

    /// Whether a tensor of the result is an input's as it is.
    pub(crate) fn is_copy(&self, piece: &Piece) -> bool {
        let (number, name) = &piece.inputs[0];
        let stored = find(self.inputs[*number].checkpoint.tensors.infos(), name);
        let same_type = stored.is_ok_and(|info| info.dtype == piece.info.dtype);
        let unscaled = piece.kept || (self.method.name == "passthrough" && piece.values[0][0].is_nan());
        same_type && piece.rows.is_none() && (unscaled || !piece.info.dtype.is_float())
    }

    /// Whether a random value survives.
    pub(super) fn keeps(&self, name: &str, input: usize, at: usize, share: f64) -> bool {
        uniform(self.seed, name, input, at) < share
    }

    /// Values of a tensor that are asked for at once.
    pub(crate) fn part_len(&self, piece: &Piece) -> usize {
        let values: usize = piece.info.shape.iter().product();
        if self.part_bytes(&piece.info.name).is_some() { PART_LEN.min(values) } else { values }
    }

    /// Whether a tensor's largest differences are looked for before it is merged.
    pub(crate) fn is_cut(&self, piece: &Piece) -> bool {
        !piece.kept && matches!(self.method.reach, Reach::Largest(shares) if shares(&piece.values).is_some())
    }

    /// Merges values of all inputs, from number `first` on: whole tensors or the same piece of each.
    fn merge(
        &self,
        piece: &Piece,
        shape: &[usize],
        first: usize,
        tensors: &[Vec<f32>],
        cuts: Vec<Option<Cut>>,
        scales: &[Option<f32>],
    ) -> Result<Vec<f32>> {
        if piece.kept {
            return Ok(tensors[0].clone());
        }
        let name = &piece.info.name;
        let keeps = |input: usize, at: usize, share: f64| self.keeps(name, input, first + at, share);
        let group = Group {
            name,
            shape,
            tensors: tensors.iter().map(Vec::as_slice).collect(),
            base: piece.base,
            cuts,
            scales,
            values: &piece.values,
            keeps: &keeps,
        };
        (self.method.merge)(&group)
            .map_err(|what| Error::tensor(group.name, format!("{}: {what}", self.method.name)))
    }
}

impl TensorSource for Merged {
    fn infos(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn read(&self, name: &str) -> Result<SharedBytes> {
        let piece = self.piece(name)?;
        if self.is_copy(piece) {
            return self.copy(piece);
        }
        let n_values = piece.info.shape.iter().product();
        if self.part_bytes(name).is_some() {
            return self.compute(piece, 0..n_values);
        }
        let stored = self.stored(piece, 0..n_values)?;
        let tensors = stored.iter().map(|stored| widened(stored, n_values)).collect::<Result<Vec<_>>>()?;
        drop(stored);
        let merged = self.merge_whole(piece, tensors)?;
        let info = &piece.info;
        in_pieces(info, n_values, &|start, target: &mut [u8]| {
            let len = target.len() / info.dtype.block().1;
            narrow(name, &merged[start..start + len], info.dtype, target)
        })
    }

    fn part_bytes(&self, name: &str) -> Option<usize> {
        let piece = self.piece(name).ok().filter(|piece| !self.is_copy(piece))?;
        let in_parts = match self.method.reach {
            _ if piece.kept => true,
            Reach::Value | Reach::Drawn(_) => true,
            Reach::Largest(shares) => shares(&piece.values).is_some(),
            Reach::Tensor => false,
        };
        in_parts.then(|| PART_LEN * piece.info.dtype.block().1)
    }

    fn read_part(&self, name: &str, range: Range<usize>) -> Result<SharedBytes> {
        let piece = self.piece(name)?;
        let width = piece.info.dtype.block().1;
        if self.part_bytes(name).is_some() && range.start.is_multiple_of(PIECE_LEN * width) {
            return self.compute(piece, range.start / width..range.end / width);
        }
        let outside = || Error::tensor(name, "has no such part");
        self.read(name)?.part(range).ok_or_else(outside)
    }
}

impl Merged {
    /// Merges whole tensors. Rows that stand for no token are merged by themselves, so that they have no say in angles and
    /// sums over those that do.
    fn merge_whole(&self, piece: &Piece, mut tensors: Vec<Vec<f32>>) -> Result<Vec<f32>> {
        let shape = &piece.info.shape;
        let n_tokens = piece.rows.as_ref().map_or(shape[0], |rows| rows.n_tokens());
        let width: usize = shape[1..].iter().product();
        if n_tokens == 0 || n_tokens >= shape[0] {
            return self.merge(piece, shape, 0, &tensors, Vec::new(), &[]);
        }
        let rest: Vec<Vec<f32>> =
            tensors.iter_mut().map(|values| values.split_off(n_tokens * width)).collect();
        let part = |rows: usize, first: usize, values: &[Vec<f32>]| {
            let shape = [&[rows], &shape[1..]].concat();
            self.merge(piece, &shape, first, values, Vec::new(), &[])
        };
        let mut merged = part(n_tokens, 0, &tensors)?;
        drop(tensors);
        merged.extend(part(shape[0] - n_tokens, n_tokens * width, &rest)?);
        Ok(merged)
    }

    fn piece(&self, name: &str) -> Result<&Piece> {
        let number = self.numbers.get(name);
        number
            .map(|number| &self.pieces[*number])
            .ok_or_else(|| Error::tensor(name, "is not part of this merge"))
    }

    /// A tensor that all inputs hold alike.
    fn copy(&self, piece: &Piece) -> Result<SharedBytes> {
        let n_values = piece.info.shape.iter().product();
        let stored = self.stored(piece, 0..n_values)?;
        let first = &stored[0];
        values::check_finite(first.name, first.dtype, &first.bytes)?;
        for (position, other) in stored.iter().enumerate().skip(1) {
            if other.dtype != first.dtype || other.bytes[..] != first.bytes[..] {
                let label = &self.inputs[piece.inputs[position].0].label;
                let what = format!("holds {} and differs in {label}; only floats are merged", first.dtype);
                return Err(Error::tensor(first.name, what));
            }
        }
        Ok(first.bytes.clone())
    }

    /// The values `range` of each input, as they are stored.
    pub(super) fn stored<'s>(&'s self, piece: &'s Piece, range: Range<usize>) -> Result<Vec<Stored<'s>>> {
        if let Some(rows) = &piece.rows {
            return self.put_together(piece, rows, range);
        }
        let stored = piece.inputs.iter().map(|(input, name)| {
            let source = &self.inputs[*input].checkpoint.tensors;
            let dtype = find(source.infos(), name)?.dtype;
            let (block_len, block_bytes) = dtype.block();
            let bytes = range.start / block_len * block_bytes..range.end / block_len * block_bytes;
            Ok(Stored { name, dtype, bytes: source.read_part(name, bytes)?, first: range.start })
        });
        stored.collect()
    }

    /// The same where rows move: as f32.
    fn put_together<'s>(
        &'s self,
        piece: &'s Piece,
        rows: &Rows,
        range: Range<usize>,
    ) -> Result<Vec<Stored<'s>>> {
        let whole = self.whole(piece, rows)?;
        let info = TensorInfo { dtype: Dtype::F32, ..piece.info.clone() };
        let stored = piece.inputs.iter().enumerate().map(|(position, (_, name))| {
            let bytes = in_pieces(&info, range.len(), &|start, target: &mut [u8]| {
                let first = range.start + start;
                rows.fill(&whole, position, first..first + target.len() / 4, target)
            })?;
            Ok(Stored { name, dtype: Dtype::F32, bytes, first: range.start })
        });
        stored.collect()
    }

    /// The inputs' tensors whose rows a piece is made of; the last piece's are kept.
    fn whole(&self, piece: &Piece, rows: &Rows) -> Result<Arc<Whole>> {
        let mut known = self.known_whole.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((name, whole)) = &*known
            && *name == piece.info.name
        {
            return Ok(Arc::clone(whole));
        }
        *known = None;
        let mut tensors = Vec::new();
        for (input, name) in &piece.inputs {
            let source = &self.inputs[*input].checkpoint.tensors;
            tensors.push((name.clone(), find(source.infos(), name)?.dtype, source.read(name)?));
        }
        let whole = Arc::new(rows.whole(tensors)?);
        *known = Some((piece.info.name.clone(), Arc::clone(&whole)));
        Ok(whole)
    }

    /// The values `range` of the result, which starts at a multiple of `PIECE_LEN`.
    fn compute(&self, piece: &Piece, range: Range<usize>) -> Result<SharedBytes> {
        let (cuts, scales) = (self.cuts(piece)?, self.scales(piece)?);
        let stored = self.stored(piece, range.clone())?;
        let info = &piece.info;
        in_pieces(info, range.len(), &|start, target: &mut [u8]| {
            let len = target.len() / info.dtype.block().1;
            let tensors = stored.iter().map(|stored| part(stored, start, len)).collect::<Result<Vec<_>>>()?;
            let at = (range.start + start) / PIECE_LEN;
            let cuts = cuts.iter().map(|cut| cut.as_ref().map(|cut| cut.at(at))).collect();
            let first = range.start + start;
            let merged = self.merge(piece, &[len], first, &tensors, cuts, &scales)?;
            narrow(&info.name, &merged, info.dtype, target)
        })
    }
}

/// Bytes of `len` values of a tensor's type, made piece by piece on all threads; `make` gets the first value's number.
fn in_pieces(
    info: &TensorInfo,
    len: usize,
    make: &(dyn Fn(usize, &mut [u8]) -> Result<()> + Sync),
) -> Result<SharedBytes> {
    let width = info.dtype.block().1;
    let mut target = vec![0u8; len * width];
    let problem = Problem::default();
    pool::run_chunks(&mut target, PIECE_LEN * width, &|chunk, target| {
        if let Err(error) = make(chunk * PIECE_LEN, target) {
            problem.note(error);
        }
    });
    problem.into_result().map(|()| SharedBytes::from_vec(target))
}

/// The first error of several tasks.
#[derive(Default)]
pub(super) struct Problem(Mutex<Option<Error>>);

impl Problem {
    pub(super) fn note(&self, error: Error) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }

    pub(super) fn into_result(self) -> Result<()> {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }
}

/// A number from 0 to 1 that depends on the place alone: splitmix64 of the seed, the name's FNV-1a hash, input and index.
pub(crate) fn uniform(seed: u64, name: &str, input: usize, at: usize) -> f64 {
    let start = mix(seed).wrapping_add(hash(name, 0)).wrapping_add(input as u64);
    fraction(Stream::new(mix(start)).bits_at(at as u64))
}

/// Values of an input's tensor from number `first` on, as they are stored.
pub(super) struct Stored<'s> {
    name: &'s str,
    dtype: Dtype,
    bytes: SharedBytes,
    first: usize,
}

/// Values of a stored tensor as f32; refuses those that are not finite.
pub(super) fn part(stored: &Stored, start: usize, len: usize) -> Result<Vec<f32>> {
    let (block_len, block_bytes) = stored.dtype.block();
    let from = start / block_len * block_bytes;
    let bytes = &stored.bytes[from..from + len / block_len * block_bytes];
    let values = values::to_f32(stored.name, stored.dtype, bytes)?;
    if !values.iter().fold(true, |finite, value| finite & value.is_finite()) {
        let at = values.iter().position(|value| !value.is_finite()).unwrap_or(0);
        let at = stored.first + start + at;
        let what = format!("value {at} is NaN or infinite; the weights are damaged");
        return Err(Error::tensor(stored.name, what));
    }
    Ok(values)
}

fn widened(stored: &Stored, n_values: usize) -> Result<Vec<f32>> {
    let mut values = vec![0f32; n_values];
    let problem = Problem::default();
    pool::run_chunks(&mut values, PIECE_LEN, &|chunk, target| match part(
        stored,
        chunk * PIECE_LEN,
        target.len(),
    ) {
        Ok(values) => target.copy_from_slice(&values),
        Err(error) => problem.note(error),
    });
    problem.into_result().map(|()| values)
}

/// Rounds to the stored type; refuses values that it cannot hold.
fn narrow(name: &str, values: &[f32], dtype: Dtype, target: &mut [u8]) -> Result<()> {
    let limit = match dtype {
        Dtype::Weights(BlockType::F16) => 65519.996,
        Dtype::Weights(BlockType::BF16) => f32::from_bits(0x7f7f_7fff),
        _ => f32::MAX,
    };
    if !values.iter().fold(true, |fits, value| fits & (value.abs() <= limit)) {
        let value = values.iter().find(|value| value.is_nan() || value.abs() > limit);
        let value = value.copied().unwrap_or(f32::NAN);
        return Err(Error::tensor(
            name,
            format!("merges to {value}, which {dtype} cannot hold; use bfloat16 or float32"),
        ));
    }
    match dtype {
        Dtype::Weights(BlockType::F16) => blocks::narrow_f16(values, target),
        Dtype::Weights(BlockType::BF16) => blocks::narrow_bf16(values, target),
        Dtype::Weights(BlockType::F32) => target
            .chunks_exact_mut(4)
            .zip(values)
            .for_each(|(target, value)| target.copy_from_slice(&value.to_le_bytes())),
        Dtype::F64 => target
            .chunks_exact_mut(8)
            .zip(values)
            .for_each(|(target, value)| target.copy_from_slice(&f64::from(*value).to_le_bytes())),
        other => {
            return Err(Error::tensor(name, format!("holds {other}, which is not merged; wanted floats")));
        }
    }
    Ok(())
}
