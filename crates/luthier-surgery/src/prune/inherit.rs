//! `luthier inherit MODEL OUT --layers N --ffn M [--hidden H]`: a small model that begins with what a larger one knows
//! (PanGu-pi Pro, arXiv:2402.02791, section 3.3).
//!
//! As `prune`, without a calibration text: of the layers the first and the last stay and the middle ones go; neurons and
//! channels of the residual stream of the largest L1 norm stay, or those of the highest scores where `luthier score` made
//! some. A neuron's norm is that of its row of gate and up and its column of down; a channel's is that of all rows and columns
//! of the stack's matrices that write or read it; where heads share out the width (BERT), as many of the largest norm stay,
//! over their rows of query, key and value and their columns of the output projection. Without scores a narrower norm is not scaled: nothing says how much of the
//! energy is gone. Guarantees and refusals are those of `prune`. Example: `luthier inherit large small --layers 12 --ffn 1024`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use luthier_arch::sizes::{HeadSizes, ModelSizes, StackSizes};
use luthier_checkpoint::layout::{Layout, Part, Projection, Role, Space, StackKind, TensorSpec};
use luthier_checkpoint::scores::{Aggregation, ScoreSettings};
use luthier_checkpoint::{Dtype, Scores, TensorSource, values};
use serde_json::{Map, Value, json};

use super::prepare::Prepared;
use super::{Amounts, Record, Report, Targets};
use crate::plan::Plan;
use crate::view::find;
use crate::{Error, Input, Result};

const MIDDLE: &str = "its layer lies in the middle";

/// What is inherited.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Layers.
    pub layers: Option<Amounts>,
    /// Neurons of every feed-forward block.
    pub ffn: Option<Amounts>,
    /// Width of the residual stream.
    pub hidden: Option<Amounts>,
    /// Scores of this model, to choose neurons and channels by.
    pub scores: Option<PathBuf>,
    /// The type of all float weights; none keeps them.
    pub dtype: Option<Dtype>,
    /// Whether an existing output is replaced.
    pub force: bool,
}

impl Options {
    fn targets(&self) -> super::Options {
        super::Options {
            targets: Targets {
                layers: self.layers.clone(),
                ffn: self.ffn.clone(),
                hidden: self.hidden.clone(),
                ..Targets::default()
            },
            scores: self.scores.clone(),
            dtype: self.dtype,
            force: self.force,
            ..super::Options::default()
        }
    }

    fn recipe(&self, model: &str) -> Value {
        let mut recipe = json!({ "model": model });
        for (axis, amounts) in [("layers", &self.layers), ("ffn", &self.ffn), ("hidden", &self.hidden)] {
            recipe[axis] = json!(amounts.as_ref().map(Amounts::text));
        }
        recipe["scores"] = json!(self.scores);
        recipe["dtype"] = json!(self.dtype.map(Dtype::name));
        recipe
    }
}

/// What `run` would write, from headers alone.
pub fn plan(input: &Input, out: &Path, options: &Options) -> Result<Plan> {
    super::planned(&prepared(input, options, false)?, out)
}

/// Writes the smaller model to `out`.
pub fn run(input: &Input, out: &Path, options: &Options) -> Result<Report> {
    let recipe = options.recipe(&input.label);
    let record = Record { verb: "inherit", recipe, seed: None, measurements: Map::new() };
    super::write(&prepared(input, options, true)?, input, out, options.force, record)
}

