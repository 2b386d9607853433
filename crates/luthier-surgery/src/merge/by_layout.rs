//! Pairs the tensors of models whose layouts are known: by their roles, whatever each model calls them.

use std::collections::{BTreeMap, HashSet};

use luthier_checkpoint::TensorInfo;
use luthier_checkpoint::layout::{Layout, Part, Role, Space, StackKind, TensorSpec};
use serde_json::{Map, Value};

use super::checks::same_ties;
use super::pairing::{Pairing, Piece, Portion, Stretch};
use super::recipe::Unshared;
use crate::{Error, Result};

/// What each model brings, with the decoder's layers under false and the encoder's under true.
pub(super) struct Brought<'b, 'r> {
    pub(super) layouts: &'b [Layout],
    pub(super) parts: &'b BTreeMap<bool, Portion<'r>>,
}

/// What the result is made of.
pub(super) struct Paired {
    pub(super) pieces: Vec<Piece>,
    /// Models and names of tensors that not all models have and that the recipe lets go.
    pub(super) left_out: HashSet<(usize, String)>,
}

/// A tensor that the result has no place for yet: its model and what it is there.
type Extra<'b> = (usize, &'b TensorSpec);

impl<'r> Pairing<'r> {
    /// The pieces of a result of that config.
    pub(super) fn by_layout(&self, config: &Map<String, Value>, brought: &Brought<'_, 'r>) -> Result<Paired> {
        let own = self.inputs[0].checkpoint.tensors.infos();
        let mut target = luthier_arch::layout_with(config, own)?;
        same_ties(self.inputs, brought.layouts, &target)?;
        let extras = brought.extras(&target);
        let mut left_out = HashSet::new();
        if let Some((number, spec)) = extras.first() {
            match self.recipe.unshared.unwrap_or(Unshared::Refuse) {
                Unshared::Refuse => return Err(self.missing(&spec.name, 0, *number)),
                Unshared::Base | Unshared::Drop => {
                    left_out.extend(extras.iter().map(|(number, spec)| (*number, spec.name.clone())));
                }
                Unshared::Keep => {
                    target = with_extras(config, own, &target, brought.layouts, &extras)?;
                    if let Some((number, spec)) = brought.extras(&target).first() {
                        return Err(self.placeless(&spec.name, *number));
                    }
                }
            }
        }
        let mut pieces = Vec::new();
        for spec in &target.tensors {
            pieces.extend(self.by_role(spec, &spec.name, brought, &mut left_out)?);
        }
        for tie in target.ties.iter().filter(|tie| tie.written) {
            if let Some(spec) = target.tensors.iter().find(|spec| spec.name == tie.target) {
                pieces.extend(self.by_role(spec, &tie.name, brought, &mut left_out)?);
            }
        }
        Ok(Paired { pieces, left_out })
    }

    /// The piece of one weight; none where not all models have it and the recipe lets it go.
    fn by_role(
        &self,
        spec: &TensorSpec,
        name: &str,
        brought: &Brought<'_, 'r>,
        left_out: &mut HashSet<(usize, String)>,
    ) -> Result<Option<Piece>> {
        let part = &brought.parts[&(spec.role.stack == StackKind::Encoder)];
        let (stretch, offset, depth) = part.site(spec.role);
        let mut inputs = Vec::new();
        let mut lacks = None;
        for (position, (number, range, _)) in stretch.sources.iter().enumerate() {
            let role = Role { layer: spec.role.layer.map(|_| range[0] + offset), ..spec.role };
            let layout = &brought.layouts[*number];
            let tied = || layout.ties.iter().find(|tie| tie.name == spec.name).map(|tie| &tie.target);
            match layout.at(role).map(|found| &found.name).or_else(tied) {
                Some(found) => inputs.push((position, (*number, found.clone()))),
                None => lacks = lacks.or(Some(*number)),
            }
        }
        let of_tokens = spec.spaces.first() == Some(&Space::Vocab);
        let Some(lacks) = lacks else {
            let inputs = inputs.into_iter().map(|(_, input)| input).collect();
            return self.piece(name, inputs, stretch, part.parameters, depth, of_tokens).map(Some);
        };
        let base = stretch.donor.unwrap_or(0);
        let of_base = inputs.iter().find(|(position, _)| *position == base);
        let has = of_base.or(inputs.first());
        let kept = match self.recipe.unshared.unwrap_or(Unshared::Refuse) {
            // The config comes from the first model, which need not be part of the merge here.
            Unshared::Refuse => {
                return Err(self.missing(&spec.name, lacks, has.map_or(0, |(_, (number, _))| *number)));
            }
            Unshared::Drop => None,
            Unshared::Base => of_base,
            Unshared::Keep => has,
        };
        let others = inputs.iter().filter(|input| kept.is_none_or(|kept| kept.0 != input.0));
        left_out.extend(others.map(|(_, input)| input.clone()));
        kept.map(|(_, input)| self.kept(name, input.clone(), stretch, of_tokens)).transpose()
    }

