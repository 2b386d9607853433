//! The linear map `y = x W^T + b`.

use candle_core::{Result, Shape, Tensor};
use luthier_kernels::buffer::unfilled;
use luthier_kernels::matmul::{View, Write, matmul, matmul_stored, matmul_stored_transposed};
use luthier_kernels::packed::{Packed, multiply_all};
use luthier_kernels::rows;

use crate::profile::{self, Work};
use crate::tape::{self, Fused, Pass};
use crate::weight::Values;
use crate::{Weight, lora};

// m inputs, n outputs

/// x: [.., m], weight: [n, m], bias: [n] -> [.., n], with what the weight was adapted by.
pub fn linear(x: &Tensor, weight: &Weight, bias: Option<&Weight>) -> Result<Tensor> {
    let (&[n, m], Some(&width)) = (weight.shape(), x.dims().last()) else {
        candle_core::bail!("{}: a linear map is a matrix, this is {:?}", weight.name(), weight.shape())
    };
    if width != m {
        candle_core::bail!("{}: takes {m} inputs, got {width}", weight.name());
    }
    if let Some(bias) = bias.filter(|bias| bias.shape() != [n]) {
        candle_core::bail!("{}: has shape {:?}, wanted [{n}]", bias.name(), bias.shape());
    }
    if let Some(lora) = weight.lora() {
        return lora::adapted(x, weight, bias, lora);
    }
    if !tape::is_fused(&[x]) || !on_cpu(weight) || bias.is_some_and(|bias| !on_cpu(bias)) {
        return reference(x, weight, bias);
    }
    let mut dims = x.dims().to_vec();
    dims.pop();
    dims.push(n);
    tape::apply(Linear { weight: weight.clone(), bias: bias.cloned(), shape: dims.into() }, &[x])
}

/// Several linear maps of the same x: [.., m] -> [.., n] each. Packed weights without biases read and round x once.
pub fn linear_all<const N: usize>(x: &Tensor, maps: [(&Weight, Option<&Weight>); N]) -> Result<[Tensor; N]> {
    let packed = maps.map(|(weight, bias)| match weight.values() {
        Values::Packed(matrix) if bias.is_none() && weight.lora().is_none() => Some(matrix),
        _ => None,
    });
    let width = x.dims().last().copied().unwrap_or(0);
    let fits = |matrix: &Option<&Packed>| matrix.is_some_and(|matrix| matrix.cols() == width);
    let mut results = Vec::with_capacity(N);
    if !tape::is_fused(&[x]) || x.track_op() && tape::is_recording() || !packed.iter().all(fits) {
        for (weight, bias) in maps {
            results.push(linear(x, weight, bias)?);
        }
    } else {
        let rows = x.elem_count() / width.max(1);
        let x_values = x.contiguous()?;
        let mut values: Vec<Vec<f32>> =
            packed.iter().flatten().map(|matrix| unfilled(rows * matrix.rows())).collect();
        let _span = profile::operation(|| {
            let kinds: Vec<&str> = maps.iter().map(|(weight, _)| profile::kind_of(weight.name())).collect();
            let outputs: usize = packed.iter().flatten().map(|matrix| matrix.rows()).sum();
            let weights: usize = maps.iter().map(|(weight, _)| weight.read_bytes()).sum();
            let flops = 2.0 * (rows * width) as f64 * outputs as f64;
            let bytes = (weights + 4 * rows * (width + outputs)) as f64;
            (format!("linear {}", kinds.join(" + ")), Work { flops, bytes })
        });
        tape::read(&[&x_values], |slices| {
            let mut products: Vec<(&Packed, &mut [f32])> =
                packed.iter().flatten().copied().zip(values.iter_mut().map(Vec::as_mut_slice)).collect();
            multiply_all(slices[0], rows, &mut products);
            Ok(())
        })?;
        for (values, matrix) in values.into_iter().zip(packed.iter().flatten()) {
            let mut dims = x.dims().to_vec();
            dims.pop();
            dims.push(matrix.rows());
            results.push(Tensor::from_vec(values, dims, x.device())?);
        }
    }
    results.try_into().map_err(|_| candle_core::Error::Msg("one result for each map".to_string()))
}

/// Whether the fused kernels can read the weight.
pub(crate) fn on_cpu(weight: &Weight) -> bool {
    match weight.values() {
        Values::Dense(values) => values.device().is_cpu(),
        Values::Stored(_) | Values::Packed(_) => true,
    }
}

