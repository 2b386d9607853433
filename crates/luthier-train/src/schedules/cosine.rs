//! Linear warm-up, then half a cosine (SGDR without restarts, arXiv:1608.03983 eq. 5):
//! `lr(s) = lr_min + (lr_peak - lr_min) (1 + cos(pi t)) / 2`, `t = (s - W) / D` the elapsed share of the D decay steps,
//! and `lr_min` after them. The last decay step has `lr_min`.

use crate::schedules::{Schedule, warmed_up};

/// The schedule.
#[derive(Clone, Copy, Debug)]
pub struct Cosine {
    /// The learning rate after the warm-up.
    pub lr_peak: f64,
    /// The learning rate after the decay.
    pub lr_min: f64,
    /// W.
    pub warmup_steps: u64,
    /// D.
    pub decay_steps: u64,
}

impl Schedule for Cosine {
    fn lr(&self, step: u64) -> f64 {
        if step <= self.warmup_steps || self.decay_steps == 0 {
            return warmed_up(self.lr_peak, self.warmup_steps, step);
        }
        let elapsed = ((step - self.warmup_steps) as f64 / self.decay_steps as f64).min(1.0);
        let share = (1.0 + (std::f64::consts::PI * elapsed).cos()) / 2.0;
        self.lr_min + (self.lr_peak - self.lr_min) * share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_the_points_worked_by_hand() {
        // W = 2, D = 4: steps 3..6 lie at t = 1/4, 1/2, 3/4, 1 with (1 + cos(pi t)) / 2 = 0.853553, 0.5, 0.146447, 0.
        let schedule = Cosine { lr_peak: 1.1, lr_min: 0.1, warmup_steps: 2, decay_steps: 4 };
        let wanted = [0.55, 1.1, 0.953_553, 0.6, 0.246_447, 0.1, 0.1];
        for (step, wanted) in (1..).zip(wanted) {
            assert!((schedule.lr(step) - wanted).abs() < 1e-6, "step {step}: {}", schedule.lr(step));
        }
    }
}
