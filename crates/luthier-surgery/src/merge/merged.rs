//! The merged tensors as a source: each is computed when it is read.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use luthier_arch::random::{Stream, fraction, hash, mix};
use luthier_checkpoint::{Dtype, Error, Result, TensorInfo, TensorSource, values};
use luthier_kernels::blocks::{self, BlockType};
use luthier_kernels::bytes::SharedBytes;
use luthier_kernels::pool;

use super::looks::Known;
use super::method::{Method, Unit};
use super::pairing::Piece;
use super::rows::{Rows, Whole};
use crate::Input;
use crate::view::find;

/// Values that one task handles, where a method leaves it at that: a whole number of blocks of every type, few enough to
/// stay in a core's cache.
const PIECE_LEN: usize = 1 << 14;

/// Values that are merged and handed on at once, where a method leaves it at that.
const PART_LEN: usize = 1 << 20;

/// The tensors of a merge.
pub(crate) struct Merged {
    pub(crate) method: &'static Method,
    pub(crate) inputs: Vec<Input>,
    pub(crate) pieces: Vec<Piece>,
    pub(crate) infos: Vec<TensorInfo>,
    pub(crate) numbers: HashMap<String, usize>,
    pub(crate) seed: u64,
    /// What was found out of the tensor that was asked for last, section by section.
    pub(super) known: Mutex<Option<(String, Arc<Vec<Known>>)>>,
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
            known: Mutex::default(),
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

    /// What of a tensor is merged at once. Of one axis a line is all there is.
    fn unit(&self, piece: &Piece) -> Unit {
        match (self.method.unit)(&piece.values) {
            Unit::Line | Unit::Place if piece.info.shape.len() < 2 => Unit::Whole,
            unit => unit,
        }
    }

    /// Values that one task merges: whole units, about as many as stay in a core's cache.
    pub(super) fn piece_len(&self, piece: &Piece) -> usize {
        let shape = &piece.info.shape;
        let unit_len = match piece.kept {
            true => 1,
            false => match self.unit(piece) {
                Unit::Value => 1,
                Unit::Line => shape[shape.len() - 1],
                Unit::Place => shape[1..].iter().product(),
                Unit::Whole => shape.iter().product(),
            },
        };
        let unit_len = unit_len.max(1);
        unit_len * (PIECE_LEN / unit_len).max(1)
    }

    /// Values of a tensor that are asked for at once.
    pub(super) fn part_len(&self, piece: &Piece) -> usize {
        let piece_len = self.piece_len(piece);
        piece_len * (PART_LEN / piece_len).max(1)
    }

    /// The shape of so many values of a tensor, which are whole units.
    pub(super) fn shape_of(&self, piece: &Piece, len: usize) -> Vec<usize> {
        let shape = &piece.info.shape;
        let inner = match self.unit(piece) {
            Unit::Value => &[],
            Unit::Line => &shape[shape.len() - 1..],
            Unit::Place | Unit::Whole => shape.get(1..).unwrap_or_default(),
        };
        let inner_len: usize = inner.iter().product();
        [&[len / inner_len.max(1)], inner].concat()
    }

    /// Where the values of rows that stand for tokens end.
    pub(super) fn tokens_end(&self, piece: &Piece) -> usize {
        let n_values: usize = piece.info.shape.iter().product();
        let Some(rows) = &piece.rows else { return n_values };
        let n_rows = piece.info.shape[0];
        match rows.n_tokens() {
            0 => n_values,
            n_tokens => n_values / n_rows.max(1) * n_tokens.min(n_rows),
        }
    }

    /// The number of the piece in which a value lies: pieces end at multiples of their length, and where tokens end.
    pub(super) fn piece_at(&self, piece: &Piece, value: usize) -> usize {
        let (len, end) = (self.piece_len(piece), self.tokens_end(piece));
        value / len + usize::from(value >= end && !end.is_multiple_of(len))
    }

    /// The pieces of a range of values, which lies in one section.
    pub(super) fn pieces_of(&self, piece: &Piece, range: &Range<usize>) -> Vec<Range<usize>> {
        stretches(range, self.piece_len(piece)).collect()
    }

    /// The parts of a range of values, which lies in one section.
    pub(super) fn parts(&self, piece: &Piece, range: &Range<usize>) -> impl Iterator<Item = Range<usize>> {
        stretches(range, self.part_len(piece))
    }
}

/// What of a range lies between multiples of a length.
fn stretches(range: &Range<usize>, len: usize) -> impl Iterator<Item = Range<usize>> {
    let (mut at, end) = (range.start, range.end);
    std::iter::from_fn(move || {
        let start = at;
        at = end.min((start / len + 1) * len);
        (start < end).then_some(start..at)
    })
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
        self.compute(piece, 0..piece.info.shape.iter().product())
    }

    fn part_bytes(&self, name: &str) -> Option<usize> {
        let piece = self.piece(name).ok().filter(|piece| !self.is_copy(piece))?;
        Some(self.part_len(piece) * piece.info.dtype.block().1)
    }

    fn read_part(&self, name: &str, range: Range<usize>) -> Result<SharedBytes> {
        let piece = self.piece(name)?;
        let width = piece.info.dtype.block().1;
        if self.part_bytes(name).is_some() && range.start.is_multiple_of(self.piece_len(piece) * width) {
            return self.compute(piece, range.start / width..range.end / width);
        }
        let outside = || Error::tensor(name, "has no such part");
        self.read(name)?.part(range).ok_or_else(outside)
    }
}

impl Merged {
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
            let bytes = in_pieces(&info, range.len(), PIECE_LEN, &|start, target: &mut [u8]| {
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

    /// The values `range` of the result, which starts at the first of a piece.
    fn compute(&self, piece: &Piece, range: Range<usize>) -> Result<SharedBytes> {
        let (info, width) = (&piece.info, piece.info.dtype.block().1);
        let known = if piece.kept { Arc::default() } else { self.known(piece)? };
        let sections = if piece.kept { Vec::new() } else { self.sections(piece) };
        let stored = self.stored(piece, range.clone())?;
        in_pieces(info, range.len(), self.piece_len(piece), &|start, target: &mut [u8]| {
            let values = range.start + start..range.start + start + target.len() / width;
            if piece.kept {
                return narrow(&info.name, &part(&stored[0], start, values.len())?, info.dtype, target);
            }
            for (section, known) in sections.iter().zip(known.iter()) {
                let own = section.within(&values);
                if own.is_empty() {
                    continue;
                }
                let tensors = stored.iter().map(|stored| part(stored, own.start - range.start, own.len()));
                let tensors = tensors.collect::<Result<Vec<_>>>()?;
                let merged = section.show(known, &own, &tensors, &|group| {
                    (self.method.merge)(group).map_err(|what| section.wrong(&what))
                })?;
                let target = &mut target[(own.start - values.start) * width..][..own.len() * width];
                narrow(&info.name, &merged, info.dtype, target)?;
            }
            Ok(())
        })
    }
}

/// Bytes of `len` values of a tensor's type, made piece by piece on all threads; `make` gets the first value's number.
fn in_pieces(
    info: &TensorInfo,
    len: usize,
    piece_len: usize,
    make: &(dyn Fn(usize, &mut [u8]) -> Result<()> + Sync),
) -> Result<SharedBytes> {
    let width = info.dtype.block().1;
    let mut target = vec![0u8; len * width];
    let problem = Problem::default();
    pool::run_chunks(&mut target, piece_len * width, &|chunk, target| {
        if let Err(error) = make(chunk * piece_len, target) {
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
