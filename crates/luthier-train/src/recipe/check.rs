//! Whether a recipe's values make sense, alone and beside each other.

use luthier_checkpoint::gguf::is_gguf_name;

use super::{
    DecayShape, DenoiserKind, DistillationRecipe, ObjectiveName, PrefixLmRecipe, Recipe, ScheduleName,
    Ul2Recipe,
};
use crate::{Error, Result};

/// As many as the command line takes.
const MAX_THREADS: u64 = 1024;

impl Recipe {
    pub(super) fn check_data(&self) -> Result<()> {
        if self.data.train.is_empty() {
            return Err(Error::recipe("data.train", "no file given; list at least one text file"));
        }
        if let Some(fraction) = self.data.validation_fraction {
            if !(fraction > 0.0 && fraction < 1.0) {
                return Err(Error::recipe(
                    "data.validation_fraction",
                    format!("wanted 0 < x < 1, came {fraction}"),
                ));
            }
            if !self.data.validation.is_empty() {
                let what = "stands beside data.validation; keep one of the two";
                return Err(Error::recipe("data.validation_fraction", what));
            }
        }
        Ok(())
    }

    pub(super) fn check_out(&self) -> Result<()> {
        if is_gguf_name(&self.out) {
            let what = format!(
                "{}: a run is a folder; take another name, and convert the trained folder to GGUF afterwards",
                self.out.display()
            );
            return Err(Error::recipe("out", what));
        }
        Ok(())
    }

    pub(super) fn check_lengths(&self) -> Result<()> {
        at_least("sequence_length", self.sequence_length, 2)?;
        at_least("batch_size", self.batch_size, 1)?;
        at_least("gradient_accumulation", self.gradient_accumulation, 1)?;
        // Positions and row counts are u32 in the model's tables.
        if self.batch_size.saturating_mul(self.sequence_length) > u64::from(u32::MAX) {
            let what = format!(
                "{} times sequence_length {} tokens do not fit a step",
                self.batch_size, self.sequence_length
            );
            return Err(Error::recipe("batch_size", what));
        }
        if !self.batch_size.is_multiple_of(self.gradient_accumulation) {
            let what =
                format!("{} does not divide batch_size {}", self.gradient_accumulation, self.batch_size);
            return Err(Error::recipe("gradient_accumulation", what));
        }
        match (self.steps, self.tokens) {
            (None, None) => return Err(Error::recipe("steps", "missing; give steps or tokens")),
            (Some(_), Some(_)) => {
                return Err(Error::recipe("tokens", "stands beside steps; keep one of the two"));
            }
            (Some(steps), None) => at_least("steps", steps, 1)?,
            (None, Some(tokens)) => at_least("tokens", tokens, 1)?,
        }
        for (key, value) in [
            ("validate_every_steps", self.validate_every_steps),
            ("checkpoint_every_steps", self.checkpoint_every_steps),
            ("keep_checkpoints", self.keep_checkpoints),
            ("threads", self.threads),
        ] {
            at_least(key, value.unwrap_or(1), 1)?;
        }
        if self.threads.is_some_and(|threads| threads > MAX_THREADS) {
            let threads = self.threads.unwrap_or_default();
            return Err(Error::recipe("threads", format!("wanted at most {MAX_THREADS}, came {threads}")));
        }
        if self.memory.is_some() && self.recompute_layers > 0 {
            return Err(Error::recipe(
                "recompute_layers",
                "stands beside memory, which decides it; keep one of the two",
            ));
        }
        at_least("validation_tokens", self.validation_tokens, 1)
    }

    pub(super) fn check_optimizer(&self) -> Result<()> {
        let optimizer = &self.optimizer;
        within("optimizer.lr_peak", optimizer.lr_peak, f64::MIN_POSITIVE, f64::MAX)?;
        for beta in optimizer.betas {
            if !(0.0..1.0).contains(&beta) {
                return Err(Error::recipe("optimizer.betas", format!("wanted 0 <= beta < 1, came {beta}")));
            }
        }
        within("optimizer.weight_decay", optimizer.weight_decay, 0.0, f64::MAX)?;
        within("optimizer.eps", optimizer.eps, f64::MIN_POSITIVE, f64::MAX)?;
        if let Some(coefficient) = self.router_aux_loss_coef {
            within("router_aux_loss_coef", coefficient, 0.0, f64::MAX)?;
        }
        match self.gradient_clip {
            Some(clip) => within("gradient_clip", clip, f64::MIN_POSITIVE, f64::MAX),
            None => Ok(()),
        }
    }

