//! Scaled dot-product attention with grouped keys: causal, full, sliding, across packed documents, soft-capped, cached.
//!
//! `o = softmax(cap(scale * q k^T) + bias + mask) v`, `cap(s) = c tanh(s / c)` (Gemma 2, arXiv:2408.00118); the bias is T5's
//! by the distance from query to key (arXiv:1910.10683, section 2.1).

use std::sync::OnceLock;

use candle_core::{Result, Shape, Tensor};
use luthier_kernels::attention::{
    DistanceBias, Grads, Heads, Rule, Saved, Sizes, attention as kernel, attention_backward,
};
use luthier_kernels::buffer::unfilled;

pub use crate::kv_cache::{CacheType, KvCache, SavedCache};
use crate::profile::{self, Work};
pub use crate::relative_bias::{Buckets, RelativeBias};
use crate::tape::{self, Fused, Pass};

// b batch, t query tokens, s key tokens, h query heads, k key/value heads (h a multiple of k), d head width

/// Document numbers of queries and of keys.
pub type Segments = (std::sync::Arc<Vec<u32>>, std::sync::Arc<Vec<u32>>);

/// Which keys a query sees, and how scores are formed.
#[derive(Clone, Debug)]
pub struct AttentionSpec {
    /// Factor on the scores, usually 1/sqrt(d).
    pub scale: f64,
    /// `c` of the soft cap.
    pub softcap: Option<f64>,
    /// Keys after the query are hidden.
    pub causal: bool,
    /// Keys `window` or more positions away are hidden (behind only when causal, on both sides otherwise).
    pub window: Option<usize>,
    /// Position of the first query among the keys (the cached length); 0 without a cache.
    pub query_offset: usize,
    /// `[b * t]` and `[b * s]` document numbers: a query sees keys of its own document only. None: all one document.
    /// Key number `u32::MAX` is padding and hidden from all; a row that sees nothing gives zeros.
    pub segments: Option<Segments>,
    /// Added to the scores, which are not capped then.
    pub bias: Option<RelativeBias>,
}

/// q: [b, t, h, d], k, v: [b, s, k, d] -> [b, t, h, d].
pub fn attention(q_bthd: &Tensor, k_bskd: &Tensor, v_bskd: &Tensor, spec: &AttentionSpec) -> Result<Tensor> {
    check(q_bthd, k_bskd, v_bskd, spec)?;
    if !tape::is_fused(&[q_bthd, k_bskd, v_bskd]) {
        return reference(q_bthd, k_bskd, v_bskd, spec);
    }
    let ((batch, queries, heads, head_dim), (_, keys, kv_heads, _)) = (q_bthd.dims4()?, k_bskd.dims4()?);
    let sizes = Sizes { batch, queries, keys, heads, kv_heads, head_dim };
    let (spec, shape) = (spec.clone(), q_bthd.shape().clone());
    let op = Attention { sizes, spec, shape, lse: OnceLock::new() };
    tape::apply(op, &[q_bthd, k_bskd, v_bskd])
}

fn check(q: &Tensor, k: &Tensor, v: &Tensor, spec: &AttentionSpec) -> Result<()> {
    let ((b, t, h, d), (kb, s, kv, kd)) = (q.dims4()?, k.dims4()?);
    if kb != b || kd != d || kv == 0 || h % kv != 0 || v.dims() != k.dims() {
        candle_core::bail!("attention: queries {:?}, keys {:?}, values {:?}", q.dims(), k.dims(), v.dims());
    }
    check_bias(spec, h)?;
    check_segments(spec, b * t, b * s)
}

fn check_bias(spec: &AttentionSpec, heads: usize) -> Result<()> {
    match &spec.bias {
        Some(_) if spec.softcap.is_some() => {
            candle_core::bail!("attention: scores with both a bias and a soft cap have no gradient here")
        }
        Some(bias) if bias.weight.shape() != [bias.buckets.count, heads] => {
            let (name, shape) = (bias.weight.name(), bias.weight.shape());
            candle_core::bail!("{name}: {shape:?} for {} buckets and {heads} heads", bias.buckets.count)
        }
        _ => Ok(()),
    }
}

fn check_segments(spec: &AttentionSpec, n_queries: usize, n_keys: usize) -> Result<()> {
    let counts = spec.segments.as_ref().map(|(queries, keys)| (queries.len(), keys.len()));
    match counts {
        Some((n, m)) if (n, m) != (n_queries, n_keys) => {
            candle_core::bail!(
                "attention: {n} and {m} document numbers for {n_queries} queries and {n_keys} keys"
            )
        }
        _ => Ok(()),
    }
}

struct Attention {
    sizes: Sizes,
    spec: AttentionSpec,
    shape: Shape,
    /// Logarithms of the rows' sums, [b, h, t], left by the forward pass.
    lse: OnceLock<Vec<f32>>,
}

