//! How fused operations hang on candle's tape.
//!
//! An operation implements [`Fused`]; [`apply`] wraps it as one of candle's custom operations. Where it has a
//! trainable weight but no tracked input, a private scalar variable joins its inputs, so that candle still calls its
//! backward pass.

use std::cell::Cell;
use std::sync::OnceLock;

use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, DType, Device, Layout, Result, Shape, Tensor, Var,
};

use crate::Weight;
use crate::profile::{self, Work};

thread_local! {
    static SILENT: Cell<usize> = const { Cell::new(0) };
    static REFERENCE: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work` without recording anything for a backward pass: for scoring, generation, and the first run of layers
/// that are recomputed. Holds for the calling thread.
pub fn without_tape<R>(work: impl FnOnce() -> R) -> R {
    struct Restore;
    impl Drop for Restore {
        fn drop(&mut self) {
            SILENT.set(SILENT.get() - 1);
        }
    }
    SILENT.set(SILENT.get() + 1);
    let _restore = Restore;
    work()
}

/// Runs `work` with the plain candle expressions of all operations, as on devices without fused kernels. Holds for
/// the calling thread; weight gradients then stand in candle's `GradStore` (see [`crate::weight::collect`]).
pub fn with_reference<R>(work: impl FnOnce() -> R) -> R {
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            REFERENCE.set(self.0);
        }
    }
    let _restore = Restore(REFERENCE.replace(true));
    work()
}

/// Whether operations record for a backward pass.
pub(crate) fn is_recording() -> bool {
    SILENT.get() == 0
}

/// Whether the fused kernels can run on these operands.
pub(crate) fn is_fused(inputs: &[&Tensor]) -> bool {
    !REFERENCE.get() && inputs.iter().all(|x| x.device().is_cpu() && x.dtype() == DType::F32)
}

/// As [`is_fused`] for operations whose inputs are not floats.
pub(crate) fn is_fused_on(device: &Device) -> bool {
    !REFERENCE.get() && device.is_cpu()
}

/// A fused operation over contiguous f32 inputs on CPU.
pub(crate) trait Fused: Send + Sync {
    fn name(&self) -> &'static str;

    /// Whether the backward pass must run even if no input is tracked.
    fn trains_weights(&self) -> bool {
        false
    }

    /// The weight that it multiplies with or looks up.
    fn weight(&self) -> Option<&Weight> {
        None
    }

    /// Multiplications and additions of its products; of the backward pass where `tracked` says which inputs want
    /// gradients.
    fn flops(&self, _inputs: &[&[f32]], _tracked: Option<&[bool]>) -> f64 {
        0.0
    }

    /// The result and its shape.
    fn forward(&self, inputs: &[&[f32]]) -> Result<(Vec<f32>, Shape)>;

    /// One gradient per input, `None` where `tracked` says that nobody asks. `grad` is contiguous.
    fn backward(&self, pass: Pass) -> Result<Vec<Option<Vec<f32>>>>;
}

/// What a backward pass reads.
pub(crate) struct Pass<'a> {
    pub(crate) inputs: &'a [&'a [f32]],
    pub(crate) tracked: &'a [bool],
    pub(crate) result: &'a [f32],
    pub(crate) grad: &'a [f32],
}

/// Applies a fused operation to one to three inputs, or to none where it trains weights (the anchor is then its only
/// input).
pub(crate) fn apply<O: Fused + 'static>(op: O, inputs: &[&Tensor]) -> Result<Tensor> {
    let mut inputs: Vec<Tensor> = inputs.iter().map(|x| x.contiguous()).collect::<Result<_>>()?;
    let n_inputs = inputs.len();
    let tracked = inputs.iter().any(Tensor::track_op);
    let recording = is_recording();
    let anchor = anchor()?;
    let mut anchored = (recording && !tracked && op.trains_weights()) || inputs.is_empty();
    if anchored && n_inputs == 3 {
        // candle has no operation of four inputs: the first one is anchored by itself.
        let values = inputs[0].apply_op2(anchor, OnTape { op: Anchored, n_inputs: 1, place: None })?;
        inputs[0] = values.reshape(inputs[0].shape())?;
        anchored = false;
    }
    let mut all: Vec<&Tensor> = inputs.iter().collect();
    if anchored {
        all.push(anchor);
    }
    let op = OnTape { op, n_inputs, place: profile::place() };
    match (all.as_slice(), recording) {
        ([a], true) if op.n_inputs == 1 || op.op.trains_weights() => a.apply_op1(op),
        ([a], _) => a.apply_op1_no_bwd(&op),
        ([a, b], true) => a.apply_op2(b, op),
        ([a, b], false) => a.apply_op2_no_bwd(b, &op),
        ([a, b, c], true) => a.apply_op3(b, c, op),
        ([a, b, c], false) => a.apply_op3_no_bwd(b, c, &op),
        _ => candle_core::bail!("{}: {} inputs, at most 3 are possible", op.op.name(), all.len()),
    }
}

/// A scalar variable that keeps the results of weight-only operations on the tape.
fn anchor() -> Result<&'static Tensor> {
    static ANCHOR: OnceLock<Tensor> = OnceLock::new();
    if let Some(anchor) = ANCHOR.get() {
        return Ok(anchor);
    }
    let anchor = Var::zeros((), DType::F32, &Device::Cpu)?.into_inner();
    Ok(ANCHOR.get_or_init(|| anchor))
}

/// The same values, on the tape.
struct Anchored;

impl Fused for Anchored {
    fn name(&self) -> &'static str {
        "anchored"
    }

    fn forward(&self, inputs: &[&[f32]]) -> Result<(Vec<f32>, Shape)> {
        Ok((inputs[0].to_vec(), Shape::from(inputs[0].len())))
    }

    fn backward(&self, _: Pass) -> Result<Vec<Option<Vec<f32>>>> {
        Ok(Vec::new())
    }
}

struct OnTape<O> {
    op: O,
    n_inputs: usize,
    /// Where it ran forwards.
    place: profile::Place,
}

/// The values of a contiguous f32 operand.
pub(crate) fn slice<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((start, end))) => Ok(&values[start..end]),
        _ => candle_core::bail!("a fused operation takes contiguous f32 values"),
    }
}

/// Lends the values of contiguous f32 tensors on CPU.
pub(crate) fn read<R>(tensors: &[&Tensor], work: impl FnOnce(&[&[f32]]) -> Result<R>) -> Result<R> {
    let guards: Vec<_> = tensors.iter().map(|tensor| tensor.storage_and_layout()).collect();
    let mut slices = Vec::with_capacity(tensors.len());
    for (storage, layout) in &guards {
        match &**storage {
            candle_core::Storage::Cpu(storage) => slices.push(slice(storage, layout)?),
            _ => candle_core::bail!("a fused operation takes tensors on CPU"),
        }
    }
    work(&slices)
}

impl<O: Fused> OnTape<O> {
    /// The operation's name and what it has to do, its result aside.
    fn described(&self, inputs: &[&[f32]], tracked: Option<&[bool]>) -> (String, Work) {
        let name = match self.op.weight() {
            Some(weight) => format!("{} {}", self.op.name(), profile::kind_of(weight.name())),
            None => self.op.name().to_string(),
        };
        let values: usize = inputs.iter().map(|input| input.len()).sum();
        let weight = self.op.weight().map_or(0, Weight::read_bytes);
        (name, Work { flops: self.op.flops(inputs, tracked), bytes: (4 * values + weight) as f64 })
    }

    fn forward(&self, operands: &[(&CpuStorage, &Layout)]) -> Result<(CpuStorage, Shape)> {
        let slices: Vec<&[f32]> = operands[..self.n_inputs]
            .iter()
            .map(|(storage, layout)| slice(storage, layout))
            .collect::<Result<_>>()?;
        let mut span = profile::operation(|| self.described(&slices, None));
        let (values, shape) = self.op.forward(&slices)?;
        span.moved(values.len());
        Ok((CpuStorage::F32(values), shape))
    }

    fn backward(&self, operands: &[&Tensor], result: &Tensor, grad: &Tensor) -> Result<[Option<Tensor>; 3]> {
        let inputs = &operands[..self.n_inputs];
        let tracked: Vec<bool> = inputs.iter().map(|x| x.track_op()).collect();
        let grad = grad.contiguous()?;
        let mut tensors = inputs.to_vec();
        tensors.extend([result, &grad]);
        let grads = read(&tensors, |slices| {
            let (inputs, rest) = slices.split_at(self.n_inputs);
            let mut span =
                profile::operation_at(&self.place, || self.described(inputs, Some(tracked.as_slice())));
            span.moved(rest[0].len() + rest[1].len());
            self.op.backward(Pass { inputs, tracked: &tracked, result: rest[0], grad: rest[1] })
        })?;
        let mut out = [const { None }; 3];
        for (at, (values, input)) in grads.into_iter().zip(inputs).enumerate() {
            if let Some(values) = values {
                out[at] = Some(Tensor::from_vec(values, input.shape(), &Device::Cpu)?);
            }
        }
        Ok(out)
    }
}

impl<O: Fused> CustomOp1 for OnTape<O> {
    fn name(&self) -> &'static str {
        self.op.name()
    }

    fn cpu_fwd(&self, s: &CpuStorage, l: &Layout) -> Result<(CpuStorage, Shape)> {
        self.forward(&[(s, l)])
    }

    fn bwd(&self, x: &Tensor, result: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let [dx, _, _] = self.backward(&[x], result, grad)?;
        Ok(dx)
    }
}

impl<O: Fused> CustomOp2 for OnTape<O> {
    fn name(&self) -> &'static str {
        self.op.name()
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward(&[(s1, l1), (s2, l2)])
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        result: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let [da, db, _] = self.backward(&[a, b], result, grad)?;
        Ok((da, db))
    }
}

impl<O: Fused> CustomOp3 for OnTape<O> {
    fn name(&self) -> &'static str {
        self.op.name()
    }

    fn cpu_fwd(
        &self,
        s1: &CpuStorage,
        l1: &Layout,
        s2: &CpuStorage,
        l2: &Layout,
        s3: &CpuStorage,
        l3: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.forward(&[(s1, l1), (s2, l2), (s3, l3)])
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        result: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [da, db, dc] = self.backward(&[a, b, c], result, grad)?;
        Ok((da, db, dc))
    }
}
