//! What a merge holds in memory.

use luthier_checkpoint::SideFile;
use luthier_checkpoint::folder::TOKENIZER_FILES;
use luthier_kernels::pool;

use super::pairing::Piece;
use super::prepared::Prepared;
use crate::Input;

/// Bytes for each byte of tokenizer files while a tokenizer is read, the freed ones that the allocator keeps included.
/// Measured on SmolLM2's (tokenizer.json of 3.5 MB, 49,152 tokens): 70 to 75 MB.
const READ_FACTOR: usize = 24;
/// The same for a tokenizer that is kept until the rows are known, and for its table of rows.
const KEPT_FACTOR: usize = 4;

impl Prepared {
    /// What `run` holds in memory of files beside the weights: those of the inputs and of the result, and tokenizers that are
    /// read to align or to compare them and to check the result.
    pub(super) fn files_bytes(&self, inputs: &[Input]) -> usize {
        let all = |files: &[SideFile]| files.iter().map(|file| file.bytes.len()).sum::<usize>();
        let tokenizer = |files: &[SideFile]| {
            let files = files.iter().filter(|file| TOKENIZER_FILES.contains(&file.name.as_str()));
            files.map(|file| file.bytes.len()).sum::<usize>()
        };
        let of_inputs = inputs.iter().map(|input| &input.checkpoint.side_files[..]);
        let largest = of_inputs.clone().map(tokenizer).max().unwrap_or(0).max(tokenizer(&self.side_files));
        // The result's are written, and read again to be checked.
        of_inputs.clone().map(all).sum::<usize>()
            + 2 * all(&self.side_files)
            + KEPT_FACTOR * of_inputs.map(tokenizer).sum::<usize>()
            + READ_FACTOR * largest
    }

    /// What `run` holds in memory at most for one tensor.
    pub(super) fn piece_bytes(&self, piece: &Piece) -> usize {
        let values: usize = piece.info.shape.iter().product();
        let n_inputs = piece.inputs.len();
        // An adapter's factors, and a changed part in f32 and in its type.
        let derived =
            piece.inputs.iter().filter_map(|(input, _)| self.merged.inputs[*input].derived.as_ref());
        let part_len = self.merged.part_len(piece).min(values);
        let fused: usize = derived.map(|derived| derived.size_bytes + 16 * part_len).sum();
        let put_together = fused
            + piece.rows.as_ref().map_or(0, |rows| {
                let in_files = piece
                    .inputs
                    .iter()
                    .filter(|(input, _)| self.merged.inputs[*input].checkpoint.place.is_file());
                rows.size_bytes() + 4 * values * in_files.count()
            });
        if self.merged.is_copy(piece) {
            // One waits for the writer while the next is made.
            return piece.info.dtype.size_bytes(&piece.info.shape).unwrap_or(0) * (3 + n_inputs)
                + put_together;
        }
        // The part that is made, those that wait for the writer, and the inputs' parts.
        let width = piece.info.dtype.block().1.max(if piece.rows.is_some() { 4 } else { 1 });
        let parts = part_len * width * (4 + n_inputs);
        // What a search for the largest values keeps of a tensor.
        let cut = if piece.kept { 0 } else { values / 2 * n_inputs * self.merged.method.searches };
        // What each task holds of a piece: the inputs' values, their differences, which are kept, sums.
        let piece_len = self.merged.piece_len(piece).min(values);
        let tasks = pool::threads().min(part_len.div_ceil(piece_len.max(1)));
        parts + cut + tasks * 4 * piece_len * (4 * n_inputs + 6) + put_together
    }
}
