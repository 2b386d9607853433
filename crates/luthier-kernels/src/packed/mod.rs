//! Products with quantised matrices in whole numbers, on weights that were packed once for the running processor.
//!
//! y = x W^T in blocks of 32 columns: inputs are rounded to whole numbers (activations.rs), multiplied with the codes of
//! the weights (format.rs), four products an addition, and only block sums become floats. Every kind of processor
//! (isa.rs) computes the same bits, but for additions that are fused on some.

mod activations;
mod codes;
mod format;
mod product;
#[cfg(test)]
mod tests;

use std::cell::RefCell;

use crate::isa::ROWS;
use activations::{Activations, Wanted};
pub(crate) use activations::{TILE, tile_rows};
use codes::BLOCK;
use format::{Format, group_bytes, pack_group, units, with_format};

use crate::blocks::BlockType;
use crate::bytes::SharedBytes;
use crate::pool::{self, Shared};

/// Rows of inputs up to which they keep 16 bits also where many rows need not.
pub const PRECISE_ROWS: usize = 64;

/// To how many bits the inputs of products are rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// 16: an error below that of f32 sums in another order. To measure with.
    Precise,
    /// 16 for up to [`PRECISE_ROWS`] rows, where reading the weights takes longer than multiplying them; 8 for more, as
    /// llama.cpp does always. Many rows times matrices in f16 or bf16 are computed with 14 bits of both. To generate with.
    Fast,
}

/// A quantised matrix [rows, cols], packed for products.
#[derive(Clone, Debug)]
pub struct Packed {
    block_type: BlockType,
    rows: usize,
    cols: usize,
    bytes: SharedBytes,
    precision: Precision,
}

thread_local! {
    static INPUTS: RefCell<Activations> = RefCell::default();
}

/// Values of inputs that stay in a processor's second cache beside the weights.
const CACHED_VALUES: usize = 1 << 19;

impl Packed {
    /// Bytes that a matrix takes; none for types that are not packed.
    pub fn bytes_for(block_type: BlockType, rows: usize, cols: usize) -> Option<usize> {
        with_format!(block_type, F => rows.div_ceil(ROWS) * group_bytes::<F>(cols))
    }

    /// Packs a matrix of a file into `target`, on all threads.
    ///
    /// # Panics
    /// Where lengths do not belong together, or the type is not packed.
    pub fn pack(block_type: BlockType, source: &[u8], rows: usize, cols: usize, target: &mut [u8]) {
        let row_bytes = block_type.bytes_for(cols).expect("a row is whole blocks");
        assert_eq!(source.len(), rows * row_bytes, "bytes of {rows} rows");
        assert_eq!(Some(target.len()), Packed::bytes_for(block_type, rows, cols), "bytes of the target");
        let packed = with_format!(block_type, F => {
            let group = group_bytes::<F>(cols);
            pool::run_chunks(target, group.max(1), &|at, target| {
                let n_rows = ROWS.min(rows - at * ROWS);
                let source = &source[at * ROWS * row_bytes..][..n_rows * row_bytes];
                pack_group::<F>(source, n_rows, cols, target);
            });
        });
        assert!(packed.is_some(), "{} is not packed", block_type.name());
    }

    /// A matrix that [`Packed::pack`] packed.
    ///
    /// # Panics
    /// Where the bytes are not those of such a matrix.
    pub fn new(
        block_type: BlockType,
        (rows, cols): (usize, usize),
        bytes: SharedBytes,
        precision: Precision,
    ) -> Packed {
        assert_eq!(Some(bytes.len()), Packed::bytes_for(block_type, rows, cols), "bytes of a packed matrix");
        Packed { block_type, rows, cols, bytes, precision }
    }

    /// The type that it had in its file.
    pub fn block_type(&self) -> BlockType {
        self.block_type
    }

    /// Outputs of the linear map (or entries of the embedding).
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Inputs.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// y = x W^T; x: [m, cols], y: [m, rows], overwritten. Inputs are rounded.
    pub fn multiply(&self, x: &[f32], m: usize, y: &mut [f32]) {
        multiply_all(x, m, &mut [(self, y)]);
    }

