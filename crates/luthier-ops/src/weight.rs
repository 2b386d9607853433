//! A named parameter: f32 values that can be trained, or a matrix left in the block type of its file.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, Device, InplaceOp1, Layout, Result, Tensor, Var};
use luthier_kernels::blocks::BlockType;
use luthier_kernels::buffer::unfilled;
use luthier_kernels::bytes::SharedBytes;
use luthier_kernels::matmul::Write;
use luthier_kernels::packed::{Packed, Precision};

use crate::lora::Lora;
use crate::tape;

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
    /// How closely many rows are multiplied with it.
    pub precision: Precision,
}

/// The values behind a [`Weight`].
#[derive(Clone, Debug)]
pub enum Values {
    /// f32, contiguous, on any device; a `Var` when it can be trained.
    Dense(Tensor),
    /// Frozen, in the file's own encoding, on CPU.
    Stored(StoredMatrix),
    /// Frozen and quantised, laid out for products in whole numbers, on CPU.
    Packed(Packed),
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
    grad: Mutex<Buffer>,
    lora: OnceLock<Lora>,
}

/// A gradient's memory, kept from step to step, and what it means.
#[derive(Debug, Default)]
struct Buffer {
    values: Vec<f32>,
    state: State,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// No gradient; the memory holds leftovers.
    #[default]
    Clear,
    /// No gradient yet; the memory holds what the operation of this ticket will add in its backward pass.
    Pending(u64),
    /// The gradient so far.
    Full,
}

impl Weight {
    /// f32 values that can be trained when `trainable`; the values are then held in a `Var`.
    pub fn dense(name: &str, values: &Tensor, trainable: bool) -> Result<Weight> {
        let values = values.to_dtype(candle_core::DType::F32)?.contiguous()?;
        // Elsewhere than on CPU the gradient travels on candle's tape, and a weight may be released later.
        let variable = trainable || !values.device().is_cpu();
        let values = if variable { Var::from_tensor(&values)?.into_inner() } else { values.detach() };
        Ok(Weight(Arc::new(Inner {
            name: name.to_string(),
            shape: values.dims().to_vec(),
            values: Values::Dense(values),
            trainable: AtomicBool::new(trainable),
            grad: Mutex::default(),
            lora: OnceLock::new(),
        })))
    }

    /// A matrix in its file's encoding; never trainable.
    pub fn stored(name: &str, matrix: StoredMatrix) -> Weight {
        Weight(Arc::new(Inner {
            name: name.to_string(),
            shape: vec![matrix.rows, matrix.cols],
            values: Values::Stored(matrix),
            trainable: AtomicBool::new(false),
            grad: Mutex::default(),
            lora: OnceLock::new(),
        }))
    }

