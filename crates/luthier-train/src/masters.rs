//! bf16 weights with f32 masters, in two bytes more per weight than f32 alone.
//!
//! The passes see each weight rounded to bf16 (to nearest, ties away from zero). What rounding cut off, the low half
//! of the master's bits, is kept beside it: a low half of 0x8000 or more was rounded up, so rounded value and low half
//! together give the master back bit for bit, without a second f32 copy.

use luthier_ops::Weight;

use crate::Result;
use crate::parameters;

/// The low halves of the masters.
#[derive(Debug, Default)]
pub struct Masters {
    /// One per weight.
    low_halves: Vec<Vec<u16>>,
}

impl Masters {
    /// Rounds the weights in place and keeps what was cut off.
    pub fn new(weights: &[Weight]) -> Result<Masters> {
        let low_halves = weights.iter().map(|weight| vec![0; weight.shape().iter().product()]).collect();
        let mut masters = Masters { low_halves };
        masters.round(weights)?;
        Ok(masters)
    }

    /// Weights that hold masters -> weights that hold bf16 values.
    pub fn round(&mut self, weights: &[Weight]) -> Result<()> {
        for (weight, lows) in weights.iter().zip(&mut self.low_halves) {
            parameters::edit_values(weight, |values| {
                for (value, low) in values.iter_mut().zip(lows.iter_mut()) {
                    (*value, *low) = split(*value);
                }
            })?;
        }
        Ok(())
    }

    /// Weights that hold bf16 values -> weights that hold masters.
    pub fn restore(&self, weights: &[Weight]) -> Result<()> {
        for (weight, lows) in weights.iter().zip(&self.low_halves) {
            parameters::edit_values(weight, |values| {
                for (value, &low) in values.iter_mut().zip(lows) {
                    *value = join(*value, low);
                }
            })?;
        }
        Ok(())
    }
}

/// Rounds one value to bf16.
pub fn rounded(value: f32) -> f32 {
    split(value).0
}

fn split(master: f32) -> (f32, u16) {
    let bits = master.to_bits();
    (f32::from_bits(bits.wrapping_add(0x8000) & 0xFFFF_0000), bits as u16)
}

fn join(rounded: f32, low: u16) -> f32 {
    let rounded_up = u32::from(low >= 0x8000) << 16;
    f32::from_bits(rounded.to_bits().wrapping_sub(rounded_up) | u32::from(low))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn rounds_to_nearest() {
        // bf16 has 8 significant bits: 1 + 1/128 is one step above 1.
        assert_eq!(rounded(1.0 + 1.0 / 512.0), 1.0);
        assert_eq!(rounded(1.0 + 3.0 / 512.0), 1.0 + 1.0 / 128.0);
        assert_eq!(rounded(-1.0 - 1.0 / 256.0), -1.0 - 1.0 / 128.0);
    }

    proptest! {
        #[test]
        fn the_master_comes_back_bit_for_bit(bits: u32) {
            let master = f32::from_bits(bits);
            prop_assume!(master.is_finite());
            let (rounded, low) = split(master);
            prop_assert_eq!(join(rounded, low).to_bits(), bits);
            prop_assert_eq!(rounded.to_bits() & 0xFFFF, 0);
            if rounded.is_finite() {
                prop_assert!((f64::from(rounded) - f64::from(master)).abs() <= f64::from(master.abs()) / 256.0 + 1e-40);
            }
        }
    }
}
