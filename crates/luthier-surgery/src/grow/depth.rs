//! More layers: which old layer each new one comes from, and what of it stays silent.

use luthier_arch::sizes::{NewStack, StackSizes};
use luthier_checkpoint::layout::{Part, Projection, TensorSpec};

use super::Operation;
use super::piece::Form;

/// Where one layer of the grown stack comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    /// The number of the old layer; of a fresh layer the one whose sizes it has.
    pub(super) layer: usize,
    fate: Fate,
}

impl Origin {
    /// Whether the blocks, attention and feed-forward, add nothing.
    pub(super) fn silent(self) -> [bool; 2] {
        match self.fate {
            Fate::Silent { attention, feed_forward } => [attention, feed_forward],
            Fate::Whole | Fate::Fresh => [false, false],
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Whole,
    Fresh,
    /// These blocks add nothing.
    Silent {
        attention: bool,
        feed_forward: bool,
    },
}

/// The layers of the grown stack, in order.
pub(super) fn layers(n_layers: usize, times: usize, operation: Operation) -> Vec<Origin> {
    let nothing = Fate::Silent { attention: true, feed_forward: true };
    let behind = |fate: Fate| {
        let fate = move |at: usize| if at < n_layers { Fate::Whole } else { fate };
        (0..n_layers * times).map(move |at| Origin { layer: at % n_layers, fate: fate(at) }).collect()
    };
    match operation {
        Operation::Stack => behind(Fate::Whole),
        Operation::Zero => behind(nothing),
        Operation::Random => behind(Fate::Fresh),
        // The copies of a layer stand side by side and share its work: attention first, then the feed-forward block.
        Operation::Split => (0..n_layers * times)
            .map(|at| {
                let (layer, copy) = (at / times, at % times);
                let fate = match (copy == 0, copy + 1 == times) {
                    (true, true) => Fate::Whole,
                    (true, false) => Fate::Silent { attention: false, feed_forward: true },
                    (false, true) => Fate::Silent { attention: true, feed_forward: false },
                    (false, false) => nothing,
                };
                Origin { layer, fate }
            })
            .collect(),
    }
}

/// The sizes of the grown stack.
pub(super) fn sizes(stack: &StackSizes, layers: &[Origin]) -> NewStack {
    NewStack {
        width: stack.width,
        norm_eps: stack.norm_eps,
        kept: layers.iter().map(|origin| origin.layer).collect(),
        layers: layers.iter().map(|origin| stack.layers[origin.layer].clone()).collect(),
    }
}

/// What a tensor of that layer holds.
pub(super) fn form(spec: &TensorSpec, origin: Origin) -> Form {
    let Some(block) = block(spec.role.part) else { return Form::Copied { is_learnt: true } };
    let is_silent = match origin.fate {
        Fate::Whole => false,
        Fate::Fresh => return Form::Fresh,
        Fate::Silent { attention, feed_forward } => match block {
            Block::Attention => attention,
            Block::FeedForward => feed_forward,
        },
    };
    match is_silent {
        true if writes(spec.role.part) => Form::Silent,
        // No gradient comes through a projection of zeros until it has learnt something.
        silent => Form::Copied { is_learnt: !silent },
    }
}

enum Block {
    Attention,
    FeedForward,
}

/// The block that a part of a layer belongs to; cross-attention goes with self-attention.
fn block(part: Part) -> Option<Block> {
    use Part::*;
    match part {
        FeedForwardNorm
        | FeedForwardPostNorm
        | FeedForwardSumNorm
        | FeedForwardSumNormBias
        | Gate
        | Up
        | Down
        | GateBias
        | UpBias
        | DownBias
        | Router
        | ExpertGate(_)
        | ExpertUp(_)
        | ExpertDown(_)
        | SharedRouter
        | SharedGate
        | SharedUp
        | SharedDown => Some(Block::FeedForward),
        SelfAttention(_)
        | SelfAttentionBias(_)
        | CrossAttention(_)
        | CrossAttentionBias(_)
        | SelfAttentionHeadNorm(_)
        | CrossAttentionHeadNorm(_)
        | SelfAttentionNorm
        | SelfAttentionPostNorm
        | SelfAttentionSumNorm
        | SelfAttentionSumNormBias
        | CrossAttentionNorm
        | CrossAttentionPostNorm => Some(Block::Attention),
        _ => None,
    }
}

/// Whether a part is the last of its block: what it gives is added to the residual stream, through a norm at most, which
/// leaves zeros zeros.
pub(super) fn writes(part: Part) -> bool {
    use Part::*;
    matches!(
        part,
        SelfAttention(Projection::Output)
            | SelfAttentionBias(Projection::Output)
            | CrossAttention(Projection::Output)
            | CrossAttentionBias(Projection::Output)
            | Down
            | DownBias
            | ExpertDown(_)
            | SharedDown
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(operation: Operation) -> Vec<usize> {
        layers(3, 2, operation).iter().map(|origin| origin.layer).collect()
    }

    #[test]
    fn copies_stand_behind_or_side_by_side() {
        for operation in [Operation::Stack, Operation::Zero, Operation::Random] {
            assert_eq!(numbers(operation), [0, 1, 2, 0, 1, 2]);
        }
        assert_eq!(numbers(Operation::Split), [0, 0, 1, 1, 2, 2]);
        for operation in Operation::ALL {
            let once = layers(3, 1, operation);
            assert!(once.iter().all(|origin| origin.fate == Fate::Whole), "{operation:?}");
        }
    }

    #[test]
    fn the_copies_of_a_split_layer_do_its_work_once() {
        let fates: Vec<Fate> = layers(1, 3, Operation::Split).iter().map(|origin| origin.fate).collect();
        let silent = |attention, feed_forward| Fate::Silent { attention, feed_forward };
        assert_eq!(fates, [silent(false, true), silent(true, true), silent(true, false)]);
    }
}
