//! AdamW (arXiv:1711.05101 algorithm 2, in PyTorch's form): with gradient g at step t,
//! `m = b1 m + (1 - b1) g`, `v = b2 v + (1 - b2) g^2`,
//! `w = w (1 - lr decay) - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)`.
//!
//! Weights of one dimension (norms, biases) are not decayed. A weight that got no gradient counts as gradient zero.

use luthier_kernels::optimizer;
use luthier_ops::Weight;

use crate::Result;
use crate::optimizers::Optimizer;
use crate::recipe::Recipe;

/// AdamW's numbers.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// b1 and b2.
    pub betas: [f64; 2],
    /// decay.
    pub weight_decay: f64,
    /// eps.
    pub eps: f64,
}

impl Settings {
    /// As a recipe says.
    pub fn of_recipe(recipe: &Recipe) -> Settings {
        let optimizer = &recipe.optimizer;
        Settings { betas: optimizer.betas, weight_decay: optimizer.weight_decay, eps: optimizer.eps }
    }
}

/// The optimizer with its moments.
#[derive(Debug)]
pub struct AdamW {
    settings: Settings,
    steps: u64,
    /// One per weight.
    moments: Vec<Moments>,
}

#[derive(Debug)]
struct Moments {
    name: String,
    first: Vec<f32>,
    second: Vec<f32>,
}

impl AdamW {
    /// Moments at zero.
    pub fn new(settings: Settings, weights: &[Weight]) -> AdamW {
        let moments = weights
            .iter()
            .map(|weight| {
                let n_values = weight.shape().iter().product();
                Moments {
                    name: weight.name().to_string(),
                    first: vec![0.0; n_values],
                    second: vec![0.0; n_values],
                }
            })
            .collect();
        AdamW { settings, steps: 0, moments }
    }

    fn kernel_settings(&self, lr: f64, decayed: bool, gradient_scale: f64) -> optimizer::AdamW {
        let Settings { betas: [beta1, beta2], weight_decay, eps } = self.settings;
        optimizer::AdamW {
            lr,
            beta1,
            beta2,
            eps,
            weight_decay: if decayed { weight_decay } else { 0.0 },
            step: self.steps,
            grad_scale: gradient_scale as f32,
        }
    }
}

impl Optimizer for AdamW {
    fn step(&mut self, weights: &[Weight], lr: f64, gradient_scale: f64) -> Result<()> {
        self.steps += 1;
        for (idx, weight) in weights.iter().enumerate() {
            let settings = self.kernel_settings(lr, weight.shape().len() > 1, gradient_scale);
            let Moments { first, second, .. } = &mut self.moments[idx];
            weight.update(|values, gradient| match gradient.is_empty() {
                true => optimizer::adamw(values, &vec![0.0; values.len()], first, second, settings),
                false => optimizer::adamw(values, gradient, first, second, settings),
            })?;
        }
        Ok(())
    }

    fn steps(&self) -> u64 {
        self.steps
    }

    fn state(&self) -> Vec<(String, &[f32])> {
        self.moments
            .iter()
            .flat_map(|moments| {
                let [first, second] = names(moments);
                [(first, moments.first.as_slice()), (second, moments.second.as_slice())]
            })
            .collect()
    }

    fn restore(&mut self, steps: u64) -> Vec<(String, &mut [f32])> {
        self.steps = steps;
        self.moments
            .iter_mut()
            .flat_map(|moments| {
                let [first, second] = names(moments);
                [(first, moments.first.as_mut_slice()), (second, moments.second.as_mut_slice())]
            })
            .collect()
    }
}

