//! nf4, fp4 and int8: a model folder as transformers saves it with bitsandbytes.
//!
//! Rounded are the matrices inside layers: transformers leaves embeddings, heads, biases and norms as they are, and the
//! modules called `wo`, which it keeps in f32 (T5). All floats get the type that most have. Papers: QLoRA (arXiv:2305.14314), LLM.int8() (arXiv:2208.07339).

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use luthier_checkpoint::bitsandbytes::{CONFIG_KEY, QuantState, STATE_ENDING, torch_name};
use luthier_checkpoint::layout::{Layout, Part};
use luthier_checkpoint::{Checkpoint, Dtype, Error as FileError, TensorInfo, TensorSource};
use luthier_kernels::bitsandbytes::{self as kernels, BLOCK_LEN, Levels, NESTED_BLOCK_LEN};
use luthier_kernels::blocks::Unfit;
use luthier_kernels::bytes::SharedBytes;
use serde_json::{Map, Value, json};

use super::{Options, Report, block_type, counted, rounded_twice};
use crate::plan::Plan;
use crate::view::Cast;
use crate::writing::{Job, Origin, write_folder};
use crate::{Error, Input, Result, config, fit};

/// A way of rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// 4 bits a value; `nested`: scales are rounded to 8 bits too.
    FourBits {
        /// Which sixteen levels.
        levels: Levels,
        /// Whether scales are rounded too.
        nested: bool,
    },
    /// 8 bits a value, a scale a row.
    Int8,
}

impl Scheme {
    /// As bitsandbytes names it.
    pub fn name(self) -> &'static str {
        match self {
            Scheme::FourBits { levels: Levels::Nf4, .. } => "nf4",
            Scheme::FourBits { levels: Levels::Fp4, .. } => "fp4",
            Scheme::Int8 => "int8",
        }
    }

    /// What transformers writes into config.json (5.23).
    fn config(self) -> Value {
        let is_int8 = self == Scheme::Int8;
        json!({
            "_load_in_4bit": !is_int8,
            "_load_in_8bit": is_int8,
            "bnb_4bit_compute_dtype": "float32",
            "bnb_4bit_quant_storage": "uint8",
            "bnb_4bit_quant_type": if is_int8 { "fp4" } else { self.name() },
            "bnb_4bit_use_double_quant": matches!(self, Scheme::FourBits { nested: true, .. }),
            "llm_int8_enable_fp32_cpu_offload": false,
            "llm_int8_has_fp16_weight": false,
            "llm_int8_skip_modules": null,
            "llm_int8_threshold": 6.0,
            "load_in_4bit": !is_int8,
            "load_in_8bit": is_int8,
            "quant_method": "bitsandbytes"
        })
    }
}

pub(super) fn plan(input: &Input, scheme: Scheme, options: &Options) -> Result<Plan> {
    let (view, notes) = prepare(input, scheme, options)?;
    let from = view.origins().iter().map(Origin::describe).collect();
    Ok(Plan::new(&view.infos, from, notes))
}

pub(super) fn run(input: &Input, out: &Path, scheme: Scheme, options: &Options) -> Result<Report> {
    let (mut view, notes) = prepare(input, scheme, options)?;
    view.fix_offsets()?;
    let mut model_config = config::with_dtype(&input.checkpoint.config, view.source.infos());
    model_config.insert(CONFIG_KEY.to_string(), scheme.config());
    let infos = view.infos.clone();
    let job = Job {
        verb: "quantize",
        recipe: options.recipe(&input.label),
        seed: None,
        inputs: vec![input],
        origins: view.origins(),
        dropped: Vec::new(),
    };
    let model = Checkpoint { config: model_config, tensors: Arc::new(view), ..input.checkpoint.clone() };
    let summary = write_folder(&model, out, options.force, job, |staged| {
        luthier_arch::check_headers(staged)?;
        Ok(Map::new())
    })?;
    let n_values = input.checkpoint.tensors.infos().iter().map(|info| info.shape.iter().product::<usize>());
    Ok(counted(&infos, n_values.sum(), summary, notes))
}

