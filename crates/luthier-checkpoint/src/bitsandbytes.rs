//! Model folders whose matrices bitsandbytes has rounded (nf4, fp4, int8), as transformers saves them: read as plain floats.
//!
//! 4 bits: `W` is U8 [ceil(n / 2), 1]; beside it `W.absmax`, `W.quant_map`, `W.quant_state.bitsandbytes__nf4` (JSON as
//! bytes) and, where scales are rounded too, `W.nested_absmax` and `W.nested_quant_map`. int8: `M.weight` is I8, `M.SCB`
//! holds a scale for each row, `M.weight_format` says 0. Source: bitsandbytes 0.50.2 (`QuantState`), transformers 5.23.

use std::collections::HashMap;
use std::sync::Arc;

use luthier_kernels::bitsandbytes::{dequantize_4bit, dequantize_int8, dequantize_nested};
use luthier_kernels::bytes::SharedBytes;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{Dtype, Error, Result, TensorInfo, TensorSource, values};

/// The key of config.json that says how weights are rounded.
pub const CONFIG_KEY: &str = "quantization_config";

/// What stands between a weight's name and its kind in the name of its state.
pub const STATE_ENDING: &str = ".quant_state.bitsandbytes__";

/// What the state of a 4-bit weight says.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct QuantState {
    /// `nf4` or `fp4`.
    pub quant_type: String,
    /// Values that share a scale.
    pub blocksize: usize,
    /// The type of the weight before: `float32`, `float16` or `bfloat16`.
    pub dtype: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Scales that share a scale, where scales are rounded too.
    #[serde(default)]
    pub nested_blocksize: Option<usize>,
    /// What is added to rounded scales.
    #[serde(default)]
    pub nested_offset: Option<f32>,
}

/// How a matrix was rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// A scale for each row.
    Int8,
    /// A level for each value, a scale for `block_len` of them.
    FourBits {
        /// Values that share a scale.
        block_len: usize,
    },
}

/// A rounded matrix as it is stored, its scales as floats. What is read in its place is rounded once more, to the type that
/// the weight had.
#[derive(Clone, Debug)]
pub enum RoundedMatrix {
    /// value = code * scale / 127.
    Int8 {
        /// [rows, cols], signed.
        codes: SharedBytes,
        /// [rows].
        scales: Vec<f32>,
    },
    /// value = levels[code] * scale.
    FourBits {
        /// What codes stand for.
        levels: [f32; 16],
        /// Two a byte, the first in the upper half.
        codes: SharedBytes,
        /// Of each `block_len` values.
        scales: Vec<f32>,
        /// Values that share a scale.
        block_len: usize,
    },
}

impl RoundedMatrix {
    /// The first `n_values` values, row by row.
    fn values(&self, n_values: usize) -> Vec<f32> {
        let mut target = vec![0f32; n_values];
        match self {
            RoundedMatrix::Int8 { codes, scales } => {
                let row_len = n_values.checked_div(scales.len()).unwrap_or(0).max(1);
                let rows = target.chunks_exact_mut(row_len).zip(codes.chunks_exact(row_len));
                rows.zip(scales).for_each(|((row, codes), scale)| dequantize_int8(codes, *scale, row));
            }
            RoundedMatrix::FourBits { levels, codes, scales, block_len } => {
                dequantize_4bit(levels, codes, scales, *block_len, &mut target);
            }
        }
        target
    }
}

/// A folder's config and weights as plain floats; both as they are where bitsandbytes did not round them.
pub fn restored(
    mut config: Map<String, Value>,
    source: Arc<dyn TensorSource>,
) -> Result<(Map<String, Value>, Arc<dyn TensorSource>)> {
    let method = config.get(CONFIG_KEY).and_then(|quantisation| quantisation.get("quant_method"));
    if method.and_then(Value::as_str) != Some("bitsandbytes") {
        return Ok((config, source));
    }
    config.shift_remove(CONFIG_KEY);
    Ok((config, Arc::new(Restored::new(source)?)))
}

/// Rounded weights seen as floats of the type that they had (F32 for int8); others as they are.
struct Restored {
    source: Arc<dyn TensorSource>,
    infos: Vec<TensorInfo>,
    rounded: HashMap<String, Rounded>,
}

enum Rounded {
    FourBits(QuantState),
    Int8 { scales: String },
}

