//! How weights follow their gradients, one optimizer a file.

use luthier_ops::Weight;

use crate::Result;
use crate::recipe::{OptimizerName, Recipe};

pub mod adamw;

/// An optimizer over a fixed list of weights. Its state is named vectors, one value per value of a weight.
pub trait Optimizer: Send {
    /// One step: weights move by their gradients times `gradient_scale`.
    fn step(&mut self, weights: &[Weight], lr: f64, gradient_scale: f64) -> Result<()>;

    /// Steps that the state has seen.
    fn steps(&self) -> u64;

    /// The state's vectors by name, in a fixed order.
    fn state(&self) -> Vec<(String, &[f32])>;

    /// The same, to be filled from a checkpoint, and the number of steps taken so far.
    fn restore(&mut self, steps: u64) -> Vec<(String, &mut [f32])>;
}

/// The optimizer of a resolved recipe.
pub fn of_recipe(recipe: &Recipe, weights: &[Weight]) -> Box<dyn Optimizer> {
    match recipe.optimizer.name {
        OptimizerName::AdamW => Box::new(adamw::AdamW::new(adamw::Settings::of_recipe(recipe), weights)),
    }
}