    pub(super) fn check_schedule(&mut self) -> Result<()> {
        let total = self.total_steps();
        let schedule = &mut self.schedule;
        let key_of_another = |key: &str, name: &str| {
            Error::recipe(key, format!("means nothing to schedule {name}; remove it"))
        };
        match schedule.name {
            ScheduleName::Wsd => {
                let decay = schedule
                    .decay_steps
                    .ok_or_else(|| Error::recipe("schedule.decay_steps", "missing; schedule wsd needs it"))?;
                let needed = schedule.warmup_steps.saturating_add(decay);
                if needed > total {
                    let what = format!("warm-up and decay take {needed} steps, the run has {total}");
                    return Err(Error::recipe("schedule.decay_steps", what));
                }
                schedule.decay_shape.get_or_insert(DecayShape::Sqrt);
                schedule.lr_min.get_or_insert(0.0);
            }
            ScheduleName::Cosine => {
                if schedule.warmup_steps > total {
                    let what = format!("is {}, the run has {total} steps", schedule.warmup_steps);
                    return Err(Error::recipe("schedule.warmup_steps", what));
                }
                if schedule.decay_shape.is_some() {
                    return Err(key_of_another("schedule.decay_shape", "cosine"));
                }
                schedule.decay_steps.get_or_insert(total - schedule.warmup_steps);
                schedule.lr_min.get_or_insert(0.0);
            }
            ScheduleName::Constant => {
                for (key, given) in [
                    ("schedule.decay_steps", schedule.decay_steps.is_some()),
                    ("schedule.decay_shape", schedule.decay_shape.is_some()),
                    ("schedule.lr_min", schedule.lr_min.is_some()),
                ] {
                    if given {
                        return Err(key_of_another(key, "constant"));
                    }
                }
            }
        }
        let lr_min = schedule.lr_min.unwrap_or(0.0);
        within("schedule.lr_min", lr_min, 0.0, self.optimizer.lr_peak)
    }

    pub(super) fn resolve_objective(&mut self) -> Result<()> {
        let not_this = |key: &str, name: &str| {
            Error::recipe(key, format!("means nothing without objective: {name}; remove it"))
        };
        match self.objective {
            ObjectiveName::PrefixLm => {
                let split = self.prefixlm.get_or_insert(PrefixLmRecipe { prefix_fraction: [0.25, 0.75] });
                let [low, high] = split.prefix_fraction;
                if !(low > 0.0 && low <= high && high < 1.0) {
                    let what = format!("wanted 0 < low <= high < 1, came [{low}, {high}]");
                    return Err(Error::recipe("prefixlm.prefix_fraction", what));
                }
            }
            ObjectiveName::Ul2 => self.ul2.get_or_insert_with(Ul2Recipe::of_the_paper).check()?,
            ObjectiveName::NextToken => {}
        }
        if self.prefixlm.is_some() && self.objective != ObjectiveName::PrefixLm {
            return Err(not_this("prefixlm", "prefixlm"));
        }
        if self.ul2.is_some() && self.objective != ObjectiveName::Ul2 {
            return Err(not_this("ul2", "ul2"));
        }
        match (&self.teacher, &self.distillation) {
            (None, Some(_)) => {
                Err(Error::recipe("distillation", "stands without a teacher; name one, or remove it"))
            }
            (Some(_), None) => {
                self.distillation = Some(DistillationRecipe { teacher_share: 1.0, temperature: 1.0 });
                Ok(())
            }
            (Some(_), Some(distillation)) => {
                within("distillation.teacher_share", distillation.teacher_share, 0.0, 1.0)?;
                within("distillation.temperature", distillation.temperature, 1e-3, 1e3)
            }
            (None, None) => Ok(()),
        }
    }
}

impl Ul2Recipe {
    fn check(&self) -> Result<()> {
        if self.denoisers.is_empty() {
            return Err(Error::recipe("ul2.denoisers", "is empty; list at least one"));
        }
        for denoiser in &self.denoisers {
            within("ul2.denoisers.share", denoiser.share, f64::MIN_POSITIVE, 1e9)?;
            if !(denoiser.density > 0.0 && denoiser.density < 1.0) {
                let what = format!("wanted 0 < x < 1, came {}", denoiser.density);
                return Err(Error::recipe("ul2.denoisers.density", what));
            }
            match (denoiser.kind, denoiser.mean_span) {
                (DenoiserKind::S, Some(_)) => {
                    return Err(Error::recipe(
                        "ul2.denoisers.mean_span",
                        "means nothing to kind S; remove it",
                    ));
                }
                (DenoiserKind::R | DenoiserKind::X, None) => {
                    return Err(Error::recipe("ul2.denoisers.mean_span", "missing; kinds R and X need it"));
                }
                (_, Some(mean_span)) => within("ul2.denoisers.mean_span", mean_span, 1.0, 1e6)?,
                (_, None) => {}
            }
        }
        Ok(())
    }
}

fn at_least(key: &str, value: u64, least: u64) -> Result<()> {
    if value < least {
        return Err(Error::recipe(key, format!("wanted {least} or more, came {value}")));
    }
    Ok(())
}

/// NaN lies in no range. The smallest positive number and the largest one stand for open ends.
fn within(key: &str, value: f64, low: f64, high: f64) -> Result<()> {
    if value >= low && value <= high {
        return Ok(());
    }
    let wanted = match (low == f64::MIN_POSITIVE, high == f64::MAX) {
        (true, true) => "a number above 0".to_string(),
        (false, true) => format!("{low} or more"),
        (true, false) => format!("a number above 0, at most {high}"),
        (false, false) => format!("{low} to {high}"),
    };
    Err(Error::recipe(key, format!("wanted {wanted}, came {value}")))
}