impl Restored {
    fn new(source: Arc<dyn TensorSource>) -> Result<Restored> {
        let mut rounded = HashMap::new();
        let mut hidden = Vec::new();
        for info in source.infos() {
            if let Some((weight, _)) = info.name.split_once(STATE_ENDING) {
                rounded.insert(weight.to_string(), Rounded::FourBits(state(source.as_ref(), &info.name)?));
                hidden.push(info.name.clone());
                let parts = ["absmax", "quant_map", "nested_absmax", "nested_quant_map"];
                hidden.extend(parts.map(|part| format!("{weight}.{part}")));
            } else if let Some(module) = info.name.strip_suffix(".SCB") {
                let scales = info.name.clone();
                hidden.extend([scales.clone(), format!("{module}.weight_format")]);
                rounded.insert(format!("{module}.weight"), Rounded::Int8 { scales });
            }
        }
        let mut infos = Vec::new();
        for info in source.infos().iter().filter(|info| !hidden.contains(&info.name)) {
            infos.push(match rounded.get(&info.name) {
                None => info.clone(),
                Some(Rounded::Int8 { .. }) => TensorInfo { dtype: Dtype::F32, ..info.clone() },
                Some(Rounded::FourBits(state)) => {
                    let dtype = torch_dtype(&state.dtype).ok_or_else(|| {
                        let what = format!(
                            "its state says dtype {}; wanted float32, float16 or bfloat16",
                            state.dtype
                        );
                        Error::tensor(&info.name, what)
                    })?;
                    TensorInfo { dtype, shape: state.shape.clone(), ..info.clone() }
                }
            });
        }
        Ok(Restored { source, infos, rounded })
    }

    fn info(&self, name: &str) -> Result<&TensorInfo> {
        let info = self.infos.iter().find(|info| info.name == name);
        info.ok_or_else(|| Error::tensor(name, "is not among these tensors"))
    }

    /// A part of a weight, of that type.
    fn part(&self, name: &str, dtype: Dtype) -> Result<SharedBytes> {
        let info = self.source.infos().iter().find(|info| info.name == name);
        match info {
            Some(info) if info.dtype == dtype => self.source.read(name),
            Some(info) => Err(Error::tensor(name, format!("wanted {dtype}, found {}", info.dtype))),
            None => Err(Error::tensor(name, "is missing; weights of bitsandbytes need it")),
        }
    }

    fn floats(&self, name: &str) -> Result<Vec<f32>> {
        let bytes = self.part(name, Dtype::F32)?;
        values::check_finite(name, Dtype::F32, &bytes)?;
        values::to_f32(name, Dtype::F32, &bytes)
    }

    fn four_bits(&self, name: &str, state: &QuantState) -> Result<RoundedMatrix> {
        let refused = |what: String| Error::tensor(name, what);
        let n_values = state.shape.iter().try_fold(1usize, |product, axis| product.checked_mul(*axis));
        let packed = self.part(name, Dtype::U8)?;
        let n_values = n_values.filter(|n| n.div_ceil(2) == packed.len());
        let n_values = n_values.ok_or_else(|| {
            refused(format!("{} bytes do not hold shape {:?} in 4 bits", packed.len(), state.shape))
        })?;
        if state.blocksize == 0 || !state.blocksize.is_multiple_of(2) {
            return Err(refused(format!("blocksize is {}; wanted an even number", state.blocksize)));
        }
        let levels = self.floats(&format!("{name}.quant_map"))?;
        let levels: [f32; 16] =
            levels.try_into().map_err(|_| refused("its quant_map has not 16 levels".to_string()))?;
        let scales = self.scales(name, state)?;
        if scales.len() != n_values.div_ceil(state.blocksize) {
            let what = format!("has {} scales; wanted one for {} values", scales.len(), state.blocksize);
            return Err(refused(what));
        }
        Ok(RoundedMatrix::FourBits { levels, codes: packed, scales, block_len: state.blocksize })
    }

    fn scales(&self, name: &str, state: &QuantState) -> Result<Vec<f32>> {
        let absmax = format!("{name}.absmax");
        let (Some(block_len), Some(offset)) = (state.nested_blocksize, state.nested_offset) else {
            return self.floats(&absmax);
        };
        let codes = self.part(&absmax, Dtype::U8)?;
        let map = self.floats(&format!("{name}.nested_quant_map"))?;
        let scales = self.floats(&format!("{name}.nested_absmax"))?;
        if map.len() != 256 || block_len == 0 || scales.len() != codes.len().div_ceil(block_len) {
            let what = format!(
                "{} scales in blocks of {block_len} do not go with {} numbers and {} scales of scales",
                codes.len(),
                map.len(),
                scales.len()
            );
            return Err(Error::tensor(name, what));
        }
        Ok(dequantize_nested(&map, &codes, &scales, block_len, offset))
    }

    fn int8(&self, name: &str, scales_name: &str, shape: &[usize]) -> Result<RoundedMatrix> {
        let codes = self.part(name, Dtype::I8)?;
        let scales = self.floats(scales_name)?;
        if shape.len() != 2 || scales.len() != shape[0] {
            let what = format!("{} scales in {scales_name} do not go with shape {shape:?}", scales.len());
            return Err(Error::tensor(name, what));
        }
        Ok(RoundedMatrix::Int8 { codes, scales })
    }
}