impl AttentionSpec {
    /// Pairs of a query and a key that it sees, of one sequence that is one document.
    fn pairs(&self, queries: usize, keys: usize) -> f64 {
        let seen = |query: usize| {
            let at = query + self.query_offset;
            let end = if self.causal { keys.min(at + 1) } else { keys };
            match self.window {
                None => end,
                Some(window) => end.min(at + window).saturating_sub((at + 1).saturating_sub(window)),
            }
        };
        (0..queries).map(|query| seen(query) as f64).sum()
    }

    fn rule(&self) -> Result<Rule<'_>> {
        let bias = match &self.bias {
            Some(bias) => {
                Some(DistanceBias { values: bias.by_distance()?, reach: bias.buckets.max_distance })
            }
            None => None,
        };
        Ok(Rule {
            scale: self.scale as f32,
            softcap: self.softcap.map(|cap| cap as f32),
            causal: self.causal,
            window: self.window,
            query_offset: self.query_offset,
            segments: self.segments.as_ref().map(|(queries, keys)| (queries.as_slice(), keys.as_slice())),
            bias,
        })
    }
}

impl Attention {
    fn heads<'a>(&self, values: &'a [f32]) -> Heads<'a> {
        Heads::contiguous(values, self.sizes.keys, self.sizes.kv_heads, self.sizes.head_dim)
    }
}

impl Fused for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    /// Scores and sums of values of all pairs that are seen; the backward pass makes the scores again and four products.
    fn flops(&self, _: &[&[f32]], tracked: Option<&[bool]>) -> f64 {
        let Sizes { batch, queries, keys, heads, head_dim, .. } = self.sizes;
        let products = if tracked.is_some() { 5.0 } else { 2.0 };
        2.0 * products * (batch * heads * head_dim) as f64 * self.spec.pairs(queries, keys)
    }

    fn trains_weights(&self) -> bool {
        self.spec.bias.as_ref().is_some_and(|bias| bias.weight.is_trainable())
    }

    fn forward(&self, inputs: &[&[f32]]) -> Result<(Vec<f32>, Shape)> {
        let mut out = unfilled(inputs[0].len());
        let mut lse = vec![0f32; self.sizes.batch * self.sizes.heads * self.sizes.queries];
        let (k, v) = (self.heads(inputs[1]), self.heads(inputs[2]));
        kernel(self.sizes, self.spec.rule()?, inputs[0], k, v, &mut out, Some(&mut lse));
        // The operation is made anew for each call, so nothing was saved before.
        let _ = self.lse.set(lse);
        Ok((out, self.shape.clone()))
    }

    fn backward(&self, pass: Pass) -> Result<Vec<Option<Vec<f32>>>> {
        let Some(lse) = self.lse.get() else { candle_core::bail!("attention: backward before forward") };
        let [q, k, v] = *pass.inputs else { candle_core::bail!("attention takes three inputs") };
        let (mut dq, mut dk, mut dv) = (unfilled(q.len()), unfilled(k.len()), unfilled(v.len()));
        let saved = Saved { out: pass.result, dout: pass.grad, lse };
        let trained = self.spec.bias.as_ref().filter(|bias| bias.weight.is_trainable());
        let rule = self.spec.rule()?;
        let mut dbias = trained.map(|_| vec![0f32; rule.bias.map_or(0, |bias| bias.values.len())]);
        let grads = Grads { dq: &mut dq, dk: &mut dk, dv: &mut dv, dbias: dbias.as_deref_mut() };
        attention_backward(self.sizes, rule, q, k, v, saved, grads);
        if let (Some(bias), Some(dbias)) = (trained, &dbias) {
            bias.accumulate(dbias);
        }
        let grads = [dq, dk, dv].into_iter().zip(pass.tracked);
        Ok(grads.map(|(grad, tracked)| tracked.then_some(grad)).collect())
    }
}

/// Queries of a sequence that are computed as if they came one by one.
const QUERIES_IN_TURN: usize = 16;

