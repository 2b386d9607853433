//! Which tensors of which models become which tensor of the result, with which parameters.

use std::collections::{HashMap, HashSet};

use luthier_checkpoint::{Dtype, TensorInfo};
use luthier_kernels::blocks::BlockType;

use super::method::{Base, Method};
use super::parameters::resolve;
use super::recipe::{Parameters, Recipe, Slice, Unshared};
use super::rows::Rows;
use super::vocabulary::Vocabulary;
use crate::view::find;
use crate::{Error, Input, Result};

/// One tensor of the result.
pub(crate) struct Piece {
    pub(crate) info: TensorInfo,
    /// Number of the model and name of its tensor, in the recipe's order.
    pub(crate) inputs: Vec<(usize, String)>,
    /// Which of these is the base.
    pub(crate) base: Option<usize>,
    /// As [`super::method::Group::values`].
    pub(crate) values: Vec<Vec<f64>>,
    /// Whether it is the first input's as it is, whatever the method.
    pub(crate) kept: bool,
    /// Where its rows come from, where tokens are not in their places already.
    pub(crate) rows: Option<Rows>,
}

/// A stretch of layers of the result.
pub(crate) struct Stretch<'r> {
    /// Number of the model, its layers, its own parameters.
    pub(crate) sources: Vec<(usize, [usize; 2], Option<&'r Parameters>)>,
    /// Position of the base, for a method that compares with one.
    pub(crate) base: Option<usize>,
    /// Position of the base in any case: its tokens' rows go before those of others.
    pub(crate) donor: Option<usize>,
    pub(crate) parameters: Option<&'r Parameters>,
    pub(crate) len: usize,
}

/// The layers of one stack of the result.
pub(crate) struct Portion<'r> {
    pub(crate) stretches: Vec<Stretch<'r>>,
    pub(crate) parameters: Option<&'r Parameters>,
}

/// What pairing works on.
pub(crate) struct Pairing<'r> {
    pub(crate) recipe: &'r Recipe,
    pub(crate) method: &'static Method,
    pub(crate) inputs: &'r [Input],
    /// Number of each model by the name that the recipe gives it.
    pub(crate) numbers: HashMap<String, usize>,
    /// The type that the recipe asks for.
    pub(crate) dtype: Option<Dtype>,
    /// Which tokens stand in which rows, where the recipe says whose tokenizer it shall be.
    pub(crate) vocabulary: Option<&'r Vocabulary>,
}