    /// The rows from `first` on as floats, bit for bit as [`crate::blocks::dequantize`] gives them.
    ///
    /// # Panics
    /// Where there are not as many.
    pub fn widen_rows(&self, first: usize, target: &mut [f32]) {
        let count = target.len().checked_div(self.cols).unwrap_or(0);
        assert!(first + count <= self.rows, "rows {first} to {} of {}", first + count, self.rows);
        with_format!(self.block_type, F => {
            let group = group_bytes::<F>(self.cols);
            pool::run_chunks(target, self.cols.max(1), &|at, target| {
                let row = first + at;
                product::widen_row::<F>(&self.bytes[row / ROWS * group..][..group], row % ROWS, target);
            });
        });
    }
}

/// Several products with the same inputs, read and rounded once.
pub fn multiply_all(x: &[f32], m: usize, products: &mut [(&Packed, &mut [f32])]) {
    let Some(cols) = products.first().map(|(matrix, _)| matrix.cols) else { return };
    assert_eq!(x.len(), m * cols, "x of {m}x{cols}");
    INPUTS.with_borrow_mut(|inputs| {
        let mut start = 0;
        while start < products.len() {
            // Matrices of one kind of format read the same rounded inputs.
            let kind = wanted(products[start].0, m);
            let len = products[start..].iter().take_while(|(matrix, _)| wanted(matrix, m) == kind).count();
            let products = &mut products[start..start + len];
            start += len;
            assert!(products.iter().all(|(matrix, y)| matrix.cols == cols && y.len() == m * matrix.rows));
            inputs.round(x, m, kind);
            run(inputs, m, products);
        }
    });
}

/// What a matrix asks of its inputs.
fn wanted(matrix: &Packed, m: usize) -> Wanted {
    let is_wide = matrix.precision == Precision::Precise || m <= PRECISE_ROWS;
    let wanted = with_format!(matrix.block_type, F => Wanted {
        cols: matrix.cols,
        blocks: units::<F>(matrix.cols) * F::UNIT,
        parts: F::PARTS,
        offset: F::OFFSET,
        is_wide,
    });
    wanted.expect("only types with a format are packed")
}

fn run(inputs: &Activations, m: usize, products: &mut [(&Packed, &mut [f32])]) {
    let targets: Vec<(&Packed, Shared<f32>)> =
        products.iter_mut().map(|(matrix, y)| (*matrix, Shared::new(y))).collect();
    let n_groups = |matrix: &Packed| matrix.rows.div_ceil(ROWS);
    let all: usize = targets.iter().map(|(matrix, _)| n_groups(matrix)).sum();
    let cols = inputs.blocks * BLOCK;
    // Inputs that fit into a cache are multiplied with all weights before the next ones are.
    let tokens = (CACHED_VALUES / cols.max(1) / TILE).max(1) * TILE;
    // Parts as large as are worth a task's start, and enough of them that no thread waits long for another.
    let work = ROWS * cols * m;
    let groups_a_task = all.div_ceil(pool::threads() * 32).max((1 << 16) / work.max(1)).max(1);
    pool::run(all.div_ceil(groups_a_task), &|task| {
        let (start, end) = (task * groups_a_task, all.min((task + 1) * groups_a_task));
        for first in (0..m).step_by(tokens) {
            let last = m.min(first + tokens);
            let mut before = 0;
            for (matrix, y) in &targets {
                let own = n_groups(matrix);
                let (from, to) = (start.max(before), end.min(before + own));
                if from < to {
                    with_format!(matrix.block_type, F => {
                        let bytes = group_bytes::<F>(matrix.cols);
                        let groups = &matrix.bytes[(from - before) * bytes..(to - before) * bytes];
                        let part = product::Part { inputs, rows: m, first, last, first_row: (from - before) * ROWS };
                        product::groups::<F>(groups, part, matrix.rows, y);
                    });
                }
                before += own;
            }
        }
    });
}
