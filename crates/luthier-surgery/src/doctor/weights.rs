//! What the weights hold: NaN, infinity, matrices of zeros.

use luthier_checkpoint::layout::Layout;
use luthier_checkpoint::{Checkpoint, Dtype, values};
use luthier_kernels::pool;

use super::{Finding, Severity};

/// Values looked at together; a whole number of blocks of every type.
const PIECE_LEN: usize = 1 << 16;

/// Reads every float tensor.
pub(super) fn examine(checkpoint: &Checkpoint, layout: Option<&Layout>) -> Vec<Finding> {
    let infos: Vec<_> = checkpoint.tensors.infos().iter().filter(|info| info.dtype.is_float()).collect();
    let found: Vec<std::sync::OnceLock<Finding>> = infos.iter().map(|_| std::sync::OnceLock::new()).collect();
    pool::run(infos.len(), &|at| {
        let info = infos[at];
        let finding = match checkpoint.tensors.read(&info.name) {
            Ok(bytes) => of_tensor(&info.name, info.dtype, &bytes, info.shape.len() > 1),
            Err(problem) => Some(Finding::new(
                Severity::Error,
                format!("tensor {}", info.name),
                problem.to_string(),
                "take the file from its source again",
            )),
        };
        if let Some(finding) = finding {
            found[at].get_or_init(|| finding);
        }
    });
    let mut findings: Vec<Finding> = found.into_iter().filter_map(std::sync::OnceLock::into_inner).collect();
    // A padding row or a fresh bias is zero by intent; of a matrix that is nothing else nobody knows.
    if layout.is_none() {
        findings.retain(|finding| finding.severity == Severity::Error);
    }
    findings
}

fn of_tensor(name: &str, dtype: Dtype, bytes: &[u8], is_matrix: bool) -> Option<Finding> {
    let subject = format!("tensor {name}");
    let (block_len, block_bytes) = dtype.block();
    let (mut nan, mut infinite, mut first, mut is_zero, mut seen) = (0usize, 0usize, None, true, 0usize);
    for piece in bytes.chunks(PIECE_LEN / block_len * block_bytes) {
        let values = match values::to_f32(name, dtype, piece) {
            Ok(values) => values,
            // Types that are not computed with have a check of their own.
            Err(_) => {
                return values::check_finite(name, dtype, bytes)
                    .err()
                    .map(|problem| Finding::new(Severity::Error, subject, problem.to_string(), ""));
            }
        };
        for (at, value) in values.iter().enumerate() {
            is_zero &= *value == 0.0;
            if !value.is_finite() {
                first.get_or_insert(seen + at);
                nan += usize::from(value.is_nan());
                infinite += usize::from(value.is_infinite());
            }
        }
        seen += values.len();
    }
    if let Some(first) = first {
        let what =
            format!("{nan} values are NaN, {infinite} infinite, of {seen}; the first is value {first}");
        let fix = "the weights are damaged, or overflowed in f16; take an earlier checkpoint";
        return Some(Finding::new(Severity::Error, subject, what, fix));
    }
    (is_zero && is_matrix && seen > 0).then(|| {
        let what = format!("all {seen} values are zero");
        let fix = "a layer that was meant to be silent, or a file that was not written to its end";
        Finding::new(Severity::Warning, subject, what, fix)
    })
}
