//! Products with quantised matrices in whole numbers, on weights that were packed once for the running processor.
//!
//! y = x W^T in blocks of 32 columns: inputs are rounded to whole numbers (activations.rs), multiplied with the codes of
//! the weights (format.rs), four products an addition, and only block sums become floats. Every kind of processor
//! (isa.rs) computes the same bits, but for additions that are fused on some.

mod activations;
mod codes;
mod format;
mod int8;
mod levels;
mod product;
#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::isa::ROWS;
pub(crate) use activations::{AHEAD, Place, TILE, each_row, tile_rows};
use activations::{Activations, Wanted};
use codes::BLOCK;
use format::{Format, group_bytes, pack_group, units, with_format};
use levels::{Levels, SCALED};

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

/// Which encoding a matrix has in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// ggml's blocks of a type.
    Blocks(BlockType),
    /// bitsandbytes' int8: a scale for each row.
    Int8,
    /// bitsandbytes' nf4 and fp4: numbers of sixteen levels, a scale for each 64 values or whole multiples of them.
    FourBits,
}

/// A matrix [rows, cols] as its file has it.
#[derive(Clone, Copy, Debug)]
pub enum Stored<'s> {
    /// Rows of whole blocks.
    Blocks(BlockType, &'s [u8]),
    /// w = code * scale / 127.
    Int8 {
        /// [rows, cols], signed.
        codes: &'s [u8],
        /// [rows].
        scales: &'s [f32],
    },
    /// w = levels[code] * scale.
    FourBits {
        /// What codes stand for.
        levels: &'s [f32; 16],
        /// [rows * cols / 2], the first of two in the upper half.
        codes: &'s [u8],
        /// Of each `block_len` values.
        scales: &'s [f32],
        /// A multiple of 64, as `cols` is.
        block_len: usize,
    },
}

impl Stored<'_> {
    fn kind(&self) -> Kind {
        match self {
            Stored::Blocks(block_type, _) => Kind::Blocks(*block_type),
            Stored::Int8 { .. } => Kind::Int8,
            Stored::FourBits { .. } => Kind::FourBits,
        }
    }

    fn levels(&self) -> Option<Levels> {
        match self {
            Stored::FourBits { levels, .. } => Some(Levels::new(**levels)),
            _ => None,
        }
    }
}

/// A quantised matrix [rows, cols], packed for products.
#[derive(Clone, Debug)]
pub struct Packed {
    kind: Kind,
    /// Where the kind has them.
    levels: Option<Arc<Levels>>,
    rows: usize,
    cols: usize,
    bytes: SharedBytes,
    precision: Precision,
}

/// What the bytes of a packed matrix mean.
#[derive(Clone, Debug)]
pub struct Layout {
    kind: Kind,
    levels: Option<Arc<Levels>>,
    rows: usize,
    cols: usize,
}

/// Values of inputs that stay in a processor's second cache beside the weights.
const CACHED_VALUES: usize = 1 << 19;

impl Packed {
    /// Whether 4-bit codes are packed of which that many share a scale.
    pub fn takes_blocks_of(block_len: usize) -> bool {
        block_len > 0 && block_len.is_multiple_of(SCALED)
    }

    /// Bytes that a matrix takes; none for kinds and shapes that are not packed.
    pub fn bytes_for(kind: Kind, rows: usize, cols: usize) -> Option<usize> {
        if kind == Kind::FourBits && !cols.is_multiple_of(SCALED) {
            return None;
        }
        with_format!(kind, F => rows.div_ceil(ROWS) * group_bytes::<F>(cols))
    }

