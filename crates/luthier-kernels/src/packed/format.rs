//! How the rows of a packed matrix lie in memory.
//!
//! Sixteen rows make a group, read from its start to its end and never again: units of blocks of 32 columns (two, or the
//! eight of ggml's blocks of 256), in each first the codes of all blocks, then what they are multiplied with, row beside
//! row. Codes of a block lie in planes of 64 bytes, so that lane `r` of a register of 16 lanes holds four consecutive columns
//! of row `r`. There are eight such steps in a block.
//!
//! | bits of a code | planes |
//! |---|---|
//! | 8 | one a step |
//! | 4, 5, 6 | four: in the low half of each byte step 2 j, in the high half step 2 j + 1 |
//! | 2, 3, 6 | then two: in plane p step 4 p + c at bit 2 c; of 6 bits the two highest, otherwise the two lowest |
//! | 3, 5 | then one: step s at bit s, the highest |

use super::codes::{BLOCK, Taken, take};
use crate::blocks::BlockType;
use crate::isa::{Isa, ROWS, on_processor};

/// Steps of four columns in a block.
pub(super) const STEPS: usize = BLOCK / 4;
/// Bytes of a plane.
const PLANE: usize = 4 * ROWS;
/// Bytes of an f16 for each row.
const HALVES: usize = 2 * ROWS;
/// Bytes of an f32 for each row.
pub(super) const FLOATS: usize = 4 * ROWS;

/// What codes are multiplied with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scales {
    /// An f16 for each block.
    Block,
    /// A byte for each block or half of one, with its sign or without, times an f16 for each unit.
    Small {
        /// Whether the byte has a sign.
        signed: bool,
    },
    /// An f16 for each unit.
    Unit,
    /// An f32 for each unit; codes are numbers of levels.
    Levels,
    /// An f32 for each row, behind its units.
    Row,
}

/// One kind of packed matrix.
pub(super) trait Format: Copy + Send + Sync + 'static {
    /// ggml's type whose blocks are taken apart for it; none where a matrix of bitsandbytes is.
    const TYPE: Option<BlockType>;
    /// Of a code.
    const BITS: usize;
    /// Taken from every code.
    const OFFSET: i32;
    /// Parts of a block that have scales of their own: 1 or 2.
    const PARTS: usize;
    const SCALES: Scales;
    /// Whether values have a minimum: -1 where it is taken away, 1 where it is added, 0 without.
    const MINIMUM: i32;

    /// Blocks of a unit.
    const UNIT: usize = match Self::SCALES {
        Scales::Block | Scales::Levels | Scales::Row => 2,
        Scales::Small { .. } | Scales::Unit => 8,
    };
    /// Bytes of a block's codes.
    const CODE_BYTES: usize = Self::BITS * PLANE;
    const SCALES_AT: usize = Self::UNIT * Self::CODE_BYTES;
    /// Bytes of all scales of a unit, or of all its minima.
    const SCALE_BYTES: usize = match Self::SCALES {
        Scales::Block => Self::UNIT * HALVES,
        Scales::Small { .. } => Self::UNIT * Self::PARTS * ROWS + HALVES,
        Scales::Unit => HALVES,
        Scales::Levels => FLOATS,
        Scales::Row => 0,
    };
    /// Bytes behind the units of a group.
    const TAIL_BYTES: usize = match Self::SCALES {
        Scales::Row => FLOATS,
        _ => 0,
    };
    const MINIMA_AT: usize = Self::SCALES_AT + Self::SCALE_BYTES;
    /// Of 16 rows, a whole number of cache lines.
    const UNIT_BYTES: usize = (match Self::MINIMUM {
        0 => Self::MINIMA_AT,
        _ => Self::MINIMA_AT + Self::SCALE_BYTES,
    })
    .next_multiple_of(PLANE);
    /// Whether products need all eight bits without sign.
    const WIDE_CODES: bool = Self::BITS == 8 || Self::HAS_LEVELS;
    /// Whether codes are numbers of levels.
    const HAS_LEVELS: bool = matches!(Self::SCALES, Scales::Levels);
}