/// `reads`: whether weights may be read. Without them the shape is the same, but not which units stay.
fn prepared(input: &Input, options: &Options, reads: bool) -> Result<Prepared> {
    let mut prepared =
        Prepared::scored(input, &options.targets(), reads, MIDDLE, |layout, sizes, tensors, given| {
            let mut scores = match given {
                Some(scores) => scores,
                None if reads => norms(layout, sizes, tensors, options)?,
                None => norms(layout, sizes, &NoValues(tensors), options)?,
            };
            for stack in &sizes.stacks {
                let name = match stack.kind {
                    StackKind::Decoder => "block_influence.decoder",
                    StackKind::Encoder => "block_influence.encoder",
                };
                scores.tensors.insert(name.to_string(), from_the_middle(stack.layers.len()));
            }
            Ok(scores)
        })?;
    if options.hidden.is_some() && options.scores.is_none() {
        let note = "channels are chosen by weights alone; scores of luthier score (--scores) tell more, and scale norms to \
                    what is left";
        prepared.notes.push(note.to_string());
    }
    Ok(prepared)
}

/// How far each layer lies from the middle; of two equally far ones the first is kept first.
fn from_the_middle(n_layers: usize) -> Vec<f32> {
    (0..n_layers).map(|layer| (2.0 * layer as f32 - (n_layers as f32 - 1.0)).abs()).collect()
}

/// The L1 norms of neurons and channels under the names of a score file.
fn norms(
    layout: &Layout,
    sizes: &ModelSizes,
    tensors: &dyn TensorSource,
    options: &Options,
) -> Result<Scores> {
    let mut scores = BTreeMap::new();
    for stack in &sizes.stacks {
        if options.ffn.is_some() {
            for (layer, inner) in stack.layers.iter().enumerate() {
                if let Some(inner) = inner.inner {
                    let (name, norms) = neurons(layout, stack, layer, inner, tensors)?;
                    scores.insert(format!("neurons.{name}"), norms);
                }
            }
        }
        if options.hidden.is_some() && stack.heads_fill_width {
            for (layer, sizes) in stack.layers.iter().enumerate() {
                if let Some(own) = sizes.heads {
                    let (name, norms) = heads(layout, stack, layer, own, tensors)?;
                    scores.insert(format!("heads.{name}"), norms.clone());
                    scores.insert(format!("groups.{name}"), norms);
                }
            }
        }
        if options.hidden.is_some() {
            let mut total = channels(layout, stack, tensors)?;
            for spec in layout
                .tensors
                .iter()
                .filter(|spec| spec.role.stack == stack.kind && spec.spaces == [Space::Residual])
            {
                scores.insert(format!("energy.{}", spec.name), vec![1.0; stack.width]);
                scores.insert(format!("shift.{}", spec.name), vec![0.0; stack.width]);
                // The sum over all norms counts, and every stack has one outside of its layers.
                let counts = matches!(spec.role.part, Part::FinalNorm | Part::EmbeddingNorm);
                let own = if counts { std::mem::take(&mut total) } else { vec![0.0; stack.width] };
                scores.insert(format!("channels.{}", spec.name), own);
            }
        }
    }
    let settings = ScoreSettings {
        model_sha256: String::new(),
        text_sha256: String::new(),
        tokens: 0,
        window: 0,
        sequence: Aggregation::Mean,
        batch: Aggregation::Mean,
    };
    Ok(Scores { settings, tensors: scores })
}

/// Of one feed-forward block, and the name of its down projection.
fn neurons(
    layout: &Layout,
    stack: &StackSizes,
    layer: usize,
    inner: usize,
    tensors: &dyn TensorSource,
) -> Result<(String, Vec<f32>)> {
    let at = |part: Part| layout.at(Role { stack: stack.kind, layer: Some(layer), part });
    let missing =
        || Error::Use(format!("layer {layer} has no down projection whose neurons could be chosen"));
    let down = at(Part::Down).ok_or_else(missing)?;
    let mut sums = vec![0f64; inner];
    add_columns(down, tensors, &mut sums)?;
    for spec in [Part::Gate, Part::Up].into_iter().filter_map(at) {
        add_rows(spec, tensors, &mut sums)?;
    }
    Ok((down.name.clone(), narrow(&sums)))
}