impl TensorSource for Restored {
    fn infos(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn read(&self, name: &str) -> Result<SharedBytes> {
        let info = self.info(name)?;
        let Some(matrix) = self.read_rounded(name)? else { return self.source.read(name) };
        let floats = matrix.values(info.shape.iter().product());
        let bytes: Vec<u8> = floats.iter().flat_map(|value| value.to_le_bytes()).collect();
        Ok(SharedBytes::from_vec(match info.dtype {
            Dtype::F32 => bytes,
            dtype => values::cast(name, Dtype::F32, &bytes, dtype)?,
        }))
    }

    fn rounding(&self, name: &str) -> Option<Rounding> {
        Some(match self.rounded.get(name)? {
            Rounded::FourBits(state) => Rounding::FourBits { block_len: state.blocksize },
            Rounded::Int8 { .. } => Rounding::Int8,
        })
    }

    fn read_rounded(&self, name: &str) -> Result<Option<RoundedMatrix>> {
        Ok(Some(match self.rounded.get(name) {
            None => return Ok(None),
            Some(Rounded::FourBits(state)) => self.four_bits(name, state)?,
            Some(Rounded::Int8 { scales }) => self.int8(name, scales, &self.info(name)?.shape)?,
        }))
    }
}

fn state(source: &dyn TensorSource, name: &str) -> Result<QuantState> {
    let bytes = source.read(name)?;
    serde_json::from_slice(&bytes)
        .map_err(|problem| Error::tensor(name, format!("wanted the JSON of a quantisation state: {problem}")))
}

/// The type that torch calls so.
fn torch_dtype(name: &str) -> Option<Dtype> {
    [Dtype::F32, Dtype::F16, Dtype::BF16].into_iter().find(|dtype| torch_name(*dtype) == Some(name))
}

/// What torch calls a type that bitsandbytes rounds.
pub fn torch_name(dtype: Dtype) -> Option<&'static str> {
    match dtype {
        Dtype::F32 => Some("float32"),
        Dtype::F16 => Some("float16"),
        Dtype::BF16 => Some("bfloat16"),
        _ => None,
    }
}

impl QuantState {
    /// The bytes that bitsandbytes writes: JSON with Python's spaces and numbers.
    pub fn to_bytes(&self) -> Vec<u8> {
        let shape: Vec<String> = self.shape.iter().map(usize::to_string).collect();
        let mut text = format!(
            "{{\"quant_type\": \"{}\", \"blocksize\": {}, \"dtype\": \"{}\", \"shape\": [{}]",
            self.quant_type,
            self.blocksize,
            self.dtype,
            shape.join(", ")
        );
        if let (Some(block_len), Some(offset)) = (self.nested_blocksize, self.nested_offset) {
            text.push_str(&format!(
                ", \"nested_blocksize\": {block_len}, \"nested_dtype\": \"float32\", \"nested_offset\": {}",
                python_float(f64::from(offset))
            ));
        }
        text.push('}');
        text.into_bytes()
    }
}

/// A finite number as Python prints it: shortest digits, an exponent of two digits below 1e-4.
fn python_float(value: f64) -> String {
    if value != 0.0 && value.abs() < 1e-4 {
        let text = format!("{value:e}");
        let (digits, exponent) = text.split_once("e-").unwrap_or((&text, "0"));
        return format!("{digits}e-{exponent:0>2}");
    }
    format!("{value:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_read_as_python_writes_them() {
        let mut state = QuantState {
            quant_type: "nf4".to_string(),
            blocksize: 64,
            dtype: "bfloat16".to_string(),
            shape: vec![64, 96],
            nested_blocksize: None,
            nested_offset: None,
        };
        let plain = r#"{"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [64, 96]}"#;
        assert_eq!(state.to_bytes(), plain.as_bytes());
        (state.nested_blocksize, state.nested_offset) = (Some(256), Some(0.051_144_917));
        let nested =
            r#", "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.05114491656422615}"#;
        let wanted = format!("{}{nested}", &plain[..plain.len() - 1]);
        assert_eq!(String::from_utf8(state.to_bytes()).unwrap(), wanted);
        assert_eq!(serde_json::from_slice::<QuantState>(&state.to_bytes()).unwrap(), state);
        let printed: Vec<String> = [0.0, 1.0, 9.1e-5, 0.00012, 1.5e-12, 3.25].map(python_float).to_vec();
        assert_eq!(printed, ["0.0", "1.0", "9.1e-05", "0.00012", "1.5e-12", "3.25"]);
    }
}
