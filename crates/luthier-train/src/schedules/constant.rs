//! Linear warm-up, then flat: `lr(s) = lr_peak min(1, s / W)`.

use crate::schedules::{Schedule, warmed_up};

/// The schedule.
#[derive(Clone, Copy, Debug)]
pub struct Constant {
    /// The learning rate after the warm-up.
    pub lr_peak: f64,
    /// W.
    pub warmup_steps: u64,
}

impl Schedule for Constant {
    fn lr(&self, step: u64) -> f64 {
        warmed_up(self.lr_peak, self.warmup_steps, step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rises_by_equal_steps_and_stays() {
        let schedule = Constant { lr_peak: 8.0, warmup_steps: 4 };
        let rates: Vec<f64> = (1..=6).map(|step| schedule.lr(step)).collect();
        assert_eq!(rates, [2.0, 4.0, 6.0, 8.0, 8.0, 8.0]);
        assert_eq!(Constant { lr_peak: 8.0, warmup_steps: 0 }.lr(1), 8.0);
    }
}
