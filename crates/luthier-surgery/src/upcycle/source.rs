//! The model with experts as a source of tensors: each is read from its parent, or made, when it is asked for.

use std::collections::HashMap;
use std::sync::Arc;

use luthier_arch::init::normal;
use luthier_checkpoint::layout::{Layout, Part, Role, TensorSpec};
use luthier_checkpoint::{Dtype, Error, Result, TensorInfo, TensorSource, values};
use luthier_kernels::bytes::SharedBytes;

use super::Options;
use crate::view::find;
use crate::writing::Origin;

// f inner width of the block, g slices of it

/// What is done to the parent's blocks.
#[derive(Clone, Debug)]
pub(super) struct Recipe {
    options: Options,
    /// f.
    inner: usize,
    /// Copies of the block in the shared expert.
    shared: usize,
    /// On the routed experts' down projections.
    routed_scale: f64,
    /// On the shared expert's.
    shared_scale: f64,
}

impl Recipe {
    /// The scales make the sum of all that a token goes through the block's output: chosen slices with their weights, and
    /// the shared expert, whose router is zero, by half.
    pub(super) fn new(options: &Options, shared: usize, inner: usize) -> Recipe {
        let routed_share = if shared > 0 { 0.5 } else { 1.0 };
        // Equal weights, where they are not made to sum to 1.
        let sum = if options.normalized { 1.0 } else { options.top_k as f64 / options.experts as f64 };
        Recipe {
            options: options.clone(),
            inner,
            shared,
            routed_scale: routed_share * options.granularity as f64 / sum,
            shared_scale: (1.0 - routed_share) / (0.5 * shared.max(1) as f64),
        }
    }

    /// What becomes of the parent's part.
    fn fill(&self, part: Part) -> (Fill, Part) {
        let routed =
            |expert: usize, projection| (Fill::Routed { expert, projection }, projection.of_parent());
        let shared = |projection: Projection| (Fill::Shared { projection }, projection.of_parent());
        match part {
            Part::Router | Part::SharedRouter => (Fill::Made, part),
            Part::ExpertGate(expert) => routed(expert, Projection::Gate),
            Part::ExpertUp(expert) => routed(expert, Projection::Up),
            Part::ExpertDown(expert) => routed(expert, Projection::Down),
            Part::SharedGate => shared(Projection::Gate),
            Part::SharedUp => shared(Projection::Up),
            Part::SharedDown => shared(Projection::Down),
            part => (Fill::Copy, part),
        }
    }

    /// How a part is changed, in few words; none: it is the parent's.
    fn words(&self, fill: Fill) -> Option<String> {
        let mut words = Vec::new();
        let mut scale = |factor: f64| {
            if factor != 1.0 {
                words.push(format!("times {factor}"));
            }
        };
        match fill {
            Fill::Copy | Fill::Made => return None,
            Fill::Shared { projection } => {
                if projection == Projection::Down {
                    scale(self.shared_scale);
                }
                if self.shared > 1 {
                    words.push(format!("{} times side by side", self.shared));
                }
            }
            Fill::Routed { expert, projection } => {
                if projection == Projection::Down {
                    scale(self.routed_scale);
                }
                let slices = self.options.granularity;
                if slices > 1 {
                    words.push(format!("slice {} of {slices}", expert % slices + 1));
                }
                if self.options.shuffle {
                    words.push("inner dimensions in another order".to_string());
                }
                if self.options.drop > 0.0 {
                    words.push("some inner dimensions anew".to_string());
                }
                if self.options.noise > 0.0 {
                    words.push("noise added".to_string());
                }
            }
        }
        (!words.is_empty()).then(|| words.join(", "))
    }

    /// The inner dimensions of the block that an expert of this layer is made of.
    fn dimensions(&self, layer: usize, expert: usize) -> Vec<usize> {
        let slices = self.options.granularity;
        let (copy, slice, width) = (expert / slices, expert % slices, self.inner / slices);
        let mut order: Vec<usize> = (0..self.inner).collect();
        if self.options.shuffle {
            order = ranked(&format!("layer {layer} copy {copy} order"), self.options.seed, self.inner);
        }
        order[slice * width..][..width].to_vec()
    }

    /// Which of its `width` inner dimensions an expert starts anew.
    fn dropped(&self, layer: usize, expert: usize, width: usize) -> Vec<usize> {
        let count = (self.options.drop * width as f64).round() as usize;
        let mut dropped = ranked(&format!("layer {layer} expert {expert} dropped"), self.options.seed, width);
        dropped.truncate(count);
        dropped
    }
}