impl<'r> Pairing<'r> {
    /// The stretches of a list of whole models; the base is added where the list lacks it.
    pub(crate) fn of_models(
        &self,
        models: &'r [super::recipe::Model],
        layers: &dyn Fn(usize) -> usize,
    ) -> Result<Vec<Stretch<'r>>> {
        let base = self.recipe.base_model.as_ref().map(|base| self.numbers[base]);
        let mut sources: Vec<_> = models
            .iter()
            .map(|model| (self.numbers[&model.model], model.parameters.as_ref()))
            .map(|(number, parameters)| (number, [0, layers(number)], parameters))
            .collect();
        if let Some(base) = base
            && !sources.iter().any(|source| source.0 == base)
        {
            sources.push((base, [0, layers(base)], None));
        }
        Ok(vec![self.stretch(sources, base, None)?])
    }

    /// The stretches of a list of slices.
    pub(crate) fn of_slices(
        &self,
        slices: &'r [Slice],
        layers: &dyn Fn(usize) -> usize,
    ) -> Result<Vec<Stretch<'r>>> {
        let mut stretches = Vec::new();
        for slice in slices {
            let mut sources = Vec::new();
            for source in &slice.sources {
                let number = self.numbers[&source.model];
                let [start, end] = source.layer_range;
                if start >= end || end > layers(number) {
                    return Err(Error::Use(format!(
                        "layer_range [{start}, {end}] of {}: the model has layers 0 to {}; give a first layer and the one after the last",
                        source.model,
                        layers(number)
                    )));
                }
                sources.push((number, source.layer_range, source.parameters.as_ref()));
            }
            let base = slice.base_model.as_ref().or(self.recipe.base_model.as_ref());
            let base = base.map(|base| self.numbers[base]);
            stretches.push(self.stretch(sources, base, slice.parameters.as_ref())?);
        }
        if stretches.is_empty() {
            return Err(Error::Use("slices: wanted at least one, the list is empty".to_string()));
        }
        Ok(stretches)
    }

    /// Refuses inputs that the method cannot take.
    fn stretch(
        &self,
        sources: Vec<(usize, [usize; 2], Option<&'r Parameters>)>,
        base: Option<usize>,
        parameters: Option<&'r Parameters>,
    ) -> Result<Stretch<'r>> {
        let method = self.method;
        let mut seen = HashSet::new();
        if let Some(twice) = sources.iter().find(|source| !seen.insert(source.0)) {
            let label = &self.inputs[twice.0].label;
            return Err(Error::Use(format!("model {label} is named twice in one list; name it once")));
        }
        let len = sources.first().map_or(0, |source| source.1[1] - source.1[0]);
        if let Some(other) = sources.iter().find(|source| source.1[1] - source.1[0] != len) {
            return Err(Error::Use(format!(
                "model {} brings {} layers, {} brings {len}; models that are merged have equally many",
                self.inputs[other.0].label,
                other.1[1] - other.1[0],
                self.inputs[sources[0].0].label
            )));
        }
        if !method.inputs.contains(&sources.len()) {
            let (low, high) = (*method.inputs.start(), *method.inputs.end());
            let wanted = match high {
                usize::MAX => format!("{low} or more"),
                high if high == low => low.to_string(),
                high => format!("{low} to {high}"),
            };
            return Err(Error::Use(format!(
                "merge_method {}: wanted {wanted} models (the base included), came {}",
                method.name,
                sources.len()
            )));
        }
        let donor = base.and_then(|base| sources.iter().position(|source| source.0 == base));
        let base = if method.base == Base::Ignored { None } else { base };
        let base_position = base.and_then(|base| sources.iter().position(|source| source.0 == base));
        match (method.base, base, base_position) {
            (Base::Required, None, _) => Err(Error::Use(format!(
                "merge_method {}: wanted a base_model, the recipe names none",
                method.name
            ))),
            (_, Some(base), None) => Err(Error::Use(format!(
                "base_model {} is not among the sources of a slice; add it there",
                self.inputs[base].label
            ))),
            _ => Ok(Stretch { sources, base: base_position, donor, parameters, len }),
        }
    }

    /// The result's tensor `name` of `inputs`, `depth` of the way through its stretch; `of_tokens`: its rows are tokens'.
    pub(crate) fn piece(
        &self,
        name: &str,
        inputs: Vec<(usize, String)>,
        stretch: &Stretch,
        module: Option<&Parameters>,
        depth: f64,
        of_tokens: bool,
    ) -> Result<Piece> {
        let global = self.recipe.parameters.as_ref();
        let mut values = Vec::new();
        for parameter in self.method.parameters {
            if !parameter.per_input {
                let scopes = [stretch.parameters, module, global];
                values.push(vec![resolve(parameter, &scopes, name, depth)?]);
                continue;
            }
            let mut of_inputs = Vec::new();
            for (position, (_, source_name)) in inputs.iter().enumerate() {
                if stretch.base == Some(position) {
                    of_inputs.push(0.0);
                    continue;
                }
                let scopes = [stretch.sources[position].2, stretch.parameters, module, global];
                of_inputs.push(resolve(parameter, &scopes, source_name, depth)?);
            }
            values.push(of_inputs);
        }
        let (info, rows) = self.info_and_rows(name, &inputs, stretch, of_tokens)?;
        Ok(Piece { info, inputs, base: stretch.base, values, kept: false, rows })
    }

    /// The result's tensor `name` as one model has it.
    pub(super) fn kept(
        &self,
        name: &str,
        input: (usize, String),
        stretch: &Stretch,
        of_tokens: bool,
    ) -> Result<Piece> {
        let inputs = vec![input];
        let (info, rows) = self.info_and_rows(name, &inputs, stretch, of_tokens)?;
        Ok(Piece { info, inputs, base: None, values: Vec::new(), kept: true, rows })
    }

    /// Shape and type of a tensor of the result, and where its rows come from.
    fn info_and_rows(
        &self,
        name: &str,
        inputs: &[(usize, String)],
        stretch: &Stretch,
        of_tokens: bool,
    ) -> Result<(TensorInfo, Option<Rows>)> {
        let vocabulary = self.vocabulary.filter(|_| of_tokens);
        let mut info = self.output_info(name, inputs, vocabulary.is_some())?;
        let mut rows = None;
        if let Some(vocabulary) = vocabulary {
            let counted = inputs.iter().map(|(number, name)| {
                Ok((*number, find(self.inputs[*number].checkpoint.tensors.infos(), name)?.shape[0]))
            });
            let counted = counted.collect::<Result<Vec<_>>>()?;
            let width = info.shape[1..].iter().product();
            let donor = stretch.donor.map(|donor| stretch.sources[donor].0);
            let donor = inputs.iter().position(|(number, _)| Some(*number) == donor);
            rows = Rows::new(vocabulary, &counted, width, donor, self.inputs)?;
            info.shape[0] = vocabulary.rows;
        }
        Ok((info, rows))
    }

    /// Shape and type of a tensor of the result; refuses shapes that differ, but for the number of rows where these are
    /// aligned.
    fn output_info(&self, name: &str, inputs: &[(usize, String)], aligned: bool) -> Result<TensorInfo> {
        let info =
            |(number, name): &(usize, String)| find(self.inputs[*number].checkpoint.tensors.infos(), name);
        let first = info(&inputs[0])?;
        let mut dtype = first.dtype;
        for input in &inputs[1..] {
            let other = info(input)?;
            let same_rows = other.shape.get(1..) == first.shape.get(1..);
            if other.shape != first.shape && !(aligned && same_rows) {
                let vocabulary = if same_rows {
                    "; if these are rows of different vocabularies, tokenizer_source: union (or base, or a model) aligns them"
                } else {
                    ""
                };
                let what = format!(
                    "has shape {:?} in {} and {:?} in {}; models that are merged have the same shapes{vocabulary}",
                    first.shape, self.inputs[inputs[0].0].label, other.shape, self.inputs[input.0].label
                );
                return Err(luthier_checkpoint::Error::tensor(name, what).into());
            }
            dtype = promoted(dtype, other.dtype);
        }
        let dtype = match dtype {
            Dtype::Weights(BlockType::F32 | BlockType::F16 | BlockType::BF16) => self.dtype.unwrap_or(dtype),
            Dtype::Weights(_) | Dtype::F64 => self.dtype.unwrap_or(Dtype::F32),
            other => other,
        };
        Ok(TensorInfo { name: name.to_string(), dtype, shape: first.shape.clone() })
    }

    /// By name, for models whose architecture is not known.
    pub(crate) fn by_name(&self, part: &Portion<'r>) -> Result<Vec<Piece>> {
        let stretch = &part.stretches[0];
        let first = stretch.sources[stretch.base.unwrap_or(0)].0;
        let names =
            |number: usize| self.inputs[number].checkpoint.tensors.infos().iter().map(|info| &info.name);
        let mut layers: HashMap<&str, usize> = HashMap::new();
        for (prefix, layer) in names(first).filter_map(|name| layer_of(name)) {
            let count = layers.entry(prefix).or_default();
            *count = (*count).max(layer + 1);
        }
        let unshared = self.recipe.unshared.unwrap_or(Unshared::Refuse);
        let own: Vec<HashSet<&String>> =
            stretch.sources.iter().map(|(number, _, _)| names(*number).collect()).collect();
        let others = stretch.sources.iter().flat_map(|(number, _, _)| names(*number));
        let mut seen = HashSet::new();
        let mut pieces = Vec::new();
        for name in names(first).chain(others).filter(|name| seen.insert(*name)) {
            let lacks = own.iter().position(|own| !own.contains(name));
            let Some(lacks) = lacks else {
                let depth = layer_of(name).map_or(0.0, |(prefix, layer)| match layers.get(prefix) {
                    None | Some(1) => 1.0,
                    Some(count) => layer as f64 / (count - 1) as f64,
                });
                let inputs = stretch.sources.iter().map(|source| (source.0, name.clone())).collect();
                pieces.push(self.piece(name, inputs, stretch, part.parameters, depth, false)?);
                continue;
            };
            let has = own.iter().position(|own| own.contains(name)).unwrap_or(lacks);
            // The base comes before the others, wherever it stands in the list.
            let of_base = Some(stretch.donor.unwrap_or(0)).filter(|donor| own[*donor].contains(name));
            let (lacks, has) = (stretch.sources[lacks].0, stretch.sources[of_base.unwrap_or(has)].0);
            match unshared {
                Unshared::Refuse => return Err(self.missing(name, lacks, has)),
                Unshared::Base if of_base.is_none() => {}
                Unshared::Drop => {}
                Unshared::Keep | Unshared::Base => {
                    pieces.push(self.kept(name, (has, name.clone()), stretch, false)?);
                }
            }
        }
        Ok(pieces)
    }

    pub(super) fn missing(&self, name: &str, lacks: usize, has: usize) -> Error {
        let what = format!(
            "is in {}, but not in {}; tensors that only one parent has cannot be merged: unshared (base, keep or drop) says what becomes of them",
            self.inputs[has].label, self.inputs[lacks].label
        );
        luthier_checkpoint::Error::tensor(name, what).into()
    }
}

/// The type that holds the values of both, as torch promotes: f16 with bf16 becomes f32.
fn promoted(a: Dtype, b: Dtype) -> Dtype {
    if a == b {
        a
    } else if a.is_float() && b.is_float() {
        Dtype::F32
    } else {
        a
    }
}

/// What stands before the first number of a tensor's name, and the number.
fn layer_of(name: &str) -> Option<(&str, usize)> {
    let mut at = 0;
    let parts: Vec<&str> = name.split('.').collect();
    for (idx, part) in parts.iter().enumerate() {
        let inside = idx > 0 && idx + 1 < parts.len();
        if inside && !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()) {
            return Some((&name[..at], part.parse().ok()?));
        }
        at += part.len() + 1;
    }
    None
}
