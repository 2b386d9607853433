//! A model with a LoRA adapter in its weights, tensor by tensor, when it is read.
//!
//! The values are those of PEFT's `merge_and_unload`: W + s B A in f32, rounded to the type of W; with DoRA each output's
//! weights are scaled to its length afterwards. Weights that the adapter brings whole replace the model's.

mod place;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use luthier_checkpoint::adapter::{Adapter, Factors, Magnitude};
use luthier_checkpoint::{Checkpoint, Dtype, Error, Result, TensorInfo, TensorSource, values};
use luthier_kernels::blocks::BlockType;
use luthier_kernels::bytes::SharedBytes;
use luthier_kernels::pool;

use self::place::Place;
use crate::Input;
use crate::input::Derived;
use crate::view::find;

/// What an adapter does to one tensor.
#[derive(Clone, Debug, Default)]
struct Change {
    /// The adapter's tensor that stands in its place.
    replacement: Option<String>,
    /// The module whose product is added.
    weight_of: Option<String>,
    /// The module whose bias is added.
    bias_of: Option<String>,
}

/// Another source's tensors with an adapter's changes.
struct Fused {
    source: Arc<dyn TensorSource>,
    adapter: Arc<Adapter>,
    infos: Vec<TensorInfo>,
    changes: HashMap<String, Change>,
    strength: Strength,
    /// Of the tensor that was read last.
    known: Mutex<Option<(String, Arc<Ready>)>>,
}

/// The factors of one tensor.
struct Ready {
    factors: Factors,
    /// What each column is multiplied with, where DoRA scales columns.
    of_columns: Option<Vec<f32>>,
}

/// How far a model goes towards what the adapter makes of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Strength {
    /// W becomes W + scale * (W' - W); 1 is the adapter as it was trained.
    pub(crate) scale: f64,
    /// Whether what changes is f32, whatever the model's type.
    pub(crate) is_wide: bool,
}

/// `base` as the adapter makes it, under that label. Refuses an adapter that changes tensors which the base does not have, or
/// has in another shape.
pub fn fused(base: Input, adapter_label: &str, label: &str, adapter: Adapter) -> crate::Result<Input> {
    let strength = Strength { scale: 1.0, is_wide: false };
    Ok(fused_with(base, adapter_label, label, adapter, strength)?.0)
}

/// The same at that strength, and the names of the tensors that change.
pub(crate) fn fused_with(
    base: Input,
    adapter_label: &str,
    label: &str,
    adapter: Adapter,
    strength: Strength,
) -> crate::Result<(Input, HashSet<String>)> {
    let adapter = Arc::new(adapter);
    let source = Arc::clone(&base.checkpoint.tensors);
    let (mut changes, mut unused) = changes(&base, &adapter)?;
    if strength.scale == 0.0 {
        changes.clear();
        let all = adapter.tensors.infos().iter();
        unused = all.map(|info| (1, info.name.clone(), "the scale is 0".to_string())).collect();
    }
    let mut sources: HashMap<String, Vec<(usize, String)>> = HashMap::new();
    let mut dropped = unused;
    let mut infos = Vec::new();
    for info in source.infos() {
        let mut from = vec![(0, info.name.clone())];
        let mut dtype = info.dtype;
        if let Some(change) = changes.get(&info.name) {
            if let Some(name) = &change.replacement {
                if strength.scale == 1.0 {
                    dropped.push((0, info.name.clone(), "the adapter brings its own".to_string()));
                    from.clear();
                    dtype = find(adapter.tensors.infos(), name)?.dtype;
                }
                from.push((1, name.clone()));
            }
            let module = |path: &Option<String>| path.as_ref().and_then(|path| adapter.modules.get(path));
            if let Some(module) = module(&change.weight_of) {
                let names = module.names().filter(|name| Some(*name) != module.bias.as_deref());
                from.extend(names.map(|name| (1, name.to_string())));
            }
            from.extend(module(&change.bias_of).and_then(|module| module.bias.clone()).map(|name| (1, name)));
            if strength.is_wide
                || !matches!(dtype, Dtype::Weights(BlockType::F16 | BlockType::BF16) | Dtype::F64)
            {
                dtype = Dtype::F32;
            }
        }
        sources.insert(info.name.clone(), from);
        infos.push(TensorInfo { dtype, ..info.clone() });
    }
    let pair = |module: &luthier_checkpoint::adapter::Module| 8 * module.rank * (module.n_in + module.n_out);
    let derived = Derived {
        sources,
        unused: dropped,
        size_bytes: adapter.modules.values().map(pair).max().unwrap_or(0),
        parts: vec![
            base.clone(),
            Input::new(
                adapter_label,
                Checkpoint {
                    place: adapter.place.clone(),
                    config: adapter.config.keys.clone(),
                    tensors: Arc::clone(&adapter.tensors),
                    side_files: Vec::new(),
                },
            ),
        ],
    };
    let changed = changes.keys().cloned().collect();
    let tensors = Arc::new(Fused { source, adapter, infos, changes, strength, known: Mutex::default() });
    let input = Input {
        label: label.to_string(),
        checkpoint: Checkpoint { tensors, ..base.checkpoint },
        record: None,
        derived: Some(Arc::new(derived)),
    };
    Ok((input, changed))
}

