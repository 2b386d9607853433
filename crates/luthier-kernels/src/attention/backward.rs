//! The backward pass: scores are computed anew, block by block.

use std::ops::Range;

use super::softmax::{Mask, shape_scores};
use super::{Heads, KEYS, QUERIES, Rule, SCRATCH, Scratch, Sizes, check};
use crate::math;
use crate::matmul::{View, Write, sequential};
use crate::pool::{self, Shared};
use crate::simd::dispatch;

/// What the backward pass reads beside the operands.
#[derive(Clone, Copy, Debug)]
pub struct Saved<'a> {
    /// The output, [b, t, h, d].
    pub out: &'a [f32],
    /// Its gradient.
    pub dout: &'a [f32],
    /// [b, h, t], from the forward pass.
    pub lse: &'a [f32],
}

/// Where the backward pass puts its gradients; all are overwritten.
pub struct Grads<'a> {
    /// [b, t, h, d].
    pub dq: &'a mut [f32],
    /// [b, s, k, d].
    pub dk: &'a mut [f32],
    /// [b, s, k, d].
    pub dv: &'a mut [f32],
    /// `[h, 2 reach + 1]`, where there is a bias and it is wanted.
    pub dbias: Option<&'a mut [f32]>,
}

/// Gradients of [`attention`]; k, v: [b, s, k, d] contiguous.
pub fn attention_backward(
    sizes: Sizes,
    rule: Rule,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    saved: Saved,
    grads: Grads,
) {
    let Sizes { batch, queries, keys, heads, kv_heads, head_dim } = sizes;
    let q = Heads::contiguous(q, queries, heads, head_dim);
    let (k, v) =
        (Heads::contiguous(k, keys, kv_heads, head_dim), Heads::contiguous(v, keys, kv_heads, head_dim));
    check(&sizes, &rule, q.values, &k, &v);
    assert!(saved.out.len() == q.values.len() && saved.dout.len() == q.values.len(), "values of the output");
    assert_eq!(saved.lse.len(), batch * heads * queries, "sums of the rows");
    let Grads { dq, dk, dv, dbias } = grads;
    assert!(dq.len() == q.values.len() && dk.len() == k.values.len() && dv.len() == v.values.len());
    for side in [&mut *dq, &mut *dk, &mut *dv] {
        pool::run_chunks(side, crate::rows::TASK_VALUES * 4, &|_, part| part.fill(0.0));
    }
    let products = output_products(&sizes, saved);
    let mut none = [];
    let wants_bias = dbias.is_some();
    let dbias = dbias.unwrap_or(&mut none);
    dbias.fill(0.0);
    let pass = Backward {
        sizes,
        rule,
        q,
        k,
        v,
        dout: Heads { values: saved.dout, ..q },
        lse: saved.lse,
        products: &products,
        dq: Shared::new(dq),
        dk: Shared::new(dk),
        dv: Shared::new(dv),
        dbias: Shared::new(dbias),
    };
    if wants_bias {
        // One head's sums are one task's, so that they are added in one order whatever the number of threads.
        pool::run(heads, &|head| {
            for row in 0..batch {
                pass.sweep(row, head..head + 1, 0..queries, 0..keys, Wanted::Bias);
            }
        });
    }
    let group = heads / kv_heads;
    if batch * kv_heads >= 2 * pool::threads() || pool::threads() == 1 {
        pool::run(batch * kv_heads, &|task| {
            let kv_head = task % kv_heads;
            pass.sweep(
                task / kv_heads,
                kv_head * group..(kv_head + 1) * group,
                0..queries,
                0..keys,
                Wanted::All,
            );
        });
        return;
    }
    // Too few key heads to go round: keys' gradients by blocks of keys, then queries' by blocks of queries.
    let (key_blocks, query_blocks) = (keys.div_ceil(KEYS), queries.div_ceil(QUERIES));
    pool::run(batch * kv_heads * key_blocks, &|task| {
        let (block, kv_head) = (task % key_blocks * KEYS, task / key_blocks % kv_heads);
        let keys = block..keys.min(block + KEYS);
        let heads = kv_head * group..(kv_head + 1) * group;
        pass.sweep(task / key_blocks / kv_heads, heads, 0..queries, keys, Wanted::Keys);
    });
    pool::run(batch * heads * query_blocks, &|task| {
        let (block, head) = (task % query_blocks * QUERIES, task / query_blocks % heads);
        let queries = block..queries.min(block + QUERIES);
        pass.sweep(task / query_blocks / heads, head..head + 1, queries, 0..keys, Wanted::Queries);
    });
}

