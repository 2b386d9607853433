//! A named parameter: f32 values that can be trained, or a matrix left in the block type of its file.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use candle_core::{Device, Result, Tensor, Var};
use luthier_kernels::blocks::BlockType;
use luthier_kernels::bytes::SharedBytes;

/// A matrix as its file stores it, row-major `[rows, cols]`, widened only while it is multiplied.
#[derive(Clone, Debug)]
pub struct StoredMatrix {
    /// The encoding of each row.
    pub block_type: BlockType,
    /// `rows * cols / block_len * block_bytes` bytes.
    pub bytes: SharedBytes,
    /// Outputs of the linear map (or entries of the embedding).
    pub rows: usize,
    /// Inputs of the linear map; a multiple of the block length.
    pub cols: usize,
}

/// The values behind a [`Weight`].
#[derive(Clone, Debug)]
pub enum Values {
    /// f32, contiguous, on any device; a `Var` when it can be trained.
    Dense(Tensor),
    /// Frozen, in the file's own encoding, on CPU.
    Stored(StoredMatrix),
}

/// A parameter of a model. Clones share values and gradient.
#[derive(Clone, Debug)]
pub struct Weight(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    shape: Vec<usize>,
    values: Values,
    trainable: AtomicBool,
    grad: Mutex<Vec<f32>>,
}

impl Weight {
    /// f32 values that can be trained when `trainable`; the values are then held in a `Var`.
    pub fn dense(name: &str, values: &Tensor, trainable: bool) -> Result<Weight> {
        let values = values.to_dtype(candle_core::DType::F32)?.contiguous()?;
        let values = if trainable { Var::from_tensor(&values)?.into_inner() } else { values };
        Ok(Weight(Arc::new(Inner {
            name: name.to_string(),
            shape: values.dims().to_vec(),
            values: Values::Dense(values),
            trainable: AtomicBool::new(trainable),
            grad: Mutex::new(Vec::new()),
        })))
    }

    /// A matrix in its file's encoding; never trainable.
    pub fn stored(name: &str, matrix: StoredMatrix) -> Weight {
        Weight(Arc::new(Inner {
            name: name.to_string(),
            shape: vec![matrix.rows, matrix.cols],
            values: Values::Stored(matrix),
            trainable: AtomicBool::new(false),
            grad: Mutex::new(Vec::new()),
        }))
    }

    /// The tensor's name in the checkpoint.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Outermost axis first, as in safetensors.
    pub fn shape(&self) -> &[usize] {
        &self.0.shape
    }

    /// How the values are held.
    pub fn values(&self) -> &Values {
        &self.0.values
    }

    /// Whether the backward pass adds this weight's gradient into its buffer.
    pub fn is_trainable(&self) -> bool {
        self.0.trainable.load(Ordering::Relaxed)
    }

    /// Freezes or releases a dense weight (a warm-up that trains only some of them).
    pub fn set_trainable(&self, trainable: bool) {
        self.0.trainable.store(trainable, Ordering::Relaxed);
    }

    /// The gradient accumulated so far, flat and in the weight's own order; empty before the first backward pass.
    pub fn grad(&self) -> std::sync::MutexGuard<'_, Vec<f32>> {
        self.0.grad.lock().expect("no operation panics while it holds a gradient")
    }

    /// The f32 values as one tensor on `device`, widened when stored in blocks.
    pub fn to_tensor(&self, device: &Device) -> Result<Tensor> {
        match &self.0.values {
            Values::Dense(values) => values.to_device(device),
            Values::Stored(matrix) => {
                let mut values = vec![0f32; matrix.rows * matrix.cols];
                luthier_kernels::blocks::dequantize(matrix.block_type, &matrix.bytes, &mut values);
                Tensor::from_vec(values, (matrix.rows, matrix.cols), device)
            }
        }
    }
}
