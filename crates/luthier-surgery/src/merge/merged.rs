//! The merged tensors as a source: each is computed when it is read.

use std::collections::HashMap;
use std::sync::Mutex;

use luthier_checkpoint::{Dtype, Error, Result, TensorInfo, TensorSource, values};
use luthier_kernels::blocks::{self, BlockType};
use luthier_kernels::bytes::SharedBytes;
use luthier_kernels::pool;

use super::method::{Group, Method};
use super::pairing::Piece;
use crate::Input;
use crate::view::find;

/// Values that one task handles: a whole number of blocks of every type.
const PIECE_LEN: usize = 1 << 16;

/// The tensors of a merge.
pub(crate) struct Merged {
    pub(crate) method: &'static Method,
    pub(crate) inputs: Vec<Input>,
    pub(crate) pieces: Vec<Piece>,
    pub(crate) infos: Vec<TensorInfo>,
    pub(crate) numbers: HashMap<String, usize>,
    pub(crate) seed: u64,
}

impl Merged {
    pub(crate) fn new(method: &'static Method, inputs: &[Input], pieces: Vec<Piece>, seed: u64) -> Merged {
        let infos: Vec<TensorInfo> = pieces.iter().map(|piece| piece.info.clone()).collect();
        let numbers = infos.iter().enumerate().map(|(number, info)| (info.name.clone(), number)).collect();
        Merged { method, inputs: inputs.to_vec(), pieces, infos, numbers, seed }
    }

    /// Whether a tensor of the result is an input's as it is.
    pub(crate) fn is_copy(&self, piece: &Piece) -> bool {
        let (number, name) = &piece.inputs[0];
        let stored = find(self.inputs[*number].checkpoint.tensors.infos(), name);
        let same_type = stored.is_ok_and(|info| info.dtype == piece.info.dtype);
        let unscaled = self.method.name == "passthrough" && piece.values[0][0].is_nan();
        same_type && (unscaled || !piece.info.dtype.is_float())
    }

    /// Merges values of all inputs, whole tensors or the same piece of each.
    fn merge(&self, piece: &Piece, shape: &[usize], tensors: &[Vec<f32>]) -> Result<Vec<f32>> {
        let name = &piece.info.name;
        let keeps = |input: usize, at: usize, share: f64| uniform(self.seed, name, input, at) < share;
        let group = Group {
            name,
            shape,
            tensors: tensors.iter().map(Vec::as_slice).collect(),
            base: piece.base,
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
        let number =
            self.numbers.get(name).ok_or_else(|| Error::tensor(name, "is not part of this merge"))?;
        let piece = &self.pieces[*number];
        let mut stored = Vec::new();
        for (input, name) in &piece.inputs {
            let source = &self.inputs[*input].checkpoint.tensors;
            stored.push((name.as_str(), find(source.infos(), name)?.dtype, source.read(name)?));
        }
        if self.is_copy(piece) {
            let (name, dtype, bytes) = &stored[0];
            values::check_finite(name, *dtype, bytes)?;
            for (position, (_, other_type, other)) in stored.iter().enumerate().skip(1) {
                if other_type != dtype || other[..] != bytes[..] {
                    let label = &self.inputs[piece.inputs[position].0].label;
                    let what = format!("holds {dtype} and differs in {label}; only floats are merged");
                    return Err(Error::tensor(*name, what));
                }
            }
            return Ok(bytes.clone());
        }
        let n_values: usize = piece.info.shape.iter().product();
        let (_, width) = piece.info.dtype.block();
        let mut target = vec![0u8; n_values * width];
        let problem: Mutex<Option<Error>> = Mutex::new(None);
        let note = |error: Error| {
            let mut problem = problem.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            problem.get_or_insert(error);
        };
        let whole = if self.method.by_value {
            None
        } else {
            let tensors = stored.iter().map(|stored| widened(stored, &piece.info));
            let tensors = tensors.collect::<Result<Vec<_>>>()?;
            Some(self.merge(piece, &piece.info.shape, &tensors)?)
        };
        pool::run_chunks(&mut target, PIECE_LEN * width, &|chunk, target| {
            let start = chunk * PIECE_LEN;
            let len = target.len() / width;
            let result = match &whole {
                Some(merged) => narrow(name, &merged[start..start + len], piece.info.dtype, target),
                None => stored
                    .iter()
                    .map(|stored| part(stored, start, len))
                    .collect::<Result<Vec<_>>>()
                    .and_then(|tensors| self.merge(piece, &[len], &tensors))
                    .and_then(|merged| narrow(name, &merged, piece.info.dtype, target)),
            };
            if let Err(error) = result {
                note(error);
            }
        });
        match problem.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(SharedBytes::from_vec(target)),
        }
    }
}

/// A number from 0 to 1 that depends on the place alone: splitmix64 of the seed, the name's FNV-1a hash, input and index.
pub(crate) fn uniform(seed: u64, name: &str, input: usize, at: usize) -> f64 {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let mix = |mut state: u64| {
        state = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        state = (state ^ (state >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        state ^ (state >> 31)
    };
    let stream = mix(mix(seed).wrapping_add(hash).wrapping_add(input as u64));
    (mix(stream.wrapping_add((at as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))) >> 11) as f64
        / (1u64 << 53) as f64
}

type Stored<'s> = (&'s str, Dtype, SharedBytes);

/// Values of a stored tensor as f32; refuses those that are not finite.
fn part((name, dtype, bytes): &Stored, start: usize, len: usize) -> Result<Vec<f32>> {
    let (block_len, block_bytes) = dtype.block();
    let from = start / block_len * block_bytes;
    let bytes = &bytes[from..from + len / block_len * block_bytes];
    let values = values::to_f32(name, *dtype, bytes)?;
    if !values.iter().fold(true, |finite, value| finite & value.is_finite()) {
        let at = values.iter().position(|value| !value.is_finite()).unwrap_or(0);
        let what = format!("value {} is NaN or infinite; the weights are damaged", start + at);
        return Err(Error::tensor(*name, what));
    }
    Ok(values)
}

fn widened(stored: &Stored, info: &TensorInfo) -> Result<Vec<f32>> {
    let mut values = vec![0f32; info.shape.iter().product()];
    let problem: Mutex<Option<Error>> = Mutex::new(None);
    pool::run_chunks(&mut values, PIECE_LEN, &|chunk, target| match part(
        stored,
        chunk * PIECE_LEN,
        target.len(),
    ) {
        Ok(values) => target.copy_from_slice(&values),
        Err(error) => {
            problem.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get_or_insert(error);
        }
    });
    match problem.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(values),
    }
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
        other => {
            return Err(Error::tensor(name, format!("holds {other}, which is not merged; wanted floats")));
        }
    }
    Ok(())
}