/// `sum_d out * dout`, [b, h, t].
fn output_products(sizes: &Sizes, saved: Saved) -> Vec<f32> {
    let Sizes { queries, heads, head_dim, .. } = *sizes;
    let mut products = vec![0f32; saved.lse.len()];
    let layout = Heads::contiguous(saved.out, queries, heads, head_dim);
    pool::run_chunks(&mut products, queries.max(1), &|row, part| {
        for (query, product) in part.iter_mut().enumerate() {
            let at = layout.at(row / heads, query, row % heads);
            let (out, dout) = (&saved.out[at..][..head_dim], &saved.dout[at..][..head_dim]);
            *product = out.iter().zip(dout).map(|(out, dout)| out * dout).sum();
        }
    });
    products
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    All,
    Keys,
    Queries,
    Bias,
}

struct Backward<'a> {
    sizes: Sizes,
    rule: Rule<'a>,
    q: Heads<'a>,
    k: Heads<'a>,
    v: Heads<'a>,
    dout: Heads<'a>,
    lse: &'a [f32],
    products: &'a [f32],
    dq: Shared<'a, f32>,
    dk: Shared<'a, f32>,
    dv: Shared<'a, f32>,
    dbias: Shared<'a, f32>,
}

impl Backward<'_> {
    /// Adds the gradients of all pairs of the given heads' queries and keys. Concurrent calls write disjoint parts.
    fn sweep(
        &self,
        row: usize,
        heads: Range<usize>,
        queries: Range<usize>,
        keys: Range<usize>,
        wanted: Wanted,
    ) {
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.fit(self.sizes.head_dim);
            for head in heads {
                for start in queries.clone().step_by(QUERIES) {
                    let block = start..queries.end.min(start + QUERIES);
                    let reach = self.rule.reach(block.clone(), self.sizes.keys);
                    let (mut at, end) = (reach.start.max(keys.start), reach.end.min(keys.end));
                    while at < end {
                        let part = at..end.min(at + KEYS);
                        at = part.end;
                        if self.rule.meets(&self.sizes, row, block.clone(), part.clone()) {
                            self.pair(row, head, block.clone(), part, wanted, scratch);
                        }
                    }
                }
            }
        });
    }

    fn pair(
        &self,
        row: usize,
        head: usize,
        block: Range<usize>,
        keys: Range<usize>,
        wanted: Wanted,
        scratch: &mut Scratch,
    ) {
        let (n, n_keys, d) = (block.len(), keys.len(), self.sizes.head_dim);
        let kv_head = head / (self.sizes.heads / self.sizes.kv_heads);
        let (q, dout) = (self.q.view(row, block.start, head), self.dout.view(row, block.start, head));
        let (k, v) = (self.k.view(row, keys.start, kv_head), self.v.view(row, keys.start, kv_head));
        let Scratch { scores, grads, .. } = scratch;
        // SAFETY: the scratch holds QUERIES rows of KEYS values; `check` saw the views' ends.
        unsafe {
            sequential(n, d, n_keys, q, k.transposed(), scores.as_mut_ptr(), KEYS, Write::Overwrite);
            sequential(n, d, n_keys, dout, v.transposed(), grads.as_mut_ptr(), KEYS, Write::Overwrite);
        }
        let at = (row * self.sizes.heads + head) * self.sizes.queries + block.start;
        let mask = Mask {
            sizes: &self.sizes,
            rule: &self.rule,
            row,
            head,
            block: block.clone(),
            keys: keys.clone(),
        };
        score_grads(&mask, scores, grads, &self.lse[at..][..n], &self.products[at..][..n]);
        if wanted == Wanted::Bias {
            return self.add_bias_grads(&mask, grads);
        }
        let weights = View { values: scores, row_stride: KEYS, col_stride: 1 };
        let grads = View { values: grads, row_stride: KEYS, col_stride: 1 };
        let (q_at, k_at) = (self.q.at(row, block.start, head), self.k.at(row, keys.start, kv_head));
        let (q_stride, k_stride) = (self.q.token_stride, self.k.token_stride);
        // SAFETY: the caller promises that these rows of dq, dk and dv are this call's own; `check` saw their ends.
        unsafe {
            if wanted != Wanted::Keys {
                sequential(n, n_keys, d, grads, k, self.dq.pointer(q_at), q_stride, Write::Add);
            }
            if wanted != Wanted::Queries {
                let (dk, dv) = (self.dk.pointer(k_at), self.dv.pointer(k_at));
                sequential(n_keys, n, d, weights.transposed(), dout, dv, k_stride, Write::Add);
                sequential(n_keys, n, d, grads.transposed(), q, dk, k_stride, Write::Add);
            }
        }
    }
}

