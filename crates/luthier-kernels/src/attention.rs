//! Attention block by block over keys: scores of one block of queries and keys at a time, running maxima, and the
//! logarithm of each row's sum kept for a backward pass that computes the scores anew (arXiv:2205.14135).

mod backward;
mod cached;
mod softmax;

use std::cell::RefCell;
use std::ops::Range;

use crate::matmul::{View, Write, sequential};
use crate::pool::{self, Shared};
use crate::simd::{axpy, dispatch, dot};

pub use crate::isa::Element;
use softmax::{Mask, running_softmax};

pub use backward::{Grads, Saved, attention_backward};
pub use cached::{Cached, KEY_BLOCK, attend_cached, attend_prompt, narrow_row, scales_of};

// b batch, t query tokens, s key tokens, h query heads, k key/value heads, d head width

/// Queries of one block.
const QUERIES: usize = 64;
/// Keys of one block.
const KEYS: usize = 128;
/// Queries up to which a block is computed by dot products.
const FEW_QUERIES: usize = 4;

/// Sizes of the operands.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// b.
    pub batch: usize,
    /// t.
    pub queries: usize,
    /// s.
    pub keys: usize,
    /// h, a multiple of `kv_heads`.
    pub heads: usize,
    /// k.
    pub kv_heads: usize,
    /// d.
    pub head_dim: usize,
}

/// Which keys a query sees, and how scores are formed.
#[derive(Clone, Copy, Debug)]
pub struct Rule<'a> {
    /// Factor on the scores.
    pub scale: f32,
    /// `c` of `c tanh(score / c)`.
    pub softcap: Option<f32>,
    /// Keys after the query are hidden.
    pub causal: bool,
    /// Keys this far away or farther are hidden.
    pub window: Option<usize>,
    /// Position of the first query among the keys.
    pub query_offset: usize,
    /// Document numbers `[b * t]` and `[b * s]`; key number `u32::MAX` is hidden from all.
    pub segments: Option<(&'a [u32], &'a [u32])>,
    /// Added to the scores; its gradients want them uncapped.
    pub bias: Option<DistanceBias<'a>>,
}

/// What is added to a score by the distance from query to key.
#[derive(Clone, Copy, Debug)]
pub struct DistanceBias<'a> {
    /// `[h, 2 reach + 1]`: each head's, for keys from `reach` positions before the query to `reach` behind it.
    pub values: &'a [f32],
    /// Keys farther away take the value at this distance.
    pub reach: usize,
}

/// Keys or values; that of (batch, token, head) starts at the sum of index times stride.
#[derive(Clone, Copy, Debug)]
pub struct Heads<'a> {
    /// The slice they lie in.
    pub values: &'a [f32],
    /// Values from one sequence to the next.
    pub batch_stride: usize,
    /// Values from one token to the next.
    pub token_stride: usize,
    /// Values from one head to the next.
    pub head_stride: usize,
}

impl<'a> Heads<'a> {
    /// [b, tokens, heads, d], contiguous.
    pub fn contiguous(values: &'a [f32], tokens: usize, heads: usize, head_dim: usize) -> Heads<'a> {
        let token_stride = heads * head_dim;
        Heads { values, batch_stride: tokens * token_stride, token_stride, head_stride: head_dim }
    }

    fn at(&self, batch: usize, token: usize, head: usize) -> usize {
        batch * self.batch_stride + token * self.token_stride + head * self.head_stride
    }

    fn view(&self, batch: usize, token: usize, head: usize) -> View<'a> {
        let values = &self.values[self.at(batch, token, head)..];
        View { values, row_stride: self.token_stride, col_stride: 1 }
    }
}

