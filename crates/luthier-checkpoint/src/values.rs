//! Values inside tensors: casts between float types, and the search for NaN and infinity.

use half::{bf16, f16};
use luthier_kernels::blocks::{self, BlockType};

use crate::{Dtype, Error, Result};

/// Values handled at once; a multiple of every block length.
const CHUNK: usize = 4096;

/// Widens a float tensor (quantised blocks included) to f32. F64 is rounded to the nearest.
pub fn to_f32(name: &str, dtype: Dtype, bytes: &[u8]) -> Result<Vec<f32>> {
    let mut values = vec![0f32; value_count(name, dtype, bytes)?];
    widen(name, dtype, bytes, &mut values)?;
    Ok(values)
}

/// Casts a float tensor to F32, F16, BF16 or F64, rounding to nearest even. A finite value that becomes infinite is
/// refused. A quantised target is refused: quantising is a verb of its own.
pub fn cast(name: &str, from: Dtype, bytes: &[u8], to: Dtype) -> Result<Vec<u8>> {
    if from == to {
        return Ok(bytes.to_vec());
    }
    let n_values = value_count(name, from, bytes)?;
    let (1, target_bytes) = to.block() else {
        return Err(Error::tensor(name, format!("a cast cannot make {to}; wanted F32, F16, BF16 or F64")));
    };
    let mut target = vec![0u8; n_values * target_bytes];
    if from == Dtype::F64 {
        cast_f64(name, bytes, to, &mut target)?;
        return Ok(target);
    }
    let (block_len, block_bytes) = from.block();
    let mut values = vec![0f32; CHUNK.min(n_values)];
    let source_chunks = bytes.chunks(CHUNK / block_len * block_bytes);
    for (chunk_idx, (source, target)) in
        source_chunks.zip(target.chunks_mut(CHUNK * target_bytes)).enumerate()
    {
        let values = &mut values[..target.len() / target_bytes];
        widen(name, from, source, values)?;
        narrow(name, values, to, target)?;
        refuse_new_infinity(name, values, to, target, chunk_idx * CHUNK)?;
    }
    Ok(target)
}

/// Refuses a float tensor that holds NaN or infinity, naming the first place. Integers pass.
pub fn check_finite(name: &str, dtype: Dtype, bytes: &[u8]) -> Result<()> {
    if !dtype.is_float() {
        return Ok(());
    }
    value_count(name, dtype, bytes)?;
    let (block_len, block_bytes) = dtype.block();
    let mut values = vec![0f32; CHUNK];
    for (chunk_idx, source) in bytes.chunks(CHUNK / block_len * block_bytes).enumerate() {
        let position = match dtype {
            Dtype::F64 => f64s(source).position(|value| !value.is_finite()),
            // All exponent bits set is infinity in E5M2; E4M3 has only NaN, all bits but the sign set.
            Dtype::F8E5M2 => source.iter().position(|byte| byte & 0x7c == 0x7c),
            Dtype::F8E4M3 => source.iter().position(|byte| byte & 0x7f == 0x7f),
            _ => {
                let values = &mut values[..source.len() / block_bytes * block_len];
                widen(name, dtype, source, values)?;
                // One pass without a branch over what is nearly always finite.
                let all_finite = values.iter().fold(true, |finite, value| finite & value.is_finite());
                (!all_finite).then(|| values.iter().position(|value| !value.is_finite())).flatten()
            }
        };
        if let Some(position) = position {
            return Err(Error::tensor(
                name,
                format!("value {} is NaN or infinite; the weights are damaged", chunk_idx * CHUNK + position),
            ));
        }
    }
    Ok(())
}

fn value_count(name: &str, dtype: Dtype, bytes: &[u8]) -> Result<usize> {
    let (block_len, block_bytes) = dtype.block();
    if !bytes.len().is_multiple_of(block_bytes) {
        return Err(Error::tensor(
            name,
            format!("{} bytes are no whole number of {dtype} blocks", bytes.len()),
        ));
    }
    Ok(bytes.len() / block_bytes * block_len)
}

