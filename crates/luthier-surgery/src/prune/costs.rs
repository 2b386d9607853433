//! How many weights and bytes a shape has, from the layout of the model that it is cut from.

use luthier_checkpoint::layout::{Part, Projection, Space, StackKind};

use super::search::Search;
use super::shape::StackShape;

/// Counts the weights of a shape.
pub(super) struct Costs<'s> {
    search: &'s Search<'s>,
    kept: &'s [Vec<usize>],
}

impl<'s> Costs<'s> {
    pub(super) fn new(search: &'s Search<'s>, kept: &'s [Vec<usize>]) -> Costs<'s> {
        Costs { search, kept }
    }

    /// Weights and bytes.
    pub(super) fn of(&self, shapes: &[StackShape]) -> (usize, usize) {
        let stacks = &self.search.sizes.stacks;
        let at = |kind: StackKind| stacks.iter().position(|stack| stack.kind == kind).unwrap_or(0);
        let (mut parameters, mut size_bytes) = (0, 0.0);
        for (spec, value_bytes) in self.search.layout.tensors.iter().zip(self.search.value_bytes) {
            let stack = at(spec.role.stack);
            if spec.role.layer.is_some_and(|layer| !self.kept[stack].contains(&layer)) {
                continue;
            }
            let shape = &shapes[stack];
            let experts = spec.role.layer.and_then(|layer| shape.experts[layer]);
            // Which experts go does not matter here: all are of one size.
            if spec.role.part.expert().is_some_and(|expert| experts.is_some_and(|experts| expert >= experts))
            {
                continue;
            }
            let heads =
                spec.role.layer.or(self.kept[stack].first().copied()).and_then(|layer| shape.heads[layer]);
            let len = |(axis, space): (usize, &Space)| {
                use Projection::{Key, Value};
                let reads_encoder = matches!(spec.role.part, Part::CrossAttention(Key | Value)) && axis == 1;
                match (space, heads) {
                    (Space::Residual, _) if reads_encoder => shapes[at(StackKind::Encoder)].width,
                    (Space::Residual, _) => shape.width,
                    (Space::Ffn, _) => spec.role.layer.and_then(|layer| shape.inner[layer]).unwrap_or(0),
                    (Space::Experts, _) => experts.unwrap_or(spec.shape[axis]),
                    (Space::Heads, Some(heads)) => heads.query * heads.width,
                    (Space::KvHeads, Some(heads)) => heads.kv * heads.width,
                    (Space::QueryHeads, Some(heads)) => heads.query,
                    _ => spec.shape[axis],
                }
            };
            let count: usize = spec.spaces.iter().enumerate().map(len).product();
            parameters += count;
            size_bytes += count as f64 * value_bytes;
        }
        (parameters, size_bytes as usize)
    }
}
