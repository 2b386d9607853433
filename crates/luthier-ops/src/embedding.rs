//! Rows of an embedding matrix, scaled.

use candle_core::{Result, Tensor};

use crate::Weight;

/// ids: [b, t] u32, weight: [v, m] -> [b, t, m], each row times `scale` (Gemma: sqrt(m)).
pub fn embedding(ids: &Tensor, weight: &Weight, scale: f64) -> Result<Tensor> {
    reference(ids, weight, scale)
}

fn reference(ids: &Tensor, weight: &Weight, scale: f64) -> Result<Tensor> {
    let (b, t) = ids.dims2()?;
    let rows = weight.to_tensor(ids.device())?.index_select(&ids.flatten_all()?, 0)?;
    (rows * scale)?.reshape((b, t, weight.shape()[1]))
}
