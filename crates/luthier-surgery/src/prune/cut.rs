//! What cutting means for one tensor: which places of each axis stay, and by what the rest is scaled.

use std::sync::Arc;

use luthier_arch::sizes::ModelSizes;
use luthier_checkpoint::layout::{Layout, Part, Projection, Role, Space, StackKind, TensorSpec};

use super::keep::{HeadKeep, StackKeep};
use super::scored::Scored;
use crate::{Error, Result};

/// The places of each axis that stay; none: all of them.
pub(super) type Places = Vec<Option<Arc<[usize]>>>;

/// How one tensor of the output comes from one of the input.
#[derive(Clone, Debug)]
pub(super) struct Cut {
    /// Its name in the input.
    pub(super) source: String,
    pub(super) places: Places,
    /// w becomes (w + offset) * factor - offset.
    pub(super) scaled: Option<Scaled>,
    /// What is then added.
    pub(super) added: Option<Added>,
    /// In few words; none where nothing changes.
    pub(super) how: Option<String>,
}

/// A change of values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Scaled {
    pub(super) factor: f64,
    pub(super) offset: f64,
}

/// So many times the values of another tensor in the same places.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Added {
    pub(super) source: String,
    pub(super) times: f64,
}

/// What all tensors of a model are cut by.
pub(super) struct Cutter<'c> {
    pub(super) before: &'c Layout,
    pub(super) old: &'c ModelSizes,
    pub(super) new: &'c ModelSizes,
    pub(super) keeps: &'c [StackKeep],
    pub(super) scored: &'c Scored,
}

