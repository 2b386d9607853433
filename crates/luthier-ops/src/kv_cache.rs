//! Keys and values of the tokens so far, growing in place.

use candle_core::{DType, Device, Result, Tensor};
use luthier_kernels::attention::Heads;

use crate::tape;

// b batch, t new tokens, s cached tokens, k key/value heads, d head width

/// Keys and values of the tokens so far, of one layer.
#[derive(Clone, Debug, Default)]
pub struct KvCache {
    store: Store,
}

#[derive(Clone, Debug, Default)]
enum Store {
    #[default]
    Empty,
    Cpu(Buffers),
    /// Keys and values [b, s, k, d] where no kernel of ours runs.
    Elsewhere(Tensor, Tensor),
}

/// Keys and values as [b, k, capacity, d], of which the first `len` tokens of each head are there.
#[derive(Clone, Debug)]
pub(crate) struct Buffers {
    keys: Vec<f32>,
    values: Vec<f32>,
    batch: usize,
    kv_heads: usize,
    head_dim: usize,
    capacity: usize,
    len: usize,
}

impl KvCache {
    /// An empty cache.
    pub fn new() -> KvCache {
        KvCache::default()
    }

    /// Cached tokens.
    pub fn len(&self) -> usize {
        match &self.store {
            Store::Empty => 0,
            Store::Cpu(buffers) => buffers.len,
            Store::Elsewhere(keys, _) => keys.dims()[1],
        }
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
        if !matches!(self.store, Store::Cpu(_)) {
            self.store = Store::Cpu(Buffers::new(batch, kv_heads, head_dim));
        }
        let Store::Cpu(buffers) = &mut self.store else { unreachable!("just set") };
        if (buffers.batch, buffers.kv_heads, buffers.head_dim) != (batch, kv_heads, head_dim) {
            candle_core::bail!("cache: {:?} appended to {:?}", k.dims(), buffers.dims());
        }
        buffers.reserve(tokens);
        let (k, v) = (k.contiguous()?, v.contiguous()?);
        tape::read(&[&k, &v], |slices| {
            buffers.append(slices[0], slices[1], tokens);
            Ok(())
        })
    }

    /// Forgets all but the first `len` tokens.
    pub fn truncate(&mut self, len: usize) -> Result<()> {
        match &mut self.store {
            Store::Empty => {}
            Store::Cpu(buffers) => buffers.len = buffers.len.min(len),
            Store::Elsewhere(keys, values) => {
                let len = len.min(keys.dims()[1]);
                (*keys, *values) = (keys.narrow(1, 0, len)?, values.narrow(1, 0, len)?);
            }
        }
        Ok(())
    }

    /// The buffers on CPU, where there are any.
    pub(crate) fn buffers(&self) -> Option<&Buffers> {
        match &self.store {
            Store::Cpu(buffers) if buffers.len > 0 => Some(buffers),
            _ => None,
        }
    }

    /// Keys and values as [b, s, k, d] on `device`.
    pub(crate) fn tensors(&self, device: &Device) -> Result<Option<(Tensor, Tensor)>> {
        match &self.store {
            Store::Empty => Ok(None),
            Store::Elsewhere(keys, values) => Ok(Some((keys.clone(), values.clone()))),
            Store::Cpu(buffers) => {
                Ok(Some((buffers.tensor(&buffers.keys, device)?, buffers.tensor(&buffers.values, device)?)))
            }
        }
    }
}

impl Buffers {
    fn new(batch: usize, kv_heads: usize, head_dim: usize) -> Buffers {
        Buffers { keys: Vec::new(), values: Vec::new(), batch, kv_heads, head_dim, capacity: 0, len: 0 }
    }

    /// (b, s, k, d).
    pub(crate) fn dims(&self) -> (usize, usize, usize, usize) {
        (self.batch, self.len, self.kv_heads, self.head_dim)
    }

    /// Keys and values for the kernel.
    pub(crate) fn heads(&self) -> (Heads<'_>, Heads<'_>) {
        let head_stride = self.capacity * self.head_dim;
        let side = |values| Heads {
            values,
            batch_stride: self.kv_heads * head_stride,
            token_stride: self.head_dim,
            head_stride,
        };
        (side(&self.keys), side(&self.values))
    }

    /// Doubles the capacity where `tokens` more do not fit.
    fn reserve(&mut self, tokens: usize) {
        let needed = self.len + tokens;
        if needed <= self.capacity {
            return;
        }
        let capacity = needed.max(self.capacity * 2).next_multiple_of(64);
        let (old, new) = (self.capacity * self.head_dim, capacity * self.head_dim);
        for side in [&mut self.keys, &mut self.values] {
            let mut grown = vec![0f32; self.batch * self.kv_heads * new];
            for (head, target) in grown.chunks_exact_mut(new.max(1)).enumerate() {
                let kept = self.len * self.head_dim;
                target[..kept].copy_from_slice(&side[head * old..][..kept]);
            }
            *side = grown;
        }
        self.capacity = capacity;
    }

    /// k, v: [b, t, k, d].
    fn append(&mut self, k: &[f32], v: &[f32], tokens: usize) {
        let d = self.head_dim;
        for (source, target) in [(k, &mut self.keys), (v, &mut self.values)] {
            for row in 0..self.batch {
                for token in 0..tokens {
                    for head in 0..self.kv_heads {
                        let from = ((row * tokens + token) * self.kv_heads + head) * d;
                        let to = ((row * self.kv_heads + head) * self.capacity + self.len + token) * d;
                        target[to..to + d].copy_from_slice(&source[from..from + d]);
                    }
                }
            }
        }
        self.len += tokens;
    }

    fn tensor(&self, side: &[f32], device: &Device) -> Result<Tensor> {
        let shape = (self.batch, self.kv_heads, self.capacity, self.head_dim);
        Tensor::from_slice(side, shape, device)?.narrow(2, 0, self.len)?.transpose(1, 2)?.contiguous()
    }
}
