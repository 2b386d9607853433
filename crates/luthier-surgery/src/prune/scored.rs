//! Scores in the terms of a layout, from a file or, as a baseline, from a seed.

use luthier_arch::random::Stream;
use luthier_arch::sizes::HeadSizes;
use luthier_checkpoint::Scores;
use luthier_checkpoint::layout::{Layout, Part, Role, Space, StackKind};

use crate::{Error, Result};

/// Where importance comes from.
pub(super) struct Scored {
    scores: Option<Scores>,
    /// Importance is drawn from this seed; what is measured besides is kept.
    random: Option<u64>,
}

impl Scored {
    pub(super) fn new(scores: Option<Scores>, random: Option<u64>) -> Scored {
        Scored { scores, random }
    }

    /// What was measured, where there is anything.
    pub(super) fn take(&mut self) -> Option<Scores> {
        self.scores.take()
    }

    fn get(&self, name: &str, len: usize) -> Result<Vec<f64>> {
        if let Some(seed) = self.random {
            return Ok(drawn(name, seed, len));
        }
        self.measured(name, len)
    }

    fn measured(&self, name: &str, len: usize) -> Result<Vec<f64>> {
        let missing = || {
            Error::Use(
                "--scores: wanted a file that luthier score wrote of this model, to choose what is kept"
                    .to_string(),
            )
        };
        let scores = self.scores.as_ref().ok_or_else(missing)?.get(name, len)?;
        Ok(scores.iter().map(|score| f64::from(*score)).collect())
    }

    /// Block influence of each layer.
    pub(super) fn influence(&self, stack: StackKind, n_layers: usize) -> Result<Vec<f64>> {
        let name = match stack {
            StackKind::Decoder => "block_influence.decoder",
            StackKind::Encoder => "block_influence.encoder",
        };
        self.get(name, n_layers)
    }

    /// Neurons of the feed-forward block whose down projection stands at `role`.
    pub(super) fn neurons(&self, layout: &Layout, role: Role, len: usize) -> Result<Vec<f64>> {
        self.get(&format!("neurons.{}", name_at(layout, role)?), len)
    }

    /// Routed experts of the router that stands at `role`.
    pub(super) fn experts(&self, layout: &Layout, role: Role, len: usize) -> Result<Vec<f64>> {
        self.get(&format!("experts.{}", name_at(layout, role)?), len)
    }

    /// Heads and groups of the attention whose output projection stands at `role`.
    pub(super) fn heads(
        &self,
        layout: &Layout,
        role: Role,
        sizes: HeadSizes,
    ) -> Result<(Vec<f64>, Vec<f64>)> {
        let name = name_at(layout, role)?;
        Ok((self.get(&format!("heads.{name}"), sizes.query)?, self.get(&format!("groups.{name}"), sizes.kv)?))
    }

    /// Channels of a stack: the sum over the norms that its blocks read, in these layers, and those outside of all.
    pub(super) fn channels(
        &self,
        layout: &Layout,
        stack: StackKind,
        layers: &[usize],
        width: usize,
    ) -> Result<Vec<f64>> {
        let mut sums = vec![0f64; width];
        for spec in
            layout.tensors.iter().filter(|spec| spec.role.stack == stack && spec.spaces == [Space::Residual])
        {
            let counts = match spec.role.part {
                Part::SelfAttentionNorm
                | Part::CrossAttentionNorm
                | Part::FeedForwardNorm
                | Part::SelfAttentionSumNorm
                | Part::FeedForwardSumNorm => spec.role.layer.is_some_and(|layer| layers.contains(&layer)),
                Part::FinalNorm | Part::EmbeddingNorm => true,
                _ => false,
            };
            if counts {
                let scores = self.get(&format!("channels.{}", spec.name), width)?;
                sums.iter_mut().zip(scores).for_each(|(sum, score)| *sum += score);
            }
        }
        Ok(sums)
    }

    /// The mean share of these channels in the energy that a norm reads.
    pub(super) fn kept_energy(&self, norm: &str, channels: &[usize], width: usize) -> Result<f64> {
        let energy = self.measured(&format!("energy.{norm}"), width)?;
        Ok(channels.iter().map(|channel| energy[*channel]).sum::<f64>()
            / energy.iter().sum::<f64>().max(f64::MIN_POSITIVE))
    }

    /// Where these channels lie on average as a norm reads them that takes the mean off, in deviations of the token.
    pub(super) fn kept_shift(&self, norm: &str, channels: &[usize], width: usize) -> Result<f64> {
        let shift = self.measured(&format!("shift.{norm}"), width)?;
        Ok(channels.iter().map(|channel| shift[*channel]).sum::<f64>() / channels.len().max(1) as f64)
    }

    /// Trial cuts of an axis: the part of its scores that was gone, and nats of a token more; in order. None where scores
    /// are drawn: their parts are others.
    pub(super) fn trials(&self, axis: &str) -> Vec<(f64, f64)> {
        let measured = self.scores.as_ref().filter(|_| self.random.is_none());
        let Some(values) = measured.and_then(|scores| scores.tensors.get(&format!("trial_cuts.{axis}")))
        else {
            return Vec::new();
        };
        let pairs = values.chunks_exact(2).map(|pair| (f64::from(pair[0]), f64::from(pair[1])));
        let mut trials: Vec<(f64, f64)> = pairs.filter(|(part, _)| *part > 0.0).collect();
        trials.sort_by(|a, b| a.0.total_cmp(&b.0));
        trials
    }

    /// The size of each input of a matrix over the text.
    pub(super) fn inputs(&self, matrix: &str, len: usize) -> Result<Vec<f64>> {
        self.measured(&format!("inputs.{matrix}"), len)
    }
}

fn name_at(layout: &Layout, role: Role) -> Result<&str> {
    let spec = layout.at(role);
    let missing = || {
        Error::Use(format!("this model has no {:?} in layer {:?}, which is to be cut", role.part, role.layer))
    };
    Ok(spec.ok_or_else(missing)?.name.as_str())
}

/// Numbers from 0 to 1 that depend on name and seed alone.
fn drawn(name: &str, seed: u64, len: usize) -> Vec<f64> {
    let mut stream = Stream::named(name, seed);
    (0..len).map(|_| stream.uniform()).collect()
}