macro_rules! format {
    ($name:ident, $type:expr, $bits:literal, $offset:literal, $parts:literal, $scales:expr, $minimum:literal) => {
        #[derive(Clone, Copy)]
        pub(super) struct $name;
        impl Format for $name {
            const TYPE: Option<BlockType> = $type;
            const BITS: usize = $bits;
            const OFFSET: i32 = $offset;
            const PARTS: usize = $parts;
            const SCALES: Scales = $scales;
            const MINIMUM: i32 = $minimum;
        }
    };
}
format!(Q4_0, Some(BlockType::Q4_0), 4, 8, 1, Scales::Block, 0);
format!(Q5_0, Some(BlockType::Q5_0), 5, 16, 1, Scales::Block, 0);
format!(Q8_0, Some(BlockType::Q8_0), 8, 128, 1, Scales::Block, 0);
format!(Q4_1, Some(BlockType::Q4_1), 4, 0, 1, Scales::Block, 1);
format!(Q5_1, Some(BlockType::Q5_1), 5, 0, 1, Scales::Block, 1);
format!(Q2K, Some(BlockType::Q2K), 2, 0, 2, Scales::Small { signed: false }, -1);
format!(Q3K, Some(BlockType::Q3K), 3, 4, 2, Scales::Small { signed: true }, 0);
format!(Q4K, Some(BlockType::Q4K), 4, 0, 1, Scales::Small { signed: false }, -1);
format!(Q5K, Some(BlockType::Q5K), 5, 0, 1, Scales::Small { signed: false }, -1);
format!(Q6K, Some(BlockType::Q6K), 6, 32, 2, Scales::Small { signed: true }, 0);
format!(TQ1_0, Some(BlockType::TQ1_0), 2, 1, 1, Scales::Unit, 0);
format!(TQ2_0, Some(BlockType::TQ2_0), 2, 1, 1, Scales::Unit, 0);
format!(Int8, None, 8, 128, 1, Scales::Row, 0);
format!(FourBits, None, 4, 128, 1, Scales::Levels, 0);

/// Runs generic code for the format of a kind of matrix; none for those that are not packed.
macro_rules! with_format {
    ($kind:expr, $format:ident => $work:expr) => {{
        use crate::blocks::BlockType::*;
        use crate::packed::Kind;
        match $kind {
            Kind::Blocks(Q4_0) => {
                type $format = crate::packed::format::Q4_0;
                Some($work)
            }
            Kind::Blocks(Q4_1) => {
                type $format = crate::packed::format::Q4_1;
                Some($work)
            }
            Kind::Blocks(Q5_0) => {
                type $format = crate::packed::format::Q5_0;
                Some($work)
            }
            Kind::Blocks(Q5_1) => {
                type $format = crate::packed::format::Q5_1;
                Some($work)
            }
            Kind::Blocks(Q8_0) => {
                type $format = crate::packed::format::Q8_0;
                Some($work)
            }
            Kind::Blocks(Q2K) => {
                type $format = crate::packed::format::Q2K;
                Some($work)
            }
            Kind::Blocks(Q3K) => {
                type $format = crate::packed::format::Q3K;
                Some($work)
            }
            Kind::Blocks(Q4K) => {
                type $format = crate::packed::format::Q4K;
                Some($work)
            }
            Kind::Blocks(Q5K) => {
                type $format = crate::packed::format::Q5K;
                Some($work)
            }
            Kind::Blocks(Q6K) => {
                type $format = crate::packed::format::Q6K;
                Some($work)
            }
            Kind::Blocks(TQ1_0) => {
                type $format = crate::packed::format::TQ1_0;
                Some($work)
            }
            Kind::Blocks(TQ2_0) => {
                type $format = crate::packed::format::TQ2_0;
                Some($work)
            }
            Kind::Int8 => {
                type $format = crate::packed::format::Int8;
                Some($work)
            }
            Kind::FourBits => {
                type $format = crate::packed::format::FourBits;
                Some($work)
            }
            Kind::Blocks(F32 | F16 | BF16) => None,
        }
    }};
}
pub(super) use with_format;

/// Units of a row of `cols` columns.
pub(super) fn units<F: Format>(cols: usize) -> usize {
    cols.div_ceil(BLOCK * F::UNIT)
}

/// Bytes of a group of 16 rows.
pub(super) fn group_bytes<F: Format>(cols: usize) -> usize {
    units::<F>(cols) * F::UNIT_BYTES + F::TAIL_BYTES
}

on_processor! {
    /// Packs up to 16 rows of a file into a group; rows and columns that are missing become zeros.
    pub(super) fn pack_group<F: Format>(rows: &[u8], n_rows: usize, cols: usize, group: &mut [u8]) = pack_group_on
}

/// # Safety
/// As [`Isa`], of which it only wants the compiler's vector code.
#[inline(always)]
unsafe fn pack_group_on<I: Isa, F: Format>(rows: &[u8], n_rows: usize, cols: usize, group: &mut [u8]) {
    let block_type = F::TYPE.expect("a format of ggml's blocks");
    let (block_len, block_bytes) = (block_type.block_len(), block_type.block_bytes());
    let row_bytes = cols / block_len * block_bytes;
    let mut taken = Taken::new();
    for (unit_at, unit) in group.chunks_exact_mut(F::UNIT_BYTES).enumerate() {
        unit.fill(0);
        // Of a unit of two blocks the second may be missing.
        let per_unit = BLOCK * F::UNIT / block_len;
        for part in 0..per_unit {
            let number = unit_at * per_unit + part;
            if (number + 1) * block_len > cols {
                continue;
            }
            for row in 0..n_rows {
                let block = &rows[row * row_bytes + number * block_bytes..][..block_bytes];
                take(block_type, block, &mut taken);
                put::<F>(unit, part * block_len / BLOCK, block_len / BLOCK, row, &taken);
            }
        }
    }
}