impl Rule<'_> {
    /// Keys that the query at index `query` sees by order and window.
    fn near(&self, query: usize, n_keys: usize) -> Range<usize> {
        let at = query + self.query_offset;
        let mut range = 0..n_keys;
        if self.causal {
            range.end = range.end.min(at + 1);
        }
        if let Some(window) = self.window {
            range.end = range.end.min(at.saturating_add(window));
            range.start = if window == 0 { range.end } else { (at + 1).saturating_sub(window) };
        }
        range.start = range.start.min(range.end);
        range
    }

    /// Keys that any of the queries sees by order and window.
    fn reach(&self, queries: Range<usize>, n_keys: usize) -> Range<usize> {
        let (first, last) = (self.near(queries.start, n_keys), self.near(queries.end - 1, n_keys));
        first.start..last.end.max(first.end)
    }

    /// Whether any key of the block may share a document with any query of the block.
    fn meets(&self, sizes: &Sizes, batch: usize, queries: Range<usize>, keys: Range<usize>) -> bool {
        let Some((query_docs, key_docs)) = self.segments else { return true };
        let bounds = |docs: &[u32]| {
            let known = docs.iter().filter(|&&doc| doc != u32::MAX);
            known.fold(None, |bounds: Option<(u32, u32)>, &doc| {
                Some(bounds.map_or((doc, doc), |(low, high)| (low.min(doc), high.max(doc))))
            })
        };
        let queries = bounds(&query_docs[batch * sizes.queries..][queries]);
        let keys = bounds(&key_docs[batch * sizes.keys..][keys]);
        matches!((queries, keys), (Some(q), Some(k)) if q.0 <= k.1 && k.0 <= q.1)
    }
}

#[derive(Default)]
struct Scratch {
    scores: Vec<f32>,
    grads: Vec<f32>,
    out: Vec<f32>,
    tops: Vec<f32>,
    sums: Vec<f32>,
}

impl Scratch {
    fn fit(&mut self, head_dim: usize) {
        self.scores.resize(QUERIES * KEYS, 0.0);
        self.grads.resize(QUERIES * KEYS, 0.0);
        self.out.resize(QUERIES * head_dim, 0.0);
        self.tops.resize(QUERIES, 0.0);
        self.sums.resize(QUERIES, 0.0);
    }
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// q: [b, t, h, d], k, v: [b, s, k, d] -> out: [b, t, h, d]; `lse` [b, h, t] gets the logarithms of the rows' sums
/// (infinite for a row that sees nothing, whose output is zero).
pub fn attention(
    sizes: Sizes,
    rule: Rule,
    q: &[f32],
    k: Heads,
    v: Heads,
    out: &mut [f32],
    lse: Option<&mut [f32]>,
) {
    let Sizes { batch, queries, heads, head_dim, .. } = sizes;
    check(&sizes, &rule, q, &k, &v);
    assert_eq!(out.len(), q.len(), "values of the output");
    let n_blocks = queries.div_ceil(QUERIES);
    let with_lse = lse.is_some();
    let mut none = [];
    let (out, lse) = (Shared::new(out), Shared::new(lse.unwrap_or(&mut none)));
    let q = Heads::contiguous(q, queries, heads, head_dim);
    pool::run(batch * heads * n_blocks, &|task| {
        let (block, head, row) = (task % n_blocks, task / n_blocks % heads, task / n_blocks / heads);
        // The last block of a causal row is the largest: it goes first.
        let start = (n_blocks - 1 - block) * QUERIES;
        let block = start..queries.min(start + QUERIES);
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.fit(head_dim);
            forward_block(&sizes, &rule, row, head, block.clone(), q, k, v, scratch);
            for (at, query) in block.enumerate() {
                let sum = scratch.sums[at];
                let factor = if sum == 0.0 { 0.0 } else { 1.0 / sum };
                // SAFETY: each task owns its queries' rows of one head.
                let target = unsafe { out.slice(q.at(row, query, head), head_dim) };
                for (target, value) in target.iter_mut().zip(&scratch.out[at * head_dim..]) {
                    *target = value * factor;
                }
                if with_lse {
                    let value = if sum == 0.0 { f32::INFINITY } else { scratch.tops[at] + sum.ln() };
                    // SAFETY: as above.
                    unsafe { lse.slice((row * heads + head) * queries + query, 1)[0] = value };
                }
            }
        });
    });
}

