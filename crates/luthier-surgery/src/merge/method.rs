//! The table of methods: one line each, sorted by name.

use std::borrow::Cow;

use super::looks::{Known, Section};
use super::parameters::{Kind, Parameter};
use super::{
    karcher, linear, model_stock, multislerp, nearswap, nuslerp, passthrough, sce, slerp, task_vectors,
};
use crate::{Error, Result};

/// Whether a method compares with a base model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Base {
    /// The base is an input like the others.
    Ignored,
    /// Used where there is one.
    Optional,
    /// Must be among the inputs.
    Required,
}

/// What of a tensor is merged at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Any values: a merged value depends on the same value of the inputs, and on what was found out before.
    Value,
    /// Whole lines along the last axis.
    Line,
    /// All that lies at one place of the first axis.
    Place,
    /// Everything.
    Whole,
}

/// The smallest of the largest values, those above which are among them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Cut {
    /// A magnitude.
    pub(crate) threshold: f32,
    /// How many that are equal to it still belong to the largest, from the first on.
    pub(crate) equal_left: usize,
}

/// What is merged into one tensor: the same values of every input, widened to f32.
pub(crate) struct Group<'g> {
    /// The shape of these values, which are whole units of the method; of single values their number.
    pub(crate) shape: &'g [usize],
    /// The inputs' values, all of one length, in the recipe's order.
    pub(crate) tensors: Vec<&'g [f32]>,
    /// Which of them is the base.
    pub(crate) base: Option<usize>,
    /// Where the largest of something end, as the method's look asked for it.
    pub(crate) cuts: Vec<Option<Cut>>,
    /// Other numbers that the method's look found out.
    pub(crate) numbers: &'g [f64],
    /// Values of the whole, of which these are a part: of the tensor, or of those of its rows that stand for tokens.
    pub(crate) n_values: usize,
    /// Parameters in the order of the method's list; those of one input hold a value for each, others one.
    pub(crate) values: &'g [Vec<f64>],
    /// Whether a random value survives: input, value's index, probability.
    pub(crate) keeps: &'g dyn Fn(usize, usize, f64) -> bool,
}

impl Group<'_> {
    /// Inputs that are not the base, by number.
    pub(crate) fn others(&self) -> Vec<usize> {
        (0..self.tensors.len()).filter(|&input| Some(input) != self.base).collect()
    }

    /// The values of an input, less the base's where they are compared with it.
    pub(crate) fn offsets(&self, input: usize, from_base: bool) -> Cow<'_, [f32]> {
        match self.base.filter(|_| from_base) {
            None => Cow::Borrowed(self.tensors[input]),
            Some(base) => {
                let pairs = self.tensors[input].iter().zip(self.tensors[base]);
                Cow::Owned(pairs.map(|(value, base)| value - base).collect())
            }
        }
    }

    /// Number of values.
    pub(crate) fn len(&self) -> usize {
        self.tensors.first().map_or(0, |tensor| tensor.len())
    }
}

/// A way of merging.
pub(crate) struct Method {
    pub(crate) name: &'static str,
    pub(crate) parameters: &'static [Parameter],
    pub(crate) base: Base,
    /// Inputs, the base among them.
    pub(crate) inputs: std::ops::RangeInclusive<usize>,
    /// What is merged at once, by the parameters' values.
    pub(crate) unit: fn(&[Vec<f64>]) -> Unit,
    /// What has to be known of all values before the first is merged.
    pub(crate) look: fn(&Section) -> luthier_checkpoint::Result<Known>,
    /// How often it looks there for the largest of something, for each input.
    pub(crate) searches: usize,
    /// The merged values; an error says what is wrong.
    pub(crate) merge: fn(&Group) -> std::result::Result<Vec<f32>, String>,
}

pub(crate) const fn number(name: &'static str, per_input: bool, default: Option<f64>) -> Parameter {
    Parameter { name, kind: Kind::Number, per_input, default }
}

pub(crate) const fn flag(name: &'static str, default: bool) -> Parameter {
    Parameter { name, kind: Kind::Flag, per_input: false, default: Some(if default { 1.0 } else { 0.0 }) }
}

/// Any values at once.
pub(crate) fn single_values(_: &[Vec<f64>]) -> Unit {
    Unit::Value
}

/// Nothing has to be known before.
pub(crate) fn nothing(_: &Section) -> luthier_checkpoint::Result<Known> {
    Ok(Known::default())
}

/// All of them.
pub(crate) const METHODS: &[Method] = &[
    task_vectors::BREADCRUMBS,
    task_vectors::BREADCRUMBS_TIES,
    task_vectors::DARE_LINEAR,
    task_vectors::DARE_TIES,
    task_vectors::DELLA,
    task_vectors::DELLA_LINEAR,
    karcher::METHOD,
    linear::METHOD,
    model_stock::METHOD,
    multislerp::METHOD,
    nearswap::METHOD,
    nuslerp::METHOD,
    passthrough::METHOD,
    sce::METHOD,
    slerp::METHOD,
    task_vectors::TASK_ARITHMETIC,
    task_vectors::TIES,
];

/// The method of that name.
pub(crate) fn find(name: &str) -> Result<&'static Method> {
    METHODS.iter().find(|method| method.name == name).ok_or_else(|| {
        let known: Vec<&str> = METHODS.iter().map(|method| method.name).collect();
        let meant = nearest(name, known.iter().copied());
        Error::Use(format!(
            "merge_method {name} is not known: did you mean {meant}? known: {}",
            known.join(", ")
        ))
    })
}

/// The known name that is most like the unknown one.
pub(crate) fn nearest<'n>(unknown: &str, known: impl Iterator<Item = &'n str>) -> &'n str {
    known
        .max_by(|a, b| strsim::jaro_winkler(unknown, a).total_cmp(&strsim::jaro_winkler(unknown, b)))
        .unwrap_or("")
}

/// Where the vectors along one axis of a tensor begin, the step between their values, and their length.
pub(crate) fn lines(shape: &[usize], axis: usize) -> (Vec<usize>, usize, usize) {
    let len = shape.get(axis).copied().unwrap_or(1);
    let step: usize = shape.iter().skip(axis + 1).product();
    let outer: usize = shape.iter().take(axis).product();
    let starts = (0..outer).flat_map(|outer| (0..step).map(move |inner| outer * len * step + inner));
    (starts.collect(), step, len)
}