fn prepare(input: &Input, scheme: Scheme, options: &Options) -> Result<(View, Vec<String>)> {
    if options.imatrix.is_some() {
        let what = format!("--imatrix: {} does not use importance weights; leave it out", scheme.name());
        return Err(Error::Use(what));
    }
    let layout = fit::checked_layout(&input.checkpoint)?;
    let stored = input.checkpoint.tensors.infos();
    // As transformers loads it before it rounds: every float in one type, without which its modules do not go together.
    let main = config::main_type(stored).filter(|dtype| torch_name(*dtype).is_some()).unwrap_or(Dtype::F32);
    let plain = |info: &TensorInfo| if info.dtype.is_float() { main } else { info.dtype };
    let source = Cast::new(Arc::clone(&input.checkpoint.tensors), plain);
    let mut notes: Vec<String> =
        rounded_twice(stored, source.infos(), options.requantize)?.into_iter().collect();
    let view = View::new(source, scheme, &layout)?;
    let ragged = view.rounded.iter().filter(|row| !row.info.shape[1].is_multiple_of(BLOCK_LEN)).count();
    if ragged > 0 && scheme != Scheme::Int8 {
        notes.push(format!(
            "{ragged} tensors have rows that {BLOCK_LEN} does not divide: blocks run across rows, as bitsandbytes makes \
             them, but its CPU path (0.50.2) reads such weights wrongly; its GPU paths and luthier read them right"
        ));
    }
    Ok((view, notes))
}

/// Whether transformers puts a rounded module in the place of this weight's.
fn is_rounded(layout: &Layout, info: &TensorInfo) -> bool {
    let spec = layout.tensors.iter().find(|spec| spec.name == info.name);
    let kept = |part: Part| matches!(part, Part::Embedding | Part::Head | Part::RelativeBias);
    spec.is_some_and(|spec| spec.role.layer.is_some() && !kept(spec.role.part))
        && info.shape.len() == 2
        && info.name.ends_with(".weight")
        && !info.name.split('.').any(|module| module == "wo")
}

/// A weight that is rounded.
pub(super) struct Rounded {
    pub(super) info: TensorInfo,
    /// What is added to rounded scales, once it is known.
    pub(super) offset: Option<f32>,
}

/// The parts of a rounded weight, by name.
type Parts = Vec<(TensorInfo, SharedBytes)>;

/// The folder's tensors; a weight is rounded when the first of its parts is read.
struct View {
    source: Cast,
    scheme: Scheme,
    rounded: Vec<Rounded>,
    infos: Vec<TensorInfo>,
    /// Where each tensor comes from: a kept tensor's name, or a rounded weight's number.
    parents: Vec<Parent>,
    latest: Mutex<Option<(usize, Parts)>>,
}

#[derive(Clone, Copy)]
enum Parent {
    Kept,
    Rounded(usize),
}

/// Stands for an offset that is not known yet: as long as most are.
const UNKNOWN_OFFSET: f32 = 0.051_144_917;

impl View {
    fn new(source: Cast, scheme: Scheme, layout: &Layout) -> Result<View> {
        let rounded: Vec<Rounded> = source
            .infos()
            .iter()
            .filter(|info| is_rounded(layout, info))
            .map(|info| Rounded { info: info.clone(), offset: None })
            .collect();
        if rounded.is_empty() {
            let what = "the model has no matrices inside its layers; nothing can be rounded".to_string();
            return Err(Error::Use(what));
        }
        let (infos, parents) = (Vec::new(), Vec::new());
        let mut view = View { source, scheme, rounded, infos, parents, latest: Mutex::new(None) };
        view.list()?;
        Ok(view)
    }

    /// The names, types and shapes of all tensors.
    fn list(&mut self) -> Result<()> {
        (self.infos, self.parents) = (Vec::new(), Vec::new());
        for info in self.source.infos() {
            match self.rounded.iter().position(|rounded| rounded.info.name == info.name) {
                None => {
                    self.infos.push(info.clone());
                    self.parents.push(Parent::Kept);
                }
                Some(number) => {
                    let parts = part_infos(self.scheme, &self.rounded[number])?;
                    self.parents.extend(parts.iter().map(|_| Parent::Rounded(number)));
                    self.infos.extend(parts);
                }
            }
        }
        Ok(())
    }