fn check(sizes: &Sizes, rule: &Rule, q: &[f32], k: &Heads, v: &Heads) {
    let Sizes { batch, queries, keys, heads, kv_heads, head_dim } = *sizes;
    assert!(kv_heads > 0 && heads % kv_heads == 0, "{heads} heads over {kv_heads}");
    assert_eq!(q.len(), batch * queries * heads * head_dim, "values of the queries");
    if batch * keys > 0 {
        for side in [k, v] {
            let last = side.at(batch - 1, keys - 1, kv_heads - 1) + head_dim;
            assert!(last <= side.values.len(), "keys or values reach {last} of {}", side.values.len());
        }
    }
    if let Some((query_docs, key_docs)) = rule.segments {
        assert_eq!((query_docs.len(), key_docs.len()), (batch * queries, batch * keys), "document numbers");
    }
    if let Some(bias) = rule.bias {
        assert_eq!(bias.values.len(), heads * (2 * bias.reach + 1), "values of the bias");
    }
}

/// Unnormalised outputs, maxima and sums of one block of queries of one head.
#[allow(clippy::too_many_arguments)]
fn forward_block(
    sizes: &Sizes,
    rule: &Rule,
    row: usize,
    head: usize,
    block: Range<usize>,
    q: Heads,
    k: Heads,
    v: Heads,
    scratch: &mut Scratch,
) {
    let d = sizes.head_dim;
    let kv_head = head / (sizes.heads / sizes.kv_heads);
    let n = block.len();
    let Scratch { scores, out, tops, sums, .. } = scratch;
    out[..n * d].fill(0.0);
    tops[..n].fill(f32::NEG_INFINITY);
    sums[..n].fill(0.0);
    let reach = rule.reach(block.clone(), sizes.keys);
    let mut start = reach.start;
    while start < reach.end {
        let keys = start..reach.end.min(start + KEYS);
        start = keys.end;
        if !rule.meets(sizes, row, block.clone(), keys.clone()) {
            continue;
        }
        let (queries, keys_view) = (q.view(row, block.start, head), k.view(row, keys.start, kv_head));
        let values_view = v.view(row, keys.start, kv_head);
        let few = n <= FEW_QUERIES;
        if few {
            few_scores(n, keys.len(), d, queries, keys_view, scores);
        } else {
            // SAFETY: the scratch holds QUERIES rows of KEYS values; `check` saw the views' ends.
            unsafe {
                let target = scores.as_mut_ptr();
                sequential(n, d, keys.len(), queries, keys_view.transposed(), target, KEYS, Write::Overwrite);
            }
        }
        let mask = Mask { sizes, rule, row, head, block: block.clone(), keys: keys.clone() };
        running_softmax(&mask, scores, out, tops, sums);
        if few {
            few_outputs(n, keys.len(), d, scores, values_view, out);
        } else {
            let weights = View { values: scores, row_stride: KEYS, col_stride: 1 };
            // SAFETY: the scratch holds QUERIES rows of d values; `check` saw the view's end.
            unsafe { sequential(n, keys.len(), d, weights, values_view, out.as_mut_ptr(), d, Write::Add) };
        }
    }
}

dispatch! {
    fn few_scores(n: usize, n_keys: usize, d: usize, q: View, k: View, scores: &mut [f32]) = few_scores_body
}

#[inline(always)]
fn few_scores_body<const FMA: bool>(n: usize, n_keys: usize, d: usize, q: View, k: View, scores: &mut [f32]) {
    for key in 0..n_keys {
        let key_values = &k.values[key * k.row_stride..][..d];
        for query in 0..n {
            scores[query * KEYS + key] = dot::<FMA>(&q.values[query * q.row_stride..][..d], key_values);
        }
    }
}

dispatch! {
    fn few_outputs(n: usize, n_keys: usize, d: usize, weights: &[f32], v: View, out: &mut [f32]) = few_outputs_body
}

#[inline(always)]
fn few_outputs_body<const FMA: bool>(
    n: usize,
    n_keys: usize,
    d: usize,
    weights: &[f32],
    v: View,
    out: &mut [f32],
) {
    for key in 0..n_keys {
        let values = &v.values[key * v.row_stride..][..d];
        for query in 0..n {
            axpy::<FMA>(weights[query * KEYS + key], values, &mut out[query * d..][..d]);
        }
    }
}
