//! What a cache holds as plain rows, for files.

use candle_core::Result;
use luthier_kernels::attention::{Element, KEY_BLOCK, scales_of};

use super::{Buffers, CacheType, KvCache, Store};

// b batch, s cached tokens, k key/value heads, d head width

/// Keys and values of one layer, as [`KvCache`] has rounded them.
#[derive(Clone, Debug, PartialEq)]
pub struct SavedCache {
    /// What they are rounded to.
    pub kind: CacheType,
    /// b * k.
    pub heads: usize,
    /// s.
    pub tokens: usize,
    /// d.
    pub head_dim: usize,
    /// Little-endian, [b, k, s, d].
    pub keys: Vec<u8>,
    /// The same.
    pub values: Vec<u8>,
    /// Of q8, one for each 64 of a row, the last of fewer: [b, k, s, d / 64]. Otherwise none.
    pub key_scales: Vec<f32>,
    /// The same.
    pub value_scales: Vec<f32>,
}

impl CacheType {
    /// Bytes of a value.
    pub fn value_bytes(self) -> usize {
        match self {
            CacheType::F32 => 4,
            CacheType::F16 => 2,
            CacheType::Q8 => 1,
        }
    }

    /// Scales of a row of `head_dim` values.
    pub fn scales(self, head_dim: usize) -> usize {
        match self {
            CacheType::F32 | CacheType::F16 => 0,
            CacheType::Q8 => scales_of::<i8>(head_dim),
        }
    }
}

impl KvCache {
    /// What it holds; none where that is nothing or lies elsewhere than on CPU.
    pub fn save(&self) -> Option<SavedCache> {
        match &self.store {
            Store::Full(buffers) => buffers.save(CacheType::F32),
            Store::Half(buffers) => buffers.save(CacheType::F16),
            Store::Whole(buffers) => buffers.save(CacheType::Q8),
            Store::Empty | Store::Elsewhere(..) => None,
        }
    }

    /// Holds what was saved, of one sequence, in place of what it held. It makes room as for new tokens.
    ///
    /// # Errors
    /// Rows of another type than this cache's, and lengths that do not belong together.
    pub fn fill(&mut self, saved: &SavedCache) -> Result<()> {
        if saved.kind != self.kind {
            candle_core::bail!("cache: {} put into one of {}", saved.kind.as_str(), self.kind.as_str());
        }
        self.store = match saved.kind {
            CacheType::F32 => Store::Full(Buffers::filled(saved, self.expected)?),
            CacheType::F16 => Store::Half(Buffers::filled(saved, self.expected)?),
            CacheType::Q8 => Store::Whole(Buffers::filled(saved, self.expected)?),
        };
        Ok(())
    }
}

impl<E: Element> Buffers<E> {
    fn save(&self, kind: CacheType) -> Option<SavedCache> {
        let (d, scales, width, heads) =
            (self.head_dim, scales_of::<E>(self.head_dim), self.value_width(), self.batch * self.kv_heads);
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        let (mut key_scales, mut value_scales) = (Vec::new(), Vec::new());
        let mut key = vec![E::default(); d];
        for head in 0..heads {
            for token in 0..self.len {
                let place = head * self.capacity + token;
                let (block, lane) = (place / KEY_BLOCK * KEY_BLOCK, place % KEY_BLOCK);
                for (channel, key) in key.iter_mut().enumerate() {
                    *key = self.keys[block * d + channel * KEY_BLOCK + lane];
                }
                E::write_bytes(&key, &mut keys);
                E::write_bytes(&self.values[place * width..][..d], &mut values);
                let of_key = |scale: usize| self.key_scales[block * scales + scale * KEY_BLOCK + lane];
                key_scales.extend((0..scales).map(of_key));
                value_scales.extend_from_slice(&self.value_scales[place * scales..][..scales]);
            }
        }
        let (tokens, head_dim) = (self.len, d);
        (tokens > 0).then_some(SavedCache {
            kind,
            heads,
            tokens,
            head_dim,
            keys,
            values,
            key_scales,
            value_scales,
        })
    }

    fn filled(saved: &SavedCache, expected: usize) -> Result<Buffers<E>> {
        let SavedCache { heads, tokens, head_dim: d, .. } = *saved;
        let scales = scales_of::<E>(d);
        let rows = heads.checked_mul(tokens).filter(|rows| *rows > 0 && d > 0);
        let bytes = rows.and_then(|rows| rows.checked_mul(d)?.checked_mul(size_of::<E>()));
        let lengths =
            (saved.keys.len(), saved.values.len(), saved.key_scales.len(), saved.value_scales.len());
        let wanted = rows.zip(bytes).map(|(rows, bytes)| (bytes, bytes, rows * scales, rows * scales));
        if wanted != Some(lengths) {
            candle_core::bail!("cache: {heads} heads of {tokens} tokens of {d} values in {lengths:?}");
        }
        let mut buffers = Buffers::<E>::new(1, heads, d);
        buffers.reserve(tokens, expected);
        let (keys, values) = (E::read_bytes(&saved.keys), E::read_bytes(&saved.values));
        let width = buffers.value_width();
        for (number, head) in buffers.heads().iter_mut().enumerate() {
            for token in 0..tokens {
                let row = number * tokens + token;
                head.put_key(token, &keys[row * d..][..d], &saved.key_scales[row * scales..][..scales]);
                head.values[token * width..][..d].copy_from_slice(&values[row * d..][..d]);
                let value_scales = &saved.value_scales[row * scales..][..scales];
                head.value_scales[token * scales..][..scales].copy_from_slice(value_scales);
            }
        }
        buffers.len = tokens;
        Ok(buffers)
    }
}
