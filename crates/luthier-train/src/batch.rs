//! Rows of token ids with their targets, stacked into what one pass of a model reads.

use std::sync::Arc;

use luthier_arch::model::TokenBatch;

// b rows, t tokens

/// Document number of padding, as the model's token batches have it.
const PADDING: u32 = u32::MAX;

/// Token ids and their document numbers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tokens {
    /// The ids.
    pub ids: Vec<u32>,
    /// The document of each.
    pub segments: Vec<u32>,
}

impl Tokens {
    /// Appends one token of a document.
    pub fn push(&mut self, id: u32, segment: u32) {
        self.ids.push(id);
        self.segments.push(segment);
    }
}

/// One sequence as an objective sees it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row {
    /// What the encoder reads; empty for a decoder-only model.
    pub encoder: Tokens,
    /// What the decoder reads.
    pub decoder: Tokens,
    /// What each decoder position should say.
    pub targets: Vec<u32>,
    /// Whether it counts: 1, or 0 where the position is not scored.
    pub weights: Vec<f32>,
    /// What a decoder-only teacher of an encoder-decoder student reads; empty for a decoder-only student.
    pub teacher: Tokens,
    /// For each scored position in order: the position in `teacher` that predicts the same token, where there is one.
    pub teacher_positions: Vec<Option<usize>>,
}

impl Row {
    /// Appends a decoder position.
    pub fn push(&mut self, input: u32, segment: u32, target: u32, scored: bool) {
        self.decoder.push(input, segment);
        self.targets.push(target);
        self.weights.push(f32::from(u8::from(scored)));
    }
}

/// What one pass reads, and what it should say.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The encoder's input, for an encoder-decoder.
    pub encoder: Option<TokenBatch>,
    /// The decoder's input, b rows of t.
    pub decoder: TokenBatch,
    /// `[b * t]`.
    pub targets: Vec<u32>,
    /// `[b * t]`, 0 where not scored.
    pub weights: Vec<f32>,
    /// The view of a decoder-only teacher of an encoder-decoder student.
    pub teacher: Option<TeacherView>,
}

/// The same targets as a decoder-only model predicts them.
#[derive(Clone, Debug)]
pub struct TeacherView {
    /// Its input.
    pub tokens: TokenBatch,
    /// For each scored position of the batch in order: the row of the teacher's flattened states that predicts it, where
    /// there is one.
    pub positions: Vec<Option<u32>>,
}

impl Batch {
    /// Stacks rows, padded to the longest.
    pub fn stack(rows: &[Row]) -> Batch {
        let has_encoder = rows.iter().any(|row| !row.encoder.ids.is_empty());
        let decoder_rows: Vec<&Tokens> = rows.iter().map(|row| &row.decoder).collect();
        let encoder_rows: Vec<&Tokens> = rows.iter().map(|row| &row.encoder).collect();
        // Encoder and decoder either both number their documents or neither does.
        let packed = !plain(&decoder_rows) || (has_encoder && !plain(&encoder_rows));
        let decoder = stack_tokens(&decoder_rows, packed);
        let width = decoder.ids.len() / rows.len().max(1);
        let mut targets = Vec::with_capacity(decoder.ids.len());
        let mut weights = Vec::with_capacity(decoder.ids.len());
        for row in rows {
            let padding = width - row.targets.len();
            targets.extend(row.targets.iter().copied().chain(std::iter::repeat_n(0, padding)));
            weights.extend(row.weights.iter().copied().chain(std::iter::repeat_n(0.0, padding)));
        }
        let encoder = has_encoder.then(|| stack_tokens(&encoder_rows, packed));
        Batch { encoder, decoder, targets, weights, teacher: teacher_view(rows) }
    }

    /// Number of positions that are scored.
    pub fn target_tokens(&self) -> u64 {
        self.weights.iter().filter(|&&weight| weight > 0.0).count() as u64
    }
}

/// Whether every row is one document of full width, so that no document numbers are needed.
fn plain(rows: &[&Tokens]) -> bool {
    let width = rows.first().map_or(0, |row| row.ids.len());
    rows.iter().all(|row| row.ids.len() == width && row.segments.windows(2).all(|pair| pair[0] == pair[1]))
}

fn stack_tokens(rows: &[&Tokens], packed: bool) -> TokenBatch {
    let width = rows.iter().map(|row| row.ids.len()).max().unwrap_or(0);
    let mut ids = Vec::with_capacity(rows.len() * width);
    let mut segments = Vec::with_capacity(if packed { rows.len() * width } else { 0 });
    for row in rows {
        let padding = width - row.ids.len();
        ids.extend(row.ids.iter().copied().chain(std::iter::repeat_n(0, padding)));
        if packed {
            segments.extend(row.segments.iter().copied().chain(std::iter::repeat_n(PADDING, padding)));
        }
    }
    TokenBatch { ids, rows: rows.len(), segments: packed.then(|| Arc::new(segments)) }
}

fn teacher_view(rows: &[Row]) -> Option<TeacherView> {
    let tokens: Vec<&Tokens> = rows.iter().map(|row| &row.teacher).collect();
    if tokens.iter().all(|row| row.ids.is_empty()) {
        return None;
    }
    let stacked = stack_tokens(&tokens, !plain(&tokens));
    let width = stacked.ids.len() / rows.len();
    let mut positions = Vec::new();
    for (row_idx, row) in rows.iter().enumerate() {
        let in_batch = |position: &Option<usize>| position.map(|at| (row_idx * width + at) as u32);
        positions.extend(row.teacher_positions.iter().map(in_batch));
    }
    Some(TeacherView { tokens: stacked, positions })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(ids: &[u32], segments: &[u32]) -> Row {
        let mut row = Row::default();
        for (&id, &segment) in ids.iter().zip(segments) {
            row.push(id, segment, id + 1, true);
        }
        row
    }

    #[test]
    fn equal_rows_of_one_document_need_no_numbers() {
        let batch = Batch::stack(&[row(&[1, 2], &[0, 0]), row(&[3, 4], &[0, 0])]);
        assert_eq!(batch.decoder.ids, [1, 2, 3, 4]);
        assert!(batch.decoder.segments.is_none() && batch.encoder.is_none());
        assert_eq!((batch.targets.as_slice(), batch.target_tokens()), ([2, 3, 4, 5].as_slice(), 4));
    }

    #[test]
    fn shorter_rows_are_padded_and_unscored() {
        let batch = Batch::stack(&[row(&[1, 2, 9], &[0, 1, 1]), row(&[3], &[0])]);
        assert_eq!(batch.decoder.ids, [1, 2, 9, 3, 0, 0]);
        assert_eq!(*batch.decoder.segments.unwrap(), [0, 1, 1, 0, PADDING, PADDING]);
        assert_eq!(batch.weights, [1.0, 1.0, 1.0, 1.0, 0.0, 0.0]);
    }

    #[test]
    fn a_packed_encoder_numbers_the_decoder_too() {
        let mut packed = row(&[7, 8], &[1, 1]);
        packed.encoder.push(5, 0);
        packed.encoder.push(6, 1);
        let batch = Batch::stack(&[packed]);
        assert_eq!(*batch.encoder.unwrap().segments.unwrap(), [0, 1]);
        assert_eq!(*batch.decoder.segments.unwrap(), [1, 1]);
    }
}
