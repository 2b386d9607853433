//! T5's position bias: a learnt number for each head and each bucket of distances from query to key.
//!
//! arXiv:1910.10683, section 2.1. Near distances have a bucket each, farther ones share buckets that widen with the
//! logarithm up to a largest distance, beyond which all share the last.

use std::sync::{Arc, OnceLock};

use candle_core::{Device, Result, Tensor};
use luthier_kernels::matmul::Write;
use luthier_kernels::rows;

use crate::Weight;
use crate::embedding::embedding;

// h heads, t queries, s keys

/// How distances are put into buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buckets {
    /// Of all heads alike; even where `bidirectional`.
    pub count: usize,
    /// From here on all distances share a bucket. Above half of the buckets of one direction.
    pub max_distance: usize,
    /// Half of the buckets are for keys behind the query; otherwise all such keys share the first.
    pub bidirectional: bool,
}

impl Buckets {
    /// The bucket of a key `distance` positions behind the query (before it where negative).
    pub fn of(&self, distance: isize) -> usize {
        let (count, first, far) = match (self.bidirectional, distance > 0) {
            (true, true) => (self.count / 2, self.count / 2, distance.unsigned_abs()),
            (true, false) => (self.count / 2, 0, distance.unsigned_abs()),
            (false, _) => (self.count, 0, distance.min(0).unsigned_abs()),
        };
        let exact = count / 2;
        if far < exact {
            return first + far;
        }
        // In f32, as the reference rounds.
        let share = (far as f32 / exact as f32).ln() / (self.max_distance as f64 / exact as f64).ln() as f32;
        first + (exact + (share * (count - exact) as f32) as usize).min(count - 1)
    }

    /// Whether the numbers make buckets at all.
    pub fn is_sound(&self) -> bool {
        let of_direction = if self.bidirectional { self.count / 2 } else { self.count };
        of_direction >= 2 && self.max_distance > of_direction / 2
    }
}

/// The bias of one stack's self-attention, the same in all of its layers.
#[derive(Clone, Debug)]
pub struct RelativeBias {
    /// `[buckets, h]`.
    pub weight: Weight,
    /// Which distances share a row of it.
    pub buckets: Buckets,
    /// As [`RelativeBias::by_distance`] gives it.
    by_distance: Arc<OnceLock<Vec<f32>>>,
}

impl RelativeBias {
    /// The bias of these numbers. Its clones look them up by distance only once, so that each pass through a stack, between
    /// which they may be trained, has one made anew.
    pub fn new(weight: Weight, buckets: Buckets) -> RelativeBias {
        RelativeBias { weight, buckets, by_distance: Arc::default() }
    }

    /// `[h, 2 max_distance + 1]`: each head's bias by distance, the farthest key before the query first.
    pub(crate) fn by_distance(&self) -> Result<&[f32]> {
        if let Some(values) = self.by_distance.get() {
            return Ok(values);
        }
        let values = self.look_up()?;
        Ok(self.by_distance.get_or_init(|| values))
    }

    fn look_up(&self) -> Result<Vec<f32>> {
        let heads = self.weight.shape()[1];
        let table: Vec<f32> = self.weight.to_tensor(&Device::Cpu)?.flatten_all()?.to_vec1()?;
        let buckets: Vec<usize> = self.distances().map(|distance| self.buckets.of(distance)).collect();
        let of_head = |head: usize| buckets.iter().map(move |bucket| (bucket, head));
        Ok((0..heads).flat_map(of_head).map(|(bucket, head)| table[bucket * heads + head]).collect())
    }

    fn distances(&self) -> impl Iterator<Item = isize> {
        let reach = self.buckets.max_distance as isize;
        -reach..=reach
    }

    /// Adds gradients by distance, `[h, 2 max_distance + 1]`, to the weight's.
    pub(crate) fn accumulate(&self, by_distance: &[f32]) {
        let heads = self.weight.shape()[1];
        let width = 2 * self.buckets.max_distance + 1;
        self.weight.accumulate(|grad, write| {
            if write == Write::Overwrite {
                rows::fill(grad, 0.0);
            }
            for head in 0..heads {
                for (distance, value) in self.distances().zip(&by_distance[head * width..][..width]) {
                    grad[self.buckets.of(distance) * heads + head] += value;
                }
            }
        });
    }

    /// `[1, h, t, s]`, the first query at position `query_offset` among the keys.
    pub(crate) fn reference(
        &self,
        t: usize,
        s: usize,
        query_offset: usize,
        device: &Device,
    ) -> Result<Tensor> {
        let bucket =
            |query: usize, key: usize| self.buckets.of(key as isize - (query + query_offset) as isize);
        let ids: Vec<u32> =
            (0..t).flat_map(|query| (0..s).map(move |key| bucket(query, key) as u32)).collect();
        let ids = Tensor::from_vec(ids, (t, s), device)?;
        embedding(&ids, &self.weight, 1.0)?.permute((2, 0, 1))?.contiguous()?.unsqueeze(0)
    }
}
