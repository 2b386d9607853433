//! Rows of an embedding matrix, scaled.

use candle_core::{DType, Result, Shape, Tensor};
use luthier_kernels::buffer::unfilled;
use luthier_kernels::embedding::{gather, gather_stored, scatter_add};
use luthier_kernels::matmul::Write;
use luthier_kernels::rows;

use crate::Weight;
use crate::linear::{on_cpu, with_values};
use crate::tape::{self, Fused, Pass};
use crate::weight::Values;

/// ids: [b, t] u32, weight: [v, m] -> [b, t, m], each row times `scale` (Gemma: sqrt(m)).
pub fn embedding(ids: &Tensor, weight: &Weight, scale: f64) -> Result<Tensor> {
    let (&[v, m], (b, t)) = (weight.shape(), ids.dims2()?) else {
        candle_core::bail!("{}: an embedding is a matrix, this is {:?}", weight.name(), weight.shape())
    };
    if !tape::is_fused_on(ids.device()) || !on_cpu(weight) || ids.dtype() != DType::U32 {
        return reference(ids, weight, scale);
    }
    let ids = ids.flatten_all()?.to_vec1::<u32>()?;
    if let Some(id) = ids.iter().find(|&&id| id as usize >= v) {
        candle_core::bail!("{}: token {id} of a vocabulary of {v}", weight.name());
    }
    tape::apply(Embedding { ids, weight: weight.clone(), scale: scale as f32, shape: (b, t, m).into() }, &[])
}

fn reference(ids: &Tensor, weight: &Weight, scale: f64) -> Result<Tensor> {
    let (b, t) = ids.dims2()?;
    let rows = weight.to_tensor(ids.device())?.index_select(&ids.flatten_all()?, 0)?;
    (rows * scale)?.reshape((b, t, weight.shape()[1]))
}

struct Embedding {
    ids: Vec<u32>,
    weight: Weight,
    scale: f32,
    shape: Shape,
}

impl Fused for Embedding {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn trains_weights(&self) -> bool {
        self.weight.is_trainable()
    }

    fn forward(&self, _: &[&[f32]]) -> Result<(Vec<f32>, Shape)> {
        let mut out = unfilled(self.shape.elem_count());
        match self.weight.values() {
            Values::Dense(_) => {
                with_values(&self.weight, |table| gather(table, &self.ids, self.scale, &mut out))?
            }
            Values::Stored(matrix) => {
                gather_stored(matrix.block_type, &matrix.bytes, &self.ids, self.scale, &mut out);
            }
            Values::Packed(matrix) => {
                for (id, row) in self.ids.iter().zip(out.chunks_exact_mut(matrix.cols().max(1))) {
                    matrix.widen_rows(*id as usize, row);
                    row.iter_mut().for_each(|value| *value *= self.scale);
                }
            }
        }
        Ok((out, self.shape.clone()))
    }

    fn backward(&self, pass: Pass) -> Result<Vec<Option<Vec<f32>>>> {
        self.weight.accumulate(|grad, write| {
            if write == Write::Overwrite {
                rows::fill(grad, 0.0);
            }
            scatter_add(grad, &self.ids, self.scale, pass.grad);
        });
        Ok(Vec::new())
    }
}
