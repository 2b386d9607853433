//! Keys and values of the tokens so far, growing in place.

use candle_core::{DType, Device, Result, Tensor};
use half::f16;
use luthier_kernels::attention::{Cached, Element, KEY_BLOCK, Rule, attend_cached, attend_prompt};
use luthier_kernels::pool::run_chunks;

use crate::tape;

// b batch, t new tokens, s cached tokens, k key/value heads, d head width

/// Keys and values of the tokens so far, of one layer.
#[derive(Clone, Debug, Default)]
pub struct KvCache {
    store: Store,
    is_half: bool,
    /// Tokens that are to come, so that room for them is made once.
    expected: usize,
}

#[derive(Clone, Debug, Default)]
enum Store {
    #[default]
    Empty,
    Full(Buffers<f32>),
    Half(Buffers<f16>),
    /// Keys and values [b, s, k, d] where no kernel of ours runs.
    Elsewhere(Tensor, Tensor),
}

/// Keys as [b, k, capacity / 16, d, 16] and values as [b, k, capacity, d], rows up to a multiple of 16, of which the first
/// `len` tokens of each head are there.
#[derive(Clone, Debug)]
struct Buffers<E> {
    keys: Vec<E>,
    values: Vec<E>,
    batch: usize,
    kv_heads: usize,
    head_dim: usize,
    capacity: usize,
    len: usize,
}

/// Runs generic code on buffers of either type.
macro_rules! on_buffers {
    ($store:expr, $buffers:ident => $work:expr, $other:pat => $otherwise:expr) => {
        match $store {
            Store::Full($buffers) => $work,
            Store::Half($buffers) => $work,
            $other => $otherwise,
        }
    };
}

impl KvCache {
    /// An empty cache in f32.
    pub fn new() -> KvCache {
        KvCache::default()
    }

    /// An empty cache that rounds to f16, where it is on CPU: half the memory to read for every token.
    pub fn half() -> KvCache {
        KvCache { is_half: true, ..KvCache::default() }
    }

    /// The same cache, which makes room for that many tokens at once.
    pub fn expecting(self, tokens: usize) -> KvCache {
        KvCache { expected: tokens, ..self }
    }

    /// Cached tokens.
    pub fn len(&self) -> usize {
        on_buffers!(&self.store, buffers => buffers.len, other => match other {
            Store::Elsewhere(keys, _) => keys.dims()[1],
            _ => 0,
        })
    }

    /// Whether nothing is cached yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends k, v: [b, t, k, d].
    ///
    /// # Errors
    /// Where batch, heads or width differ from what is cached.
    pub fn append(&mut self, k_btkd: &Tensor, v_btkd: &Tensor) -> Result<()> {
        let (batch, tokens, kv_heads, head_dim) = k_btkd.dims4()?;
        if v_btkd.dims() != k_btkd.dims() {
            candle_core::bail!("cache: keys {:?}, values {:?}", k_btkd.dims(), v_btkd.dims());
        }
        let (k, v) = (k_btkd.detach(), v_btkd.detach());
        if !k.device().is_cpu() || k.dtype() != DType::F32 {
            let (keys, values) = match &self.store {
                Store::Elsewhere(keys, values) => {
                    (Tensor::cat(&[keys, &k], 1)?, Tensor::cat(&[values, &v], 1)?)
                }
                _ => (k.contiguous()?, v.contiguous()?),
            };
            self.store = Store::Elsewhere(keys, values);
            return Ok(());
        }
        if !matches!(self.store, Store::Full(_) | Store::Half(_)) {
            self.store = match self.is_half {
                true => Store::Half(Buffers::new(batch, kv_heads, head_dim)),
                false => Store::Full(Buffers::new(batch, kv_heads, head_dim)),
            };
        }
        let (k, v) = (k.contiguous()?, v.contiguous()?);
        on_buffers!(&mut self.store, buffers => {
            if (buffers.batch, buffers.kv_heads, buffers.head_dim) != (batch, kv_heads, head_dim) {
                candle_core::bail!("cache: {:?} appended to {:?}", k.dims(), buffers.dims());
            }
            buffers.reserve(tokens, self.expected);
            tape::read(&[&k, &v], |slices| {
                buffers.append(slices[0], slices[1], tokens);
                Ok(())
            })
        }, _ => unreachable!("just set"))
    }

    /// Forgets all but the first `len` tokens.
    pub fn truncate(&mut self, len: usize) -> Result<()> {
        on_buffers!(&mut self.store, buffers => buffers.len = buffers.len.min(len), other => {
            if let Store::Elsewhere(keys, values) = other {
                let len = len.min(keys.dims()[1]);
                (*keys, *values) = (keys.narrow(1, 0, len)?, values.narrow(1, 0, len)?);
            }
        });
        Ok(())
    }

