//! What all layers of one pass through a stack share: positions, documents, the encoder's states.

use std::sync::Arc;

use luthier_ops::Tensor;
use luthier_ops::attention::RelativeBias;

use crate::model::{Encoded, TokenBatch};
use crate::{Error, Result};

// b batch, t tokens, s keys

/// Document numbers of queries `[b * t]` and keys `[b * s]`.
pub type SegmentPair = (Arc<Vec<u32>>, Arc<Vec<u32>>);

/// The number of padding.
pub const PADDING: u32 = u32::MAX;

/// One pass through a stack.
#[derive(Clone)]
pub struct Pass {
    /// Cosines and sines of rotary positions, [b or 1, t, d/2] each.
    pub turns: Option<(Tensor, Tensor)>,
    /// The bias of relative positions.
    pub bias: Option<RelativeBias>,
    /// Whether tokens see only what stands before them.
    pub causal: bool,
    /// Cached tokens in front of the first query.
    pub query_offset: usize,
    /// Of self-attention.
    pub segments: Option<SegmentPair>,
    /// The encoder's states, [b, s, e].
    pub encoded: Option<Tensor>,
    /// Of cross-attention.
    pub cross_segments: Option<SegmentPair>,
}

/// Checks a batch and gives its tokens per row, t.
pub fn tokens_per_row(tokens: &TokenBatch, vocab_size: usize) -> Result<usize> {
    let TokenBatch { ids, rows, segments } = tokens;
    if *rows == 0 || ids.is_empty() || ids.len() % rows != 0 {
        return Err(Error::Use(format!("{} tokens do not fill {rows} rows of equal length", ids.len())));
    }
    if let Some(segments) = segments
        && segments.len() != ids.len()
    {
        return Err(Error::Use(format!("{} document numbers for {} tokens", segments.len(), ids.len())));
    }
    if let Some(id) = ids.iter().find(|id| **id as usize >= vocab_size) {
        return Err(Error::Use(format!("token id {id} is outside the vocabulary of {vocab_size}")));
    }
    Ok(ids.len() / rows)
}

/// Positions `[rows * t]` of the last t tokens of each row of `segments` (`[rows * s]`): they count from the start of
/// their document.
pub fn positions(segments: &[u32], rows: usize, t: usize) -> Vec<u32> {
    let s = segments.len() / rows;
    let mut positions = Vec::with_capacity(rows * t);
    for row in segments.chunks_exact(s) {
        let mut position = 0u32;
        for (at, segment) in row.iter().enumerate() {
            position = if at > 0 && row[at - 1] == *segment { position + 1 } else { 0 };
            if at + t >= s {
                positions.push(position);
            }
        }
    }
    positions
}

/// Who reads whom in cross-attention; none when every token reads every state of its row. Tokens without document
/// numbers are document 0.
pub fn cross_segments(queries: &TokenBatch, encoded: &Encoded) -> Result<Option<SegmentPair>> {
    let (b, s, _) = encoded.states.dims3()?;
    if b != queries.rows {
        return Err(Error::Use(format!("{} decoder rows for {b} encoder rows", queries.rows)));
    }
    if queries.segments.is_none() && encoded.segments.is_none() {
        return Ok(None);
    }
    let or_zeros = |segments: &Option<Arc<Vec<u32>>>, len: usize| match segments {
        Some(segments) => Arc::clone(segments),
        None => Arc::new(vec![0; len]),
    };
    let keys = or_zeros(&encoded.segments, b * s);
    if keys.len() != b * s {
        return Err(Error::Use(format!("{} document numbers for {} encoder tokens", keys.len(), b * s)));
    }
    Ok(Some((or_zeros(&queries.segments, queries.ids.len()), keys)))
}
