//! Tensors that do not lie in their storage value after value.

/// Whether the values of a tensor lie one after another in the order in which they are counted.
pub(super) fn is_contiguous(shape: &[usize], strides: &[usize]) -> bool {
    if shape.contains(&0) {
        return true;
    }
    let mut wanted = 1;
    for (&axis, &stride) in shape.iter().zip(strides).rev() {
        if axis != 1 && stride != wanted {
            return false;
        }
        wanted *= axis;
    }
    true
}

/// Copies the values of a tensor into their counted order. `source` begins at the tensor's first value and holds all that
/// shape and strides (in values of `value_bytes` each) reach.
pub(super) fn gather(source: &[u8], shape: &[usize], strides: &[usize], value_bytes: usize) -> Vec<u8> {
    let n_values: usize = shape.iter().product();
    let mut target = Vec::with_capacity(n_values * value_bytes);
    // The innermost axes that lie value after value are copied at once.
    let mut run = 1;
    let mut outer = shape.len();
    while outer > 0 && (shape[outer - 1] == 1 || strides[outer - 1] == run) {
        run *= shape[outer - 1];
        outer -= 1;
    }
    let mut index = vec![0; outer];
    let mut at = 0;
    while target.len() < n_values * value_bytes {
        target.extend_from_slice(&source[at * value_bytes..(at + run) * value_bytes]);
        for axis in (0..outer).rev() {
            index[axis] += 1;
            at += strides[axis];
            if index[axis] < shape[axis] {
                break;
            }
            at -= strides[axis] * shape[axis];
            index[axis] = 0;
        }
    }
    target
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gathers_as_indexing_does() {
        let source: Vec<u8> = (0..60).collect();
        for (shape, strides) in [
            (vec![2, 3, 4], vec![1, 2, 6]),
            (vec![4, 3], vec![1, 4]),
            (vec![3, 1, 4], vec![8, 99, 1]),
            (vec![3, 5], vec![0, 2]),
            (vec![], vec![]),
            (vec![2, 2, 3], vec![12, 3, 1]),
            (vec![1, 1], vec![7, 7]),
        ] {
            let mut wanted = vec![0];
            for (&axis, &stride) in shape.iter().zip(&strides) {
                wanted =
                    wanted.iter().flat_map(|at| (0..axis).map(move |index| at + index * stride)).collect();
            }
            let wanted: Vec<u8> = wanted.into_iter().map(|at: usize| at as u8).collect();
            assert_eq!(gather(&source, &shape, &strides, 1), wanted, "{shape:?} {strides:?}");
            assert_eq!(
                is_contiguous(&shape, &strides),
                wanted.iter().enumerate().all(|(at, &value)| at == usize::from(value)),
                "{shape:?} {strides:?}"
            );
        }
        assert!(is_contiguous(&[0, 3], &[7, 7]));
    }
}
