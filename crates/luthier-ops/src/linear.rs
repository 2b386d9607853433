//! The linear map `y = x W^T + b`.

use candle_core::{Result, Tensor};

use crate::Weight;

// m inputs, n outputs

/// x: [.., m], weight: [n, m], bias: [n] -> [.., n].
pub fn linear(x: &Tensor, weight: &Weight, bias: Option<&Weight>) -> Result<Tensor> {
    reference(x, weight, bias)
}

fn reference(x: &Tensor, weight: &Weight, bias: Option<&Weight>) -> Result<Tensor> {
    let mut dims = x.dims().to_vec();
    let width = dims.pop().unwrap_or(1);
    let rows = x.elem_count() / width.max(1);
    let y = x.reshape((rows, width))?.matmul(&weight.to_tensor(x.device())?.t()?)?;
    let y = match bias {
        Some(bias) => y.broadcast_add(&bias.to_tensor(x.device())?)?,
        None => y,
    };
    dims.push(weight.shape()[0]);
    y.reshape(dims)
}