fn f64s(bytes: &[u8]) -> impl Iterator<Item = f64> + '_ {
    bytes.chunks_exact(8).map(|value| f64::from_le_bytes(value.try_into().expect("chunks have 8 bytes")))
}

fn widen(name: &str, dtype: Dtype, source: &[u8], target: &mut [f32]) -> Result<()> {
    match dtype {
        Dtype::Weights(block_type) => blocks::dequantize(block_type, source, target),
        Dtype::F64 => target.iter_mut().zip(f64s(source)).for_each(|(target, value)| *target = value as f32),
        _ => {
            return Err(Error::tensor(
                name,
                format!("holds {dtype}, which is not computed with; wanted floats"),
            ));
        }
    }
    Ok(())
}

fn narrow(name: &str, values: &[f32], to: Dtype, target: &mut [u8]) -> Result<()> {
    match to {
        Dtype::Weights(BlockType::F32) => target
            .chunks_exact_mut(4)
            .zip(values)
            .for_each(|(target, value)| target.copy_from_slice(&value.to_le_bytes())),
        Dtype::Weights(BlockType::F16) => blocks::narrow_f16(values, target),
        Dtype::Weights(BlockType::BF16) => blocks::narrow_bf16(values, target),
        Dtype::F64 => target
            .chunks_exact_mut(8)
            .zip(values)
            .for_each(|(target, value)| target.copy_from_slice(&f64::from(*value).to_le_bytes())),
        _ => {
            return Err(Error::tensor(
                name,
                format!("a cast cannot make {to}; wanted F32, F16, BF16 or F64"),
            ));
        }
    }
    Ok(())
}

fn cast_f64(name: &str, bytes: &[u8], to: Dtype, target: &mut [u8]) -> Result<()> {
    let (_, target_bytes) = to.block();
    for (value_idx, (value, target)) in f64s(bytes).zip(target.chunks_exact_mut(target_bytes)).enumerate() {
        let infinite = match to {
            Dtype::Weights(BlockType::F32) => {
                target.copy_from_slice(&(value as f32).to_le_bytes());
                (value as f32).is_infinite()
            }
            Dtype::Weights(BlockType::F16) => {
                target.copy_from_slice(&f16::from_f64(value).to_le_bytes());
                f16::from_f64(value).is_infinite()
            }
            Dtype::Weights(BlockType::BF16) => {
                target.copy_from_slice(&bf16::from_f64(value).to_le_bytes());
                bf16::from_f64(value).is_infinite()
            }
            _ => return Err(Error::tensor(name, format!("a cast cannot make {to} of F64"))),
        };
        if infinite && value.is_finite() {
            return Err(too_large(name, value_idx, value, to));
        }
    }
    Ok(())
}

fn refuse_new_infinity(name: &str, values: &[f32], to: Dtype, target: &[u8], first_idx: usize) -> Result<()> {
    // The largest f32 that each type still rounds to a finite value.
    let limit = match to {
        Dtype::Weights(BlockType::F16) => 65519.996,
        Dtype::Weights(BlockType::BF16) => f32::from_bits(0x7f7f_7fff),
        _ => return Ok(()),
    };
    debug_assert_eq!(values.len() * 2, target.len());
    let fits = values.iter().fold(true, |fits, value| fits & !(value.is_finite() && value.abs() > limit));
    if fits {
        return Ok(());
    }
    let found = values.iter().position(|value| value.is_finite() && value.abs() > limit);
    let value_idx = found.expect("the fold saw it");
    Err(too_large(name, first_idx + value_idx, f64::from(values[value_idx]), to))
}

fn too_large(name: &str, value_idx: usize, value: f64, to: Dtype) -> Error {
    Error::tensor(name, format!("value {value_idx} is {value}, too large for {to}; use bf16 or f32"))
}
