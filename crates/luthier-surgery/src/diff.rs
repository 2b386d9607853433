//! `luthier diff A B`: what distinguishes two models, tensor by tensor and key by key.
//!
//! Reads two models, folders or GGUF files alike, and writes nothing. Both are compared under Hugging Face names and
//! by value, so a folder and the GGUF file made of it can be compared; stored types are reported apart. Tensors that stand at
//! the same place of one architecture are compared though their names differ (BERT's with and without `bert.`).
//! Guarantees: every tensor, config key and side file of either model is in the result.
//! Refuses: what cannot be opened. Example: `luthier diff builtin runs/adapted`.

use std::collections::BTreeMap;

use luthier_checkpoint::layout::{Role, Tie};
use luthier_checkpoint::{Checkpoint, Dtype, TensorInfo, values};
use serde::Serialize;
use serde_json::{Map, Value};

use crate::Result;

/// What distinguishes model a from model b.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Difference {
    /// Nothing differs: tensors, types, config and side files are the same.
    pub identical: bool,
    /// Tensors that only a has.
    pub only_in_a: Vec<String>,
    /// Tensors that only b has.
    pub only_in_b: Vec<String>,
    /// Names under which only the files of a carry a weight once more that both have (a tied head or embedding).
    pub repeated_only_in_a: Vec<String>,
    /// The same for b.
    pub repeated_only_in_b: Vec<String>,
    /// Tensors whose shapes differ; their values are not compared.
    pub shapes: Vec<ShapeDifference>,
    /// Tensors that are stored in different types; their values are compared.
    pub dtypes: Vec<DtypeDifference>,
    /// Tensors of equal values.
    pub equal: Vec<String>,
    /// Tensors whose values differ.
    pub changed: Vec<ValueDifference>,
    /// Config keys, nested ones joined by dots.
    pub config: Vec<KeyDifference>,
    /// Tokenizer and other side files.
    pub side_files: Vec<FileDifference>,
}

/// One tensor, two shapes.
#[derive(Clone, Debug, Serialize, PartialEq)]
#[allow(missing_docs)]
pub struct ShapeDifference {
    pub name: String,
    pub a: Vec<usize>,
    pub b: Vec<usize>,
}

/// One tensor, two types.
#[derive(Clone, Debug, Serialize, PartialEq)]
#[allow(missing_docs)]
pub struct DtypeDifference {
    pub name: String,
    pub a: String,
    pub b: String,
}

/// How far the values of one tensor lie apart.
#[derive(Clone, Debug, Default, Serialize, PartialEq)]
pub struct ValueDifference {
    /// The tensor.
    pub name: String,
    /// Number of values that differ; 0 for types whose bytes alone are compared.
    pub values: usize,
    /// Largest |a - b|; none where a value is not finite.
    pub max_abs: Option<f64>,
    /// |a - b| / |a| in the Euclidean norm; none where a is zero or a value is not finite.
    pub relative_l2: Option<f64>,
    /// Cosine of the angle between a and b; none where one is zero or a value is not finite.
    pub cosine: Option<f64>,
}

/// One config key, two values; none where the key is absent.
#[derive(Clone, Debug, Serialize, PartialEq)]
#[allow(missing_docs)]
pub struct KeyDifference {
    pub key: String,
    pub a: Option<Value>,
    pub b: Option<Value>,
}

/// One side file that is not the same in both.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct FileDifference {
    /// Its name in the folder.
    pub name: String,
    /// Its size in a; none where a lacks it.
    pub a_bytes: Option<usize>,
    /// Its size in b; none where b lacks it.
    pub b_bytes: Option<usize>,
    /// For JSON files: the keys that differ, at most 100; a tokenizer's pieces count as keys.
    pub keys: Vec<KeyDifference>,
}

/// Keys of one JSON side file that are listed at most.
const LISTED_KEYS: usize = 100;

/// Longest value of a side file that is listed whole.
const LISTED_BYTES: usize = 200;

/// Values that are compared at once: a whole number of blocks of every type.
const PIECE_LEN: usize = 1 << 14;