impl Backward<'_> {
    /// Gradients of raw scores are those of the bias times the scale.
    fn add_bias_grads(&self, mask: &Mask, grads: &[f32]) {
        let Some(bias) = &self.rule.bias else { return };
        let width = 2 * bias.reach + 1;
        // SAFETY: a sweep for the bias is its head's only one.
        let target = unsafe { self.dbias.slice(mask.head * width, width) };
        for at in 0..mask.block.len() {
            for column in mask.columns(at) {
                target[mask.bias_index(bias, at, column)] += grads[at * KEYS + column] / self.rule.scale;
            }
        }
    }
}

dispatch! {
    /// Scores become probabilities; gradients of probabilities become gradients of raw scores.
    fn score_grads(mask: &Mask, scores: &mut [f32], grads: &mut [f32], lse: &[f32], products: &[f32])
        = score_grads_body
}

#[inline(always)]
fn score_grads_body<const FMA: bool>(
    mask: &Mask,
    scores: &mut [f32],
    grads: &mut [f32],
    lse: &[f32],
    products: &[f32],
) {
    let n_keys = mask.keys.len();
    for at in 0..mask.block.len() {
        let columns = mask.columns(at);
        let (row, grad) = (&mut scores[at * KEYS..][..n_keys], &mut grads[at * KEYS..][..n_keys]);
        for side in [&mut *row, &mut *grad] {
            side[..columns.start].fill(0.0);
            side[columns.end..].fill(0.0);
        }
        let (row, grad) = (&mut row[columns.clone()], &mut grad[columns.clone()]);
        shape_scores::<FMA>(mask.rule, row);
        let (lse, product) = (lse[at], products[at]);
        // d cap tanh(x / cap) / dx = 1 - (y / cap)^2, of the shaped score y.
        if let Some(cap) = mask.rule.softcap {
            let inverse = 1.0 / cap;
            for (score, grad) in row.iter().zip(grad.iter_mut()) {
                let y = score * inverse;
                *grad = (*grad - product) * (1.0 - y * y);
            }
        } else {
            grad.iter_mut().for_each(|grad| *grad -= product);
        }
        mask.add_bias(at, columns.clone(), row);
        mask.hide_other_documents(at, columns, row);
        for (score, grad) in row.iter_mut().zip(grad.iter_mut()) {
            let p = math::exp::<FMA>(*score - lse);
            *score = p;
            *grad *= p * mask.rule.scale;
        }
    }
}
