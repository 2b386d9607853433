//! Keys and values of the tokens so far, growing in place.

use candle_core::{DType, Device, Result, Tensor};
use half::f16;
use luthier_kernels::attention::{
    Cached, Element, KEY_BLOCK, Rule, attend_cached, attend_prompt, narrow_row, scales_of,
};
use luthier_kernels::pool::run_chunks;

use crate::profile::{self, Work};
use crate::tape;

mod saved;

pub use saved::SavedCache;

// b batch, t new tokens, s cached tokens, k key/value heads, d head width

/// What keys and values are rounded to where the cache lies on CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheType {
    /// Not at all.
    #[default]
    F32,
    /// Half the memory to read for every token.
    F16,
    /// Whole numbers of -127 to 127 with one f32 scale for each 64 values of a head's row: half of f16 again.
    Q8,
}

impl CacheType {
    /// All, widest first.
    pub const ALL: [CacheType; 3] = [CacheType::F32, CacheType::F16, CacheType::Q8];

    /// `f32`, `f16` or `q8`.
    pub fn as_str(self) -> &'static str {
        match self {
            CacheType::F32 => "f32",
            CacheType::F16 => "f16",
            CacheType::Q8 => "q8",
        }
    }
}

impl std::str::FromStr for CacheType {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<CacheType, String> {
        let found = CacheType::ALL.into_iter().find(|kind| kind.as_str() == text);
        found.ok_or_else(|| format!("wanted f32, f16 or q8, came {text:?}"))
    }
}

/// Keys and values of the tokens so far, of one layer.
#[derive(Clone, Debug, Default)]
pub struct KvCache {
    store: Store,
    kind: CacheType,
    /// Tokens that are to come, so that room for them is made once.
    expected: usize,
}

#[derive(Clone, Debug, Default)]
enum Store {
    #[default]
    Empty,
    Full(Buffers<f32>),
    Half(Buffers<f16>),
    Whole(Buffers<i8>),
    /// Keys and values [b, s, k, d] where no kernel of ours runs.
    Elsewhere(Tensor, Tensor),
}

/// Keys as [b, k, capacity / 16, d, 16] and values as [b, k, capacity, d], rows up to a multiple of 16, of which the first
/// `len` tokens of each head are there; scales, where elements have some, stand in the same way.
#[derive(Clone, Debug)]
struct Buffers<E> {
    keys: Vec<E>,
    values: Vec<E>,
    key_scales: Vec<f32>,
    value_scales: Vec<f32>,
    batch: usize,
    kv_heads: usize,
    head_dim: usize,
    capacity: usize,
    len: usize,
}

/// Runs generic code on buffers of any type.
macro_rules! on_buffers {
    ($store:expr, $buffers:ident => $work:expr, $other:pat => $otherwise:expr) => {
        match $store {
            Store::Full($buffers) => $work,
            Store::Half($buffers) => $work,
            Store::Whole($buffers) => $work,
            $other => $otherwise,
        }
    };
}

impl KvCache {
    /// An empty cache in f32.
    pub fn new() -> KvCache {
        KvCache::default()
    }

