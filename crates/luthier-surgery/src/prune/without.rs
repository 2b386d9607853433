//! A model without one of its layers, to measure what it was worth.

use luthier_checkpoint::Checkpoint;

use super::prepare::Prepared;
use crate::{Input, Result};

/// The model without layer `layer` of stack number `stack` (an encoder's is 0 where there is one); its tensors are the
/// input's own.
pub fn without_layer(input: &Input, stack: usize, layer: usize) -> Result<Checkpoint> {
    Prepared::without_layer(input, stack, layer).map(|prepared| prepared.model(&input.checkpoint.place))
}