/// Of one self-attention's heads, and the name of its output projection.
fn heads(
    layout: &Layout,
    stack: &StackSizes,
    layer: usize,
    own: HeadSizes,
    tensors: &dyn TensorSource,
) -> Result<(String, Vec<f32>)> {
    let at = |projection: Projection| {
        let part = Part::SelfAttention(projection);
        layout.at(Role { stack: stack.kind, layer: Some(layer), part })
    };
    let missing = || Error::Use(format!("layer {layer} has no attention whose heads could be chosen"));
    let output = at(Projection::Output).ok_or_else(missing)?;
    let mut sums = vec![0f64; own.query * own.width];
    add_columns(output, tensors, &mut sums)?;
    for spec in [Projection::Query, Projection::Key, Projection::Value].into_iter().filter_map(at) {
        add_rows(spec, tensors, &mut sums)?;
    }
    let norms: Vec<f64> = sums.chunks_exact(own.width).map(|head| head.iter().sum()).collect();
    Ok((output.name.clone(), narrow(&norms)))
}

/// Of all channels of a stack.
fn channels(layout: &Layout, stack: &StackSizes, tensors: &dyn TensorSource) -> Result<Vec<f32>> {
    let mut sums = vec![0f64; stack.width];
    for spec in layout.tensors.iter().filter(|spec| spec.shape.len() == 2) {
        let of_stack = spec.role.stack == stack.kind;
        // Keys and values of cross-attention are made of the encoder's states.
        let reads_encoder =
            matches!(spec.role.part, Part::CrossAttention(Projection::Key | Projection::Value));
        let reads = if reads_encoder { stack.kind == StackKind::Encoder } else { of_stack };
        if reads && spec.spaces[1] == Space::Residual {
            add_columns(spec, tensors, &mut sums)?;
        }
        if of_stack && spec.spaces[0] == Space::Residual {
            add_rows(spec, tensors, &mut sums)?;
        }
    }
    Ok(narrow(&sums))
}

fn add_columns(spec: &TensorSpec, tensors: &dyn TensorSource, sums: &mut [f64]) -> Result<()> {
    for row in read(spec, tensors)?.chunks_exact(sums.len()) {
        sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += f64::from(value.abs()));
    }
    Ok(())
}

fn add_rows(spec: &TensorSpec, tensors: &dyn TensorSource, sums: &mut [f64]) -> Result<()> {
    let values = read(spec, tensors)?;
    let columns = (values.len() / sums.len().max(1)).max(1);
    for (sum, row) in sums.iter_mut().zip(values.chunks_exact(columns)) {
        *sum += row.iter().map(|value| f64::from(value.abs())).sum::<f64>();
    }
    Ok(())
}

fn read(spec: &TensorSpec, tensors: &dyn TensorSource) -> Result<Vec<f32>> {
    let dtype = find(tensors.infos(), &spec.name)?.dtype;
    Ok(values::to_f32(&spec.name, dtype, &tensors.read(&spec.name)?)?)
}

fn narrow(sums: &[f64]) -> Vec<f32> {
    sums.iter().map(|sum| *sum as f32).collect()
}

/// A model's headers without its values.
struct NoValues<'t>(&'t dyn TensorSource);

impl TensorSource for NoValues<'_> {
    fn infos(&self) -> &[luthier_checkpoint::TensorInfo] {
        self.0.infos()
    }

    fn read(&self, _name: &str) -> luthier_checkpoint::Result<luthier_kernels::bytes::SharedBytes> {
        Ok(luthier_kernels::bytes::SharedBytes::from_vec(Vec::new()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prune::keep::highest;

    #[test]
    fn the_outer_layers_stay() {
        assert_eq!(
            highest(&from_the_middle(6).iter().map(|s| f64::from(*s)).collect::<Vec<_>>(), 4),
            [0, 1, 4, 5]
        );
        assert_eq!(
            highest(&from_the_middle(5).iter().map(|s| f64::from(*s)).collect::<Vec<_>>(), 3),
            [0, 1, 4]
        );
    }
}
