//! Output projection and cross-entropy in one operation, optionally against a teacher's distribution.
//!
//! `loss = sum_i w_i * (-log softmax(z_i)[y_i]) / sum_i w_i` with `z_i = cap(h_i E^T + b)`; with a teacher's logits `t_i` a
//! share s of the term is `-T^2 sum_j softmax(t_i / T)_j log softmax(z_i / T)_j` instead (knowledge distillation,
//! arXiv:1503.02531; T is the temperature, T^2 keeps the size of its gradients).
//!
//! The fused path goes through the scored positions in chunks and computes loss and gradients of a chunk while its
//! logits are there; the backward pass only multiplies by the incoming gradient.

use std::sync::{Mutex, PoisonError};

use candle_core::{Result, Shape, Tensor};
use luthier_kernels::buffer::unfilled;
use luthier_kernels::cross_entropy::{RowTargets, RowTeacher, cross_entropy_rows};
use luthier_kernels::matmul::{View, Write, matmul};
use luthier_kernels::rows;

use crate::Weight;
use crate::linear::{multiply, multiply_transposed, on_cpu, with_values};
pub use crate::project::{biased_project, project};
use crate::tape::{self, Fused, Pass};

mod reference;

use reference::reference;

// n positions, m width, v vocabulary

/// What each position should predict.
#[derive(Clone, Debug)]
pub struct Targets {
    /// `[n]` token ids; ignored where the weight is 0.
    pub ids: Vec<u32>,
    /// `[n]` weights, 0 for positions that are not scored.
    pub weights: Vec<f32>,
    /// What the weighted sum is divided by; the batch's total weight, so that accumulated micro-batches add up to the
    /// mean over all tokens.
    pub normalizer: f32,
    /// A teacher's part.
    pub teacher: Option<Teaching>,
}

/// A teacher's part in the targets.
#[derive(Clone, Debug)]
pub struct Teaching {
    /// `[n, v]`.
    pub logits: Tensor,
    /// `[n]`: the share of the teacher's distribution in each target, in 0..=1.
    pub shares: Vec<f32>,
    /// Above 0; 1 leaves the logits as they are.
    pub temperature: f64,
}

/// hidden: [n, m], head: [v, m] -> the loss, a scalar.
pub fn projected_cross_entropy(
    hidden: &Tensor,
    head: &Weight,
    softcap: Option<f64>,
    targets: &Targets,
) -> Result<Tensor> {
    biased_cross_entropy(hidden, head, None, softcap, targets)
}

/// The same with a bias [v] on the logits, before the soft cap.
pub fn biased_cross_entropy(
    hidden: &Tensor,
    head: &Weight,
    bias: Option<&Weight>,
    softcap: Option<f64>,
    targets: &Targets,
) -> Result<Tensor> {
    let (n, m) = hidden.dims2()?;
    let (&[v, width], true) = (head.shape(), targets.ids.len() == n && targets.weights.len() == n) else {
        let (ids, weights) = (targets.ids.len(), targets.weights.len());
        candle_core::bail!("{}: {n} positions, {ids} targets, {weights} weights", head.name())
    };
    if width != m {
        candle_core::bail!("{}: takes {width} inputs, got {m}", head.name());
    }
    if let Some(bias) = bias.filter(|bias| bias.shape() != [v]) {
        candle_core::bail!("{}: has shape {:?}, wanted [{v}]", bias.name(), bias.shape());
    }
    let mut scored = targets.ids.iter().zip(&targets.weights).filter(|(_, weight)| **weight != 0.0);
    if let Some((id, _)) = scored.find(|(id, _)| **id as usize >= v) {
        candle_core::bail!("{}: target {id} of a vocabulary of {v}", head.name());
    }
    if let Some(Teaching { logits, shares, .. }) = &targets.teacher
        && (logits.dims() != [n, v] || shares.len() != n)
    {
        let (dims, shares) = (logits.dims(), shares.len());
        candle_core::bail!("{}: teacher logits {dims:?} and {shares} shares, wanted [{n}, {v}]", head.name());
    }
    let teacher = targets.teacher.as_ref().map(|teacher| &teacher.logits);
    if !tape::is_fused(&[hidden])
        || !on_cpu(head)
        || bias.is_some_and(|bias| !on_cpu(bias))
        || teacher.is_some_and(|teacher| !tape::is_fused(&[teacher]))
    {
        return reference(hidden, head, bias, softcap, targets);
    }
    let op = Loss {
        head: head.clone(),
        bias: bias.cloned(),
        softcap: softcap.map(|cap| cap as f32),
        scored: Scored::of(targets)?,
        wants_hidden: tape::is_recording() && hidden.track_op(),
        wants_head: tape::is_recording() && head.is_trainable(),
        wants_bias: tape::is_recording() && bias.is_some_and(Weight::is_trainable),
        dims: (n, m, v),
        made: Mutex::default(),
    };
    tape::apply(op, &[hidden])
}

/// The positions that are scored.
struct Scored {
    positions: Vec<usize>,
    ids: Vec<u32>,
    /// Divided by the normalizer.
    weights: Vec<f32>,
    teacher: Option<Teaching>,
}

