//! The weights of one model by name, in layout order, handed to the blocks that compute with them.

use std::collections::HashMap;

use candle_core::Device;
use luthier_checkpoint::layout::Layout;
use luthier_ops::Weight;

use crate::observer::Tap;
use crate::{Error, Result};

/// All weights that a layout asks for, and where they lie.
pub struct WeightSet {
    weights: Vec<Weight>,
    by_name: HashMap<String, usize>,
    device: Device,
    tap: Tap,
}

impl WeightSet {
    /// Puts `weights` in the order of `layout`. An error for a weight that is missing, of another shape, or not wanted.
    pub fn new(layout: &Layout, weights: Vec<Weight>, device: &Device) -> Result<WeightSet> {
        let mut given: HashMap<String, Weight> =
            weights.into_iter().map(|weight| (weight.name().to_string(), weight)).collect();
        let mut ordered = Vec::with_capacity(layout.tensors.len());
        for spec in &layout.tensors {
            let weight = given.remove(&spec.name);
            let weight = weight.ok_or_else(|| Error::tensor(&spec.name, "missing; this config needs it"))?;
            if weight.shape() != spec.shape {
                let what = format!("expected shape {:?}, found {:?}", spec.shape, weight.shape());
                return Err(Error::tensor(&spec.name, what));
            }
            ordered.push(weight);
        }
        if let Some(name) = given.keys().min() {
            return Err(Error::tensor(name, "this config has no such weight"));
        }
        let by_name =
            ordered.iter().enumerate().map(|(at, weight)| (weight.name().to_string(), at)).collect();
        Ok(WeightSet { weights: ordered, by_name, device: device.clone(), tap: Tap::default() })
    }

    /// The weight called `name`.
    pub fn get(&self, name: &str) -> Result<Weight> {
        let at =
            self.by_name.get(name).ok_or_else(|| Error::tensor(name, "missing; this config needs it"))?;
        Ok(self.weights[*at].clone())
    }

    /// Where the model computes.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Where the model's observer is put.
    pub fn tap(&self) -> &Tap {
        &self.tap
    }

    /// In layout order.
    pub fn into_weights(self) -> Vec<Weight> {
        self.weights
    }
}
