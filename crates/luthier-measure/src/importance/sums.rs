//! Sums over the tokens of one window and over windows.

use luthier_checkpoint::scores::Aggregation;

// t tokens, n units

/// Scores of n units, window after window.
#[derive(Clone, Debug)]
pub(super) struct Units {
    total: Vec<f64>,
    windows: usize,
}

impl Units {
    pub(super) fn new(n: usize) -> Units {
        Units { total: vec![0.0; n], windows: 0 }
    }

    /// Adds a window of `t` tokens whose absolute values and squares sum to these.
    pub(super) fn add(
        &mut self,
        sums: impl Iterator<Item = (f64, f64)>,
        t: usize,
        sequence: Aggregation,
        batch: Aggregation,
    ) {
        for (total, (absolute, square)) in self.total.iter_mut().zip(sums) {
            let score = match sequence {
                Aggregation::Mean => absolute / t as f64,
                Aggregation::L2 => square.sqrt(),
            };
            *total += match batch {
                Aggregation::Mean => score,
                Aggregation::L2 => score * score,
            };
        }
        self.windows += 1;
    }

    /// The scores over all windows.
    pub(super) fn scores(&self, batch: Aggregation) -> Vec<f32> {
        let score = |total: &f64| match batch {
            Aggregation::Mean => total / self.windows.max(1) as f64,
            Aggregation::L2 => total.sqrt(),
        };
        self.total.iter().map(|total| score(total) as f32).collect()
    }
}

/// Sums of |x| and x^2 of each of the n columns of x_tn.
pub(super) fn columns(x_tn: &[f32], n: usize) -> (Vec<f64>, Vec<f64>) {
    let (mut absolute, mut square) = (vec![0f64; n], vec![0f64; n]);
    for row in x_tn.chunks_exact(n) {
        for ((x, absolute), square) in row.iter().zip(&mut absolute).zip(&mut square) {
            let x = f64::from(*x);
            *absolute += x.abs();
            *square += x * x;
        }
    }
    (absolute, square)
}

/// Sums of norms and of their squares, of stretches of `width` columns.
pub(super) fn norms(x_tn: &[f32], n: usize, width: usize) -> Vec<(f64, f64)> {
    let mut sums = vec![(0f64, 0f64); n / width];
    for row in x_tn.chunks_exact(n) {
        for (stretch, sums) in row.chunks_exact(width).zip(&mut sums) {
            let square: f64 = stretch.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
            sums.0 += square.sqrt();
            sums.1 += square;
        }
    }
    sums
}

/// Adds each column's share in the sum of squares of its row, over all rows.
pub(super) fn add_shares(x_tn: &[f32], shares: &mut [f64]) {
    for row in x_tn.chunks_exact(shares.len()) {
        let square: f64 = row.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
        if square > 0.0 {
            for (x, share) in row.iter().zip(shares.iter_mut()) {
                *share += f64::from(*x) * f64::from(*x) / square;
            }
        }
    }
}

/// Takes its mean off every row.
pub(super) fn take_means_off(x_tn: &mut [f32], n: usize) {
    for row in x_tn.chunks_exact_mut(n) {
        let mean = row.iter().map(|x| f64::from(*x)).sum::<f64>() / n as f64;
        row.iter_mut().for_each(|x| *x = (f64::from(*x) - mean) as f32);
    }
}

/// Adds each column's value in deviations of its row, over all rows, whose means are 0.
pub(super) fn add_shifts(x_tn: &[f32], shifts: &mut [f64]) {
    let n = shifts.len();
    for row in x_tn.chunks_exact(n) {
        let square: f64 = row.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
        let deviation = (square / n as f64).sqrt();
        if deviation > 0.0 {
            shifts.iter_mut().zip(row).for_each(|(shift, x)| *shift += f64::from(*x) / deviation);
        }
    }
}

/// The sum over rows of the cosine of x and y: [t, n].
pub(super) fn cosines(x_tn: &[f32], y_tn: &[f32], n: usize) -> f64 {
    let rows = x_tn.chunks_exact(n).zip(y_tn.chunks_exact(n));
    let cosine = |(x, y): (&[f32], &[f32])| {
        let dot = |a: &[f32], b: &[f32]| -> f64 {
            a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        };
        let length = (dot(x, x) * dot(y, y)).sqrt();
        if length > 0.0 { dot(x, y) / length } else { 1.0 }
    };
    rows.map(cosine).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_those_of_the_formulas() {
        // Two tokens, four columns.
        let x = [3.0, -4.0, 1.0, 0.0, 0.0, 0.0, -2.0, 0.0];
        assert_eq!(columns(&x, 4), (vec![3.0, 4.0, 3.0, 0.0], vec![9.0, 16.0, 5.0, 0.0]));
        assert_eq!(norms(&x, 4, 2), [(5.0, 25.0), (3.0, 5.0)]);
        let mut shares = vec![0.0; 4];
        add_shares(&x, &mut shares);
        assert_eq!(shares, [9.0 / 26.0, 16.0 / 26.0, 1.0 / 26.0 + 1.0, 0.0]);
        let mut centred = [1.0, 3.0, 5.0, 5.0];
        take_means_off(&mut centred, 2);
        assert_eq!(centred, [-1.0, 1.0, 0.0, 0.0]);
        let mut shifts = vec![0.5, 0.0];
        add_shifts(&[-2.0, 2.0, 0.0, 0.0], &mut shifts);
        assert_eq!(shifts, [-0.5, 1.0]);
        assert!(
            (cosines(&[1.0, 0.0, 0.0, 2.0], &[1.0, 1.0, 0.0, 1.0], 2) - (0.5f64.sqrt() + 1.0)).abs() < 1e-12
        );
    }

    #[test]
    fn windows_are_aggregated_as_asked() {
        let mut units = Units::new(1);
        units.add([(6.0, 18.0)].into_iter(), 2, Aggregation::Mean, Aggregation::L2);
        units.add([(4.0, 16.0)].into_iter(), 1, Aggregation::Mean, Aggregation::L2);
        assert_eq!(units.scores(Aggregation::L2), [5.0]);
        let mut units = Units::new(1);
        units.add([(6.0, 9.0)].into_iter(), 2, Aggregation::L2, Aggregation::Mean);
        units.add([(4.0, 1.0)].into_iter(), 1, Aggregation::L2, Aggregation::Mean);
        assert_eq!(units.scores(Aggregation::Mean), [2.0]);
    }
}
