//! The encoder-decoder as a source of tensors: each is read from its parent, or made fresh, when it is asked for.

use std::collections::HashSet;
use std::sync::Arc;

use luthier_checkpoint::layout::{Layout, Part, Projection, TensorSpec};
use luthier_checkpoint::{Dtype, Error, Result, TensorInfo, TensorSource, values};
use luthier_kernels::bytes::SharedBytes;
use serde_json::{Map, Value};

use super::fill::{Fill, Parent};
use crate::view::find;

/// An encoder-decoder made of two parents.
#[derive(Clone)]
pub(super) struct Adapted {
    encoder: Arc<dyn TensorSource>,
    decoder: Arc<dyn TensorSource>,
    config: Map<String, Value>,
    infos: Vec<TensorInfo>,
    fills: Vec<Fill>,
    /// The weight that each tensor is; a tied one appears more than once.
    specs: Vec<TensorSpec>,
    seed: u64,
}

impl Adapted {
    /// All tensors of `target`, the layout of `config`, and the tied names that files carry.
    /// Fresh tensors get `fresh_type`.
    pub(super) fn new(
        config: &Map<String, Value>,
        target: &Layout,
        fills: &[Fill],
        (encoder, decoder): (Arc<dyn TensorSource>, Arc<dyn TensorSource>),
        fresh_type: Dtype,
        seed: u64,
    ) -> Result<Adapted> {
        let mut infos = Vec::new();
        let (mut all_fills, mut specs) = (Vec::new(), Vec::new());
        for (spec, fill) in target.tensors.iter().zip(fills) {
            let dtype = match fill {
                Fill::Copy { parent: Parent::Encoder, name } => find(encoder.infos(), name)?.dtype,
                Fill::Copy { parent: Parent::Decoder, name } => find(decoder.infos(), name)?.dtype,
                Fill::Fresh => fresh_type,
            };
            let ties = target.ties.iter().filter(|tie| tie.written && tie.target == spec.name);
            for name in std::iter::once(&spec.name).chain(ties.map(|tie| &tie.name)) {
                infos.push(TensorInfo { name: name.clone(), dtype, shape: spec.shape.clone() });
                all_fills.push(fill.clone());
                specs.push(spec.clone());
            }
        }
        Ok(Adapted { encoder, decoder, config: config.clone(), infos, fills: all_fills, specs, seed })
    }

    /// Where each tensor comes from, in the order of `infos`.
    pub(super) fn fills(&self) -> &[Fill] {
        &self.fills
    }
}

impl TensorSource for Adapted {
    fn infos(&self) -> &[TensorInfo] {
        &self.infos
    }

    fn read(&self, name: &str) -> Result<SharedBytes> {
        let position = self.infos.iter().position(|info| info.name == name).ok_or_else(|| {
            Error::tensor(name, "wanted by the verb, the encoder-decoder has none of this name")
        })?;
        let (info, spec) = (&self.infos[position], &self.specs[position]);
        match &self.fills[position] {
            Fill::Copy { parent: Parent::Encoder, name } => self.encoder.read(name),
            Fill::Copy { parent: Parent::Decoder, name } => self.decoder.read(name),
            Fill::Fresh => {
                let fresh = luthier_arch::init::fresh(&self.config, spec, self.seed)
                    .map_err(|problem| Error::tensor(name, problem.to_string()))?;
                let bytes: Vec<u8> = fresh.iter().flat_map(|value| value.to_le_bytes()).collect();
                Ok(SharedBytes::from_vec(values::cast(name, Dtype::F32, &bytes, info.dtype)?))
            }
        }
    }
}

/// An encoder-decoder whose cross-attention adds nothing, since its output projections are zero.
pub(super) struct Silenced {
    model: Arc<dyn TensorSource>,
    silent: HashSet<String>,
}

impl Silenced {
    /// Of a model of this layout.
    pub(super) fn new(layout: &Layout, model: Arc<dyn TensorSource>) -> Silenced {
        let speaks = |part: Part| {
            matches!(
                part,
                Part::CrossAttention(Projection::Output) | Part::CrossAttentionBias(Projection::Output)
            )
        };
        let speaking = layout.tensors.iter().filter(|spec| speaks(spec.role.part));
        let silent = speaking.map(|spec| spec.name.clone()).collect();
        Silenced { model, silent }
    }
}

impl TensorSource for Silenced {
    fn infos(&self) -> &[TensorInfo] {
        self.model.infos()
    }

    fn read(&self, name: &str) -> Result<SharedBytes> {
        let bytes = self.model.read(name)?;
        // All float types spell zero with zero bytes.
        if self.silent.contains(name) { Ok(SharedBytes::from_vec(vec![0; bytes.len()])) } else { Ok(bytes) }
    }
}