    /// Reads all weights once where their states hold the mean of their scales, whose digits the header counts.
    fn fix_offsets(&mut self) -> Result<()> {
        if !matches!(self.scheme, Scheme::FourBits { nested: true, .. }) {
            return Ok(());
        }
        for at in 0..self.rounded.len() {
            let info = self.rounded[at].info.clone();
            let bytes = self.source.read_unchecked(&info.name)?;
            self.rounded[at].offset = Some(mean_scale((block_type(&info)?, &bytes), &info)?);
        }
        self.list()
    }

    fn origins(&self) -> Vec<Origin> {
        let origin = |(info, parent): (&TensorInfo, &Parent)| match parent {
            Parent::Kept => Origin::From { input: 0, name: info.name.clone() },
            Parent::Rounded(number) => {
                let weight = &self.rounded[*number].info;
                let how = format!("{} as {}", weight.dtype, self.scheme.name());
                match info.name == weight.name {
                    true => Origin::Changed { input: 0, name: weight.name.clone(), how },
                    false => Origin::Made(format!("part of the {} weight", self.scheme.name())),
                }
            }
        };
        self.infos.iter().zip(&self.parents).map(origin).collect()
    }

    fn round(&self, rounded: &Rounded) -> Result<Parts> {
        let infos = part_infos(self.scheme, rounded)?;
        let source = self.source.read_unchecked(&rounded.info.name)?;
        let source = (block_type(&rounded.info)?, &source[..]);
        let parts = match self.scheme {
            Scheme::FourBits { levels, .. } => four_bits(levels, source, rounded)?,
            Scheme::Int8 => int8(source, &rounded.info)?,
        };
        Ok(infos.into_iter().zip(parts.into_iter().map(SharedBytes::from_vec)).collect())
    }
}

