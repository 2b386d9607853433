//! Sets single weights to 0: those of the smallest magnitude, or by Wanda (arXiv:2306.11695 eq. 1) of the smallest
//! `|w| * ||x||` in their output row; freely, or so that of every M neighbours at most N stay.

use std::str::FromStr;

use luthier_checkpoint::layout::{Part, TensorSpec};
use luthier_kernels::pool;

/// Which weights go.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sparsity {
    /// How many.
    pub amount: Sparse,
    /// By what they are compared.
    pub by: Criterion,
}

/// How many weights go.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sparse {
    /// That share: of each matrix by magnitude, of each of its rows by Wanda.
    Share(f64),
    /// All but `kept` of every `of` neighbours in a row.
    Pattern {
        /// N.
        kept: usize,
        /// M.
        of: usize,
    },
}

impl Sparse {
    /// For people and records.
    pub fn name(self) -> String {
        match self {
            Sparse::Share(share) => format!("{share}"),
            Sparse::Pattern { kept, of } => format!("{kept}:{of}"),
        }
    }
}

/// `2:4`.
impl FromStr for Sparse {
    type Err = String;

    fn from_str(text: &str) -> Result<Sparse, String> {
        let pattern =
            text.split_once(':').and_then(|(kept, of)| Some((kept.parse().ok()?, of.parse().ok()?)));
        match pattern {
            Some((kept, of)) if 0 < kept && kept < of && of <= 64 => Ok(Sparse::Pattern { kept, of }),
            _ => Err(format!(
                "wanted N:M such as 2:4, N weights that stay of every M (at most 64), came {text}"
            )),
        }
    }
}

/// By what weights are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Criterion {
    /// |w|.
    Magnitude,
    /// |w| times the size of its input over a text.
    Wanda,
}

impl Criterion {
    /// Names of options.
    pub const NAMES: [&str; 2] = ["magnitude", "wanda"];

    /// The criterion of that name.
    pub fn from_name(name: &str) -> Option<Criterion> {
        match name {
            "magnitude" => Some(Criterion::Magnitude),
            "wanda" => Some(Criterion::Wanda),
            _ => None,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Criterion::Magnitude => "magnitude",
            Criterion::Wanda => "wanda",
        }
    }
}

/// Whether weights of this tensor may go: matrices inside layers, as in the paper.
pub(super) fn is_thinned(spec: &TensorSpec) -> bool {
    let is_matrix = matches!(
        spec.role.part,
        Part::SelfAttention(_)
            | Part::CrossAttention(_)
            | Part::Gate
            | Part::Up
            | Part::Down
            | Part::ExpertGate(_)
            | Part::ExpertUp(_)
            | Part::ExpertDown(_)
            | Part::SharedGate
            | Part::SharedUp
            | Part::SharedDown
    );
    is_matrix && spec.role.layer.is_some() && spec.shape.len() > 1
}

/// Which of `values`, rows of `columns`, go to 0. `inputs`: sizes of the inputs, for Wanda.
pub(super) fn mask(values: &[f32], columns: usize, sparse: Sparse, inputs: Option<&[f32]>) -> Vec<bool> {
    let mut mask = vec![false; values.len()];
    if mask.is_empty() {
        return mask;
    }
    if let (Sparse::Share(share), None) = (sparse, inputs) {
        let metric: Vec<f32> = values.iter().map(|value| value.abs()).collect();
        lowest(&metric, (values.len() as f64 * share) as usize, &mut mask);
        return mask;
    }
    let weigh = |row: &[f32]| -> Vec<f32> {
        match inputs {
            Some(inputs) => row.iter().zip(inputs).map(|(value, input)| value.abs() * input).collect(),
            None => row.iter().map(|value| value.abs()).collect(),
        }
    };
    pool::run_chunks(&mut mask, columns, &|row, mask| {
        let metric = weigh(&values[row * columns..(row + 1) * columns]);
        match sparse {
            Sparse::Share(share) => lowest(&metric, (columns as f64 * share) as usize, mask),
            Sparse::Pattern { kept, of } => {
                for (metric, mask) in metric.chunks(of).zip(mask.chunks_mut(of)) {
                    lowest(metric, of - kept, mask);
                }
            }
        }
    });
    mask
}

/// Marks the `n` lowest; of equal ones the first.
fn lowest(metric: &[f32], n: usize, mask: &mut [bool]) {
    if n == 0 {
        return;
    }
    let mut sorted = metric.to_vec();
    let (_, bound, _) = sorted.select_nth_unstable_by(n - 1, f32::total_cmp);
    let bound = *bound;
    let mut left = n;
    for (value, mask) in metric.iter().zip(mask.iter_mut()) {
        *mask = *value < bound;
        left -= usize::from(*mask);
    }
    for (value, mask) in metric.iter().zip(mask.iter_mut()) {
        if left > 0 && *value == bound && !*mask {
            *mask = true;
            left -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gone(values: &[f32], columns: usize, sparse: Sparse, inputs: Option<&[f32]>) -> Vec<usize> {
        let mask = mask(values, columns, sparse, inputs);
        mask.iter().enumerate().filter(|(_, gone)| **gone).map(|(at, _)| at).collect()
    }

    #[test]
    fn magnitude_compares_the_matrix_and_wanda_rows() {
        let values = [1.0, -2.0, 3.0, -4.0, 5.0, 6.0, 7.0, 8.0];
        assert_eq!(gone(&values, 4, Sparse::Share(0.5), None), [0, 1, 2, 3]);
        let inputs = [8.0, 4.0, 1.0, 0.5];
        // 8 8 3 2, 40 24 7 4.
        assert_eq!(gone(&values, 4, Sparse::Share(0.5), Some(&inputs)), [2, 3, 6, 7]);
        assert_eq!(gone(&values, 4, Sparse::Share(0.3), Some(&inputs)), [3, 7]);
    }

    #[test]
    fn patterns_hold_in_every_stretch() {
        let values = [1.0, -2.0, 3.0, -4.0, 8.0, 7.0, 7.0, 5.0];
        let two_four = "2:4".parse().unwrap();
        assert_eq!(gone(&values, 8, two_four, None), [0, 1, 5, 7]);
        assert_eq!(gone(&values, 4, two_four, Some(&[9.0, 1.0, 1.0, 1.0])), [1, 2, 5, 7]);
        for wrong in ["4:2", "0:4", "2:2", "24", "2:x", "2:65"] {
            assert!(wrong.parse::<Sparse>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn equal_weights_go_from_the_first_on() {
        assert_eq!(gone(&[1.0; 4], 4, Sparse::Share(0.5), Some(&[1.0; 4])), [0, 1]);
    }
}