    fn placeless(&self, name: &str, number: usize) -> Error {
        let what = format!(
            "is in {}, and the config of {} has no place for it; take a base that has it, or leave it out (unshared: base)",
            self.inputs[number].label, self.inputs[0].label
        );
        luthier_checkpoint::Error::tensor(name, what).into()
    }
}

impl<'r> Portion<'r> {
    /// The stretch that a weight comes from, the layer's number in it, and how deep in it that is, from 0 to 1.
    fn site(&self, role: Role) -> (&Stretch<'r>, usize, f64) {
        let Some(layer) = role.layer else { return (&self.stretches[self.supplier(role.part)], 0, 0.0) };
        let mut left = layer;
        let found = self.stretches.iter().find(|stretch| {
            let inside = left < stretch.len;
            left -= if inside { 0 } else { stretch.len };
            inside
        });
        let stretch = found.expect("the config has as many layers as the stretches");
        let depth = if stretch.len > 1 { left as f64 / (stretch.len - 1) as f64 } else { 1.0 };
        (stretch, left, depth)
    }

    /// The number of the stretch that brings a weight outside the layers: the first one what stands before them, the last one
    /// what stands behind them.
    fn supplier(&self, part: Part) -> usize {
        let is_before = matches!(
            part,
            Part::Embedding
                | Part::PositionEmbedding
                | Part::TokenTypeEmbedding
                | Part::EmbeddingNorm
                | Part::EmbeddingNormBias
                | Part::RelativeBias
        );
        if is_before { 0 } else { self.stretches.len().saturating_sub(1) }
    }
}

impl Brought<'_, '_> {
    /// Weights of the merged stretches that `target` does not have.
    fn extras(&self, target: &Layout) -> Vec<Extra<'_>> {
        let known: HashSet<Role> = target.tensors.iter().map(|spec| spec.role).collect();
        let tied: HashSet<&str> = target.ties.iter().map(|tie| tie.name.as_str()).collect();
        let mut extras = Vec::new();
        for (is_encoder, part) in self.parts {
            let mut first_layer = 0;
            for (at, stretch) in part.stretches.iter().enumerate() {
                for (number, range, _) in &stretch.sources {
                    let role = |spec: &TensorSpec| match spec.role.layer {
                        None => (part.supplier(spec.role.part) == at).then_some(spec.role),
                        Some(layer) if layer < range[0] || layer >= range[1] => None,
                        Some(layer) => {
                            Some(Role { layer: Some(first_layer + layer - range[0]), ..spec.role })
                        }
                    };
                    let of_stack = self.layouts[*number].tensors.iter();
                    let of_stack =
                        of_stack.filter(|spec| (spec.role.stack == StackKind::Encoder) == *is_encoder);
                    let lacking = of_stack
                        .filter(|spec| !tied.contains(spec.name.as_str()))
                        .filter(|spec| role(spec).is_some_and(|role| !known.contains(&role)));
                    extras.extend(lacking.map(|spec| (*number, spec)));
                }
                first_layer += stretch.len;
            }
        }
        extras
    }
}

/// The target with a place for what only others have, where the architecture reads its form off the tensors: under the names
/// that they have, or that they would have where the first model's embedding has another prefix.
fn with_extras(
    config: &Map<String, Value>,
    own: &[TensorInfo],
    target: &Layout,
    layouts: &[Layout],
    extras: &[Extra],
) -> Result<Layout> {
    let mut infos = own.to_vec();
    let embedding = |layout: &Layout| {
        layout.tensors.iter().find(|spec| spec.role.part == Part::Embedding).map(|spec| spec.name.clone())
    };
    let wanted = embedding(target).unwrap_or_default();
    for (number, spec) in extras {
        let there = embedding(&layouts[*number]).unwrap_or_default();
        let mut names = vec![spec.name.clone()];
        names.extend(
            there.strip_suffix(&wanted).and_then(|head| spec.name.strip_prefix(head)).map(String::from),
        );
        names.extend(wanted.strip_suffix(&there).map(|head| format!("{head}{}", spec.name)));
        for name in names {
            if infos.iter().all(|info| info.name != name) {
                let info = &own[0];
                infos.push(TensorInfo { name, shape: spec.shape.clone(), ..info.clone() });
            }
        }
    }
    Ok(luthier_arch::layout_with(config, &infos)?)
}