/// Attention over a cache that already holds the queries' own keys; no gradients. q: [b, t, h, d] -> [b, t, h, d].
pub fn attention_cached(q_bthd: &Tensor, cache: &KvCache, spec: &AttentionSpec) -> Result<Tensor> {
    let (batch, queries, heads, head_dim) = q_bthd.dims4()?;
    let Some((rows, keys, kv_heads, width)) = cache.dims().filter(|_| tape::is_fused(&[q_bthd])) else {
        let Some((keys, values)) = cache.tensors(q_bthd.device())? else {
            candle_core::bail!("attention over an empty cache")
        };
        check(q_bthd, &keys, &values, spec)?;
        return reference(&q_bthd.detach(), &keys, &values, spec);
    };
    if (rows, width) != (batch, head_dim) || kv_heads == 0 || heads % kv_heads != 0 {
        let cached = (rows, keys, kv_heads, width);
        candle_core::bail!("attention: queries {:?}, cache {cached:?}", q_bthd.dims());
    }
    check_bias(spec, heads)?;
    check_segments(spec, batch * queries, batch * keys)?;
    let in_turn = queries == 1 || batch == 1 && queries <= QUERIES_IN_TURN;
    let in_turn = in_turn && spec.segments.is_none();
    let _span = profile::operation(|| {
        let work = Work {
            flops: 4.0 * (batch * heads * head_dim) as f64 * spec.pairs(queries, keys),
            bytes: (cache.size_bytes() + 8 * q_bthd.elem_count()) as f64,
        };
        ("attention cached".to_string(), work)
    });
    let q = q_bthd.contiguous()?;
    let mut out = unfilled(q.elem_count());
    tape::read(&[&q], |slices| {
        let rule = spec.rule()?;
        if !in_turn {
            cache.attend_prompt(rule, slices[0], heads, &mut out);
            return Ok(());
        }
        // One after the other, so that a token's output does not depend on how many are read with it.
        let one = out.len().checked_div(queries).unwrap_or(0);
        for at in 0..queries {
            let rule = Rule { query_offset: spec.query_offset + at, ..rule };
            let part = at * one..(at + 1) * one;
            cache.attend(rule, &slices[0][part.clone()], heads, &mut out[part]);
        }
        Ok(())
    })?;
    Tensor::from_vec(out, q_bthd.shape(), q_bthd.device())
}

fn reference(q_bthd: &Tensor, k_bskd: &Tensor, v_bskd: &Tensor, spec: &AttentionSpec) -> Result<Tensor> {
    let (b, t, h, d) = q_bthd.dims4()?;
    let (_, s, kv, _) = k_bskd.dims4()?;
    let group = h / kv;
    let widen = |x: &Tensor| -> Result<Tensor> {
        let x = x.transpose(1, 2)?.contiguous()?;
        x.unsqueeze(2)?.expand((b, kv, group, s, d))?.contiguous()?.reshape((b * h, s, d))
    };
    let q = q_bthd.transpose(1, 2)?.contiguous()?.reshape((b * h, t, d))?;
    let (k, v) = (widen(k_bskd)?, widen(v_bskd)?);
    let mut scores = (q.matmul(&k.t()?.contiguous()?)? * spec.scale)?;
    if let Some(cap) = spec.softcap {
        scores = ((scores / cap)?.tanh()? * cap)?;
    }
    let visible = visible(b, t, s, spec);
    let bias: Vec<f32> = visible.iter().map(|&sees| if sees { 0.0 } else { f32::NEG_INFINITY }).collect();
    let keep: Vec<f32> = visible.chunks(s).map(|row| f32::from(u8::from(row.contains(&true)))).collect();
    // A row that sees nothing would be all -inf: its bias is lifted and its output zeroed.
    let bias: Vec<f32> = bias
        .chunks(s)
        .zip(&keep)
        .flat_map(|(row, &keep)| row.iter().map(move |&x| if keep == 0.0 { 0.0 } else { x }))
        .collect();
    let bias = Tensor::from_vec(bias, (b, 1, t, s), q.device())?;
    let keep = Tensor::from_vec(keep, (b, 1, t, 1), q.device())?;
    let mut scores = scores.reshape((b, h, t, s))?;
    if let Some(relative) = &spec.bias {
        scores = scores.broadcast_add(&relative.reference(t, s, spec.query_offset, q.device())?)?;
    }
    let scores = scores.broadcast_add(&bias)?;
    let top = scores.max_keepdim(3)?.detach();
    let exp = scores.broadcast_sub(&top)?.exp()?;
    let probabilities = exp.broadcast_div(&exp.sum_keepdim(3)?)?.broadcast_mul(&keep)?;
    let out = probabilities.reshape((b * h, t, s))?.matmul(&v)?;
    out.reshape((b, h, t, d))?.transpose(1, 2)?.contiguous()
}

/// `[b, t, s]`, row-major: whether query t of row b sees key s.
fn visible(b: usize, t: usize, s: usize, spec: &AttentionSpec) -> Vec<bool> {
    let mut out = Vec::with_capacity(b * t * s);
    for row in 0..b {
        for query in 0..t {
            let at = query + spec.query_offset;
            for key in 0..s {
                let in_order = !spec.causal || key <= at;
                let near = spec.window.is_none_or(|window| at.abs_diff(key) < window);
                let same = spec.segments.as_ref().is_none_or(|(queries, keys)| {
                    let key = keys[row * s + key];
                    key != u32::MAX && queries[row * t + query] == key
                });
                out.push(in_order && near && same);
            }
        }
    }
    out
}
