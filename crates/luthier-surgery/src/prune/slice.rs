//! Takes places out of the axes of a tensor's bytes.

use luthier_kernels::pool;

use super::cut::Places;

/// Bytes that one task copies, roughly.
const TASK_BYTES: usize = 1 << 20;

/// The bytes of the kept places, in order. `shape`: of the source, outermost axis first; `unit` bytes a value.
pub(super) fn slice(bytes: &[u8], shape: &[usize], unit: usize, places: &Places) -> Vec<u8> {
    // What lies within one place of the outermost axis is copied by runs.
    let inner: Vec<(usize, usize)> = runs(&shape[1..], &places[1..]);
    let kept_inner: usize = inner.iter().map(|(_, len)| len).sum::<usize>() * unit;
    let whole_inner: usize = shape[1..].iter().product::<usize>() * unit;
    let outer = |at: usize| places[0].as_ref().map_or(at, |places| places[at]);
    let n_outer = places[0].as_ref().map_or(shape[0], |places| places.len());
    let mut target = vec![0u8; n_outer * kept_inner];
    if target.is_empty() {
        return target;
    }
    let per_task = (TASK_BYTES / kept_inner).max(1);
    pool::run_chunks(&mut target, per_task * kept_inner, &|task, part| {
        for (row, target) in part.chunks_exact_mut(kept_inner).enumerate() {
            let source = &bytes[outer(task * per_task + row) * whole_inner..][..whole_inner];
            let mut at = 0;
            for (start, len) in &inner {
                let (start, len) = (start * unit, len * unit);
                target[at..at + len].copy_from_slice(&source[start..start + len]);
                at += len;
            }
        }
    });
    target
}

/// Start and length, in values, of what is kept of these axes, in order.
fn runs(shape: &[usize], places: &[Option<std::sync::Arc<[usize]>>]) -> Vec<(usize, usize)> {
    let Some((len, shape)) = shape.split_first() else { return vec![(0, 1)] };
    let inner = runs(shape, &places[1..]);
    let whole: usize = shape.iter().product();
    let mut all: Vec<(usize, usize)> = Vec::new();
    let mut add = |at: usize| {
        for (start, len) in &inner {
            let start = at * whole + start;
            match all.last_mut() {
                Some((last, last_len)) if *last + *last_len == start => *last_len += len,
                _ => all.push((start, *len)),
            }
        }
    };
    match &places[0] {
        Some(places) => places.iter().for_each(|at| add(*at)),
        None if inner == [(0, whole)] => return vec![(0, len * whole)],
        None => (0..*len).for_each(&mut add),
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_of_every_axis_are_taken() {
        let bytes: Vec<u8> = (0..24).collect();
        let keep = |places: &[usize]| Some(places.into());
        assert_eq!(
            slice(&bytes, &[4, 3], 2, &vec![keep(&[1, 3]), keep(&[0, 2])]),
            [6, 7, 10, 11, 18, 19, 22, 23]
        );
        assert_eq!(
            slice(&bytes, &[2, 3, 4], 1, &vec![keep(&[1]), None, keep(&[0, 1, 3])]),
            [12, 13, 15, 16, 17, 19, 20, 21, 23]
        );
        assert_eq!(slice(&bytes, &[24], 1, &vec![keep(&[5, 6, 9])]), [5, 6, 9]);
        assert_eq!(slice(&bytes, &[24], 1, &vec![None]), bytes);
    }
}