/// Puts what a file's block holds into lane `row`, from block `first` of the unit on.
#[inline(always)]
fn put<F: Format>(unit: &mut [u8], first: usize, n_blocks: usize, row: usize, taken: &Taken) {
    for block in 0..n_blocks {
        let codes = &taken.codes[block * BLOCK..][..BLOCK];
        put_codes::<F>(&mut unit[(first + block) * F::CODE_BYTES..][..F::CODE_BYTES], row, codes);
    }
    let halves = |unit: &mut [u8], at: usize, half: [u8; 2]| {
        unit[at + 2 * row..][..2].copy_from_slice(&half);
    };
    for (start, half, small) in
        [(F::SCALES_AT, taken.scale, &taken.small_scales), (F::MINIMA_AT, taken.minimum, &taken.small_minima)]
    {
        if start == F::MINIMA_AT && F::MINIMUM == 0 {
            continue;
        }
        match F::SCALES {
            Scales::Block => halves(unit, start + first * HALVES, half),
            Scales::Unit => halves(unit, start, half),
            Scales::Small { .. } => {
                let n_small = F::UNIT * F::PARTS;
                small[..n_small]
                    .iter()
                    .enumerate()
                    .for_each(|(at, small)| unit[start + at * ROWS + row] = *small);
                halves(unit, start + n_small * ROWS, half);
            }
            Scales::Levels | Scales::Row => unreachable!("ggml's blocks have scales of their own"),
        }
    }
}

/// Puts the codes of one block of 32 columns into lane `row` of its planes, which were zero.
#[inline(always)]
pub(super) fn put_codes<F: Format>(planes: &mut [u8], row: usize, codes: &[u8]) {
    let lane = row * 4;
    let mut at = 0;
    if F::BITS == 8 {
        for step in 0..STEPS {
            planes[step * PLANE + lane..][..4].copy_from_slice(&codes[step * 4..][..4]);
        }
        return;
    }
    if F::BITS >= 4 {
        for plane in 0..STEPS / 2 {
            for i in 0..4 {
                planes[at + lane + i] = codes[plane * 8 + i] & 15 | codes[plane * 8 + 4 + i] << 4;
            }
            at += PLANE;
        }
    }
    if matches!(F::BITS, 2 | 3 | 6) {
        let down = if F::BITS == 6 { 4 } else { 0 };
        for plane in 0..2 {
            for i in 0..4 {
                planes[at + lane + i] = (0..4)
                    .fold(0, |byte, c| byte | ((codes[(plane * 4 + c) * 4 + i] >> down) & 3) << (2 * c));
            }
            at += PLANE;
        }
    }
    if matches!(F::BITS, 3 | 5) {
        for i in 0..4 {
            planes[at + lane + i] =
                (0..STEPS).fold(0, |byte, step| byte | (codes[step * 4 + i] >> (F::BITS - 1) & 1) << step);
        }
    }
}

/// The codes of one step of a block.
///
/// # Safety
/// As [`Isa`]; `planes` are those of one block.
#[inline(always)]
pub(super) unsafe fn codes<I: Isa, F: Format>(planes: *const u8, step: usize) -> I::Ints {
    // SAFETY: the caller's promise.
    unsafe {
        let plane = |at: usize| I::load(planes.add(at * PLANE));
        let (pair, four) = (step % 2, step as u32 % 4);
        match F::BITS {
            8 => plane(step),
            4 => I::bits(plane(step / 2), 4 * pair as u32, 15),
            5 => {
                let low = I::bits(plane(step / 2), 4 * pair as u32, 15);
                I::beside(low, plane(4), step as u32, 4, 0x10)
            }
            6 => {
                let low = I::bits(plane(step / 2), 4 * pair as u32, 15);
                I::beside(low, plane(4 + step / 4), 2 * four, 4, 0x30)
            }
            3 => {
                let low = I::bits(plane(step / 4), 2 * four, 3);
                I::beside(low, plane(2), step as u32, 2, 4)
            }
            _ => I::bits(plane(step / 4), 2 * four, 3),
        }
    }
}

/// Scales (or minima) of one part of a block.
///
/// # Safety
/// As [`Isa`]; `scales` are those of one unit.
#[inline(always)]
pub(super) unsafe fn scales<I: Isa, F: Format>(
    scales: *const u8,
    block: usize,
    part: usize,
    is_minimum: bool,
) -> I::Floats {
    // SAFETY: the caller's promise.
    unsafe {
        match F::SCALES {
            Scales::Block => I::load_f16(scales.add(block * HALVES)),
            Scales::Unit => I::load_f16(scales),
            Scales::Small { signed } => {
                let small = scales.add((block * F::PARTS + part) * ROWS);
                let small = if signed && !is_minimum { I::load_i8(small) } else { I::load_u8(small) };
                let whole = I::load_f16(scales.add(F::UNIT * F::PARTS * ROWS));
                I::mul(I::to_floats(small), whole)
            }
            Scales::Levels => I::load_floats(scales.cast()),
            Scales::Row => unreachable!("a row's scale stands behind its units"),
        }
    }
}
