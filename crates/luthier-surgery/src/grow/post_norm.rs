//! The norms of deeper post-norm layers, which stand in the stream itself: `x = norm(x + block(x))`. Where a block adds
//! nothing its norm reads what another norm gave, and would change it again. A norm leaves as it is what has mean 0 and
//! variance 1; so in a run of norms with silent blocks between all but the last get weight 1 and bias 0, and the last those of
//! the first: norm(norm(x)) * w + b = norm(x) * w + b, but for eps beside a variance of 1.

use luthier_checkpoint::layout::{Part, Role, TensorSpec};

use super::depth::Origin;
use super::piece::Form;

/// Weight and bias of the norm behind attention, and of that behind the feed-forward block.
const NORMS: [[Part; 2]; 2] = [
    [Part::SelfAttentionSumNorm, Part::SelfAttentionSumNormBias],
    [Part::FeedForwardSumNorm, Part::FeedForwardSumNormBias],
];

/// Where in the old model a norm of the stream comes from, and what it holds; none of other parts and of norms that no
/// silent block concerns.
pub(super) fn norm(spec: &TensorSpec, layers: &[Origin]) -> Option<(Role, Form)> {
    let block = NORMS.iter().position(|parts| parts.contains(&spec.role.part))?;
    let vector = NORMS[block].iter().position(|part| *part == spec.role.part)?;
    let is_silent = |norm: usize| layers[norm / 2].silent()[norm % 2];
    let own = spec.role.layer? * 2 + block;
    let first = (0..=own).rev().find(|norm| !is_silent(*norm))?;
    let goes_on = own + 1 < layers.len() * 2 && is_silent(own + 1);
    if first == own && !goes_on {
        return None;
    }
    let role = Role { layer: Some(layers[first / 2].layer), part: NORMS[first % 2][vector], ..spec.role };
    let form = match (goes_on, vector) {
        (false, _) => Form::Copied { is_learnt: true },
        (true, 0) => Form::Neutral,
        (true, _) => Form::Silent,
    };
    Some((role, form))
}

#[cfg(test)]
mod tests {
    use super::super::Operation;
    use super::super::depth::layers;
    use super::*;
    use luthier_checkpoint::layout::{Space, StackKind};

    fn all(operation: Operation, part: Part) -> Vec<Option<(Option<usize>, Part, Form)>> {
        let layers = layers(2, 2, operation);
        let role = |layer| Role { stack: StackKind::Encoder, layer: Some(layer), part };
        let spec = |layer| TensorSpec {
            name: String::new(),
            shape: vec![4],
            spaces: vec![Space::Residual],
            role: role(layer),
        };
        (0..4)
            .map(|layer| norm(&spec(layer), &layers).map(|(role, form)| (role.layer, role.part, form)))
            .collect()
    }

    #[test]
    fn the_last_norm_of_a_silent_stretch_gets_what_the_first_had() {
        let (attention, feed_forward) = (Part::SelfAttentionSumNorm, Part::FeedForwardSumNorm);
        let copied = Form::Copied { is_learnt: true };
        // Attention, silent, silent, feed-forward: the first three are a run.
        let split = [Some((Some(0), attention, Form::Neutral)), Some((Some(0), attention, copied.clone()))];
        let again = [Some((Some(1), attention, Form::Neutral)), Some((Some(1), attention, copied.clone()))];
        assert_eq!(all(Operation::Split, attention), [split, again].concat());
        let neutral = |layer| Some((Some(layer), attention, Form::Neutral));
        assert_eq!(all(Operation::Split, feed_forward), [neutral(0), None, neutral(1), None]);
        let last = |form: Form| Some((Some(1), feed_forward, form));
        assert_eq!(
            all(Operation::Zero, feed_forward),
            [None, last(Form::Neutral), last(Form::Neutral), last(copied)]
        );
        assert_eq!(all(Operation::Stack, attention), [None, None, None, None]);
        let bias = all(Operation::Zero, Part::FeedForwardSumNormBias);
        assert_eq!(bias[1], Some((Some(1), Part::FeedForwardSumNormBias, Form::Silent)));
    }
}