/// The numbers below `len` in a random order.
fn ranked(name: &str, seed: u64, len: usize) -> Vec<usize> {
    let keys = normal(name, seed, 1.0, len);
    let mut order: Vec<usize> = (0..len).collect();
    order.sort_by(|a, b| keys[*a].total_cmp(&keys[*b]).then(a.cmp(b)));
    order
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fill {
    /// The parent's tensor as it is.
    Copy,
    /// From the seed, or zero.
    Made,
    Routed {
        expert: usize,
        projection: Projection,
    },
    Shared {
        projection: Projection,
    },
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Projection {
    Gate,
    Up,
    Down,
}

impl Projection {
    fn of_parent(self) -> Part {
        match self {
            Projection::Gate => Part::Gate,
            Projection::Up => Part::Up,
            Projection::Down => Part::Down,
        }
    }
}

/// A tensor of the model with experts.
#[derive(Clone)]
struct Piece {
    fill: Fill,
    /// The parent's tensor.
    parent: Option<String>,
    role: Role,
}

/// A model with experts made of a dense one.
#[derive(Clone)]
pub(super) struct Upcycled {
    parent: Arc<dyn TensorSource>,
    recipe: Recipe,
    infos: Vec<TensorInfo>,
    pieces: Vec<Piece>,
    numbers: HashMap<String, usize>,
}

impl Upcycled {
    /// All tensors of `target`; those that come from no parent get `fresh_type`.
    pub(super) fn new(
        target: &Layout,
        parent_layout: &Layout,
        parent: Arc<dyn TensorSource>,
        fresh_type: Dtype,
        recipe: Recipe,
    ) -> crate::Result<Upcycled> {
        let roles: HashMap<Role, &TensorSpec> =
            parent_layout.tensors.iter().map(|spec| (spec.role, spec)).collect();
        let types: HashMap<&str, Dtype> =
            parent.infos().iter().map(|info| (info.name.as_str(), info.dtype)).collect();
        let (mut infos, mut pieces, mut numbers) = (Vec::new(), Vec::new(), HashMap::new());
        for spec in &target.tensors {
            let (fill, part) = recipe.fill(spec.role.part);
            let (name, dtype) = match fill {
                Fill::Made => (None, fresh_type),
                _ => {
                    let source = roles.get(&Role { part, ..spec.role });
                    let source = source.ok_or_else(|| {
                        crate::Error::Use(format!(
                            "tensor {}: the parent has no {part:?} to make it of; this model cannot get experts",
                            spec.name
                        ))
                    })?;
                    (Some(source.name.clone()), types[source.name.as_str()])
                }
            };
            numbers.insert(spec.name.clone(), infos.len());
            infos.push(TensorInfo { name: spec.name.clone(), dtype, shape: spec.shape.clone() });
            pieces.push(Piece { fill, parent: name, role: spec.role });
        }
        Ok(Upcycled { parent, recipe, infos, pieces, numbers })
    }

    /// Where each tensor comes from.
    pub(super) fn origins(&self) -> Vec<Origin> {
        let origin = |piece: &Piece| {
            let Some(name) = piece.parent.clone() else {
                return Origin::Made(match piece.role.part {
                    Part::Router if self.recipe.options.router_std > 0.0 => {
                        "random, from the seed".to_string()
                    }
                    _ => "zero".to_string(),
                });
            };
            match self.recipe.words(piece.fill) {
                None => Origin::From { input: 0, name },
                Some(how) => Origin::Changed { input: 0, name, how },
            }
        };
        self.pieces.iter().map(origin).collect()
    }

    /// Whether scaled values are no more rounded than the parent's.
    pub(super) fn scales_are_exact(&self) -> bool {
        let is_power_of_two = |scale: f64| scale.log2().fract() == 0.0;
        let routed = is_power_of_two(self.recipe.routed_scale);
        let shared = self.recipe.shared == 0 || is_power_of_two(self.recipe.shared_scale);
        let scaled = self.pieces.iter().zip(&self.infos).filter(|(piece, _)| {
            matches!(
                piece.fill,
                Fill::Routed { projection: Projection::Down, .. }
                    | Fill::Shared { projection: Projection::Down }
            )
        });
        routed && shared || scaled.into_iter().all(|(_, info)| matches!(info.dtype, Dtype::F32 | Dtype::F64))
    }

    fn router(&self, info: &TensorInfo, role: Role) -> Vec<f32> {
        let Recipe { options, .. } = &self.recipe;
        let (rows, width) = (info.shape[0], info.shape[1]);
        if role.part != Part::Router || options.router_std == 0.0 {
            return vec![0.0; rows * width];
        }
        // Slices of one copy are chosen together.
        let copies = rows / options.granularity;
        let values = normal(&info.name, options.seed, options.router_std, copies * width);
        let of_copy = |copy: usize| &values[copy * width..][..width];
        (0..rows).flat_map(|row| of_copy(row / options.granularity)).copied().collect()
    }

    fn shared(&self, values: &[f32], projection: Projection) -> Vec<f32> {
        let copies = self.recipe.shared;
        if projection != Projection::Down {
            return values.repeat(copies);
        }
        let scale = self.recipe.shared_scale as f32;
        let rows = values.chunks_exact(self.recipe.inner);
        rows.flat_map(|row| row.repeat(copies)).map(|value| value * scale).collect()
    }

    fn routed(&self, info: &TensorInfo, role: Role, values: &[f32], fill: (usize, Projection)) -> Vec<f32> {
        let (recipe, (expert, projection)) = (&self.recipe, fill);
        let (layer, seed) = (role.layer.unwrap_or(0), recipe.options.seed);
        let dimensions = recipe.dimensions(layer, expert);
        let width = dimensions.len();
        let mut own: Vec<f32> = match projection {
            Projection::Down => {
                let scale = recipe.routed_scale as f32;
                let rows = values.chunks_exact(recipe.inner);
                rows.flat_map(|row| dimensions.iter().map(move |&at| row[at] * scale)).collect()
            }
            _ => {
                let columns = values.len() / recipe.inner;
                dimensions.iter().flat_map(|&row| &values[row * columns..][..columns]).copied().collect()
            }
        };
        if recipe.options.drop > 0.0 {
            let dropped = recipe.dropped(layer, expert, width);
            let columns = own.len() / width;
            // Where the values of one inner dimension stand: a row of gate and up, a column of down.
            let place = |dimension: usize, at: usize| match projection {
                Projection::Down => at * width + dimension,
                _ => dimension * columns + at,
            };
            let places: Vec<usize> =
                dropped.iter().flat_map(|&d| (0..columns).map(move |at| place(d, at))).collect();
            start_anew(&mut own, &places, &format!("{} anew", info.name), seed);
        }
        if recipe.options.noise > 0.0 {
            let noise = normal(&format!("{} noise", info.name), seed, recipe.options.noise, own.len());
            own.iter_mut().zip(noise).for_each(|(value, noise)| *value += noise);
        }
        own
    }
}

/// Draws the values at `places` again, with their own mean and deviation (section 3 of arXiv:2502.19261).
fn start_anew(values: &mut [f32], places: &[usize], name: &str, seed: u64) {
    let count = places.len().max(1) as f64;
    let mean = places.iter().map(|&at| f64::from(values[at])).sum::<f64>() / count;
    let square = |at: &usize| (f64::from(values[*at]) - mean).powi(2);
    let deviation = (places.iter().map(square).sum::<f64>() / count).sqrt();
    for (&at, draw) in places.iter().zip(normal(name, seed, deviation, places.len())) {
        values[at] = (mean + f64::from(draw)) as f32;
    }
}

impl TensorSource for Upcycled {
    fn infos(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn read(&self, name: &str) -> Result<SharedBytes> {
        let number = self.numbers.get(name);
        let number =
            *number.ok_or_else(|| Error::tensor(name, "the model with experts has none of this name"))?;
        let (info, piece) = (&self.infos[number], &self.pieces[number]);
        let Some(parent) = &piece.parent else {
            return from_f32(name, &self.router(info, piece.role), info.dtype);
        };
        let bytes = self.parent.read(parent)?;
        if self.recipe.words(piece.fill).is_none() {
            return Ok(bytes);
        }
        let values = values::to_f32(parent, find(self.parent.infos(), parent)?.dtype, &bytes)?;
        let made = match piece.fill {
            Fill::Routed { expert, projection } => {
                self.routed(info, piece.role, &values, (expert, projection))
            }
            Fill::Shared { projection } => self.shared(&values, projection),
            Fill::Copy | Fill::Made => return Ok(bytes),
        };
        from_f32(name, &made, info.dtype)
    }
}

fn from_f32(name: &str, made: &[f32], dtype: Dtype) -> Result<SharedBytes> {
    let bytes: Vec<u8> = made.iter().flat_map(|value| value.to_le_bytes()).collect();
    Ok(SharedBytes::from_vec(values::cast(name, Dtype::F32, &bytes, dtype)?))
}