pub(crate) fn reference(x: &Tensor, weight: &Weight, bias: Option<&Weight>) -> Result<Tensor> {
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

struct Linear {
    weight: Weight,
    bias: Option<Weight>,
    shape: Shape,
}

impl Fused for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn weight(&self) -> Option<&Weight> {
        Some(&self.weight)
    }

    fn flops(&self, inputs: &[&[f32]], tracked: Option<&[bool]>) -> f64 {
        let products = match tracked {
            None => 1,
            Some(tracked) => usize::from(tracked[0]) + usize::from(self.weight.is_trainable()),
        };
        2.0 * (products * inputs[0].len()) as f64 * self.weight.shape()[0] as f64
    }

    fn trains_weights(&self) -> bool {
        self.weight.is_trainable() || self.bias.as_ref().is_some_and(Weight::is_trainable)
    }

    fn forward(&self, inputs: &[&[f32]]) -> Result<(Vec<f32>, Shape)> {
        let mut y = unfilled(self.shape.elem_count());
        multiply(inputs[0], &self.weight, &mut y)?;
        if let Some(bias) = &self.bias {
            with_values(bias, |bias| rows::add_bias(&mut y, bias))?;
        }
        Ok((y, self.shape.clone()))
    }

    fn backward(&self, pass: Pass) -> Result<Vec<Option<Vec<f32>>>> {
        let (x, dy) = (pass.inputs[0], pass.grad);
        let mut dx = None;
        if pass.tracked[0] {
            let target = dx.insert(unfilled(x.len()));
            multiply_transposed(dy, &self.weight, target)?;
        }
        if self.weight.is_trainable() {
            add_outer(&self.weight, dy, x);
        }
        if let Some(bias) = self.bias.as_ref().filter(|bias| bias.is_trainable()) {
            bias.accumulate(|grad, write| rows::column_sums(dy, grad, write));
        }
        Ok(vec![dx])
    }
}

/// Lends the values of a dense weight on CPU.
pub(crate) fn with_values<R>(weight: &Weight, work: impl FnOnce(&[f32]) -> R) -> Result<R> {
    match weight.values() {
        Values::Dense(values) => tape::read(&[values], |slices| Ok(work(slices[0]))),
        Values::Stored(_) | Values::Packed(_) => {
            candle_core::bail!("{}: a vector of weights is never stored in blocks", weight.name())
        }
    }
}

/// y = x W^T; x: [rows, m], W: [n, m], y: [rows, n], overwritten.
pub(crate) fn multiply(x: &[f32], weight: &Weight, y: &mut [f32]) -> Result<()> {
    let (n, m) = (weight.shape()[0], weight.shape()[1]);
    let rows = y.len().checked_div(n).unwrap_or(0);
    match weight.values() {
        Values::Dense(values) => tape::read(&[values], |slices| {
            matmul(rows, m, n, View::rows(x, m), View::rows(slices[0], m).transposed(), y, Write::Overwrite);
            Ok(())
        }),
        Values::Stored(matrix) => {
            matmul_stored(x, rows, m, matrix.block_type, &matrix.bytes, n, y, matrix.precision);
            Ok(())
        }
        Values::Packed(matrix) => {
            matrix.multiply(x, rows, y);
            Ok(())
        }
    }
}

/// dx = dy W; dy: [rows, n], W: [n, m], dx: [rows, m], overwritten.
pub(crate) fn multiply_transposed(dy: &[f32], weight: &Weight, dx: &mut [f32]) -> Result<()> {
    let (n, m) = (weight.shape()[0], weight.shape()[1]);
    let rows = dx.len().checked_div(m).unwrap_or(0);
    match weight.values() {
        Values::Dense(values) => tape::read(&[values], |slices| {
            matmul(rows, n, m, View::rows(dy, n), View::rows(slices[0], m), dx, Write::Overwrite);
            Ok(())
        }),
        Values::Stored(matrix) => {
            matmul_stored_transposed(dy, rows, n, matrix.block_type, &matrix.bytes, m, dx);
            Ok(())
        }
        Values::Packed(_) => {
            candle_core::bail!(
                "{}: was packed to score and to generate, and gives no gradients",
                weight.name()
            )
        }
    }
}

/// dW += dy^T x; dy: [rows, n], x: [rows, m].
pub(crate) fn add_outer(weight: &Weight, dy: &[f32], x: &[f32]) {
    let (n, m) = (weight.shape()[0], weight.shape()[1]);
    let rows = x.len().checked_div(m).unwrap_or(0);
    weight.accumulate(|grad, write| {
        matmul(n, rows, m, View::rows(dy, n).transposed(), View::rows(x, m), grad, write);
    });
}