impl Cutter<'_> {
    /// How the tensor that is `spec` in the new layout comes about.
    pub(super) fn cut(&self, spec: &TensorSpec) -> Result<Cut> {
        let keep = self.keep(spec.role.stack);
        let layer = spec.role.layer.map(|layer| keep.layers[layer].before);
        let experts = spec.role.layer.and_then(|layer| keep.layers[layer].experts.as_deref());
        let part = match (spec.role.part, experts) {
            (Part::ExpertGate(expert), Some(kept)) => Part::ExpertGate(kept[expert]),
            (Part::ExpertUp(expert), Some(kept)) => Part::ExpertUp(kept[expert]),
            (Part::ExpertDown(expert), Some(kept)) => Part::ExpertDown(kept[expert]),
            (part, _) => part,
        };
        let source = self.before.at(Role { layer, part, ..spec.role });
        let missing = || Error::Use(format!("tensor {}: the model has nothing to make it of", spec.name));
        let source = source.ok_or_else(missing)?;
        let mut places = Vec::with_capacity(spec.shape.len());
        let mut spaces = Vec::new();
        for (axis, (len, space)) in source.shape.iter().zip(&source.spaces).enumerate() {
            let kept = self.places(spec, axis, *space).filter(|kept| kept.len() < *len);
            if kept.is_some() {
                spaces.push(word(*space));
            }
            places.push(kept);
        }
        let scaled = self.scaled(spec, source)?;
        let added = self.added(spec, source)?;
        spaces.sort_unstable();
        spaces.dedup();
        let mut how = Vec::new();
        if !spaces.is_empty() {
            how.push(format!("cut to fewer {}", spaces.join(" and ")));
        }
        if scaled.is_some() {
            how.push("scaled to the new width".to_string());
        }
        if added.is_some() {
            how.push("moved by where the mean of what is left lies".to_string());
        }
        let how = (!how.is_empty()).then(|| how.join(", "));
        Ok(Cut { source: source.name.clone(), places, scaled, added, how })
    }

    fn keep(&self, stack: StackKind) -> &StackKeep {
        self.keeps.iter().find(|keep| keep.kind == stack).unwrap_or(&self.keeps[self.keeps.len() - 1])
    }

    fn places(&self, spec: &TensorSpec, axis: usize, space: Space) -> Option<Arc<[usize]>> {
        use Projection::{Key, Value};
        let keep = self.keep(spec.role.stack);
        let layer = spec.role.layer.map(|layer| &keep.layers[layer]);
        let heads = || -> Option<&HeadKeep> {
            match spec.role.part {
                Part::CrossAttention(_) | Part::CrossAttentionBias(_) => layer?.cross.as_ref(),
                Part::RelativeBias => keep.layers.iter().find_map(|layer| layer.own.as_ref()),
                _ => layer?.own.as_ref(),
            }
        };
        Some(match space {
            Space::Residual => {
                // Keys and values of cross-attention are made of the encoder's states.
                let reads_encoder = matches!(spec.role.part, Part::CrossAttention(Key | Value)) && axis == 1;
                let stack = if reads_encoder { StackKind::Encoder } else { spec.role.stack };
                self.keep(stack).channels.as_slice().into()
            }
            Space::Ffn => layer?.neurons.as_deref()?.into(),
            Space::Experts => layer?.experts.as_deref()?.into(),
            Space::Heads => rows(&heads()?.query, heads()?.width),
            Space::KvHeads => rows(&heads()?.kv, heads()?.width),
            Space::QueryHeads => heads()?.query.as_slice().into(),
            _ => return None,
        })
    }

    /// Narrower norms read another mean square, and some models scale by the width: what follows sees the same values as
    /// long as the channels that are gone carried nothing.
    fn scaled(&self, spec: &TensorSpec, source: &TensorSpec) -> Result<Option<Scaled>> {
        let stack = |sizes: &ModelSizes| sizes.stack(spec.role.stack).or(sizes.stacks.last()).cloned();
        let (Some(old), Some(new)) = (stack(self.old), stack(self.new)) else { return Ok(None) };
        if old.width == new.width {
            return Ok(None);
        }
        let embedding = old.embedding_scale / new.embedding_scale;
        let scaled = |factor: f64, offset: f64| (factor != 1.0).then_some(Scaled { factor, offset });
        if spec.role.part == Part::Embedding {
            return Ok(scaled(embedding, 0.0));
        }
        if source.spaces != [Space::Residual] || !is_norm(spec.role.part) {
            return Ok(None);
        }
        let channels = &self.keep(spec.role.stack).channels;
        let energy = self.scored.kept_energy(&source.name, channels, old.width)?;
        let mut square = energy * old.width as f64 / new.width as f64;
        if spec.role.part.centred_norm().is_some() {
            // About the mean of what is left, no longer about that of all.
            square -= self.scored.kept_shift(&source.name, channels, old.width)?.powi(2);
        }
        let mut factor = square.max(0.0).sqrt();
        if spec.role.part == Part::FinalNorm && spec.role.stack == StackKind::Decoder {
            let head = Role { stack: StackKind::Decoder, layer: None, part: Part::Head };
            // A tied head has been scaled with the embedding.
            let head = if self.before.at(head).is_none() { embedding } else { 1.0 };
            factor *= self.old.state_scale / self.new.state_scale / head;
        }
        Ok(scaled(factor, old.norm_offset))
    }

    /// A narrower norm that takes the mean off takes off another one: the bias makes up for it.
    /// (x - mean) / deviation * w + b = (x - mean') / deviation * w + (b + w (mean' - mean) / deviation).
    fn added(&self, spec: &TensorSpec, source: &TensorSpec) -> Result<Option<Added>> {
        let Some(weight) = spec.role.part.centred_norm().filter(|weight| *weight != spec.role.part) else {
            return Ok(None);
        };
        let Some(weight) = self.before.tensors.iter().find(|other| {
            other.role.part == weight
                && other.role.stack == source.role.stack
                && other.role.layer == source.role.layer
        }) else {
            return Ok(None);
        };
        let (channels, width) = (&self.keep(spec.role.stack).channels, source.shape[0]);
        if channels.len() == width {
            return Ok(None);
        }
        let times = self.scored.kept_shift(&weight.name, channels, width)?;
        Ok((times != 0.0).then(|| Added { source: weight.name.clone(), times }))
    }
}

fn is_norm(part: Part) -> bool {
    matches!(
        part,
        Part::FinalNorm
            | Part::SelfAttentionNorm
            | Part::SelfAttentionPostNorm
            | Part::CrossAttentionNorm
            | Part::CrossAttentionPostNorm
            | Part::FeedForwardNorm
            | Part::FeedForwardPostNorm
            | Part::EmbeddingNorm
            | Part::SelfAttentionSumNorm
            | Part::FeedForwardSumNorm
            | Part::HeadNorm
    )
}

fn word(space: Space) -> &'static str {
    match space {
        Space::Residual => "channels",
        Space::Ffn => "neurons",
        Space::Experts => "experts",
        Space::Heads | Space::QueryHeads => "heads",
        Space::KvHeads => "key/value heads",
        _ => "places",
    }
}

/// The rows of these heads.
fn rows(heads: &[usize], width: usize) -> Arc<[usize]> {
    heads.iter().flat_map(|head| head * width..(head + 1) * width).collect()
}