    /// An empty cache that rounds to `kind`.
    pub fn of(kind: CacheType) -> KvCache {
        KvCache { kind, ..KvCache::default() }
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
        if matches!(self.store, Store::Empty | Store::Elsewhere(..)) {
            self.store = match self.kind {
                CacheType::F32 => Store::Full(Buffers::new(batch, kv_heads, head_dim)),
                CacheType::F16 => Store::Half(Buffers::new(batch, kv_heads, head_dim)),
                CacheType::Q8 => Store::Whole(Buffers::new(batch, kv_heads, head_dim)),
            };
        }
        let (k, v) = (k.contiguous()?, v.contiguous()?);
        let _span = profile::operation(|| {
            let bytes = (8 * k.elem_count()) as f64;
            ("cache append".to_string(), Work { flops: 0.0, bytes })
        });
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

    /// Bytes of the keys and values of all tokens so far.
    pub fn size_bytes(&self) -> usize {
        let kind = match &self.store {
            Store::Full(_) | Store::Elsewhere(..) => CacheType::F32,
            Store::Half(_) => CacheType::F16,
            Store::Whole(_) => CacheType::Q8,
            Store::Empty => return 0,
        };
        let (b, s, k, d) = match &self.store {
            Store::Elsewhere(keys, _) => keys.dims4().unwrap_or_default(),
            _ => self.dims().unwrap_or_default(),
        };
        2 * b * s * k * (d * kind.value_bytes() + 4 * kind.scales(d))
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
        Buffers {
            keys: Vec::new(),
            values: Vec::new(),
            key_scales: Vec::new(),
            value_scales: Vec::new(),
            batch,
            kv_heads,
            head_dim,
            capacity: 0,
            len: 0,
        }
    }

    /// (b, s, k, d).
    fn dims(&self) -> (usize, usize, usize, usize) {
        (self.batch, self.len, self.kv_heads, self.head_dim)
    }

    fn cached(&self) -> Cached<'_, E> {
        Cached {
            keys: &self.keys,
            values: &self.values,
            key_scales: &self.key_scales,
            value_scales: &self.value_scales,
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
        let (value_width, scales, old) = (self.value_width(), scales_of::<E>(self.head_dim), self.capacity);
        let heads = self.batch * self.kv_heads;
        // Blocks of keys follow each other as tokens do, so that what is there keeps its place in its head.
        grow(&mut self.keys, heads, old * self.head_dim, capacity * self.head_dim);
        grow(&mut self.values, heads, old * value_width, capacity * value_width);
        grow(&mut self.key_scales, heads, old * scales, capacity * scales);
        grow(&mut self.value_scales, heads, old * scales, capacity * scales);
        self.capacity = capacity;
    }

    /// What lies in memory of each head of each sequence.
    fn heads(&mut self) -> Vec<Head<'_, E>> {
        let (d, width, scales) = (self.head_dim, self.value_width(), scales_of::<E>(self.head_dim));
        let mut key_scales = self.key_scales.chunks_exact_mut((self.capacity * scales).max(1));
        let mut value_scales = self.value_scales.chunks_exact_mut((self.capacity * scales).max(1));
        let keys = self.keys.chunks_exact_mut((self.capacity * d).max(1));
        let values = self.values.chunks_exact_mut((self.capacity * width).max(1));
        keys.zip(values)
            .map(|(keys, values)| Head {
                keys,
                values,
                key_scales: key_scales.next().unwrap_or_default(),
                value_scales: value_scales.next().unwrap_or_default(),
            })
            .collect()
    }

    /// k, v: [b, t, k, d].
    fn append(&mut self, k: &[f32], v: &[f32], tokens: usize) {
        let (d, heads, width, before) = (self.head_dim, self.kv_heads, self.value_width(), self.len);
        let scales = scales_of::<E>(d);
        let mut places = self.heads();
        // One token is not worth the start of a task.
        let step = if tokens < KEY_BLOCK { places.len().max(1) } else { 1 };
        run_chunks(&mut places, step, &|chunk, places| {
            let (mut key, mut key_scales) = (vec![E::default(); d], vec![0f32; scales]);
            for (at, head) in places.iter_mut().enumerate() {
                let (row, number) = ((chunk * step + at) / heads, (chunk * step + at) % heads);
                for token in 0..tokens {
                    let from = ((row * tokens + token) * heads + number) * d;
                    let place = before + token;
                    narrow_row(&k[from..from + d], &mut key, &mut key_scales);
                    head.put_key(place, &key, &key_scales);
                    let value_scales = &mut head.value_scales[place * scales..][..scales];
                    narrow_row(&v[from..from + d], &mut head.values[place * width..][..d], value_scales);
                }
            }
        });
        self.len += tokens;
    }
}

/// One head of one sequence.
struct Head<'a, E> {
    keys: &'a mut [E],
    values: &'a mut [E],
    key_scales: &'a mut [f32],
    value_scales: &'a mut [f32],
}

impl<E: Element> Head<'_, E> {
    /// Puts the key of token `place` among those of its block.
    fn put_key(&mut self, place: usize, key: &[E], scales: &[f32]) {
        let (block, lane) = (place / KEY_BLOCK * KEY_BLOCK, place % KEY_BLOCK);
        let targets = self.keys[block * key.len() + lane..].iter_mut().step_by(KEY_BLOCK);
        targets.zip(key).for_each(|(target, channel)| *target = *channel);
        let start = (block * scales.len() + lane).min(self.key_scales.len());
        let targets = self.key_scales[start..].iter_mut();
        targets.step_by(KEY_BLOCK).zip(scales).for_each(|(target, scale)| *target = *scale);
    }
}

/// `heads` parts of `old` values become as many of `new`.
fn grow<E: Copy + Default>(side: &mut Vec<E>, heads: usize, old: usize, new: usize) {
    let mut grown = vec![E::default(); heads * new];
    for (head, target) in grown.chunks_exact_mut(new.max(1)).enumerate() {
        target[..old].copy_from_slice(&side[head * old..][..old]);
    }
    *side = grown;
}
