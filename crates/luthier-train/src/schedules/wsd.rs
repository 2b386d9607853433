//! Warm-up, stable, decay (MiniCPM, arXiv:2404.06395 section 4): linear rise over W steps, flat, then over the last D
//! steps `lr(s) = lr_min + (lr_peak - lr_min) f(t)`.
//!
//! `f(t) = 1 - sqrt(t)` (the best of the forms compared in arXiv:2405.18392) or `1 - t`. With decay step number
//! `j = 1..D`, `t = j / (D + 1)`: the last step still moves the weights, the one after it would have `lr_min`.

use crate::recipe::DecayShape;
use crate::schedules::{Schedule, warmed_up};

/// The schedule.
#[derive(Clone, Copy, Debug)]
pub struct Wsd {
    /// The learning rate between warm-up and decay.
    pub lr_peak: f64,
    /// The learning rate that the decay falls to.
    pub lr_min: f64,
    /// W.
    pub warmup_steps: u64,
    /// D.
    pub decay_steps: u64,
    /// Steps of the run.
    pub total_steps: u64,
    /// f.
    pub shape: DecayShape,
}

impl Schedule for Wsd {
    fn lr(&self, step: u64) -> f64 {
        let decay_start = self.total_steps.saturating_sub(self.decay_steps);
        if step <= decay_start {
            return warmed_up(self.lr_peak, self.warmup_steps, step);
        }
        let elapsed = ((step - decay_start) as f64 / (self.decay_steps + 1) as f64).min(1.0);
        let share = match self.shape {
            DecayShape::Sqrt => 1.0 - elapsed.sqrt(),
            DecayShape::Linear => 1.0 - elapsed,
        };
        self.lr_min + (self.lr_peak - self.lr_min) * share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(shape: DecayShape) -> Vec<f64> {
        let schedule =
            Wsd { lr_peak: 1.0, lr_min: 0.0, warmup_steps: 2, decay_steps: 3, total_steps: 7, shape };
        (1..=8).map(|step| schedule.lr(step)).collect()
    }

    #[test]
    fn passes_the_points_worked_by_hand() {
        // Decay steps 5, 6, 7 at t = 1/4, 2/4, 3/4: 1 - sqrt gives 1/2, 0.292893, 0.133975.
        let wanted = [0.5, 1.0, 1.0, 1.0, 0.5, 0.292_893, 0.133_975, 0.0];
        for (rate, wanted) in rates(DecayShape::Sqrt).iter().zip(wanted) {
            assert!((rate - wanted).abs() < 1e-6, "{rate} for {wanted}");
        }
        assert_eq!(rates(DecayShape::Linear)[4..], [0.75, 0.5, 0.25, 0.0]);
    }
}