impl Scored {
    fn of(targets: &Targets) -> Result<Scored> {
        let positions: Vec<usize> = (0..targets.ids.len()).filter(|&at| targets.weights[at] != 0.0).collect();
        Ok(Scored {
            ids: positions.iter().map(|&at| targets.ids[at]).collect(),
            weights: positions.iter().map(|&at| targets.weights[at] / targets.normalizer).collect(),
            teacher: match &targets.teacher {
                Some(teacher) => {
                    let logits = teacher.logits.detach().contiguous()?;
                    Some(Teaching { logits, ..teacher.clone() })
                }
                None => None,
            },
            positions,
        })
    }
}

struct Loss {
    head: Weight,
    bias: Option<Weight>,
    softcap: Option<f32>,
    scored: Scored,
    wants_hidden: bool,
    wants_head: bool,
    wants_bias: bool,
    /// (n, m, v).
    dims: (usize, usize, usize),
    made: Mutex<Made>,
}

/// Gradients that the forward pass made for an incoming gradient of one.
#[derive(Default)]
struct Made {
    /// [n, m].
    hidden: Vec<f32>,
    head: HeadGrad,
    /// [v], or empty.
    bias: Vec<f32>,
}

#[derive(Default)]
enum HeadGrad {
    #[default]
    None,
    /// In the weight's own buffer, under this ticket.
    Pending(u64),
    /// Apart, [v, m], since the weight's buffer holds an earlier gradient.
    Apart(Vec<f32>),
}

/// What one pass over the scored positions computes beside the loss.
struct Wanted<'a> {
    /// [n, m].
    hidden: Option<&'a mut [f32]>,
    /// [v, m], written as the second says.
    head: Option<(&'a mut [f32], Write)>,
    /// [v], added to.
    bias: Option<&'a mut [f32]>,
    factor: f32,
}

impl Loss {
    fn run(&self, hidden: &[f32], mut wanted: Wanted) -> Result<f64> {
        static LOGITS: Mutex<Vec<f32>> = Mutex::new(Vec::new());
        /// Bytes of the logits that stand at a time.
        const CHUNK_BYTES: usize = 32 << 20;
        let (_, m, v) = self.dims;
        let chunk = (CHUNK_BYTES / 4 / v.max(1)).clamp(32, 512);
        let positions = &self.scored.positions;
        // Kept from call to call: so large a buffer would be given back to the system each time.
        let mut logits = LOGITS.lock().unwrap_or_else(PoisonError::into_inner);
        let len = logits.len().max(chunk.min(positions.len()) * v);
        logits.resize(len, 0.0);
        let mut total = 0f64;
        if let Some((head, Write::Overwrite)) = wanted.head.as_mut().filter(|_| positions.is_empty()) {
            rows::fill(head, 0.0);
        }
        for start in (0..positions.len()).step_by(chunk) {
            let range = start..positions.len().min(start + chunk);
            let part = &positions[range.clone()];
            let n = part.len();
            let x = gather_rows(hidden, part, m);
            let logits = &mut logits[..n * v];
            multiply(&x, &self.head, logits)?;
            if let Some(bias) = &self.bias {
                with_values(bias, |bias| rows::add_bias(logits, bias))?;
            }
            let mut losses = vec![0f32; n];
            let weights: Vec<f32> =
                self.scored.weights[range.clone()].iter().map(|w| w * wanted.factor).collect();
            let grads = wanted.hidden.is_some() || wanted.head.is_some() || wanted.bias.is_some();
            self.with_teacher(part, |teacher| {
                let ids = &self.scored.ids[range.clone()];
                let targets = RowTargets { ids, weights: &weights, teacher, softcap: self.softcap };
                cross_entropy_rows(logits, v, targets, grads, &mut losses);
            })?;
            total += losses.iter().map(|&loss| f64::from(loss)).sum::<f64>();
            if let Some(target) = &mut wanted.bias {
                rows::column_sums(logits, target, Write::Add);
            }
            if let Some(target) = &mut wanted.hidden {
                let mut dx = unfilled(n * m);
                multiply_transposed(logits, &self.head, &mut dx)?;
                for (row, &at) in dx.chunks_exact(m).zip(part) {
                    target[at * m..][..m].copy_from_slice(row);
                }
            }
            if let Some((target, write)) = &mut wanted.head {
                matmul(v, n, m, View::rows(logits, v).transposed(), View::rows(&x, m), target, *write);
                *write = Write::Add;
            }
        }
        Ok(total)
    }

    /// Adds to the bias's gradient what the forward pass made; a second backward pass makes it anew.
    fn add_bias_grad(&self, made: Vec<f32>, hidden: &[f32], factor: f32) -> Result<()> {
        let Some(bias) = self.bias.as_ref().filter(|_| self.wants_bias) else { return Ok(()) };
        let mut grad = made;
        if grad.is_empty() {
            grad = vec![0f32; self.dims.2];
            self.run(hidden, Wanted { hidden: None, head: None, bias: Some(&mut grad), factor: 1.0 })?;
        }
        bias.accumulate(|sum, write| {
            if write == Write::Overwrite {
                rows::fill(sum, 0.0);
            }
            rows::add_scaled(sum, &grad, factor);
        });
        Ok(())
    }

