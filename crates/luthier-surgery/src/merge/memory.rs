//! What a merge holds in memory.

use luthier_checkpoint::TensorSource;

use super::pairing::Piece;
use super::prepared::Prepared;

impl Prepared {
    /// What `run` holds in memory at most for one tensor.
    pub(super) fn piece_bytes(&self, piece: &Piece) -> usize {
        let values: usize = piece.info.shape.iter().product();
        let n_inputs = piece.inputs.len();
        // An adapter's factors, and a changed part in f32 and in its type.
        let derived =
            piece.inputs.iter().filter_map(|(input, _)| self.merged.inputs[*input].derived.as_ref());
        let part_len = self.merged.part_len(piece);
        let fused: usize = derived.map(|derived| derived.size_bytes + 16 * part_len).sum();
        let put_together = fused
            + piece.rows.as_ref().map_or(0, |rows| {
                let in_files = piece
                    .inputs
                    .iter()
                    .filter(|(input, _)| self.merged.inputs[*input].checkpoint.place.is_file());
                rows.size_bytes() + 4 * values * in_files.count()
            });
        if let Some(part_bytes) = self.merged.part_bytes(&piece.info.name) {
            // The part that is made, those that wait for the writer, the inputs' parts, and what a cut keeps of a tensor.
            let cut = if self.merged.is_cut(piece) { values / 2 * n_inputs } else { 0 };
            let width = piece.info.dtype.block().1.max(if piece.rows.is_some() { 4 } else { 1 });
            let part_bytes = part_bytes / piece.info.dtype.block().1 * width;
            return part_bytes * (4 + n_inputs) + cut + put_together;
        }
        let working = 4 * values * (2 * n_inputs + 4);
        let stored = piece.info.dtype.size_bytes(&piece.info.shape).unwrap_or(0);
        working + stored * (3 + n_inputs) + put_together
    }
}