/// What becomes of each tensor of the base, and which tensors of the adapter are not needed, and why.
type Changes = (HashMap<String, Change>, Vec<(usize, String, String)>);

fn changes(base: &Input, adapter: &Adapter) -> crate::Result<Changes> {
    let infos: BTreeMap<&str, &TensorInfo> =
        base.checkpoint.tensors.infos().iter().map(|info| (info.name.as_str(), info)).collect();
    let place = Place::find(&infos, adapter);
    let mut changes: HashMap<String, Change> = HashMap::new();
    let mut unused: Vec<(usize, String, String)> =
        adapter.repeated.iter().map(|(name, reason)| (1, name.clone(), reason.clone())).collect();
    for (path, name) in &adapter.saved {
        let target = place.name(path);
        let Some(info) = infos.get(target.as_str()) else {
            if repeats_tied(base, adapter, &place, path, name)? {
                unused.push((1, name.clone(), "repeats a weight that the base ties".to_string()));
                continue;
            }
            return Err(missing(base, name, &target));
        };
        let shape = &find(adapter.tensors.infos(), name)?.shape;
        if *shape != info.shape {
            let what = format!(
                "has shape {shape:?}, {target} of {} has {:?}; where the adapter was trained with more tokens, extend the base \
                 first",
                base.label, info.shape
            );
            return Err(Error::tensor(name, what).into());
        }
        changes.entry(target).or_default().replacement = Some(name.clone());
    }
    for (path, module) in &adapter.modules {
        let target = place.name(&format!("{path}.weight"));
        let info = infos.get(target.as_str()).ok_or_else(|| missing(base, &module.a, &target))?;
        let fits = info.shape == [module.n_out, module.n_in] || info.shape == [module.n_in, module.n_out];
        if !fits {
            let what = format!(
                "the adapter maps {} values to {}, but {target} of {} has shape {:?}; it belongs to another base",
                module.n_in, module.n_out, base.label, info.shape
            );
            return Err(Error::tensor(&module.a, what).into());
        }
        changes.entry(target).or_default().weight_of = Some(path.clone());
        if let Some(name) = &module.bias {
            let target = place.name(&format!("{path}.bias"));
            let info = infos.get(target.as_str()).ok_or_else(|| missing(base, name, &target))?;
            if info.shape != [module.n_out] {
                let what = format!("{target} of {} has shape {:?}", base.label, info.shape);
                return Err(Error::tensor(name, what).into());
            }
            changes.entry(target).or_default().bias_of = Some(path.clone());
        }
    }
    let repeated = tied(base, &changes)?;
    changes.extend(repeated);
    Ok((changes, unused))
}