    /// Packs a matrix of a file into `target`, on all threads. What comes back goes to [`Packed::new`] with those bytes.
    ///
    /// # Panics
    /// Where lengths do not belong together, or the kind is not packed.
    pub fn pack(stored: Stored, rows: usize, cols: usize, target: &mut [u8]) -> Layout {
        let kind = stored.kind();
        assert_eq!(Some(target.len()), Packed::bytes_for(kind, rows, cols), "bytes of the target");
        match stored {
            Stored::Blocks(block_type, bytes) => {
                let row_bytes = block_type.bytes_for(cols).expect("a row is whole blocks");
                assert_eq!(bytes.len(), rows * row_bytes, "bytes of {rows} rows");
                let packed = with_format!(kind, F => pack_groups::<F>(target, rows, cols, &|at, n_rows, group| {
                    let rows = &bytes[at * ROWS * row_bytes..][..n_rows * row_bytes];
                    pack_group::<F>(rows, n_rows, cols, group);
                }));
                assert!(packed.is_some(), "{} is not packed", block_type.name());
            }
            Stored::Int8 { codes, scales } => {
                assert_eq!((codes.len(), scales.len()), (rows * cols, rows), "codes and scales");
                pack_groups::<format::Int8>(target, rows, cols, &|at, n_rows, group| {
                    let codes = &codes[at * ROWS * cols..][..n_rows * cols];
                    int8::pack_group(codes, &scales[at * ROWS..][..n_rows], cols, group);
                });
            }
            Stored::FourBits { codes, scales, block_len, .. } => {
                assert!(Packed::takes_blocks_of(block_len), "blocks of {block_len}");
                let wanted = (rows * cols / 2, (rows * cols).div_ceil(block_len));
                assert_eq!((codes.len(), scales.len()), wanted, "codes and scales");
                pack_groups::<format::FourBits>(target, rows, cols, &|at, n_rows, group| {
                    let first = at * ROWS * cols;
                    levels::pack_group((codes, scales, block_len), first, (n_rows, cols), group);
                });
            }
        }
        Layout { kind, levels: stored.levels().map(Arc::new), rows, cols }
    }

    /// A matrix that [`Packed::pack`] packed.
    ///
    /// # Panics
    /// Where the bytes are not those of such a matrix.
    pub fn new(layout: Layout, bytes: SharedBytes, precision: Precision) -> Packed {
        let Layout { kind, levels, rows, cols } = layout;
        assert_eq!(Some(bytes.len()), Packed::bytes_for(kind, rows, cols), "bytes of a packed matrix");
        Packed { kind, levels, rows, cols, bytes, precision }
    }

    /// What it takes in memory.
    pub fn bytes_len(&self) -> usize {
        self.bytes.len()
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

    /// The rows from `first` on as floats, bit for bit as [`crate::blocks::dequantize`] and its like for the other kinds
    /// give them.
    ///
    /// # Panics
    /// Where there are not as many.
    pub fn widen_rows(&self, first: usize, target: &mut [f32]) {
        let count = target.len().checked_div(self.cols).unwrap_or(0);
        assert!(first + count <= self.rows, "rows {first} to {} of {}", first + count, self.rows);
        with_format!(self.kind, F => {
            let group = group_bytes::<F>(self.cols);
            pool::run_chunks(target, self.cols.max(1), &|at, target| {
                let row = first + at;
                let group = &self.bytes[row / ROWS * group..][..group];
                product::widen_row::<F>(group, self.levels.as_deref(), row % ROWS, target);
            });
        });
    }
}

/// Calls `pack(group, rows of it, bytes of it)` for every group, on all threads.
fn pack_groups<F: Format>(
    target: &mut [u8],
    rows: usize,
    cols: usize,
    pack: &(dyn Fn(usize, usize, &mut [u8]) + Sync),
) {
    pool::run_chunks(target, group_bytes::<F>(cols).max(1), &|at, group| {
        pack(at, ROWS.min(rows - at * ROWS), group);
    });
}

/// Several products with the same inputs, read and rounded once.
pub fn multiply_all(x: &[f32], m: usize, products: &mut [(&Packed, &mut [f32])]) {
    let Some(cols) = products.first().map(|(matrix, _)| matrix.cols) else { return };
    assert_eq!(x.len(), m * cols, "x of {m}x{cols}");
    let mut start = 0;
    while start < products.len() {
        // Matrices of one kind of format read the same rounded inputs.
        let kind = wanted(products[start].0, m);
        let len = products[start..].iter().take_while(|(matrix, _)| wanted(matrix, m) == kind).count();
        let products = &mut products[start..start + len];
        start += len;
        assert!(products.iter().all(|(matrix, y)| matrix.cols == cols && y.len() == m * matrix.rows));
        if m <= ROWS_FOR_EACH {
            static CALLS: AtomicU64 = AtomicU64::new(1);
            let call = CALLS.fetch_add(1, Ordering::Relaxed);
            run(Rounded::ByEach { x, wanted: kind, call }, kind.blocks, m, products);
        } else {
            TOGETHER.with_borrow_mut(|inputs| {
                inputs.round(x, m, kind);
                run(Rounded::Together(inputs), kind.blocks, m, products);
            });
        }
    }
}

/// Rows of inputs up to which each thread rounds them for itself: that takes less time than to take memory from the caches of
/// the threads that read it last, and to wait for the one that rounds.
const ROWS_FOR_EACH: usize = 16;

thread_local! {
    /// Rounded by all threads.
    static TOGETHER: RefCell<Activations> = RefCell::default();
    /// Rounded by this thread alone, and in which call.
    static OWN: RefCell<(u64, Activations)> = RefCell::default();
}

/// Rounded inputs.
#[derive(Clone, Copy)]
enum Rounded<'i> {
    Together(&'i Activations),
    /// To be rounded by each thread in its first task of the call.
    ByEach {
        x: &'i [f32],
        wanted: Wanted,
        call: u64,
    },
}

impl Rounded<'_> {
    /// Lends them to a task.
    fn lend(self, m: usize, work: impl FnOnce(&Activations)) {
        match self {
            Rounded::Together(inputs) => work(inputs),
            Rounded::ByEach { x, wanted, call } => OWN.with_borrow_mut(|(last, inputs)| {
                if *last != call {
                    inputs.round(x, m, wanted);
                    *last = call;
                }
                work(inputs);
            }),
        }
    }
}

