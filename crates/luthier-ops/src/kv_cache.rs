//! Keys and values of the tokens so far, growing in place.

use candle_core::{DType, Device, Result, Tensor};
use half::f16;
use luthier_kernels::attention::{Cached, Element, KEY_BLOCK, Rule, attend_cached};

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

    /// Keys and values as [b, k, s, d] in f32, where they lie in buffers on CPU.
    pub(crate) fn widened(&self) -> Option<(Vec<f32>, Vec<f32>)> {
        on_buffers!(&self.store, buffers => Some(buffers.cached().widened()), _ => None)
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

    /// Where the key of a token of a head stands: its first channel; the others follow 16 apart.
    fn key_at(&self, head: usize, token: usize) -> usize {
        (head * self.capacity + token / KEY_BLOCK * KEY_BLOCK) * self.head_dim + token % KEY_BLOCK
    }

    fn value_at(&self, head: usize, token: usize) -> usize {
        (head * self.capacity + token) * self.value_width()
    }

    /// k, v: [b, t, k, d].
    fn append(&mut self, k: &[f32], v: &[f32], tokens: usize) {
        let d = self.head_dim;
        for row in 0..self.batch {
            for token in 0..tokens {
                for head in 0..self.kv_heads {
                    let from = ((row * tokens + token) * self.kv_heads + head) * d;
                    let (head, token) = (row * self.kv_heads + head, self.len + token);
                    let (key, value) = (self.key_at(head, token), self.value_at(head, token));
                    for (channel, number) in k[from..from + d].iter().enumerate() {
                        self.keys[key + channel * KEY_BLOCK] = E::from_f32(*number);
                    }
                    for (target, number) in self.values[value..].iter_mut().zip(&v[from..from + d]) {
                        *target = E::from_f32(*number);
                    }
                }
            }
        }
        self.len += tokens;
    }
}