/// PyTorch's names.
fn names(moments: &Moments) -> [String; 2] {
    [format!("{}.exp_avg", moments.name), format!("{}.exp_avg_sq", moments.name)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor};

    fn weight(name: &str, values: &[f32], shape: &[usize]) -> Weight {
        let values = Tensor::from_slice(values, shape, &Device::Cpu).unwrap();
        Weight::dense(name, &values, true).unwrap()
    }

    /// Gives the weight this gradient, all values alike.
    fn give_gradient(weight: &Weight, gradient: f64) {
        weight.zero_grad();
        let loss = (weight.to_tensor(&Device::Cpu).unwrap().sum_all().unwrap() * gradient).unwrap();
        luthier_ops::weight::collect(std::slice::from_ref(weight), &loss.backward().unwrap()).unwrap();
    }

    fn values(weight: &Weight) -> Vec<f32> {
        weight.to_tensor(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn two_steps_worked_by_hand() {
        // b1 = 0.5, b2 = 0.75, decay 0.1, lr 0.1, eps 0 (1e-30), w = 1, g = 2 then -1.
        // Step 1: m = 1, v = 1; m^ = 2, v^ = 4; w = 1 * 0.99 - 0.1 * 2 / 2 = 0.89.
        // Step 2: m = 0, so only the decay is left: w = 0.89 * 0.99 = 0.8811.
        // Step 3, g = 1: m = 0.5, v = 1; m^ = 0.5 / 0.875, v^ = 1 / (1 - 0.75^3) = 1.729730;
        //         w = 0.8811 * 0.99 - 0.1 m^ / sqrt(v^).
        let settings = Settings { betas: [0.5, 0.75], weight_decay: 0.1, eps: 1e-30 };
        let matrix = weight("matrix", &[1.0], &[1, 1]);
        let weights = [matrix.clone()];
        let mut adamw = AdamW::new(settings, &weights);
        let wanted = [0.89, 0.8811, 0.8811 * 0.99 - 0.1 * (0.5 / 0.875) / 1.729_729_7f32.sqrt()];
        for (gradient, wanted) in [2.0, -1.0, 1.0].into_iter().zip(wanted) {
            give_gradient(&matrix, gradient);
            adamw.step(&weights, 0.1, 1.0).unwrap();
            assert!((values(&matrix)[0] - wanted).abs() < 1e-6, "{} for {wanted}", values(&matrix)[0]);
        }
    }

    #[test]
    fn one_dimensional_weights_do_not_decay_and_missing_gradients_are_zero() {
        let settings = Settings { betas: [0.9, 0.95], weight_decay: 0.5, eps: 1e-8 };
        let weights = [weight("norm", &[1.0, 2.0], &[2]), weight("matrix", &[1.0, 2.0], &[1, 2])];
        AdamW::new(settings, &weights).step(&weights, 0.1, 1.0).unwrap();
        assert_eq!(values(&weights[0]), [1.0, 2.0]);
        assert_eq!(values(&weights[1]), [0.95, 1.9]);
    }

    #[test]
    fn clipping_scales_the_gradient_before_the_moments() {
        let settings = Settings { betas: [0.9, 0.95], weight_decay: 0.0, eps: 1e-8 };
        let [whole, scaled] = [weight("a", &[1.0], &[1]), weight("a", &[1.0], &[1])];
        give_gradient(&whole, 0.25);
        give_gradient(&scaled, 1.0);
        let mut first = AdamW::new(settings, std::slice::from_ref(&whole));
        let mut second = AdamW::new(settings, std::slice::from_ref(&scaled));
        first.step(std::slice::from_ref(&whole), 0.1, 1.0).unwrap();
        second.step(std::slice::from_ref(&scaled), 0.1, 0.25).unwrap();
        assert_eq!(first.state()[1].1, second.state()[1].1);
        assert_eq!(values(&whole), values(&scaled));
    }

    #[test]
    fn a_state_that_is_handed_on_goes_on_as_if_nothing_had_happened() {
        let settings = Settings { betas: [0.9, 0.95], weight_decay: 0.1, eps: 1e-8 };
        let matrix = weight("matrix", &[1.0, -2.0], &[1, 2]);
        let weights = [matrix.clone()];
        let mut first = AdamW::new(settings, &weights);
        for gradient in [2.0, -1.0] {
            give_gradient(&matrix, gradient);
            first.step(&weights, 0.1, 1.0).unwrap();
        }
        let other = weight("matrix", &values(&matrix), &[1, 2]);
        let others = [other.clone()];
        let mut second = AdamW::new(settings, &others);
        for ((_, target), (_, source)) in second.restore(first.steps()).into_iter().zip(first.state()) {
            target.copy_from_slice(source);
        }
        for (weight, weights, optimizer) in [(&matrix, &weights, &mut first), (&other, &others, &mut second)]
        {
            give_gradient(weight, 0.5);
            optimizer.step(weights, 0.1, 1.0).unwrap();
        }
        assert_eq!(values(&matrix), values(&other));
        assert_eq!((first.steps(), second.steps()), (3, 3));
    }
}