/// What a matrix asks of its inputs.
fn wanted(matrix: &Packed, m: usize) -> Wanted {
    let is_wide = matrix.precision == Precision::Precise || m <= PRECISE_ROWS;
    let wanted = with_format!(matrix.kind, F => Wanted {
        cols: matrix.cols,
        blocks: units::<F>(matrix.cols) * F::UNIT,
        parts: F::PARTS,
        offset: F::OFFSET,
        is_wide,
    });
    wanted.expect("only types with a format are packed")
}

fn run(inputs: Rounded, blocks: usize, m: usize, products: &mut [(&Packed, &mut [f32])]) {
    let targets: Vec<(&Packed, Shared<f32>)> =
        products.iter_mut().map(|(matrix, y)| (*matrix, Shared::new(y))).collect();
    let n_groups = |matrix: &Packed| matrix.rows.div_ceil(ROWS);
    let all: usize = targets.iter().map(|(matrix, _)| n_groups(matrix)).sum();
    let cols = blocks * BLOCK;
    // Inputs that fit into a cache are multiplied with all weights before the next ones are.
    let tokens = (CACHED_VALUES / cols.max(1) / TILE).max(1) * TILE;
    // Parts as large as are worth a task's start, and enough of them that no thread waits long for another.
    let work = ROWS * cols * m;
    let groups_a_task = all.div_ceil(pool::threads() * 32).max((1 << 16) / work.max(1)).max(1);
    pool::run(all.div_ceil(groups_a_task), &|task| {
        let (start, end) = (task * groups_a_task, all.min((task + 1) * groups_a_task));
        inputs.lend(m, |inputs| {
            for first in (0..m).step_by(tokens) {
                let last = m.min(first + tokens);
                let mut before = 0;
                for (matrix, y) in &targets {
                    let own = n_groups(matrix);
                    let (from, to) = (start.max(before), end.min(before + own));
                    if from < to {
                        with_format!(matrix.kind, F => {
                            let bytes = group_bytes::<F>(matrix.cols);
                            let groups = &matrix.bytes[(from - before) * bytes..(to - before) * bytes];
                            let levels = matrix.levels.as_deref();
                            let first_row = (from - before) * ROWS;
                            let part = product::Part { inputs, rows: m, first, last, first_row, levels };
                            product::groups::<F>(groups, part, matrix.rows, y);
                        });
                    }
                    before += own;
                }
            }
        });
    });
}