/// Compares two models.
pub fn run(a: &Checkpoint, b: &Checkpoint) -> Result<Difference> {
    let a_infos = by_name(a);
    let b_infos = by_name(b);
    let (a_names, b_names) = (Names::of(a), Names::of(b));
    let mut difference = Difference {
        identical: false,
        only_in_a: missing_from(&b_infos, &b_names, a, &a_names),
        only_in_b: missing_from(&a_infos, &a_names, b, &b_names),
        repeated_only_in_a: repeated(a, &b_infos, &a_names),
        repeated_only_in_b: repeated(b, &a_infos, &b_names),
        shapes: Vec::new(),
        dtypes: Vec::new(),
        equal: Vec::new(),
        changed: Vec::new(),
        config: key_differences(&a.config, &b.config),
        side_files: file_differences(a, b),
    };
    for info_a in a.tensors.infos() {
        let Some(info_b) = b_names.find(&b_infos, &info_a.name, &a_names) else { continue };
        let name = &info_a.name;
        if info_a.dtype != info_b.dtype {
            difference.dtypes.push(DtypeDifference {
                name: name.clone(),
                a: info_a.dtype.to_string(),
                b: info_b.dtype.to_string(),
            });
        }
        if info_a.shape != info_b.shape {
            difference.shapes.push(ShapeDifference {
                name: name.clone(),
                a: info_a.shape.clone(),
                b: info_b.shape.clone(),
            });
            continue;
        }
        let (bytes_a, bytes_b) = (a.tensors.read(name)?, b.tensors.read(&info_b.name)?);
        if info_a.dtype == info_b.dtype && bytes_a[..] == bytes_b[..] {
            difference.equal.push(name.clone());
            continue;
        }
        match compare(name, (info_a.dtype, &bytes_a), (info_b.dtype, &bytes_b))? {
            None => difference.equal.push(name.clone()),
            Some(changed) => difference.changed.push(changed),
        }
    }
    difference.identical = difference.only_in_a.is_empty()
        && difference.only_in_b.is_empty()
        && difference.shapes.is_empty()
        && difference.dtypes.is_empty()
        && difference.changed.is_empty()
        && difference.config.is_empty()
        && difference.side_files.is_empty();
    Ok(difference)
}

fn by_name(checkpoint: &Checkpoint) -> BTreeMap<&str, &TensorInfo> {
    checkpoint.tensors.infos().iter().map(|info| (info.name.as_str(), info)).collect()
}

/// What the names of a model's tensors stand for.
struct Names {
    /// Names under which it holds a weight without a file having to carry it: the head that is the embedding.
    ties: Vec<Tie>,
    /// Where each tensor stands.
    roles: Vec<(Role, String)>,
}

impl Names {
    /// None for an architecture that is not known.
    fn of(checkpoint: &Checkpoint) -> Names {
        let layout = luthier_arch::layout_of(checkpoint).unwrap_or_default();
        let roles = layout.tensors.into_iter().map(|spec| (spec.role, spec.name)).collect();
        Names { ties: layout.ties, roles }
    }

    /// The tensor of this name, the one that it is tied to, or the one that stands where `name` stands in `other`.
    fn find<'i>(
        &self,
        infos: &BTreeMap<&str, &'i TensorInfo>,
        name: &str,
        other: &Names,
    ) -> Option<&'i TensorInfo> {
        let target =
            |names: &Names| names.ties.iter().find(|tie| tie.name == name).map(|tie| tie.target.clone());
        let tied = || target(self).and_then(|target| infos.get(target.as_str()));
        let here = |name: &str| {
            let role = other.roles.iter().find(|role| role.1 == name)?.0;
            let own = &self.roles.iter().find(|own| own.0 == role)?.1;
            infos.get(own.as_str())
        };
        let elsewhere = || here(name).or_else(|| here(&target(other)?));
        infos.get(name).or_else(tied).or_else(elsewhere).copied()
    }
}

fn missing_from(
    infos: &BTreeMap<&str, &TensorInfo>,
    names: &Names,
    checkpoint: &Checkpoint,
    own: &Names,
) -> Vec<String> {
    let all = checkpoint.tensors.infos().iter().map(|info| &info.name);
    all.filter(|name| names.find(infos, name, own).is_none()).cloned().collect()
}

/// Tied names that the model's files carry and the other's do not.
fn repeated(checkpoint: &Checkpoint, others: &BTreeMap<&str, &TensorInfo>, own: &Names) -> Vec<String> {
    let names = checkpoint.tensors.infos().iter().map(|info| &info.name);
    let is_tied = |name: &String| own.ties.iter().any(|tie| tie.name == *name);
    names.filter(|name| is_tied(name) && !others.contains_key(name.as_str())).cloned().collect()
}

/// How far two tensors of one shape lie apart; none where all values are equal (zeros of either sign, and two NaNs,
/// count as equal). Types that are not computed with are compared by their bytes alone.
fn compare(name: &str, a: (Dtype, &[u8]), b: (Dtype, &[u8])) -> Result<Option<ValueDifference>> {
    if !(is_computed_with(a.0) && is_computed_with(b.0)) {
        return Ok(Some(ValueDifference { name: name.to_string(), ..ValueDifference::default() }));
    }
    let mut sums = Sums::default();
    let mut pieces_b = pieces(b);
    for piece_a in pieces(a) {
        let piece_b = pieces_b.next().unwrap_or_default();
        sums.add(&values::to_f32(name, a.0, piece_a)?, &values::to_f32(name, b.0, piece_b)?);
    }
    Ok((sums.differing > 0).then(|| sums.difference(name)))
}