    /// Lends the teacher's logits of these positions.
    fn with_teacher(&self, positions: &[usize], work: impl FnOnce(Option<RowTeacher>)) -> Result<()> {
        let Some(Teaching { logits, shares, temperature }) = &self.scored.teacher else {
            work(None);
            return Ok(());
        };
        let shares: Vec<f32> = positions.iter().map(|&at| shares[at]).collect();
        tape::read(&[logits], |slices| {
            work(Some(RowTeacher {
                logits: &gather_rows(slices[0], positions, self.dims.2),
                shares: &shares,
                temperature: *temperature as f32,
            }));
            Ok(())
        })
    }
}

/// The rows at `positions`, borrowed where they are neighbours.
fn gather_rows<'a>(values: &'a [f32], positions: &[usize], width: usize) -> std::borrow::Cow<'a, [f32]> {
    let (first, last) = (positions[0], positions[positions.len() - 1]);
    if last - first + 1 == positions.len() {
        return values[first * width..(last + 1) * width].into();
    }
    let mut rows = Vec::with_capacity(positions.len() * width);
    positions.iter().for_each(|at| rows.extend_from_slice(&values[at * width..][..width]));
    rows.into()
}

impl Fused for Loss {
    fn name(&self) -> &'static str {
        "projected_cross_entropy"
    }

    fn weight(&self) -> Option<&Weight> {
        Some(&self.head)
    }

    /// The forward pass makes the gradients, too.
    fn flops(&self, _: &[&[f32]], tracked: Option<&[bool]>) -> f64 {
        let (n, m, v) = self.dims;
        let products = match tracked {
            None => 1 + usize::from(self.wants_hidden) + usize::from(self.wants_head),
            Some(_) => 0,
        };
        2.0 * products as f64 * n as f64 * (m * v) as f64
    }

    fn trains_weights(&self) -> bool {
        self.wants_head || self.wants_bias
    }

    fn forward(&self, inputs: &[&[f32]]) -> Result<(Vec<f32>, Shape)> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let mut dx = vec![0f32; if self.wants_hidden { inputs[0].len() } else { 0 }];
        let mut db = vec![0f32; if self.wants_bias { self.dims.2 } else { 0 }];
        let mut loss = Ok(0.0);
        if !self.wants_head {
            let hidden = self.wants_hidden.then_some(&mut dx[..]);
            let bias = self.wants_bias.then_some(&mut db[..]);
            loss = self.run(inputs[0], Wanted { hidden, head: None, bias, factor: 1.0 });
        } else {
            let mut work = |head: &mut [f32]| {
                let hidden = self.wants_hidden.then_some(&mut dx[..]);
                let bias = self.wants_bias.then_some(&mut db[..]);
                let wanted = Wanted { hidden, head: Some((head, Write::Overwrite)), bias, factor: 1.0 };
                loss = self.run(inputs[0], wanted);
            };
            made.head = match self.head.leave_pending(&mut work) {
                Some(ticket) => HeadGrad::Pending(ticket),
                None => {
                    let mut apart = unfilled(self.head.elem_count());
                    work(&mut apart);
                    HeadGrad::Apart(apart)
                }
            };
        }
        (made.hidden, made.bias) = (dx, db);
        Ok((vec![loss? as f32], Shape::from(())))
    }

    fn backward(&self, pass: Pass) -> Result<Vec<Option<Vec<f32>>>> {
        let factor = pass.grad[0];
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let Made { hidden, head, bias } = std::mem::take(&mut *made);
        self.add_bias_grad(bias, pass.inputs[0], factor)?;
        let redeemed = match head {
            HeadGrad::None => !self.wants_head,
            HeadGrad::Pending(ticket) => self.head.redeem(ticket, factor),
            HeadGrad::Apart(apart) => {
                self.head.accumulate(|grad, write| {
                    if write == Write::Overwrite {
                        rows::fill(grad, 0.0);
                    }
                    rows::add_scaled(grad, &apart, factor);
                });
                true
            }
        };
        if !redeemed {
            // Another operation took the buffer in between, or this is a second backward pass.
            let mut result = Ok(0.0);
            self.head.accumulate(|grad, write| {
                let wanted = Wanted { hidden: None, head: Some((grad, write)), bias: None, factor };
                result = self.run(pass.inputs[0], wanted);
            });
            result?;
        }
        if !pass.tracked[0] {
            return Ok(vec![None]);
        }
        let mut dx = hidden;
        if dx.len() == pass.inputs[0].len() {
            if factor != 1.0 {
                rows::scale(&mut dx, factor);
            }
        } else {
            dx = vec![0f32; pass.inputs[0].len()];
            self.run(pass.inputs[0], Wanted { hidden: Some(&mut dx), head: None, bias: None, factor })?;
        }
        Ok(vec![Some(dx)])
    }
}