impl TensorSource for View {
    fn infos(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn read(&self, name: &str) -> luthier_checkpoint::Result<SharedBytes> {
        let position = self.infos.iter().position(|info| info.name == name);
        let position = position.ok_or_else(|| FileError::tensor(name, "is not part of this folder"))?;
        let Parent::Rounded(number) = self.parents[position] else { return self.source.read(name) };
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        if latest.as_ref().is_none_or(|(held, _)| *held != number) {
            *latest = None;
            let parts = self.round(&self.rounded[number]).map_err(|problem| match problem {
                Error::Checkpoint(problem) => problem,
                other => FileError::tensor(name, other.to_string()),
            })?;
            *latest = Some((number, parts));
        }
        let (_, parts) = latest.as_ref().expect("was just filled");
        let part = parts.iter().find(|(info, _)| info.name == name);
        Ok(part.expect("a weight's parts are those that were listed").1.clone())
    }
}

/// The mean of a 4-bit weight's scales, which is taken from them before they are rounded too.
pub(super) fn mean_scale(
    source: (luthier_kernels::blocks::BlockType, &[u8]),
    info: &TensorInfo,
) -> Result<f32> {
    let n_values: usize = info.shape.iter().product();
    let mut scales = vec![0f32; n_values.div_ceil(BLOCK_LEN)];
    kernels::scales_4bit(source, &mut scales).map_err(|unfit| refused(info, unfit))?;
    let sum: f64 = scales.iter().map(|scale| f64::from(*scale)).sum();
    Ok((sum / scales.len().max(1) as f64) as f32)
}

/// Names, types and shapes of a rounded weight's parts.
pub(super) fn part_infos(scheme: Scheme, rounded: &Rounded) -> Result<Vec<TensorInfo>> {
    let weight = &rounded.info;
    let info =
        |name: String, dtype: Dtype, shape: &[usize]| TensorInfo { name, dtype, shape: shape.to_vec() };
    let name = &weight.name;
    let Scheme::FourBits { nested, .. } = scheme else {
        let module = name.strip_suffix(".weight").unwrap_or(name);
        return Ok(vec![
            info(name.clone(), Dtype::I8, &weight.shape),
            info(format!("{module}.SCB"), Dtype::F32, &weight.shape[..1]),
            info(format!("{module}.weight_format"), Dtype::U8, &[]),
        ]);
    };
    let n_values: usize = weight.shape.iter().product();
    let n_scales = n_values.div_ceil(BLOCK_LEN);
    let state_bytes = state(scheme, rounded)?.to_bytes().len();
    let scale_type = if nested { Dtype::U8 } else { Dtype::F32 };
    let mut parts = vec![
        info(name.clone(), Dtype::U8, &[n_values.div_ceil(2), 1]),
        info(format!("{name}.absmax"), scale_type, &[n_scales]),
        info(format!("{name}.quant_map"), Dtype::F32, &[16]),
    ];
    if nested {
        parts.push(info(format!("{name}.nested_absmax"), Dtype::F32, &[n_scales.div_ceil(NESTED_BLOCK_LEN)]));
        parts.push(info(format!("{name}.nested_quant_map"), Dtype::F32, &[256]));
    }
    parts.push(info(format!("{name}{STATE_ENDING}{}", scheme.name()), Dtype::U8, &[state_bytes]));
    Ok(parts)
}

fn state(scheme: Scheme, rounded: &Rounded) -> Result<QuantState> {
    let nested = matches!(scheme, Scheme::FourBits { nested: true, .. });
    let info = &rounded.info;
    let dtype = torch_name(info.dtype).ok_or_else(|| {
        FileError::tensor(&info.name, format!("holds {}; wanted F32, F16 or BF16", info.dtype))
    })?;
    Ok(QuantState {
        quant_type: scheme.name().to_string(),
        blocksize: BLOCK_LEN,
        dtype: dtype.to_string(),
        shape: info.shape.clone(),
        nested_blocksize: nested.then_some(NESTED_BLOCK_LEN),
        nested_offset: nested.then(|| rounded.offset.unwrap_or(UNKNOWN_OFFSET)),
    })
}

/// The bytes of a 4-bit weight's parts, in the order of [`part_infos`].
pub(super) fn four_bits(
    levels: Levels,
    source: (luthier_kernels::blocks::BlockType, &[u8]),
    rounded: &Rounded,
) -> Result<Vec<Vec<u8>>> {
    let n_values: usize = rounded.info.shape.iter().product();
    let mut packed = vec![0u8; n_values.div_ceil(2)];
    let mut scales = vec![0f32; n_values.div_ceil(BLOCK_LEN)];
    kernels::quantize_4bit(levels, source, &mut packed, &mut scales)
        .map_err(|unfit| refused(&rounded.info, unfit))?;
    let map = floats(&levels.values());
    let scheme = Scheme::FourBits { levels, nested: rounded.offset.is_some() };
    let state = state(scheme, rounded)?.to_bytes();
    let Some(offset) = rounded.offset else { return Ok(vec![packed, floats(&scales), map, state]) };
    scales.iter_mut().for_each(|scale| *scale -= offset);
    let nested_map = kernels::dynamic_map();
    let mut codes = vec![0u8; scales.len()];
    let mut nested_scales = vec![0f32; scales.len().div_ceil(NESTED_BLOCK_LEN)];
    kernels::quantize_nested(&nested_map, &scales, &mut codes, &mut nested_scales);
    Ok(vec![packed, codes, map, floats(&nested_scales), floats(&nested_map), state])
}

/// The bytes of an int8 weight's parts.
pub(super) fn int8(
    source: (luthier_kernels::blocks::BlockType, &[u8]),
    info: &TensorInfo,
) -> Result<Vec<Vec<u8>>> {
    let (rows, columns) = (info.shape[0], info.shape[1]);
    let mut codes = vec![0u8; rows * columns];
    let mut scales = vec![0f32; rows];
    kernels::quantize_int8(source, columns, &mut codes, &mut scales).map_err(|unfit| refused(info, unfit))?;
    // 0: rows as they stand, the only format of today's versions.
    Ok(vec![codes, floats(&scales), vec![0]])
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn refused(info: &TensorInfo, unfit: Unfit) -> Error {
    let what = match unfit {
        Unfit::NotFinite(at) => format!("value {at} is NaN or infinite; the weights are damaged"),
        Unfit::TooLarge(at) => {
            format!(
                "value {at} is too large for f16, through which int8 is rounded; take nf4, or keep this model"
            )
        }
    };
    FileError::tensor(&info.name, what).into()
}
