//! Where each weight of the encoder-decoder comes from, decided on layouts alone.

use luthier_checkpoint::layout::{Layout, Part, Role, StackKind, TensorSpec};

use crate::{Error, Result};

/// One of the two models that an encoder-decoder is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Parent {
    /// The one whose layers become the encoder.
    Encoder,
    /// The one whose layers become the decoder.
    Decoder,
}

/// Where one weight comes from.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Fill {
    /// The parent's tensor of this name, value for value.
    Copy {
        /// Whose.
        parent: Parent,
        /// Its name there.
        name: String,
    },
    /// As a fresh model has it: projections of cross-attention between stacks of different widths.
    Fresh,
}

/// The fill of every tensor of `target`, in its order.
///
/// Encoder and decoder parts come from the same part of the same layer of their parents. Cross-attention comes from
/// the decoder parent's self-attention where all its shapes are equal, and is fresh where the encoder's width makes
/// them differ (section 3.2 of arXiv:2504.06225); its norms come from the norms around self-attention.
pub(super) fn fills(target: &Layout, encoder: &Layout, decoder: &Layout) -> Result<Vec<Fill>> {
    target.tensors.iter().map(|spec| fill(spec, target, encoder, decoder)).collect()
}

fn fill(spec: &TensorSpec, target: &Layout, encoder: &Layout, decoder: &Layout) -> Result<Fill> {
    let (parent, layout) = match spec.role.stack {
        StackKind::Encoder => (Parent::Encoder, encoder),
        StackKind::Decoder => (Parent::Decoder, decoder),
    };
    let Some(part) = self_attention_part(spec.role.part) else {
        return copy(spec, parent, layout, spec.role.part);
    };
    if !is_projection(spec.role.part) || same_shapes(target, decoder, spec.role.layer) {
        return copy(spec, parent, layout, part);
    }
    Ok(Fill::Fresh)
}

fn copy(spec: &TensorSpec, parent: Parent, layout: &Layout, part: Part) -> Result<Fill> {
    let role = Role { stack: StackKind::Decoder, layer: spec.role.layer, part };
    match layout.at(role) {
        Some(source) if source.shape == spec.shape => Ok(Fill::Copy { parent, name: source.name.clone() }),
        Some(source) => Err(Error::Use(format!(
            "tensor {}: the encoder-decoder has it as {:?}, the parent's {} is {:?}; these two models do not go together",
            spec.name, spec.shape, source.name, source.shape
        ))),
        None => Err(Error::Use(format!(
            "tensor {}: the parent has no {part:?} to make it of; this architecture cannot be adapted",
            spec.name
        ))),
    }
}

/// What a part of cross-attention is made of; none for parts that do not belong to cross-attention.
fn self_attention_part(part: Part) -> Option<Part> {
    match part {
        Part::CrossAttention(projection) => Some(Part::SelfAttention(projection)),
        Part::CrossAttentionBias(projection) => Some(Part::SelfAttentionBias(projection)),
        Part::CrossAttentionHeadNorm(projection) => Some(Part::SelfAttentionHeadNorm(projection)),
        Part::CrossAttentionNorm => Some(Part::SelfAttentionNorm),
        Part::CrossAttentionPostNorm => Some(Part::SelfAttentionPostNorm),
        _ => None,
    }
}

fn is_projection(part: Part) -> bool {
    matches!(part, Part::CrossAttention(_) | Part::CrossAttentionBias(_))
}

/// Whether all four projections of this layer's cross-attention have the shapes of the parent's self-attention.
fn same_shapes(target: &Layout, decoder: &Layout, layer: Option<usize>) -> bool {
    target
        .tensors
        .iter()
        .filter(|spec| spec.role.layer == layer && spec.role.stack == StackKind::Decoder)
        .filter(|spec| matches!(spec.role.part, Part::CrossAttention(_)))
        .all(|spec| {
            let part = self_attention_part(spec.role.part).expect("cross-attention has a counterpart");
            let role = Role { stack: StackKind::Decoder, layer, part };
            decoder.at(role).is_some_and(|source| source.shape == spec.shape)
        })
}