    /// A quantised matrix that was packed for products; never trainable.
    pub fn packed(name: &str, matrix: Packed) -> Weight {
        Weight(Arc::new(Inner {
            name: name.to_string(),
            shape: vec![matrix.rows(), matrix.cols()],
            values: Values::Packed(matrix),
            trainable: AtomicBool::new(false),
            grad: Mutex::default(),
            lora: OnceLock::new(),
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

    /// Number of values.
    pub fn elem_count(&self) -> usize {
        self.0.shape.iter().product()
    }

    /// Bytes that a product with all of it reads.
    pub fn read_bytes(&self) -> usize {
        match &self.0.values {
            Values::Dense(_) => 4 * self.elem_count(),
            Values::Stored(matrix) => matrix.bytes.len(),
            Values::Packed(matrix) => matrix.bytes_len(),
        }
    }

    /// How the values are held.
    pub fn values(&self) -> &Values {
        &self.0.values
    }

    /// Whether its file holds it in fewer bits than bf16 has of range or fewer values than f16: what is computed with it need
    /// not keep more than f16 does.
    pub fn is_narrow(&self) -> bool {
        match &self.0.values {
            Values::Dense(_) => false,
            Values::Stored(matrix) => !matches!(matrix.block_type, BlockType::F32 | BlockType::BF16),
            Values::Packed(_) => true,
        }
    }

    /// Whether the backward pass adds this weight's gradient into its buffer.
    pub fn is_trainable(&self) -> bool {
        self.0.trainable.load(Ordering::Relaxed)
    }

    /// Freezes or releases a dense weight (a warm-up that trains only some of them). A stored one stays frozen.
    pub fn set_trainable(&self, trainable: bool) {
        let dense = matches!(self.0.values, Values::Dense(_));
        self.0.trainable.store(trainable && dense, Ordering::Relaxed);
    }

    /// From now on linear maps of this weight are adapted: it stays as it is, and a product of two narrow matrices counts
    /// beside it.
    ///
    /// # Errors
    /// Where the weight is trainable or adapted already, or the factors have other shapes.
    pub fn adapt(&self, lora: Lora) -> Result<()> {
        lora.check(self.name(), self.shape())?;
        if self.is_trainable() || self.0.lora.set(lora).is_err() {
            candle_core::bail!("{}: to be adapted, a weight is frozen and not adapted already", self.name())
        }
        Ok(())
    }

    /// What linear maps of it are adapted by.
    pub fn lora(&self) -> Option<&Lora> {
        self.0.lora.get()
    }

    /// The gradient accumulated so far, flat and in the weight's own order; empty when there is none.
    pub fn grad(&self) -> Grad<'_> {
        Grad(self.buffer())
    }

    /// Forgets the gradient; its memory is kept for the next one.
    pub fn zero_grad(&self) {
        self.buffer().state = State::Clear;
    }

    /// Lends values and gradient (empty when there is none) to `change`, in place on CPU and through a copy
    /// elsewhere.
    ///
    /// # Errors
    /// Where the weight is stored in blocks, or the device fails.
    pub fn update(&self, mut change: impl FnMut(&mut [f32], &mut [f32])) -> Result<()> {
        let Values::Dense(values) = &self.0.values else {
            candle_core::bail!("{}: a weight stored in blocks cannot be changed in place", self.0.name)
        };
        let mut guard = self.grad();
        let grad: &mut [f32] = &mut guard;
        if values.device().is_cpu() {
            return values
                .inplace_op1(&InPlace(RefCell::new(&mut |values: &mut [f32]| change(values, grad))));
        }
        let mut copy = values.flatten_all()?.to_vec1::<f32>()?;
        change(&mut copy, grad);
        let changed = Tensor::from_vec(copy, values.dims(), values.device())?;
        Var::from_tensor(values)?.set(&changed)
    }

    /// The f32 values as one tensor on `device`, widened when stored in blocks; on the tape where it is trainable
    /// and held in a `Var`.
    pub fn to_tensor(&self, device: &Device) -> Result<Tensor> {
        match &self.0.values {
            Values::Dense(values) if self.is_trainable() && tape::is_recording() => values.to_device(device),
            Values::Dense(values) => values.detach().to_device(device),
            Values::Stored(matrix) => {
                let mut values = unfilled(matrix.rows * matrix.cols);
                luthier_kernels::matmul::widen_rows(matrix.block_type, &matrix.bytes, &mut values);
                Tensor::from_vec(values, (matrix.rows, matrix.cols), device)
            }
            Values::Packed(matrix) => {
                let mut values = unfilled(matrix.rows() * matrix.cols());
                matrix.widen_rows(0, &mut values);
                Tensor::from_vec(values, (matrix.rows(), matrix.cols()), device)
            }
        }
    }

    /// Adds to the gradient: `add` overwrites the buffer or adds to it, as it is told.
    pub(crate) fn accumulate(&self, add: impl FnOnce(&mut [f32], Write)) {
        let len = self.elem_count();
        let mut buffer = self.buffer();
        if buffer.values.len() != len {
            buffer.values = unfilled(len);
        }
        let write = if buffer.state == State::Full { Write::Add } else { Write::Overwrite };
        add(&mut buffer.values, write);
        buffer.state = State::Full;
    }

    /// Lets a forward pass leave what its backward pass will add, where the buffer is free. The ticket redeems it.
    pub(crate) fn leave_pending(&self, fill: impl FnOnce(&mut [f32])) -> Option<u64> {
        static TICKETS: AtomicU64 = AtomicU64::new(0);
        let len = self.elem_count();
        let mut buffer = self.buffer();
        if buffer.state == State::Full {
            return None;
        }
        if buffer.values.len() != len {
            buffer.values = unfilled(len);
        }
        fill(&mut buffer.values);
        let ticket = TICKETS.fetch_add(1, Ordering::Relaxed);
        buffer.state = State::Pending(ticket);
        Some(ticket)
    }

    /// Makes what was left under `ticket` the gradient, times `factor`. False when something took its place.
    pub(crate) fn redeem(&self, ticket: u64, factor: f32) -> bool {
        let mut buffer = self.buffer();
        if buffer.state != State::Pending(ticket) {
            return false;
        }
        if factor != 1.0 {
            luthier_kernels::rows::scale(&mut buffer.values, factor);
        }
        buffer.state = State::Full;
        true
    }

    fn buffer(&self) -> MutexGuard<'_, Buffer> {
        self.0.grad.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Moves the gradients that candle's tape holds for weights (where no fused operation ran) into the weights' own
/// buffers.
pub fn collect(weights: &[Weight], grads: &GradStore) -> Result<()> {
    for weight in weights.iter().filter(|weight| weight.is_trainable()) {
        let Values::Dense(values) = weight.values() else { continue };
        if let Some(grad) = grads.get(values) {
            let grad = grad.flatten_all()?.to_vec1::<f32>()?;
            weight.accumulate(|buffer, write| match write {
                Write::Overwrite => buffer.copy_from_slice(&grad),
                Write::Add => buffer.iter_mut().zip(&grad).for_each(|(sum, x)| *sum += x),
            });
        }
    }
    Ok(())
}

/// A locked gradient: a slice of the weight's values in order, empty when there is no gradient.
#[derive(Debug)]
pub struct Grad<'a>(MutexGuard<'a, Buffer>);

impl Deref for Grad<'_> {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        if self.0.state == State::Full { &self.0.values } else { &[] }
    }
}

impl DerefMut for Grad<'_> {
    fn deref_mut(&mut self) -> &mut [f32] {
        if self.0.state == State::Full { &mut self.0.values } else { &mut [] }
    }
}

type Change<'a> = &'a mut dyn FnMut(&mut [f32]);

struct InPlace<'a>(RefCell<Change<'a>>);

impl InplaceOp1 for InPlace<'_> {
    fn name(&self) -> &'static str {
        "update"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (CpuStorage::F32(values), Some((start, end))) = (storage, layout.contiguous_offsets()) else {
            candle_core::bail!("a dense weight is contiguous f32")
        };
        (self.0.borrow_mut())(&mut values[start..end]);
        Ok(())
    }
}