/// What becomes of names under which the base repeats a tied weight: what becomes of the weight. Refuses a change of such a name
/// alone.
fn tied(base: &Input, changes: &HashMap<String, Change>) -> crate::Result<Vec<(String, Change)>> {
    let Ok(layout) = luthier_arch::check_headers(&base.checkpoint) else { return Ok(Vec::new()) };
    let mut repeated = Vec::new();
    for tie in &layout.ties {
        let is_there = base.checkpoint.tensors.infos().iter().any(|info| info.name == tie.name);
        match (changes.get(&tie.name), changes.get(&tie.target)) {
            (None, Some(change)) if is_there => repeated.push((tie.name.clone(), change.clone())),
            (Some(_), None) => {
                let what = format!(
                    "the adapter changes it, but {} ties it to {}; untie the base first",
                    base.label, tie.target
                );
                return Err(Error::tensor(&tie.name, what).into());
            }
            _ => {}
        }
    }
    Ok(repeated)
}

fn missing(base: &Input, name: &str, target: &str) -> crate::Error {
    let what = format!(
        "changes {target}, which {} does not have; it belongs to another base, or to a base that ties this weight",
        base.label
    );
    Error::tensor(name, what).into()
}

/// Whether a weight that the adapter brings is one that the base ties to another, with the same values.
fn repeats_tied(
    base: &Input,
    adapter: &Adapter,
    place: &Place,
    path: &str,
    name: &str,
) -> crate::Result<bool> {
    let Ok(layout) = luthier_arch::check_headers(&base.checkpoint) else { return Ok(false) };
    let Some(tie) = layout.ties.iter().find(|tie| tie.name == place.name(path)) else { return Ok(false) };
    let other = adapter.saved.iter().find(|(path, _)| place.name(path) == tie.target);
    let (source, target) = match other {
        Some((_, target)) => (&adapter.tensors, target.as_str()),
        None => (&base.checkpoint.tensors, tie.target.as_str()),
    };
    let wide = |source: &Arc<dyn TensorSource>, name: &str| -> Result<Vec<f32>> {
        values::to_f32(name, find(source.infos(), name)?.dtype, &source.read(name)?)
    };
    Ok(wide(&adapter.tensors, name)? == wide(source, target)?)
}

impl TensorSource for Fused {
    fn infos(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn read(&self, name: &str) -> Result<SharedBytes> {
        let info = find(&self.infos, name)?;
        match self.changes.get(name) {
            None => self.source.read(name),
            Some(change) => {
                let n_values = info.shape.iter().product();
                self.changed(info, change, 0..n_values)
            }
        }
    }

    fn read_part(&self, name: &str, range: Range<usize>) -> Result<SharedBytes> {
        let info = find(&self.infos, name)?;
        let width = info.dtype.block().1;
        match self.changes.get(name) {
            None => self.source.read_part(name, range),
            Some(change) => self.changed(info, change, range.start / width..range.end / width),
        }
    }
}

impl Fused {
    /// The values `range` of a tensor that the adapter changes, as they are stored.
    fn changed(&self, info: &TensorInfo, change: &Change, range: Range<usize>) -> Result<SharedBytes> {
        let name = info.name.as_str();
        let mut wide = match &change.weight_of {
            Some(path) => self.sums(info, change, path, range.clone())?,
            None => self.before(name, change, range.clone())?,
        };
        if let Some(path) = &change.bias_of
            && let Some(bias) = self.adapter.bias_delta(path)?
        {
            let scale = if self.is_sum(change) { self.strength.scale as f32 } else { 1.0 };
            wide.iter_mut().zip(&bias[range.clone()]).for_each(|(value, bias)| *value += scale * bias);
        }
        if !self.is_sum(change) && self.strength.scale != 1.0 {
            let scale = self.strength.scale as f32;
            let base = self.before(name, &Change::default(), range)?;
            wide.iter_mut().zip(&base).for_each(|(value, base)| *value = base + scale * (*value - base));
        }
        let bytes: Vec<u8> = wide.iter().flat_map(|value| value.to_le_bytes()).collect();
        drop(wide);
        Ok(SharedBytes::from_vec(values::cast(name, Dtype::F32, &bytes, info.dtype)?))
    }

    /// Whether a change only adds, so that its strength is a factor of what is added.
    fn is_sum(&self, change: &Change) -> bool {
        let module = change.weight_of.as_ref().and_then(|path| self.adapter.modules.get(path));
        change.replacement.is_none() && module.is_none_or(|module| module.magnitude.is_none())
    }

