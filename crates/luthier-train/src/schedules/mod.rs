//! How the learning rate moves over a run, one schedule a file. Step numbers count from 1.

use crate::recipe::{Recipe, ScheduleName};

pub mod constant;
pub mod cosine;
pub mod wsd;

/// A learning-rate schedule.
pub trait Schedule: Send + Sync {
    /// The learning rate of one step, 1 being the first.
    fn lr(&self, step: u64) -> f64;
}

/// The schedule of a resolved recipe.
pub fn of_recipe(recipe: &Recipe) -> Box<dyn Schedule> {
    let (schedule, lr_peak) = (&recipe.schedule, recipe.optimizer.lr_peak);
    let warmup_steps = schedule.warmup_steps;
    let decay_steps = schedule.decay_steps.unwrap_or(0);
    let lr_min = schedule.lr_min.unwrap_or(0.0);
    match schedule.name {
        ScheduleName::Constant => Box::new(constant::Constant { lr_peak, warmup_steps }),
        ScheduleName::Cosine => Box::new(cosine::Cosine { lr_peak, lr_min, warmup_steps, decay_steps }),
        ScheduleName::Wsd => {
            let shape = schedule.decay_shape.expect("a resolved recipe says how wsd falls");
            let total_steps = recipe.total_steps();
            Box::new(wsd::Wsd { lr_peak, lr_min, warmup_steps, decay_steps, total_steps, shape })
        }
    }
}

/// Linear rise: `lr_peak s / W` for step s of W warm-up steps, so that the first step already moves; then `lr_peak`.
fn warmed_up(lr_peak: f64, warmup_steps: u64, step: u64) -> f64 {
    if step < warmup_steps { lr_peak * step as f64 / warmup_steps as f64 } else { lr_peak }
}