    /// (b, s, k, d) where keys and values lie in buffers on CPU.
    pub(crate) fn dims(&self) -> Option<(usize, usize, usize, usize)> {
        on_buffers!(&self.store, buffers => (buffers.len > 0).then(|| buffers.dims()), _ => None)
    }

    /// Attention of one query a sequence over the buffers; q, out: [b, h, d].
    pub(crate) fn attend(&self, rule: Rule, q: &[f32], heads: usize, out: &mut [f32]) {
        on_buffers!(&self.store, buffers => attend_cached(rule, q, heads, buffers.cached(), out), _ => {});
    }

    /// The same of many queries a sequence; q, out: [b, t, h, d].
    pub(crate) fn attend_prompt(&self, rule: Rule, q: &[f32], heads: usize, out: &mut [f32]) {
        on_buffers!(&self.store, buffers => attend_prompt(rule, q, heads, buffers.cached(), out), _ => {});
    }

    /// Keys and values as [b, s, k, d] on `device`.
    pub(crate) fn tensors(&self, device: &Device) -> Result<Option<(Tensor, Tensor)>> {
        on_buffers!(&self.store, buffers => {
            let (b, s, k, d) = buffers.dims();
            let (keys, values) = buffers.cached().widened();
            let tensor =
                |values| Tensor::from_vec(values, (b, k, s, d), device)?.transpose(1, 2)?.contiguous();
            Ok(Some((tensor(keys)?, tensor(values)?)))
        }, other => match other {
            Store::Elsewhere(keys, values) => Ok(Some((keys.clone(), values.clone()))),
            _ => Ok(None),
        })
    }
}

impl<E: Element> Buffers<E> {
    fn new(batch: usize, kv_heads: usize, head_dim: usize) -> Buffers<E> {
        Buffers { keys: Vec::new(), values: Vec::new(), batch, kv_heads, head_dim, capacity: 0, len: 0 }
    }

    /// (b, s, k, d).
    fn dims(&self) -> (usize, usize, usize, usize) {
        (self.batch, self.len, self.kv_heads, self.head_dim)
    }

    fn cached(&self) -> Cached<'_, E> {
        Cached {
            keys: &self.keys,
            values: &self.values,
            batch: self.batch,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            capacity: self.capacity,
            len: self.len,
        }
    }

    fn value_width(&self) -> usize {
        self.head_dim.next_multiple_of(KEY_BLOCK)
    }

    /// Where `tokens` more do not fit, makes room for all that are expected, or half as much again as there was.
    fn reserve(&mut self, tokens: usize, expected: usize) {
        let needed = self.len + tokens;
        if needed <= self.capacity {
            return;
        }
        let capacity = match needed <= expected {
            true => expected,
            false => needed.max(self.capacity + self.capacity / 2),
        };
        let capacity = capacity.next_multiple_of(KEY_BLOCK);
        let value_width = self.value_width();
        for (side, width) in [(&mut self.keys, self.head_dim), (&mut self.values, value_width)] {
            // Blocks of keys follow each other as tokens do, so that what is there keeps its place in its head.
            let (old, new) = (self.capacity * width, capacity * width);
            let mut grown = vec![E::default(); self.batch * self.kv_heads * new];
            for (head, target) in grown.chunks_exact_mut(new.max(1)).enumerate() {
                target[..old].copy_from_slice(&side[head * old..][..old]);
            }
            *side = grown;
        }
        self.capacity = capacity;
    }

    /// k, v: [b, t, k, d].
    fn append(&mut self, k: &[f32], v: &[f32], tokens: usize) {
        let (d, heads, width, before) = (self.head_dim, self.kv_heads, self.value_width(), self.len);
        let (key_step, value_step) = (self.capacity * d, self.capacity * width);
        let heads_and_sides =
            self.keys.chunks_exact_mut(key_step.max(1)).zip(self.values.chunks_exact_mut(value_step));
        let mut places: Vec<(&mut [E], &mut [E])> = heads_and_sides.collect();
        // One token is not worth the start of a task.
        let step = if tokens < KEY_BLOCK { places.len().max(1) } else { 1 };
        run_chunks(&mut places, step, &|chunk, places| {
            let mut key = vec![E::default(); d];
            for (at, (keys, values)) in places.iter_mut().enumerate() {
                let (row, head) = ((chunk * step + at) / heads, (chunk * step + at) % heads);
                for token in 0..tokens {
                    let from = ((row * tokens + token) * heads + head) * d;
                    let place = before + token;
                    E::narrow(&k[from..from + d], &mut key);
                    let start = place / KEY_BLOCK * KEY_BLOCK * d + place % KEY_BLOCK;
                    for (target, channel) in keys[start..].iter_mut().step_by(KEY_BLOCK).zip(&key) {
                        *target = *channel;
                    }
                    E::narrow(&v[from..from + d], &mut values[place * width..][..d]);
                }
            }
        });
        self.len += tokens;
    }
}