    /// The values `range` before anything is added, finite.
    fn before(&self, name: &str, change: &Change, range: Range<usize>) -> Result<Vec<f32>> {
        let (source, name) = match &change.replacement {
            Some(replacement) => (&self.adapter.tensors, replacement.as_str()),
            None => (&self.source, name),
        };
        let dtype = find(source.infos(), name)?.dtype;
        let (block_len, block_bytes) = dtype.block();
        // Whole blocks around what is wanted.
        let (first, last) = (range.start / block_len, range.end.div_ceil(block_len));
        let bytes = source.read_part(name, first * block_bytes..last * block_bytes)?;
        values::check_finite(name, dtype, &bytes)?;
        let wide = values::to_f32(name, dtype, &bytes)?;
        let start = range.start - first * block_len;
        Ok(wide[start..start + range.len()].to_vec())
    }

    /// The values `range` of a weight and the product.
    fn sums(&self, info: &TensorInfo, change: &Change, path: &str, range: Range<usize>) -> Result<Vec<f32>> {
        let ready = self.ready(info, change, path)?;
        let cols = ready.factors.cols;
        let rows = range.start / cols..range.end.div_ceil(cols);
        let mut wide = self.before(&info.name, change, rows.start * cols..rows.end * cols)?;
        pool::run_chunks(&mut wide, cols, &|at, row| ready.finish(rows.start + at, row));
        let start = range.start - rows.start * cols;
        wide.truncate(start + range.len());
        wide.drain(..start);
        Ok(wide)
    }

    /// The factors of a tensor; the last one's are kept.
    fn ready(&self, info: &TensorInfo, change: &Change, path: &str) -> Result<Arc<Ready>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((name, ready)) = &*known
            && *name == info.name
        {
            return Ok(Arc::clone(ready));
        }
        let factors = self.adapter.delta(path, &info.shape)?;
        let mut factors = factors.ok_or_else(|| Error::tensor(path, "is no module of the adapter"))?;
        if self.is_sum(change) {
            factors.scale = (f64::from(factors.scale) * self.strength.scale) as f32;
        }
        let mut ready = Ready { factors, of_columns: None };
        if let Some(Magnitude::Columns(lengths)) = &ready.factors.magnitude {
            let (rows, cols) = (ready.factors.rows, ready.factors.cols);
            let mut squares = vec![0f64; cols];
            for row in 0..rows {
                let mut wide = self.before(&info.name, change, row * cols..(row + 1) * cols)?;
                ready.add(row, &mut wide);
                squares.iter_mut().zip(&wide).for_each(|(sum, value)| *sum += f64::from(value * value));
            }
            let scale = |(length, square): (&f32, &f64)| length / square.sqrt() as f32;
            ready.of_columns = Some(lengths.iter().zip(&squares).map(scale).collect());
        }
        let ready = Arc::new(ready);
        *known = Some((info.name.clone(), Arc::clone(&ready)));
        Ok(ready)
    }
}

impl Ready {
    /// Adds the product's row.
    fn add(&self, row: usize, values: &mut [f32]) {
        let Factors { rank, cols, scale, left, right, .. } = &self.factors;
        let mut sum = vec![0f32; *cols];
        for (factor, right) in left[row * rank..(row + 1) * rank].iter().zip(right.chunks_exact(*cols)) {
            sum.iter_mut().zip(right).for_each(|(sum, right)| *sum += factor * right);
        }
        values.iter_mut().zip(&sum).for_each(|(value, sum)| *value += sum * scale);
    }

    /// Adds the product's row, and scales as DoRA does.
    fn finish(&self, row: usize, values: &mut [f32]) {
        self.add(row, values);
        match (&self.factors.magnitude, &self.of_columns) {
            (Some(Magnitude::Rows(lengths)), _) => {
                let square: f64 = values.iter().map(|value| f64::from(value * value)).sum();
                let scale = lengths[row] / square.sqrt() as f32;
                values.iter_mut().for_each(|value| *value *= scale);
            }
            (_, Some(scales)) => {
                values.iter_mut().zip(scales).for_each(|(value, scale)| *value *= scale);
            }
            _ => {}
        }
    }
}