fn is_computed_with(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::Weights(_) | Dtype::F64)
}

/// The bytes of `PIECE_LEN` values each.
fn pieces((dtype, bytes): (Dtype, &[u8])) -> std::slice::Chunks<'_, u8> {
    let (block_len, block_bytes) = dtype.block();
    bytes.chunks(PIECE_LEN / block_len * block_bytes)
}

#[derive(Default)]
struct Sums {
    differing: usize,
    not_finite: bool,
    max_abs: f64,
    aa: f64,
    bb: f64,
    ab: f64,
    dd: f64,
}

impl Sums {
    fn add(&mut self, a_values: &[f32], b_values: &[f32]) {
        for (a, b) in a_values.iter().zip(b_values) {
            let (a, b) = (f64::from(*a), f64::from(*b));
            let same = a == b || (a.is_nan() && b.is_nan());
            self.differing += usize::from(!same);
            self.not_finite |= !(a.is_finite() && b.is_finite());
            let d = a - b;
            self.max_abs = self.max_abs.max(d.abs());
            self.aa += a * a;
            self.bb += b * b;
            self.ab += a * b;
            self.dd += d * d;
        }
    }

    fn difference(&self, name: &str) -> ValueDifference {
        let finite = |value: f64| (!self.not_finite && value.is_finite()).then_some(value);
        ValueDifference {
            name: name.to_string(),
            values: self.differing,
            max_abs: finite(self.max_abs),
            relative_l2: finite((self.dd / self.aa).sqrt()),
            cosine: finite(self.ab / (self.aa.sqrt() * self.bb.sqrt())),
        }
    }
}

fn key_differences(a: &Map<String, Value>, b: &Map<String, Value>) -> Vec<KeyDifference> {
    let mut found = Vec::new();
    collect_keys("", a, b, &mut found);
    found
}

fn collect_keys(
    prefix: &str,
    a: &Map<String, Value>,
    b: &Map<String, Value>,
    found: &mut Vec<KeyDifference>,
) {
    let only_in_b = b.keys().filter(|key| !a.contains_key(*key));
    for key in a.keys().chain(only_in_b) {
        match (a.get(key), b.get(key)) {
            (Some(Value::Object(a)), Some(Value::Object(b))) => {
                collect_keys(&format!("{prefix}{key}."), a, b, found);
            }
            (a, b) if a == b || same_number(a, b) => {}
            (a, b) => {
                found.push(KeyDifference { key: format!("{prefix}{key}"), a: a.cloned(), b: b.cloned() });
            }
        }
    }
}

/// 10000 and 10000.0 are one number to every reader of configs.
fn same_number(a: Option<&Value>, b: Option<&Value>) -> bool {
    match (a.and_then(Value::as_f64), b.and_then(Value::as_f64)) {
        (Some(a), Some(b)) => a.total_cmp(&b).is_eq(),
        _ => false,
    }
}

fn file_differences(a: &Checkpoint, b: &Checkpoint) -> Vec<FileDifference> {
    let find = |checkpoint: &Checkpoint, name: &str| -> Option<Vec<u8>> {
        checkpoint.side_files.iter().find(|file| file.name == name).map(|file| file.bytes.clone())
    };
    let mut names: Vec<&str> =
        a.side_files.iter().chain(&b.side_files).map(|file| file.name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    names
        .into_iter()
        .filter_map(|name| {
            let (a_bytes, b_bytes) = (find(a, name), find(b, name));
            (a_bytes != b_bytes).then(|| FileDifference {
                name: name.to_string(),
                a_bytes: a_bytes.as_ref().map(Vec::len),
                b_bytes: b_bytes.as_ref().map(Vec::len),
                keys: json_keys(a_bytes.as_deref(), b_bytes.as_deref()),
            })
        })
        .collect()
}

fn json_keys(a: Option<&[u8]>, b: Option<&[u8]>) -> Vec<KeyDifference> {
    let parse = |bytes: Option<&[u8]>| serde_json::from_slice::<Map<String, Value>>(bytes?).ok();
    let (Some(a), Some(b)) = (parse(a), parse(b)) else { return Vec::new() };
    let mut keys = key_differences(&a, &b);
    keys.truncate(LISTED_KEYS);
    for key in &mut keys {
        key.a = key.a.take().map(shortened);
        key.b = key.b.take().map(shortened);
    }
    keys
}

/// Long lists (a tokenizer's merges) as what they are and how long.
fn shortened(value: Value) -> Value {
    let len = value.to_string().len();
    match &value {
        _ if len <= LISTED_BYTES => value,
        Value::Array(items) => Value::String(format!("a list of {} entries", items.len())),
        Value::Object(keys) => Value::String(format!("an object of {} keys", keys.len())),
        _ => Value::String(format!("a value of {len} bytes")),
    }
}
