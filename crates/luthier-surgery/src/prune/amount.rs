//! How much of something is kept: its new size, or below 1 the share of the old one.

use std::str::FromStr;

use crate::{Error, Result};

/// Shares are rounded to steps of at most this many, so that rows of quantised blocks fit.
const STEP_MAX: usize = 32;
/// Steps that a size has at least, where shares are rounded to steps.
const STEPS_MIN: usize = 16;

/// A new size, or the share that is kept.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Amount {
    /// 1 or more.
    Size(usize),
    /// Above 0 and below 1.
    Share(f64),
}

impl FromStr for Amount {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Amount, String> {
        let plain = text.trim().replace('_', "");
        match (plain.parse::<usize>(), plain.parse::<f64>()) {
            (Ok(size), _) if size > 0 => Ok(Amount::Size(size)),
            (Err(_), Ok(share)) if share > 0.0 && share < 1.0 => Ok(Amount::Share(share)),
            _ => Err(format!("wanted a size of 1 or more, or a share above 0 and below 1, came {text}")),
        }
    }
}

impl std::fmt::Display for Amount {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Amount::Size(size) => write!(f, "{size}"),
            Amount::Share(share) => write!(f, "{share}"),
        }
    }
}

/// One amount for every stack, or one for the encoder and one for the decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct Amounts(pub Vec<Amount>);

impl FromStr for Amounts {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Amounts, String> {
        let amounts: Vec<Amount> = text.split(',').map(str::parse).collect::<std::result::Result<_, _>>()?;
        match amounts.len() {
            1 | 2 => Ok(Amounts(amounts)),
            n => Err(format!("wanted one value, or two for encoder and decoder, came {n}")),
        }
    }
}

impl Amounts {
    /// That of stack number `stack` of `n_stacks`.
    pub(super) fn of(&self, axis: &str, stack: usize, n_stacks: usize) -> Result<Amount> {
        match self.0.len() {
            1 => Ok(self.0[0]),
            n if n == n_stacks => Ok(self.0[stack]),
            n => Err(Error::Use(format!(
                "--{axis}: {n} values are for an encoder and a decoder, and this model has one stack; give one"
            ))),
        }
    }

    /// As it was typed.
    pub(super) fn text(&self) -> String {
        self.0.iter().map(Amount::to_string).collect::<Vec<_>>().join(",")
    }
}

/// The new size of something of size `old`: at most that, and a multiple of `step` where it comes from a share.
pub(super) fn new_size(axis: &str, amount: Amount, old: usize, step: usize) -> Result<usize> {
    match amount {
        Amount::Size(size) if size > old => {
            Err(Error::Use(format!("--{axis} {size}: wanted at most the {old} that the model has")))
        }
        Amount::Size(size) => Ok(size),
        Amount::Share(share) => {
            let steps = (share * old as f64 / step as f64).round() as usize;
            Ok((steps.max(1) * step).min(old))
        }
    }
}

/// The largest power of two that divides `old`, up to 32, and leaves 16 steps or more.
pub(super) fn step(old: usize) -> usize {
    let mut step = STEP_MAX;
    while step > 1 && (!old.is_multiple_of(step) || old / step < STEPS_MIN) {
        step /= 2;
    }
    step
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_shares_are_told_apart() {
        assert_eq!("1_024".parse(), Ok(Amount::Size(1024)));
        assert_eq!("0.8".parse(), Ok(Amount::Share(0.8)));
        for wrong in ["0", "1.0", "1.5", "-3", "0.0", "nan", "x", ""] {
            assert!(wrong.parse::<Amount>().is_err(), "{wrong}");
        }
        assert_eq!("4,0.5".parse::<Amounts>().unwrap().0, [Amount::Size(4), Amount::Share(0.5)]);
        assert!("1,2,3".parse::<Amounts>().is_err());
    }

    #[test]
    fn shares_are_rounded_to_steps() {
        assert_eq!((step(1536), step(576), step(22), step(3)), (32, 32, 1, 1));
        assert_eq!(new_size("ffn", Amount::Share(0.8), 1536, 32).unwrap(), 1216);
        assert_eq!(new_size("ffn", Amount::Share(0.001), 1536, 32).unwrap(), 32);
        assert_eq!(new_size("ffn", Amount::Size(1000), 1536, 32).unwrap(), 1000);
        assert!(new_size("ffn", Amount::Size(1537), 1536, 32).is_err());
    }
}
