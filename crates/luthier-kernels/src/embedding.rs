//! Rows of an embedding matrix, and their gradient.

use crate::blocks::BlockType;
use crate::matmul::widen_rows;
use crate::pool::{self, Shared, run_chunks};
use crate::rows::rows_a_task;

/// out[i] = scale * table[ids[i]]; table: [v, m] f32, out: [n, m].
pub fn gather(table: &[f32], ids: &[u32], scale: f32, out: &mut [f32]) {
    let m = width(ids, out);
    run_chunks(out, rows_a_task(ids.len(), m) * m, &|chunk, part| {
        let first = chunk * rows_a_task(ids.len(), m);
        for (row, id) in part.chunks_exact_mut(m).zip(&ids[first..]) {
            let source = &table[*id as usize * m..][..m];
            row.iter_mut().zip(source).for_each(|(out, x)| *out = x * scale);
        }
    });
}

/// As [`gather`] from rows stored as `block_type`.
pub fn gather_stored(block_type: BlockType, bytes: &[u8], ids: &[u32], scale: f32, out: &mut [f32]) {
    let m = width(ids, out);
    let row_bytes = m / block_type.block_len() * block_type.block_bytes();
    run_chunks(out, rows_a_task(ids.len(), m) * m, &|chunk, part| {
        let first = chunk * rows_a_task(ids.len(), m);
        for (row, id) in part.chunks_exact_mut(m).zip(&ids[first..]) {
            widen_rows(block_type, &bytes[*id as usize * row_bytes..][..row_bytes], row);
            if scale != 1.0 {
                row.iter_mut().for_each(|x| *x *= scale);
            }
        }
    });
}

/// table[ids[i]] += scale * rows[i], in the order of i.
pub fn scatter_add(table: &mut [f32], ids: &[u32], scale: f32, rows: &[f32]) {
    let m = width(ids, rows);
    let table = Shared::new(table);
    // Columns are split, so that equal ids never meet.
    let step = if rows.len() < crate::rows::TASK_VALUES { m } else { m.div_ceil(pool::threads()) };
    pool::run(m.div_ceil(step), &|task| {
        let (start, len) = (task * step, step.min(m - task * step));
        for (row, id) in rows.chunks_exact(m).zip(ids) {
            // SAFETY: tasks own disjoint columns.
            let target = unsafe { table.slice(*id as usize * m + start, len) };
            target.iter_mut().zip(&row[start..]).for_each(|(sum, x)| *sum += x * scale);
        }
    });
}

fn width(ids: &[u32], rows: &[f32]) -> usize {
    let m = rows.len() / ids.len().max(1);
    assert_eq!(rows.len(), ids.len() * m, "rows of {} ids", ids.len());
    m.max(1)
}
